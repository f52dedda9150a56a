"""The ops that draw random numbers, as functions of where their stream's number is: in an integer or on the device."""

from collections.abc import Callable
from typing import Any

import torch
from op_harness import integers, normal, offsets
from torch import Tensor

from smartcs import ops

Run = Callable[..., list[Tensor]]
SEED, STREAM = 2**40 + 1, 2**33 + 5  # both beyond 32 bits
OFFSETS = (0, 1, 2**32 + 3, -1, -(2**33))
"""The last two take some of STREAM away again: the sum is modulo 2**64."""


def _run(op: Callable[..., Tensor], leaves: dict[str, Tensor], device: str = "cpu", **settings: Any) -> list[Tensor]:
    leaves = {name: value.float().to(device).requires_grad_() for name, value in leaves.items()}
    settings = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in settings.items()}
    y = op(**leaves, **settings)
    gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    return [y.detach(), *gradients]


def attention(**name: Any) -> list[Tensor]:
    qkv = normal(21, 3, 2, 16)
    return _run(ops.attention, {"qkv": qkv}, cu_seqlens=offsets([9, 0, 12]), max_seqlen=12, dropout_p=0.3, **name)


def add_layer_norm(**name: Any) -> list[Tensor]:
    names = ("x", "residual", "weight", "bias", "input_bias")
    shapes = ((7, 70), (7, 70), (70,), (70,), (70,))
    leaves = {n: normal(*s, seed=i) for i, (n, s) in enumerate(zip(names, shapes, strict=True))}
    return _run(ops.add_layer_norm, leaves, dropout_p=0.3, **name)


def embedding(**name: Any) -> list[Tensor]:
    ids = {
        f"{n}_ids": integers(limit, 9, seed=limit) for n, limit in (("input", 11), ("token_type", 2), ("position", 5))
    }
    shapes = {"word": (11, 70), "token_type": (2, 70), "position": (5, 70), "weight": (70,), "bias": (70,)}
    leaves = {n: normal(*s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    return _run(ops.embedding, leaves, dropout_p=0.3, **ids, **name)


def perturb_noise(device: str = "cpu", **name: Any) -> list[Tensor]:
    return [ops.perturb_noise(torch.empty(5, 70, device=device), std=1.0, **name)]


RUNS: dict[str, Run] = {f.__name__: f for f in (attention, add_layer_norm, embedding, perturb_noise)}


def check_offset(run: Run, offset: int, device: str = "cpu") -> None:
    """The same bits, forward and backward, wherever a part of the stream's number is."""
    whole = run(seed=SEED, stream=STREAM + offset, device=device)
    parts = run(seed=SEED, stream=STREAM, stream_offset=torch.tensor(offset, device=device), device=device)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True)), f"offset {offset}"
    if offset:
        assert not torch.equal(whole[0], run(seed=SEED, stream=STREAM, device=device)[0])
