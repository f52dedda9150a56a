"""linear: y = x W^T + bias, the matrix product with its bias, and GELU behind it where that is asked for.

Backward: dx = dy W,  dW = dy^T x,  dbias = sum over rows of dy.

The reference is PyTorch's product. Fused float32 products go to the library that is fastest on this CPU
(csrc/cpu/linear.cpp); only the gradients that are asked for are computed. Half-precision operands on a CPU are widened
to float32 and the result is rounded once: that is more exact, and PyTorch's own half-precision product ends the process
with an illegal instruction on CPUs whose matrix unit is announced but not set up.

In bf16 mode (``smartcs.ops.precision``), with ~ for rounded to bfloat16 and sums in float32:

    z = x~ W~^T + bias,  y = z or GELU(z)         dz = dy or dy GELU'(z~)
    dx = dz~ W~,  dW = dz~^T x~,  dbias = sum over rows of dz

A backward pass needs x~ and, behind GELU, z~: that is all that the fused op keeps.
"""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import once_differentiable, parameter
from .backend import use_fused
from .bias_gelu import bias_gelu
from .checks import check_device, check_float, check_like, check_shape
from .packed_weights import PackedWeight, entry
from .precision import has_bf16_products, is_rounded
from .random import compute_dtype

Activation = Literal["gelu"]

# A packed weight's columns and depth are padded to multiples of these (csrc/cpu/bf16_layout.h).
_PANEL, _DEPTH_STEP = 64, 32


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Affine map of the last axis.

    Args:
        x: (..., C_in), any floating dtype; in bf16 mode float32 or bfloat16 for a float32 weight.
        weight: (C_out, C_in), x's device, and its dtype but for that exception.
        bias: (C_out,) with the dtype of the weight, or None.
        activation: "gelu" for the exact GELU of the map.
        out_dtype: Of the result. In bf16 mode float32 (if None) or bfloat16 for a float32 weight; else x's, or None.

    Returns:
        (..., C_out).

    Raises:
        ValueError: a shape or device does not match, or the activation is unknown.
        TypeError: an argument is not a floating-point tensor, or a dtype is not as described.
    """
    _check(x, weight, bias, activation, out_dtype)
    if torch.is_autocast_enabled(x.device.type):
        # It would change the dtypes of the products within; a smartcs op computes what its arguments and mode say.
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, weight, bias, activation=activation, out_dtype=out_dtype)
    rows = x.reshape(-1, x.shape[-1])
    if is_rounded(weight):
        y = _rounded(rows, weight, bias, activation is not None, out_dtype or torch.float32)
    elif activation is None:
        y = _plain(rows, weight, bias)
    else:
        y = bias_gelu(_plain(rows, weight, None), bias)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, out_dtype: torch.dtype | None
) -> None:
    check_float("linear", "x", x)
    check_float("linear", "weight", weight)
    if x.dim() == 0 or x.shape[-1] == 0 or weight.dim() != 2:
        raise ValueError(
            f"linear: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, "
            "expected (..., C_in) and (C_out, C_in) with C_in > 0"
        )
    check_shape("linear", "weight", weight, (weight.shape[0], x.shape[-1]), "x")
    rounded = is_rounded(weight)
    if weight.dtype != x.dtype and not (rounded and x.dtype == torch.bfloat16):
        raise TypeError(f"linear: weight has dtype {weight.dtype}, expected {x.dtype} like x")
    check_device("linear", "weight", weight, x, "x")
    if bias is not None:
        check_like("linear", "bias", bias, (weight.shape[0],), weight, "weight")
    if activation is not None and activation not in get_args(Activation):
        raise ValueError(f"linear: activation is {activation!r}, expected None or {', '.join(get_args(Activation))}")
    stored = (torch.float32, torch.bfloat16) if rounded else (x.dtype,)
    if out_dtype is not None and out_dtype not in stored:
        raise TypeError(f"linear: out_dtype is {out_dtype}, expected None or {' or '.join(map(str, stored))}")


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, C_in) to (N, C_out), both of x's dtype."""
    weight, bias = parameter(weight), parameter(bias)
    dtype = compute_dtype(x) if x.device.type == "cpu" else x.dtype
    wide_bias = None if bias is None else bias.to(dtype)
    # On a GPU the reference is cuBLAS.
    fused = x.device.type == "cpu" and use_fused("linear", x)
    implementation = _Linear.apply if fused else linear_reference
    return implementation(x.to(dtype), weight.to(dtype), wide_bias).to(x.dtype)


def _rounded(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, out_dtype: torch.dtype) -> Tensor:
    """The same in bf16 mode."""
    if not use_fused("linear", x) or (x.device.type == "cpu" and not has_bf16_products()):
        return linear_rounded_reference(x, parameter(weight), parameter(bias), gelu, out_dtype)
    # By the weight itself, of which `parameter` may make an alias. Nothing can be looked up while a graph is traced.
    packed = None if torch.compiler.is_compiling() else entry(weight)
    return _RoundedLinear.apply(x, parameter(weight), parameter(bias), packed, gelu, out_dtype)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The formula in plain PyTorch."""
    return F.linear(x, weight, bias)


def linear_rounded_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool, out_dtype: torch.dtype
) -> Tensor:
    """The formulas of bf16 mode in plain PyTorch."""
    z = _RoundedProduct.apply(x, weight.t())
    if bias is not None:
        z = z + bias
    return (_GeluOfRounded.apply(z) if gelu else z).to(out_dtype)


class _RoundedProduct(torch.autograd.Function):
    """a b in float32, both rounded to bfloat16 first; the products of its gradients are of the same kind."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        need_a, need_b = ctx.needs_input_grad
        ctx.save_for_backward(a if need_b else None, b if need_a else None)
        ctx.dtypes = a.dtype, b.dtype
        a, b = a.bfloat16(), b.bfloat16()
        if a.device.type == "cuda":
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        dtype_a, dtype_b = ctx.dtypes
        need_a, need_b = ctx.needs_input_grad
        grad_a = _RoundedProduct.apply(grad, b.t()).to(dtype_a) if need_a else None
        return grad_a, _RoundedProduct.apply(a.t(), grad).to(dtype_b) if need_b else None


class _GeluOfRounded(torch.autograd.Function):
    """GELU, whose derivative is taken at its argument rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return F.gelu(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        z = z.bfloat16().float()
        density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
        return grad * (0.5 * (1 + torch.erf(z * (1 / math.sqrt(2)))) + z * density)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        need_x, need_weight, _ = ctx.needs_input_grad
        # x is needed for dW alone: where the weight is a constant, a layer keeps no activation.
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
        return torch.ops.smartcs.linear_fwd(x, weight, None if bias is None else bias.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        grads = torch.ops.smartcs.linear_bwd(grad_y.contiguous(), x, weight, *needed)
        return tuple(grad if need else None for grad, need in zip(grads, needed, strict=True))


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        packed: PackedWeight | None,
        gelu: bool,
        out_dtype: torch.dtype,
    ) -> Tensor:
        x, bias = x.contiguous(), None if bias is None else bias.contiguous()
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        y, x_low, z = torch.ops.smartcs.linear_bf16_fwd(
            x,
            _form(weight, packed, transposed=False),
            weight.shape[0],
            bias,
            gelu,
            need_weight and x.dtype != torch.bfloat16,
            need_x or need_weight or need_bias,
            out_dtype,
        )
        if x.dtype == torch.bfloat16:
            x_low = x
        # The weight costs nothing, and autograd notices if it changes before the backward pass.
        ctx.save_for_backward(x_low if need_weight else None, z if gelu else None, weight if need_x else None)
        ctx.packed, ctx.x_dtype, ctx.shape = packed, x.dtype, weight.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x_low, z, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        packed = None if weight is None else _form(weight, ctx.packed, transposed=True)
        outputs, inputs = ctx.shape
        grads = torch.ops.smartcs.linear_bf16_bwd(
            grad_y.contiguous(), x_low, z, packed, inputs, outputs, *needed, ctx.x_dtype
        )
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *(None,) * 3


def _form(weight: Tensor, packed: PackedWeight | None, *, transposed: bool) -> Tensor:
    if packed is None:
        form: Tensor = torch.ops.smartcs.pack_weight(weight.contiguous(), transposed)
        return form
    # A GPU's products read one form both ways.
    return packed.get(weight, transposed=transposed and weight.device.type == "cpu")


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::linear_fwd")
    def _(x, weight, bias):  # type: ignore[no-untyped-def]
        return x.new_empty((x.shape[0], weight.shape[0]))

    @torch.library.register_fake("smartcs::linear_bwd")
    def _(grad_y, x, weight, need_x, need_weight, need_bias):  # type: ignore[no-untyped-def]
        none = grad_y.new_empty(0)
        return (
            grad_y.new_empty((grad_y.shape[0], weight.shape[1])) if need_x else none,
            grad_y.new_empty((grad_y.shape[1], x.shape[1])) if need_weight else none.clone(),
            grad_y.new_empty(grad_y.shape[1]) if need_bias else none.clone(),
        )

    @torch.library.register_fake("smartcs::pack_weight")
    def _(weight, transposed):  # type: ignore[no-untyped-def]
        if weight.device.type == "cuda":
            return torch.empty_like(weight, dtype=torch.bfloat16)
        outputs, inputs = weight.shape
        columns, depth = (inputs, outputs) if transposed else (outputs, inputs)
        size = -(-columns // _PANEL) * _PANEL * -(-depth // _DEPTH_STEP) * _DEPTH_STEP
        return weight.new_empty(size, dtype=torch.bfloat16)

    @torch.library.register_fake("smartcs::linear_bf16_fwd")
    def _(x, packed, outputs, bias, gelu, keep_x, keep_z, out_dtype):  # type: ignore[no-untyped-def]
        keep_x, keep_z = keep_x and x.dtype == torch.float32, keep_z and gelu
        low = [
            x.new_empty(shape if keep else (0,), dtype=torch.bfloat16)
            for keep, shape in ((keep_x, x.shape), (keep_z, (x.shape[0], outputs)))
        ]
        return x.new_empty((x.shape[0], outputs), dtype=out_dtype), *low

    @torch.library.register_fake("smartcs::linear_bf16_bwd")
    def _(grad_y, x_low, z, packed_t, inputs, outputs, need_x, need_weight, need_bias, grad_x_dtype):  # type: ignore[no-untyped-def]
        shapes = (
            ((grad_y.shape[0], inputs), need_x, grad_x_dtype),
            ((outputs, inputs), need_weight, torch.float32),
            ((outputs,), need_bias, torch.float32),
        )
        return tuple(grad_y.new_empty(shape if need else (0,), dtype=dtype) for shape, need, dtype in shapes)
