"""What the kernels over rows (N, C) share: checks, the device, element types, and sums over rows.

Sums over rows (gradients of weights and biases) are made in two launches and without atomics, so that they are the
same bits every time: a kernel writes one partial sum for each `ROWS_PER_PARTIAL` rows, `sum_partials` adds those.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from smartcs.ops.backend import GPU_WIDTHS
from smartcs.ops.checks import check_device, check_float, check_like, check_shape
from smartcs.ops.random import compute_dtype

# Small, so that the 150 rows of a small batch occupy more than a few multiprocessors; eight rows of float32 sums are
# written for each of up to 3 parameters, beside eight rows of 2 to 4 tensors: at most a fifth of the traffic.
ROWS_PER_PARTIAL = 8
# The widest row that a kernel can keep whole, in registers: at 8192 the backward kernels spill.
MAX_COLUMNS = GPU_WIDTHS["add_layer_norm"]


def check_rows(op: str, name: str, value: Tensor) -> None:
    """Raises unless ``value`` is a contiguous floating-point matrix (N, C)."""
    check_float(op, name, value)
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, expected (N, C)")
    check_contiguous(op, name, value)


def check_whole_rows(op: str, name: str, value: Tensor) -> None:
    """Raises unless ``value`` is a matrix (N, C) as above whose rows a kernel can keep whole."""
    check_rows(op, name, value)
    if not 0 < value.shape[1] <= MAX_COLUMNS:
        raise ValueError(
            f"{op}: {name} has shape {tuple(value.shape)}, expected (N, C) with 0 < C <= {MAX_COLUMNS} on Triton"
        )


def check_operand(op: str, name: str, value: Tensor, shape: Sequence[int], like: Tensor, like_name: str) -> None:
    """Raises unless ``value`` is contiguous, of this shape and of the dtype and device of ``like``."""
    check_like(op, name, value, shape, like, like_name)
    check_contiguous(op, name, value)


def check_statistic(op: str, name: str, value: Tensor, shape: Sequence[int], like: Tensor, like_name: str) -> None:
    """The same of what a forward pass over ``like`` saves in the dtype that it computes in."""
    check_typed(op, name, value, compute_dtype(like), shape, like, like_name)


def check_typed(
    op: str, name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[int], like: Tensor, like_name: str
) -> None:
    """The same with a dtype of its own."""
    if value.dtype != dtype:
        raise TypeError(f"{op}: {name} has dtype {value.dtype}, expected {dtype} for {like_name} of {like.dtype}")
    check_shape(op, name, value, shape, like_name)
    check_device(op, name, value, like, like_name)
    check_contiguous(op, name, value)


def check_contiguous(op: str, name: str, value: Tensor) -> None:
    if not value.is_contiguous():
        raise ValueError(
            f"{op}: {name} has strides {value.stride()} for shape {tuple(value.shape)}, expected a contiguous tensor"
        )


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Within it kernels are launched on the tensor's device: Triton takes the current one, whatever its arguments."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def warps(elements: int, per_thread: int) -> int:
    """How many warps work on a tile, so that a thread has about ``per_thread`` elements of it."""
    return max(1, min(32, triton.next_power_of_2(triton.cdiv(elements, 32 * per_thread))))


@triton.jit
def widened(x):
    """x in the dtype it is computed in."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def as_scalar(number, like):
    """A float argument in the type that a pointer points to.

    Its annotation has to say float64: Triton takes any other float for a float32. Interpreted, it is Python's.
    """
    return tl.full([], number, like.dtype.element_ty)


def partials_of(like: Tensor, sums: int) -> Tensor:
    """Memory for the partial sums (sums, groups of rows, C) of ``sums`` gradients over the rows of ``like`` (N, C)."""
    groups = triton.cdiv(like.shape[0], ROWS_PER_PARTIAL)
    return torch.empty((sums, groups, like.shape[1]), dtype=compute_dtype(like), device=like.device)


def sum_partials(partials: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The sums over the groups of (1 to 3, groups, C), each a tensor (C,) of its own; zeros where there is no group."""
    sums, groups, columns = partials.shape
    totals = [torch.empty(columns, dtype=dtype, device=partials.device) for _ in range(sums)]
    pointers = totals + totals[:1] * (3 - sums)
    grid = (triton.cdiv(columns, 32), sums)
    if columns > 0:
        _sum_partials_kernel[grid](*pointers, partials, groups, columns, ROWS=32, COLUMNS=32, num_warps=4)
    return totals


@triton.jit(do_not_specialize=["groups"])
def _sum_partials_kernel(
    total0_ptr,  # (C,) written
    total1_ptr,
    total2_ptr,
    partials_ptr,  # (sums, groups, C)
    groups,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Program (c, s): COLUMNS columns of sum s. The order of additions depends on the number of groups alone.
    which = tl.program_id(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    partials_ptr += which.to(tl.int64) * groups * columns + column[None, :]
    sums = tl.zeros([ROWS, COLUMNS], partials_ptr.dtype.element_ty)
    for first in range(0, groups, ROWS):
        group = first + tl.arange(0, ROWS)
        inside = (group < groups)[:, None] & (column < columns)[None, :]
        sums += tl.load(partials_ptr + group[:, None].to(tl.int64) * columns, mask=inside, other=0)
    total_ptr = total0_ptr
    if which == 1:
        total_ptr = total1_ptr
    if which == 2:
        total_ptr = total2_ptr
    tl.store(total_ptr + column, tl.sum(sums, axis=0), mask=column < columns)
