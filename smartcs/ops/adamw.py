"""adamw: one optimizer step of a whole model, and its anchor's, in one pass over memory.

With g a parameter's gradient, t its count of steps including this one, all elementwise:

    g <- g min(1, max_grad_norm / (||g of all parameters||_2 + 1e-6))
    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) g^2
    theta <- (1 - lr weight_decay) theta - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
    anchor <- anchor + anchor_weight (theta - anchor)

A parameter without gradient keeps its moments, count and values; its anchor moves. If the norm is not finite, nothing
changes at all. The norm is summed in float64 over pieces of fixed size, so it too is the same for any thread count.

A schedule, two numbers in device memory, holds what changes from step to step: a factor of every lr, and the anchor
weight. A CUDA graph that has captured a step reads them anew at every replay.

Sparse gradients mean what the dense ones with zeros in the other rows mean. A row that never had a gradient has zero
moments and stays where it is, but for the decay: the fused op passes over it. ``row_flags`` say which rows those are,
and for which rows the anchor equals the parameter, so that it need not move either. A row that once had a gradient is
updated in every step.

Source: Loshchilov & Hutter 2019 (arXiv 1711.05101); the norm and its 1e-6 as in ``torch.nn.utils.clip_grad_norm_``, but
gradients are left as they are; the anchor is that of ``smartcs.smart.BregmanAnchor``.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from .backend import get_backend, use_fused
from .checks import check_device, check_float, check_like, check_tensor

HAS_MOMENTS, ANCHOR_DIFFERS = 1, 2  # the bits of a row's flag

_ABSENT = torch.empty(0)


class AdamWSettings(NamedTuple):
    """The numbers of a parameter group."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


class AdamWTensors(NamedTuple):
    """All there is of one parameter.

    Attributes:
        parameter: any shape; float32 or float64 for the fused op, and contiguous.
        grad: like the parameter, strided or sparse COO with one sparse dimension; None if it has none.
        exp_avg, exp_avg_sq, step: its state, written; may be None without gradient. step is 0-dim, float32 or float64.
        settings: the numbers of its group.
        anchor: like the parameter, written; or None.
        packed, packed_t: the packed forms of the new values, see ``packed_weights``, written by the fused op; or None.
            Only for float32 parameters with a gradient that is not sparse; on a GPU there is no packed_t. (The anchor's
            form is made when a product reads it: once in three steps.)
        row_flags: (rows,) uint8, written; needed with a sparse gradient. HAS_MOMENTS must be set for every row whose
            moments are not 0, ANCHOR_DIFFERS for every row that does not equal its anchor, if there is one.
    """

    parameter: Tensor
    grad: Tensor | None
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    step: Tensor | None
    settings: AdamWSettings
    anchor: Tensor | None = None
    packed: Tensor | None = None
    packed_t: Tensor | None = None
    row_flags: Tensor | None = None


def adamw(
    tensors: Sequence[AdamWTensors],
    *,
    max_grad_norm: float | None = None,
    anchor_weight: float = 0.0,
    schedule: Tensor | None = None,
) -> Tensor | None:
    """Takes one step of all tensors; call it within ``torch.no_grad()``. On a GPU the fused op never waits for it.

    Args:
        tensors: one entry per parameter.
        max_grad_norm: the global norm to which the gradients are scaled down; math.inf only measures. None: no norm.
        anchor_weight: the share of the way that anchors move, in [0, 1]; 0 leaves them alone.
        schedule: (2,), float64, on the parameters' device: a factor of every lr, and a weight that takes the place of
            `anchor_weight`. A GPU does not check that weight.

    Returns:
        The norm before clipping, 0-dim float64; None without `max_grad_norm`. If it is not finite, nothing was changed.

    Raises:
        ValueError: a number is out of range, or a tensor has another shape or device than its parameter.
        TypeError: a parameter is not floating-point, or a tensor has another dtype than its parameter.
        IndexError: a sparse gradient names a row that its parameter does not have.
    """
    _check_weight(anchor_weight)
    check_max_grad_norm("adamw", max_grad_norm)
    if schedule is not None:
        _check_schedule(schedule, tensors)
    for index, entry in enumerate(tensors):
        _check(index, entry)
    if fusable(tensors):
        return _fused(tensors, max_grad_norm, anchor_weight, schedule)
    return adamw_reference(tensors, max_grad_norm, anchor_weight, schedule)


def check_max_grad_norm(owner: str, value: float | None) -> None:
    """Raises ValueError unless ``value`` is None or positive."""
    if value is not None and not value > 0:
        raise ValueError(f"{owner}: max_grad_norm is {value}, expected a positive number or None")


def fusable(tensors: Sequence[AdamWTensors]) -> bool:
    """Whether the fused op takes these."""
    if not tensors or not use_fused("adamw", tensors[0].parameter):
        return False
    device = tensors[0].parameter.device
    return all(_fits(entry, device) for entry in tensors)


def _fits(entry: AdamWTensors, device: torch.device) -> bool:
    p, grad, step = entry.parameter, entry.grad, entry.step
    fits = p.dtype in (torch.float32, torch.float64) and p.device == device and p.is_contiguous()
    fits = fits and (entry.anchor is None or entry.anchor.is_contiguous())
    if device.type == "cpu":
        return fits
    cpu_only = entry.packed_t, entry.row_flags
    fits = fits and all(t is None for t in cpu_only) and (grad is None or not grad.is_sparse)
    return fits and (step is None or step.device == device)


def _check_weight(anchor_weight: float) -> None:
    if not 0 <= anchor_weight <= 1:
        raise ValueError(f"adamw: anchor_weight is {anchor_weight}, expected 0 <= anchor_weight <= 1")


def _check_schedule(schedule: Tensor, tensors: Sequence[AdamWTensors]) -> None:
    check_tensor("adamw", "schedule", schedule)
    if schedule.dtype != torch.float64 or schedule.shape != (2,):
        raise ValueError(
            f"adamw: schedule is {schedule.dtype} of shape {tuple(schedule.shape)}, "
            "expected torch.float64 of shape (2,)"
        )
    if tensors:
        check_device("adamw", "schedule", schedule, tensors[0].parameter, "the parameters")


def _check(index: int, entry: AdamWTensors) -> None:
    p, grad = entry.parameter, entry.grad
    if not (p.dtype is torch.float32 or p.dtype is torch.float64):
        check_float("adamw", f"tensors[{index}].parameter", p)
    like = {"anchor": entry.anchor}
    if grad is not None:
        like |= {"grad": grad, "exp_avg": entry.exp_avg, "exp_avg_sq": entry.exp_avg_sq}
        if entry.step is None or entry.exp_avg is None or entry.exp_avg_sq is None:
            raise ValueError(f"adamw: tensors[{index}] has a gradient, expected exp_avg, exp_avg_sq and step with it")
        if grad.is_sparse:
            _check_sparse(index, entry, grad)
    for name, value in like.items():
        if value is None or (value.shape == p.shape and value.dtype == p.dtype and value.device == p.device):
            continue
        check_like("adamw", f"tensors[{index}].{name}", value, p.shape, p, "its parameter")


def _check_sparse(index: int, entry: AdamWTensors, grad: Tensor) -> None:
    where = f"adamw: tensors[{index}]"
    if entry.parameter.dim() != 2 or grad.sparse_dim() != 1:
        raise ValueError(
            f"{where}.grad is sparse in {grad.sparse_dim()} of {grad.dim()} dimensions, expected rows of a matrix"
        )
    if entry.row_flags is None:
        raise ValueError(f"{where}.row_flags is None, expected one number per row for a sparse gradient")
    if entry.row_flags.shape != entry.parameter.shape[:1] or entry.row_flags.dtype != torch.uint8:
        raise ValueError(
            f"{where}.row_flags is {entry.row_flags.dtype} of shape {tuple(entry.row_flags.shape)}, "
            f"expected torch.uint8 of shape {tuple(entry.parameter.shape[:1])}"
        )


def _fused(
    tensors: Sequence[AdamWTensors], max_grad_norm: float | None, anchor_weight: float, schedule: Tensor | None
) -> Tensor | None:
    parameters, grads, *state, settings, anchors, packed, packed_t, flags = zip(*tensors, strict=True)
    rows: list[Tensor | None] = []
    values: list[Tensor | None] = []
    for grad in grads:
        sparse = grad is not None and grad.is_sparse
        rows.append(grad._indices()[0].contiguous() if sparse else None)
        values.append(None if grad is None else (grad._values() if sparse else grad).contiguous())
    extras = (_present(some) for some in (anchors, packed, packed_t, flags))
    norm: Tensor = torch.ops.smartcs.adamw_step(
        parameters,
        values,
        rows if any(row is not None for row in rows) else [],
        *([_ABSENT if t is None else t for t in some] for some in state),
        *extras,
        *zip(*settings, strict=True),
        max_grad_norm,
        anchor_weight,
        None if schedule is None else schedule.contiguous(),
    )
    return None if max_grad_norm is None else norm


def _present(some: Sequence[Tensor | None]) -> list[Tensor]:
    if all(t is None for t in some):
        return []
    return [_ABSENT if t is None else t for t in some]


def adamw_reference(
    tensors: Sequence[AdamWTensors],
    max_grad_norm: float | None,
    anchor_weight: float,
    schedule: Tensor | None = None,
) -> Tensor | None:
    """The formulas by torch's own functions; sparse gradients are made dense, packed forms are left as they are.

    Waits for the device: for the norm, and for the schedule.
    """
    if schedule is not None:
        factor, anchor_weight = schedule.tolist()
        _check_weight(anchor_weight)
        tensors = [e._replace(settings=e.settings._replace(lr=e.settings.lr * factor)) for e in tensors]
    updated = [entry for entry in tensors if entry.grad is not None]
    grads = [
        entry.grad.to_dense() if entry.grad.is_sparse else entry.grad for entry in updated if entry.grad is not None
    ]
    norm = None
    if max_grad_norm is not None:
        norm = _norm(grads)
        if not math.isfinite(norm):
            return norm
        if max_grad_norm < math.inf:
            scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1)
            grads = [grad * scale.to(grad) for grad in grads]
    # torch's fused kernel is the fastest there is where ours is not.
    fused = get_backend() == "fused"

    def group_of(pair: tuple[AdamWTensors, Tensor]) -> Any:
        return pair[0].settings, pair[0].parameter.device.type

    for (settings, device), pairs in groupby(zip(updated, grads, strict=True), key=group_of):
        entries, group_grads = zip(*pairs, strict=True)
        torch_adamw(
            [entry.parameter for entry in entries],
            list(group_grads),
            [entry.exp_avg for entry in entries],
            [entry.exp_avg_sq for entry in entries],
            [],
            [entry.step for entry in entries],
            foreach=False,
            fused=fused and device in ("cpu", "cuda") and all(e.step.device == e.parameter.device for e in entries),
            amsgrad=False,
            maximize=False,
            **settings._asdict(),
        )
    for entry in tensors:
        if entry.row_flags is not None:
            entry.row_flags.fill_(HAS_MOMENTS | ANCHOR_DIFFERS)
    move_anchors([(entry.anchor, entry.parameter) for entry in tensors if entry.anchor is not None], anchor_weight)
    return norm


def move_anchors(pairs: Sequence[tuple[Tensor, Tensor]], weight: float) -> None:
    """anchor <- anchor + weight (parameter - anchor) of all pairs (anchor, parameter)."""
    anchors, parameters = [anchor for anchor, _ in pairs], [parameter for _, parameter in pairs]
    if not pairs or weight == 0:
        return
    if weight == 1:
        torch._foreach_copy_(anchors, parameters)
    else:
        torch._foreach_lerp_(anchors, parameters, weight)


def _norm(grads: Sequence[Tensor]) -> Tensor:
    if not grads:
        return torch.zeros((), dtype=torch.float64)
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def register_fakes() -> None:
    """Shapes and dtypes of the raw op's result, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::adamw_step")
    def _(  # type: ignore[no-untyped-def]
        params, grads, grad_rows, exp_avgs, exp_avg_sqs, steps, anchors, packed, packed_t, row_flags, lr, beta1, beta2,
        eps, weight_decay, max_grad_norm, anchor_weight, schedule=None,
    ):  # fmt: skip
        return params[0].new_empty(() if max_grad_norm is not None else (0,), dtype=torch.float64)
