"""The ops that draw random numbers, as functions of their counters: all in integers, or a part on the device."""

from collections.abc import Callable
from typing import Any

import torch
from op_harness import integers, normal, offsets
from torch import Tensor

from smartcs import ops
from smartcs.ops.backend import backend

Run = Callable[..., list[Tensor]]
SEED, STREAM = 2**40 + 1, 2**33 + 5  # both beyond 32 bits
OFFSETS = (0, 1, 2**32 + 3, -1, -(2**33))
"""The last two take some of STREAM away again: the sum is modulo 2**64."""
FIRST_ROWS = (0, 1, 2**31 + 3, 2**32 - 11)
"""Attention's rows are two per token: with the third the offset of the rows is beyond 32 bits, with the last the rows
of every op end before they begin."""
LENGTHS = [9, 0, 8, 4]
PART = slice(9, 17)  # the third sentence
TOKENS = sum(LENGTHS)


def _run(
    op: Callable[..., Tensor],
    rows: slice,
    by_row: dict[str, Tensor],
    shared: dict[str, Tensor],
    device: str = "cpu",
    **settings: Any,
) -> list[Tensor]:
    """y and the gradients: by row, then those of what all rows share."""
    leaves = {name: value[rows] for name, value in by_row.items()} | shared
    leaves = {name: value.float().to(device).requires_grad_() for name, value in leaves.items()}
    settings = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in settings.items()}
    y = op(**leaves, **settings)
    gradients = torch.autograd.grad(y.square().sum(), list(leaves.values()))
    return [y.detach(), *gradients]


def attention(rows: slice = slice(None), **name: Any) -> list[Tensor]:
    lengths = LENGTHS if rows == slice(None) else [rows.stop - rows.start]
    qkv, settings = normal(TOKENS, 3, 2, 16), {"cu_seqlens": offsets(lengths), "max_seqlen": 12, "dropout_p": 0.3}
    return _run(ops.attention, rows, {"qkv": qkv}, {}, **settings, **name)


def add_layer_norm(rows: slice = slice(None), **name: Any) -> list[Tensor]:
    by_row = {n: normal(TOKENS, 70, seed=i) for i, n in enumerate(("x", "residual"))}
    shared = {n: normal(70, seed=2 + i) for i, n in enumerate(("weight", "bias", "input_bias"))}
    return _run(ops.add_layer_norm, rows, by_row, shared, dropout_p=0.3, **name)


def embedding(rows: slice = slice(None), **name: Any) -> list[Tensor]:
    limits = (("input", 11), ("token_type", 2), ("position", 5))
    ids = {f"{n}_ids": integers(limit, TOKENS, seed=limit)[rows] for n, limit in limits}
    shapes = {"word": (11, 70), "token_type": (2, 70), "position": (5, 70), "weight": (70,), "bias": (70,)}
    shared = {n: normal(*s, seed=i) for i, (n, s) in enumerate(shapes.items())}
    by_row = {"perturbation": normal(TOKENS, 70, seed=9)}
    return _run(ops.embedding, rows, by_row, shared, dropout_p=0.3, **ids, **name)


def perturb_noise(rows: slice = slice(None), device: str = "cpu", **name: Any) -> list[Tensor]:
    return [ops.perturb_noise(torch.empty(TOKENS, 70, device=device)[rows], std=1.0, **name)]


RUNS: dict[str, Run] = {f.__name__: f for f in (attention, add_layer_norm, embedding, perturb_noise)}
BY_ROW = {"attention": 2, "add_layer_norm": 3, "embedding": 2, "perturb_noise": 1}
"""How many of the results, from the first on, have a row per token."""


def check_offset(run: Run, offset: int, device: str = "cpu") -> None:
    """The same bits, forward and backward, wherever a part of the stream's number is."""
    whole = run(seed=SEED, stream=STREAM + offset, device=device)
    there = torch.tensor([offset, 0], device=device)
    parts = run(seed=SEED, stream=STREAM, counter_offset=there, device=device)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True)), f"offset {offset}"
    if offset:
        assert not torch.equal(whole[0], run(seed=SEED, stream=STREAM, device=device)[0])


def check_part(op: str, first: int, device: str = "cpu") -> None:
    """A part of a batch, counted from where it begins, draws what it does in the whole, and that is the reference's.

    Results are close or far off: one bit of a mask changes them by much more than any rounding.
    """

    def run(device: str, row: int, rows: slice = slice(None)) -> list[Tensor]:
        there = torch.tensor([1, row % 2**32], device=device)
        results = RUNS[op](rows, seed=SEED, stream=STREAM, counter_offset=there, device=device)
        return results[: BY_ROW[op]]

    whole, part = run(device, first), run(device, first + PART.start, PART)
    with backend("reference"):
        expected = run("cpu", first)
    for inside, alone, right in zip(whole, part, expected, strict=True):
        assert _close(alone, inside[PART]), f"a part from row {first}"
        assert _close(inside.cpu(), right), f"rows from {first}"


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)
