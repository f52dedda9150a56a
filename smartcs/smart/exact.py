"""Passes that are exact enough to see a small perturbation.

Noise of 1e-5 on x of size 1 is below the resolution of bfloat16 (8e-3), float16 and TF32 (1e-3): where the operands of
products are rounded to them, f(x + v) - f(x) is a difference of rounding errors, and the gradient of a distance of the
two has a random direction (cosine 0.07 with the true one under bf16 autocast). In float32 it is right to four digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from smartcs.ops.precision import get_precision, precision

_SPACINGS = {"bf16": torch.finfo(torch.bfloat16).eps, "tf32": 2.0**-10}


def rounding(device_type: str) -> float:
    """What is switched on that rounds the operands of float32 products: the coarsest spacing above 1, or 0 for nothing.

    Counted are bf16 mode (`smartcs.precision`), autocast, and TF32 or bf16 in place of float32 in torch's matrix
    products. (Not its convolutions, which use TF32 on GPUs unless told otherwise: most networks have none.)
    """
    matmul, _ = _flags(device_type)
    spacings = [_SPACINGS.get(matmul.fp32_precision, 0.0), _SPACINGS.get(get_precision(), 0.0)]
    if torch.is_autocast_enabled(device_type):
        autocast = torch.get_autocast_dtype(device_type)
        spacings.append(torch.finfo(autocast).eps if autocast.itemsize == 2 else 0.0)
    return max(spacings)


@contextmanager
def exact_products(*device_types: str) -> Iterator[None]:
    """Switches all that off within the block, and low precision of convolutions, on all devices.

    The backward pass of a smartcs op follows its forward pass, and autocast is no business of it; torch's switches,
    which are the process's, are back by then if it runs outside of the block.
    """
    flags = [flag for device_type in ("cpu", "cuda") for flag in _flags(device_type)]
    with ExitStack() as stack:
        stack.enter_context(precision("fp32"))
        for device_type in set(device_types):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        for flag in flags:
            before = flag.fp32_precision
            if before not in ("none", "ieee"):
                stack.callback(setattr, flag, "fp32_precision", before)
                flag.fp32_precision = "ieee"
        yield


def check_resolution(owner: str, value: Tensor, what: str, smallest: float, name: str) -> None:
    """Raises ValueError where a perturbation of size ``smallest``, the setting ``name``, vanishes in ``value``.

    That is where x + v is x, or f(x + v) f(x), because the dtype holds no more: the direction would be random.
    """
    if value.dtype in (torch.float16, torch.bfloat16) and smallest < torch.finfo(value.dtype).eps:
        raise ValueError(
            f"{owner}: {name} is {smallest:g}, expected at least {torch.finfo(value.dtype).eps:g} because {what} to "
            f"{value.dtype}: less vanishes in it, and the direction would be random. Or use float32 weights, with "
            "autocast around the clean pass and this one, not within forward"
        )


def _flags(device_type: str) -> tuple[Any, Any]:
    """torch's switches for matrix products and convolutions. Devices other than GPUs go by the CPU's."""
    backends: Any = torch.backends
    if device_type == "cuda":
        return backends.cuda.matmul, backends.cudnn.conv
    return backends.mkldnn.matmul, backends.mkldnn.conv
