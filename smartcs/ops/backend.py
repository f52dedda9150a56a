"""Which implementation of an op runs: the only place that decides.

"reference" is plain PyTorch, the specification of every op. "fused" is the compiled one where it exists for the
tensor's device and dtype, else the reference; ``backend_report`` says which and why, op by op.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import kernels
from .._extension import build_facts, extension_status

Backend = Literal["fused", "reference"]

# Ops with a C++ kernel for CPU tensors, and the dtypes these take.
CPU_OPS = ("adamw", "attention", "add_layer_norm", "bias_gelu", "embedding", "linear", "perturb", "symmetric_kl")
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

# Ops with a CUDA C++ kernel in the extension, and one of their raw ops. `smartcs.kernels` lists those with Triton
# kernels. The products of `linear` are cuBLAS's, in float32 through the reference.
CUDA_OPS = {"adamw": "adamw_step", "perturb": "perturb_step", "symmetric_kl": "symmetric_kl_fwd"}
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The widest last dimension that a Triton kernel keeps whole; wider tensors run on the reference.
GPU_WIDTHS = {"attention": 128, "add_layer_norm": 4096, "embedding": 4096}

# Op -> what keeps its Triton kernels registered, or why it has no kernel on a GPU.
_on_gpu: dict[str, torch.library.Library | str] = {}
_warned: set[str] = set()


def _warn_once(message: str) -> None:
    # torch.compile cannot trace a warning; the ops that run before or after give it.
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=3)


def _initial() -> Backend:
    wanted = os.environ.get("SMARTCS_BACKEND")
    if wanted is None or wanted == "fused":
        return "fused"
    return _checked(wanted)


def _checked(name: str) -> Backend:
    for known in get_args(Backend):
        if name == known:
            return known
    raise ValueError(f"backend: got {name!r}, expected one of {', '.join(get_args(Backend))}")


_current: Backend = _initial()


def set_backend(name: Backend) -> None:
    """Selects the backend of all following ops, process-wide. The default is "fused", or $SMARTCS_BACKEND.

    Where the compiled extension is missing, "fused" runs the reference and warns once, saying why.

    Raises:
        ValueError: ``name`` is not a backend.
    """
    global _current
    _current = _checked(name)
    available, reason = extension_status()
    if _current == "fused" and not available:
        _warn_once(f"smartcs: running on the PyTorch reference, which is slower: {reason}")


def get_backend() -> Backend:
    """The selected backend."""
    return _current


@contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Selects a backend within a ``with`` block. The backward pass of an op follows its forward pass."""
    global _current
    previous = _current
    set_backend(name)
    try:
        yield
    finally:
        _current = previous


def use_fused(op: str, tensor: Tensor) -> bool:
    """Whether ``op`` runs its compiled kernel on tensors like this one."""
    if _current == "reference":
        return False
    available, reason = extension_status()
    if not available:
        _warn_once(f"smartcs: running on the PyTorch reference, which is slower: {reason}")
        return False
    if tensor.device.type == "cuda":
        missing = no_gpu_kernel(op)
        if missing is not None:
            _warn_once(f"smartcs: {op} runs on the PyTorch reference on this GPU, which is slower: {missing}")
        fits = op not in GPU_WIDTHS or tensor.shape[-1] <= GPU_WIDTHS[op]
        return missing is None and fits and tensor.dtype in GPU_DTYPES
    if tensor.device.type != "cpu":
        _warn_once(f"smartcs: no {tensor.device.type} kernels in this version, running on the PyTorch reference")
        return False
    return op in CPU_OPS and tensor.dtype in CPU_DTYPES


def no_gpu_kernel(op: str) -> str | None:
    """Why there is no kernel of ``op`` for CUDA tensors, or None where there is; Triton's are loaded by this."""
    if op not in _on_gpu:
        _on_gpu[op] = _find_on_gpu(op)
    found = _on_gpu[op]
    return found if isinstance(found, str) and found else None


def _find_on_gpu(op: str) -> torch.library.Library | str:
    """What keeps Triton kernels registered, "" for a compiled kernel, else why there is none."""
    available, missing = extension_status()
    if not available:
        return missing
    if op in kernels.OPS:
        reason = kernels.unavailable_reason()
        if reason is not None:
            return reason
        try:
            return kernels.register(op, "CUDA")
        except ImportError as error:
            return f"its Triton kernels cannot be imported ({error})"
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"smartcs::{CUDA_OPS[op]}", "CUDA"):
        return ""
    facts = build_facts() or {}
    return f"the extension was built without CUDA ({facts.get('no_cuda_reason') or 'reason unknown'})"


class OpReport(NamedTuple):
    """What ``op`` runs on for tensors of one device, and why."""

    op: str
    backend: Backend
    reason: str


def backend_report(device: Literal["cpu", "cuda"] = "cpu") -> list[OpReport]:
    """The backend of every op under the current selection, for float32 tensors of a device."""
    available, missing = extension_status()
    rows = []
    for op in CPU_OPS:
        if _current == "reference":
            rows.append(OpReport(op, "reference", "selected"))
        elif not available:
            rows.append(OpReport(op, "reference", missing))
        elif device == "cuda":
            why = no_gpu_kernel(op)
            kind = "Triton kernel" if op in kernels.OPS else "CUDA C++ kernel"
            if op == "linear":
                kind, why = "products by cuBLAS", why and f"products by cuBLAS, in bf16 with PyTorch's own casts: {why}"
            rows.append(OpReport(op, "fused" if why is None else "reference", why or kind))
        elif op == "linear":
            rows.append(OpReport(op, "fused", f"float32 products by {torch.ops.smartcs.linear_library()}"))
        else:
            kernel_set = torch.ops.smartcs.instruction_set()
            rows.append(OpReport(op, "fused", f"C++ kernel, {kernel_set} instructions"))
    return sorted(rows)
