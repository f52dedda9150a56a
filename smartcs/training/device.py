"""Where a run runs: on the CPU or on a GPU, and there with recorded steps or without."""

from __future__ import annotations

import torch

from smartcs.model.bert import BertConfig
from smartcs.ops.backend import GPU_WIDTHS, get_backend, no_gpu_kernel
from smartcs.training.commandline import UsageError
from smartcs.training.config import CudaGraphs, Device
from smartcs.training.device_step import CudaRecorder, Recorder
from smartcs.training.launch import local_rank

_STEP_OPS = ("adamw", "add_layer_norm", "attention", "bias_gelu", "embedding", "perturb", "symmetric_kl")


def choose_device(wanted: Device) -> torch.device:
    """The device that `wanted` names; "auto" is a GPU where there is one. Each process of torchrun has its own GPU.

    Raises:
        UsageError: "cuda" without a GPU, or more processes than the machine has GPUs.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        why = "no GPU is visible to it" if torch.version.cuda else "it is built for the CPU"
        raise UsageError(f"device is cuda, but torch {torch.__version__} cannot use a GPU: {why}")
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        own = local_rank()
        if own is not None and own >= torch.cuda.device_count():
            raise UsageError(
                f"process {own + 1} of this machine has no GPU: torch sees {torch.cuda.device_count()}; "
                "start as many processes, or use --device cpu"
            )
        if own is not None:
            torch.cuda.set_device(own)
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def choose_recorder(
    wanted: CudaGraphs, device: torch.device, shape: BertConfig, ranks: int = 1, accumulate: int = 1
) -> tuple[Recorder | None, str]:
    """What records the steps of a model of this shape, and why nothing does; of so many processes and slices.

    Raises:
        UsageError: "on" where nothing can.
    """
    obstacle = _obstacle(device, shape) or _obstacle_of_slices(ranks, accumulate)
    if wanted == "on" and obstacle:
        raise UsageError(f"cuda_graphs is on, but steps cannot be recorded: {obstacle}")
    if wanted == "off" or obstacle:
        return None, obstacle or "cuda_graphs is off"
    return CudaRecorder(device, required=wanted == "on"), ""


def describe_device(device: torch.device, not_recorded: str) -> str:
    """For people; ``not_recorded`` as from `choose_recorder`."""
    if device.type != "cuda":
        return "CPU"
    how = f"launched kernel by kernel: {not_recorded}" if not_recorded else "replayed as CUDA graphs"
    return f"{torch.cuda.get_device_name(device)}, steps {how}"


def _obstacle(device: torch.device, shape: BertConfig) -> str:
    """Why a step cannot be recorded; empty where it can. What runs on the reference may wait for the device."""
    if device.type != "cuda":
        return "the device is the CPU"
    if get_backend() != "fused":
        return "the reference ops wait for the device"
    for op in _STEP_OPS:
        if missing := no_gpu_kernel(op):
            return f"{op} runs on the reference, which waits for the device: {missing}"
    head_size = shape.hidden_size // shape.num_attention_heads
    if head_size > GPU_WIDTHS["attention"] or shape.hidden_size > GPU_WIDTHS["add_layer_norm"]:
        return f"heads of {head_size} in a hidden size of {shape.hidden_size} run on the reference"
    return ""


def _obstacle_of_slices(ranks: int, accumulate: int) -> str:
    """The same, of the steps' slices."""
    if ranks > 1:
        return f"{ranks} processes average their gradients in every step, which has never been tried in a graph"
    if accumulate > 1:
        return f"a step has {accumulate} slices, whose shapes seldom come together twice"
    return ""
