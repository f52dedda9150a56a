"""l_s: how far two predictions are apart, the distance both of SMART's terms are made of.

    categorical   KL(p || q) + KL(q || p),  p = softmax(a), q = softmax(b)
    bernoulli     the same on p = sigmoid(a), q = sigmoid(b)
    squared       (a - b)^2

Source: Jiang et al. 2019 (SMART, arXiv 1911.03437), section 3.1. The formulas of the divergences and of their gradients
are in ``smartcs.ops.symmetric_kl``.
"""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from smartcs import ops
from smartcs.ops.checks import check_float, check_like
from smartcs.ops.random import compute_dtype
from smartcs.ops.symmetric_kl import Reduction

Smoothness = Literal["categorical", "bernoulli", "squared"]
PairLoss = Callable[[Tensor, Tensor], Tensor]


def smoothness_loss(
    a: Tensor, b: Tensor, kind: Smoothness, *, reduction: Reduction = "mean", detach_targets: bool = False
) -> Tensor:
    """l_s(a, b), with gradients to both.

    Args:
        a: "categorical": (..., K) class logits, an example per row. "bernoulli" and "squared": (...) logits or values,
            an example per element. float32, float64 or bfloat16.
        b: Shape, dtype and device of a.
        kind: Which distance.
        reduction: Over the examples: "mean", "sum", or "none" for one number each.
        detach_targets: The divergences' gradients as in the published code, which treats the target of each KL term as
            a constant. The squared difference is one term and has no such form: nothing changes.

    Returns:
        float32, or float64 for float64 predictions. The mean of no examples is 0.

    Raises:
        ValueError: shapes or devices differ, or an option is unknown.
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
    """
    check_option("smoothness_loss", "kind", kind, Smoothness)
    check_option("smoothness_loss", "reduction", reduction, Reduction)
    check_float("smoothness_loss", "a", a)
    check_like("smoothness_loss", "b", b, a.shape, a, "a")
    if kind != "squared":
        return ops.symmetric_kl(a, b, distribution=kind, reduction=reduction, detach_targets=detach_targets)
    losses = (a.to(compute_dtype(a)) - b.to(compute_dtype(b))).square()
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / max(losses.numel(), 1)


def scalar_loss(owner: str, loss: PairLoss, output: Tensor, target: Tensor) -> Tensor:
    """A callable's loss, 0-dim. Raises TypeError or ValueError unless it is one number."""
    value = loss(output, target)
    check_float(owner, "the loss", value)
    if value.numel() != 1:
        raise ValueError(f"{owner}: the loss has shape {tuple(value.shape)}, expected a scalar")
    return value.reshape(())


def check_option(owner: str, name: str, got: object, known: object) -> None:
    """Raises ValueError unless ``got`` is one of the strings of the Literal ``known``."""
    if got not in get_args(known):
        raise ValueError(f"{owner}: {name} is {got!r}, expected one of {', '.join(map(str, get_args(known)))}")
