"""Triton kernels, installed as ``smartcs.kernels``."""

from __future__ import annotations

import importlib.util

import torch


def unavailable_reason() -> str | None:
    """Why Triton kernels cannot run here (one sentence), or None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        built_for = torch.version.cuda or torch.version.hip
        return "torch sees no GPU" if built_for else f"torch {torch.__version__} is a CPU build"
    return None
