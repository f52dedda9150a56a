"""How matrix products are computed: the mode of the current thread, and what this machine has for it.

"fp32", the default: products of what is given. "bf16": `ops.linear` rounds both operands of its three products (the
result and both gradients) to bfloat16 and sums in float32. Weights, biases, gradients of weights, and everything that
is no product stay float32. Where a product's result is read by products alone, it can be stored in bfloat16, too
(`activation_dtype`).

The mode is what is computed, not how fast: the fused product rounds as the reference does, and where there is none, the
reference runs. `arithmetic` says whether that is worth it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .._extension import extension_status
from .backend import get_backend

Precision = Literal["fp32", "bf16"]


class _Mode(threading.local):
    def __init__(self) -> None:
        # An attribute of the instance: torch.compile watches it, and would take one of the class for a constant.
        self.precision: Precision = "fp32"


_mode = _Mode()


def set_precision(name: Precision) -> None:
    """Selects how the products of all following ops are computed, in the current thread. The default is "fp32".

    Raises:
        ValueError: ``name`` is not a precision.
    """
    for known in get_args(Precision):
        if name == known:
            _mode.precision = known
            return
    raise ValueError(f"precision: got {name!r}, expected one of {', '.join(get_args(Precision))}")


def get_precision() -> Precision:
    """The precision selected in the current thread."""
    return _mode.precision


@contextmanager
def precision(name: Precision) -> Iterator[None]:
    """Selects a precision within a ``with`` block. The backward pass of an op follows its forward pass."""
    previous = _mode.precision
    set_precision(name)
    try:
        yield
    finally:
        _mode.precision = previous


def is_rounded(weight: Tensor) -> bool:
    """Whether products with this weight round their operands to bfloat16: in bf16 mode those with float32 weights."""
    return _mode.precision == "bf16" and weight.dtype == torch.float32


def activation_dtype(weight: Tensor) -> torch.dtype:
    """What to store a result in that products alone will read: bfloat16 where they round to it anyway."""
    return torch.bfloat16 if is_rounded(weight) else weight.dtype


@torch.compiler.assume_constant_result
def bf16_products() -> str:
    """What multiplies bfloat16 on this CPU and is faster than float32: "amx", "avx512_bf16", or "none: " and why."""
    available, reason = extension_status()
    return str(torch.ops.smartcs.bf16_products()) if available else f"none: {reason}"


def has_bf16_products() -> bool:
    """Whether there are fused bfloat16 products that are worth calling."""
    return not bf16_products().startswith("none")


class Arithmetic(NamedTuple):
    """What computes the products of a run.

    Attributes:
        precision: How they are computed.
        products: By what: a library or instructions, or "reference", plain PyTorch.
        reason: Why `precision` is not the one that was asked for; empty if it is.
    """

    precision: Precision
    products: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.precision} products by {self.products}"

    @property
    def notice(self) -> str:
        """What to tell people who asked for bf16 and get fp32."""
        return f"note: running in fp32, this machine has no fast bf16 products: {self.reason}"


def arithmetic(wanted: Precision, device: str = "cpu") -> Arithmetic:
    """What to run with on a kind of device where ``wanted`` is asked for, under the selected backend.

    bf16 is there for speed, so it becomes fp32 where it would be slower. The reference backend, whose purpose is to
    show what is computed, rounds on any machine.
    """
    if get_backend() == "reference":
        return Arithmetic(wanted, "reference")
    if device == "cuda":
        if wanted == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return Arithmetic("fp32", "cuBLAS", f"{torch.cuda.get_device_name()} does not multiply bf16")
        return Arithmetic(wanted, "cuBLAS")
    available, _ = extension_status()
    products = bf16_products()
    if wanted == "bf16" and has_bf16_products():
        return Arithmetic("bf16", products)
    reason = products.removeprefix("none: ") if wanted == "bf16" else ""
    return Arithmetic("fp32", str(torch.ops.smartcs.linear_library()) if available else "reference", reason)
