"""symmetric_kl: the symmetrised Kullback-Leibler divergence of two predictions, from their logits a and b.

Categorical, p = softmax(a), q = softmax(b) over the last axis:

    l = KL(p || q) + KL(q || p) = sum_k (p_k - q_k) x_k,   x_k = log(p_k / q_k)
    dl/da_k = (p_k - q_k) + p_k (x_k - sum_j p_j x_j),     dl/db_k = (q_k - p_k) - q_k (x_k - sum_j q_j x_j)

Bernoulli, p = sigmoid(a), q = sigmoid(b), every element on its own:

    l = (p - q) (a - b),   dl/da = (p - q) + p (1 - p) (a - b),   dl/db = (q - p) - q (1 - q) (a - b)

SMART compares logits that agree to five digits, where p - q and log p - log q lose every digit they have. With
d = a - b, exact for neighbouring floats, x_k = d_k - log sum_j q_j exp(d_j) through log1p and expm1 of small numbers,
and p_k - q_k = q_k expm1(x_k). Far apart, the plain difference is the better one. For Bernoulli the product
p - q = sigmoid(a) sigmoid(-b) (1 - exp(-d)) never cancels. Every term of the sum is non-negative.

``detach_targets`` gives the published code's gradient (mt-dnn, smart-pytorch), which treats the other side of each KL
term as a constant: dl/da = p - q, dl/db = q - p, at the same value of l.

Source: Jiang et al. 2019 (SMART, arXiv 1911.03437), section 3.1, l_s.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .autograd import once_differentiable
from .backend import use_fused
from .checks import check_float, check_like
from .random import compute_dtype

Distribution = Literal["categorical", "bernoulli"]
Reduction = Literal["mean", "sum", "none"]


def symmetric_kl(
    a: Tensor,
    b: Tensor,
    *,
    distribution: Distribution = "categorical",
    reduction: Reduction = "mean",
    detach_targets: bool = False,
) -> Tensor:
    """KL(p || q) + KL(q || p) of the predictions with logits a and b, with gradients to both.

    Args:
        a: (..., K) class logits, or for "bernoulli" (...) binary logits. float32, float64 or bfloat16 (any floating
            dtype on the reference). A class may be masked by -inf on both sides; masked on one side only, the loss is
            infinite and has no gradient.
        b: Shape, dtype and device of a.
        distribution: "categorical" over the last axis, or "bernoulli" per element.
        reduction: Over the distributions: "mean", "sum", or "none" for shape (...).
        detach_targets: Use the published code's gradients instead of the true ones.

    Returns:
        float32, or float64 for float64 logits. The mean of no distributions is 0.

    Raises:
        ValueError: shapes or devices differ, or an option is unknown.
        TypeError: an argument is not a floating-point tensor, or dtypes differ.
    """
    check_float("symmetric_kl", "a", a)
    check_like("symmetric_kl", "b", b, a.shape, a, "a")
    for name, got, known in (
        ("distribution", distribution, get_args(Distribution)),
        ("reduction", reduction, get_args(Reduction)),
    ):
        if got not in known:
            raise ValueError(f"symmetric_kl: {name} is {got!r}, expected one of {', '.join(known)}")
    bernoulli = distribution == "bernoulli"
    if not bernoulli and (a.dim() == 0 or a.shape[-1] == 0):
        raise ValueError(f"symmetric_kl: a has shape {tuple(a.shape)}, expected (..., K) with K > 0")
    shape = a.shape if bernoulli else a.shape[:-1]
    classes = 1 if bernoulli else a.shape[-1]
    rows = a.reshape(-1, classes), b.reshape(-1, classes)
    implementation = _SymmetricKl.apply if use_fused("symmetric_kl", a) else symmetric_kl_reference
    losses = implementation(*rows, bernoulli, detach_targets)
    if reduction == "none":
        return losses.reshape(shape)
    total = losses.sum()
    return total / losses.numel() if reduction == "mean" and losses.numel() > 0 else total


def symmetric_kl_reference(a: Tensor, b: Tensor, bernoulli: bool, detach_targets: bool) -> Tensor:
    """The formulas in plain PyTorch on (N, K) logits; (N,) losses."""
    a, b = a.to(compute_dtype(a)), b.to(compute_dtype(b))
    if detach_targets:
        # (p - q) * (a - b) with p - q constant has the published gradients. Its value is written as the stable loss, so
        # that both forms agree to the last bit, and the rest as differences that are 0 but carry a gradient.
        value = symmetric_kl_reference(a.detach(), b.detach(), bernoulli, False)
        gap, _ = _gap_and_log_ratio(a.detach(), b.detach(), bernoulli)
        return value + (gap * (_zero(a) - _zero(b))).sum(dim=-1)
    gap, log_ratio = _gap_and_log_ratio(a, b, bernoulli)
    # Where both probabilities have underflowed to 0, log(p / q) may be infinite and 0 * inf is not the limit.
    return (gap * torch.where(gap == 0, torch.zeros_like(gap), log_ratio)).sum(dim=-1)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b, but 0 for a class masked by -inf on both sides. Other ties keep a - b, for its gradient."""
    masked = (a == b) & a.isinf()
    return a.masked_fill(masked, 0) - b.masked_fill(masked, 0)


def _zero(x: Tensor) -> Tensor:
    """0 with the gradient of x, where x is finite."""
    return torch.where(torch.isfinite(x), x - x.detach(), torch.zeros_like(x))


def _gap_and_log_ratio(a: Tensor, b: Tensor, bernoulli: bool) -> tuple[Tensor, Tensor]:
    """p - q and log(p / q); for Bernoulli the latter's difference between the two outcomes, which is a - b."""
    zero = torch.zeros((), dtype=a.dtype, device=a.device)
    d = _difference(a, b)
    if bernoulli:
        # p - q = sigmoid(a) sigmoid(-b) (1 - exp(-d)), and its mirror image where that exponential could overflow.
        above = torch.sigmoid(a) * torch.sigmoid(-b) * -torch.expm1(-d.clamp(min=0))
        below = torch.sigmoid(-a) * torch.sigmoid(b) * torch.expm1(d.clamp(max=0))
        return torch.where(d > 0, above, below), d
    p, q = torch.softmax(a, dim=-1), torch.softmax(b, dim=-1)
    # Centred at b's likeliest class, which no class that is masked on both sides can be; nor does one count as far.
    likeliest = b == b.amax(dim=-1, keepdim=True)
    top = d.detach().masked_fill(~likeliest, -torch.inf).amax(dim=-1, keepdim=True)
    top = torch.where(top.isinf(), zero, top)  # a class masked in b alone: the loss is infinite, not inf - inf
    e = (d - top).masked_fill((a == b) & a.isinf(), 0)
    is_near = (e.abs() < 0.5).all(dim=-1, keepdim=True)
    # Both arms of a where are differentiated: the one not taken must stay finite.
    near = torch.log1p((q * torch.expm1(torch.where(is_near, e, zero))).sum(dim=-1, keepdim=True))
    far = a.logsumexp(dim=-1, keepdim=True) - b.logsumexp(dim=-1, keepdim=True) - top
    x = e - torch.where(is_near, near, far)
    small = torch.where(x.abs() < 0.5, x, zero)
    return torch.where(x.abs() < 0.5, q * torch.expm1(small), p - q), x


class _SymmetricKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bernoulli: bool, detach_targets: bool) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        ctx.save_for_backward(a, b)
        ctx.options = (bernoulli, detach_targets)
        return torch.ops.smartcs.symmetric_kl_fwd(a, b, bernoulli)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        need_a, need_b = ctx.needs_input_grad[:2]
        da, db = torch.ops.smartcs.symmetric_kl_bwd(grad_loss.contiguous(), a, b, *ctx.options, need_a, need_b)
        return da if need_a else None, db if need_b else None, None, None


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::symmetric_kl_fwd")
    def _(a, b, bernoulli):  # type: ignore[no-untyped-def]
        return a.new_empty(a.shape[0], dtype=compute_dtype(a))

    @torch.library.register_fake("smartcs::symmetric_kl_bwd")
    def _(grad_loss, a, b, bernoulli, detach_targets, need_a, need_b):  # type: ignore[no-untyped-def]
        return tuple(torch.empty_like(a) if need else a.new_empty(0) for need in (need_a, need_b))
