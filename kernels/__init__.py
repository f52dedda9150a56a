"""Triton kernels, installed as ``smartcs.kernels``: one file per op, with functions that implement its raw ops.

A function here has the name, the arguments and the results of a schema in ``csrc/ops.cpp``. `register` makes them what
``torch.ops.smartcs`` runs for tensors of one kind, so that the autograd functions, fake kernels and checks of
``smartcs.ops`` are the same for every backend.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

OPS: dict[str, tuple[str, ...]] = {
    "add_layer_norm": ("add_layer_norm_fwd", "add_layer_norm_bwd"),
    "attention": ("attention_fwd", "attention_bwd"),
    "bias_gelu": ("bias_gelu_fwd", "bias_gelu_bwd"),
    "embedding": ("embedding_fwd", "embedding_bwd", "embedding_rows"),
    "linear": ("pack_weight", "linear_bf16_fwd", "linear_bf16_bwd"),
}
"""Op -> its raw ops. The op's file is of the same name."""


def unavailable_reason() -> str | None:
    """Why Triton kernels cannot run here (one sentence), or None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        built_for = torch.version.cuda or torch.version.hip
        return "torch sees no GPU" if built_for else f"torch {torch.__version__} is a CPU build"
    return _driver_problem()


@functools.cache
def _driver_problem() -> str | None:
    """Why Triton cannot launch on the GPU that is there. It compiles its launcher when it first does."""
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # whatever a compiler or a driver that is not there ends in
        return f"Triton cannot launch kernels ({' '.join(str(error).split())})"
    return None


def interpreted() -> bool:
    """Whether Triton runs kernels in Python, on CPU tensors: $TRITON_INTERPRET, read before they are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def raw_ops(op: str) -> dict[str, Callable[..., Any]]:
    """The functions that implement the raw ops of `op`, by name."""
    module = importlib.import_module(f"{__name__}.{op}")
    return {name: getattr(module, name) for name in OPS[op]}


def register(op: str, key: str) -> torch.library.Library:
    """Makes the kernels of `op` what torch runs for tensors of a dispatch key, "CUDA" or, interpreted, "CPU".

    Returns:
        What keeps them registered as long as it lives.
    """
    library = torch.library.Library("smartcs", "IMPL")
    for name, function in raw_ops(op).items():
        library.impl(name, function, key)
    return library
