"""linear in bf16 mode on a GPU: the products are cuBLAS's, what comes before and after them is bias_gelu's.

    z = x~ W~^T + bias,  y = z or GELU(z),  dz = dy or dy GELU'(z~)
    dx = dz~ W~,  dW = dz~^T x~,  dbias = sum over rows of dz            ~ is rounded to bfloat16, sums are float32

A product's result is float32 where a bias or GELU follows, so that it is rounded once, at the end. The packed form of a
weight is the weight in bfloat16, for both directions: cuBLAS reads it either way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bias_gelu import backward, forward
from .rows import check_rows, check_typed

_FORWARD, _BACKWARD = "linear_bf16_fwd", "linear_bf16_bwd"


def pack_weight(weight: Tensor, transposed: bool) -> Tensor:
    """weight (C_out, C_in) in bfloat16."""
    del transposed
    return weight.to(torch.bfloat16)


def linear_bf16_fwd(
    x: Tensor,
    packed: Tensor,
    outputs: int,
    bias: Tensor | None,
    gelu: bool,
    keep_x: bool,
    keep_z: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (N, C_out) of x (N, C_in); x~ and z~ for the backward pass, empty where not to be kept."""
    check_rows(_FORWARD, "x", x)
    check_typed(_FORWARD, "packed", packed, torch.bfloat16, (outputs, x.shape[1]), x, "x")
    if bias is not None:
        check_typed(_FORWARD, "bias", bias, torch.float32, (outputs,), x, "x")
    none = x.new_empty(0, dtype=torch.bfloat16)
    low = x.to(torch.bfloat16)
    kept_x = low if keep_x and low is not x else none
    if bias is None and not gelu:
        return _product(low, packed.t(), out_dtype), kept_x, none.clone()
    product = _product(low, packed.t(), torch.float32)
    y = torch.empty_like(product, dtype=out_dtype)
    z = torch.empty_like(product, dtype=torch.bfloat16) if gelu and keep_z else none.clone()
    forward(y, z if gelu and keep_z else None, product, bias, gelu=gelu)
    return y, kept_x, z


def linear_bf16_bwd(
    grad_y: Tensor,
    x_low: Tensor | None,
    z: Tensor | None,
    packed_t: Tensor | None,
    inputs: int,
    outputs: int,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
    grad_x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (N, C_in), dW (C_out, C_in) and dbias (C_out,), empty where not asked for."""
    check_rows(_BACKWARD, "grad_y", grad_y)
    rows = grad_y.shape[0]
    for name, operand, shape in (
        ("x_low", x_low, (rows, inputs)),
        ("z", z, (rows, outputs)),
        ("packed_t", packed_t, (outputs, inputs)),
    ):
        if operand is not None:
            check_typed(_BACKWARD, name, operand, torch.bfloat16, shape, grad_y, "grad_y")
    dz, sums = _rounded_gradient(grad_y, z, need_bias)
    none = grad_y.new_empty(0, dtype=torch.float32)
    dx, dw = none.to(grad_x_dtype, copy=True), none.clone()
    if need_x:
        assert packed_t is not None
        dx = _product(dz, packed_t, grad_x_dtype)
    if need_weight:
        assert x_low is not None
        dw = _product(dz.t(), x_low, torch.float32)
    return dx, dw, sums if need_bias else none


def _rounded_gradient(grad_y: Tensor, z: Tensor | None, bias_grad: bool) -> tuple[Tensor, Tensor]:
    """dz~ (N, C), and the sums of dz over the rows, zeros unless asked for."""
    if z is None and grad_y.dtype == torch.bfloat16 and not bias_grad:
        return grad_y, grad_y.new_empty(0, dtype=torch.float32)
    dz = torch.empty_like(grad_y, dtype=torch.bfloat16)
    return dz, backward(dz, grad_y, z, None, bias_grad, torch.float32)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b of bfloat16 matrices, summed in float32."""
    if not a.is_cuda:  # interpreted
        return (a.float() @ b.float()).to(dtype)
    # Into bfloat16, cuBLAS may also add parts of a sum in bfloat16.
    return torch.mm(a, b, out_dtype=torch.float32).to(dtype)
