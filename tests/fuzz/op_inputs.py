"""Valid arguments of every raw op and front door, and the changes that make them wrong."""

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]

HUGE = (2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
INTEGERS = (0, 1, 2, 3, 5, 7, -1, -2, -(2**31), -(2**63), *HUGE)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, math.nan, math.inf, -math.inf, 2.0**-40, 1 - 2.0**-53)
TEXTS = ("", "mtdnn", "projected", "paper", "inf", "1", "2", "\0", "x" * 1000, "é")
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.complex64, torch.float8_e4m3fn,
)  # fmt: skip
FLOATING = (torch.float32, torch.float64, torch.bfloat16)


def normal(rng: random.Random, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rng.randrange(2**31))).to(dtype)


def lengths(rng: random.Random) -> Tensor:
    """cu_seqlens of up to four sentences."""
    return torch.tensor([0, *(rng.randrange(6) for _ in range(rng.randrange(5)))]).cumsum(0).int()


def dropout(rng: random.Random) -> Arguments:
    offset = torch.tensor([rng.randrange(2**62), rng.randrange(2**32)])
    found = {"dropout_p": rng.choice((0.0, 0.3)), "seed": rng.randrange(2**62), "stream": rng.randrange(2**62)}
    return {**found, "counter_offset": rng.choice((None, offset))}


def attention(rng: random.Random) -> Arguments:
    cu, dtype, heads, size = lengths(rng), rng.choice(FLOATING), rng.randint(1, 3), rng.choice((1, 2, 8, 9))
    tokens = int(cu[-1])
    longest = int(cu.diff().max()) if cu.numel() > 1 else 0
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "qkv": normal(rng, tokens, 3, heads, size, dtype=dtype),
        "cu_seqlens": cu,
        "max_seqlen": longest + rng.randrange(3),
        "scale": 0.5,
        **dropout(rng),
        "grad_out": normal(rng, tokens, heads, size, dtype=dtype),
        "lse": normal(rng, tokens, heads, dtype=wide),
    }


def add_layer_norm(rng: random.Random) -> Arguments:
    rows, columns, dtype = rng.randrange(6), rng.choice((1, 3, 16, 33)), rng.choice(FLOATING)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    matrices = {name: normal(rng, rows, columns, dtype=dtype) for name in ("x", "residual", "grad_y", "h")}
    vectors = {name: normal(rng, columns, dtype=dtype) for name in ("input_bias", "weight", "bias")}
    statistics = {name: normal(rng, rows, dtype=wide) for name in ("mean", "rstd")}
    return {**matrices, **vectors, **statistics, "eps": 1e-12, **dropout(rng), "parameter_grads": rng.random() < 0.5}


def bias_gelu(rng: random.Random) -> Arguments:
    found = add_layer_norm(rng)
    return {"x": found["x"], "bias": found["bias"], "grad_y": found["grad_y"], "bias_grad": found["parameter_grads"]}


def embedding(rng: random.Random) -> Arguments:
    found = add_layer_norm(rng)
    tokens, columns = found["x"].shape
    rows = {"word": 7, "token_type": 2, "position": 5}
    ids = {"input_ids": 7, "token_type_ids": 2, "position_ids": 5, "ids": 7}
    for name, count in rows.items():
        found[name] = normal(rng, count, columns, dtype=found["x"].dtype)
    for name, count in ids.items():
        found[name] = torch.tensor([rng.randrange(count) for _ in range(tokens)], dtype=torch.int64)
    needs = {name: rng.random() < 0.5 for name in _NEEDS}
    return found | needs | {
        "perturbation": found["residual"], "grad_h": found["h"],
        "words": 7, "token_types": 2, "positions": 5, "rows": 7,
    }  # fmt: skip


_NEEDS = ("need_word", "need_token_type", "need_position", "need_perturbation", "need_x", "need_weight", "need_bias")


def linear(rng: random.Random) -> Arguments:
    rows, inputs, outputs, dtype = rng.randrange(6), rng.randint(1, 40), rng.randint(1, 40), rng.choice(FLOATING)
    weight = normal(rng, outputs, inputs, dtype=dtype)
    low = {"x_low": normal(rng, rows, inputs).bfloat16(), "z": normal(rng, rows, outputs).bfloat16()}
    packed = {
        name: torch.ops.smartcs.pack_weight(weight.float(), turned)
        for name, turned in (("packed", False), ("packed_t", True))
    }
    return low | packed | {
        "x": normal(rng, rows, inputs, dtype=dtype), "weight": weight, "bias": normal(rng, outputs, dtype=dtype),
        "grad_y": normal(rng, rows, outputs, dtype=dtype), "inputs": inputs, "outputs": outputs,
        "transposed": rng.random() < 0.5, "gelu": rng.random() < 0.5, "keep_x": rng.random() < 0.5,
        "keep_z": rng.random() < 0.5, "out_dtype": torch.float32, "grad_x_dtype": torch.bfloat16,
        **{name: rng.random() < 0.7 for name in _NEEDS},
    }  # fmt: skip


def linear_bf16(rng: random.Random) -> Arguments:
    found = linear(rng)
    return found | {name: found[name].float() for name in ("x", "weight", "bias", "grad_y")}


def perturb(rng: random.Random) -> Arguments:
    cu, dtype, columns = lengths(rng), rng.choice(FLOATING), rng.choice((1, 3, 16, 33))
    rows = int(cu[-1])
    return {
        "v": normal(rng, rows, columns, dtype=dtype), "g": normal(rng, rows, columns, dtype=dtype),
        "like": normal(rng, rows, columns, dtype=dtype), "cu_seqlens": rng.choice((cu, None)), "std": 1e-5,
        "update": rng.choice(("mtdnn", "projected", "paper")), "norm": rng.choice(("inf", "2", "1")),
        "step_size": 1e-3, "radius": 1e-4, "norm_eps": 1e-6, **dropout(rng),
    }  # fmt: skip


def symmetric_kl(rng: random.Random) -> Arguments:
    bernoulli = rng.random() < 0.3
    rows, classes, dtype = rng.randrange(6), 1 if bernoulli else rng.randint(1, 6), rng.choice(FLOATING)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {
        "a": normal(rng, rows, classes, dtype=dtype), "b": normal(rng, rows, classes, dtype=dtype),
        "grad_loss": normal(rng, rows, dtype=wide), "bernoulli": bernoulli, "detach_targets": rng.random() < 0.5,
        "need_a": rng.random() < 0.7, "need_b": rng.random() < 0.7,
    }  # fmt: skip


def adamw(rng: random.Random) -> Arguments:
    count = rng.randrange(4)
    dtype = rng.choice((torch.float32, torch.float64))
    shapes = [(rng.randrange(1, 5), rng.randrange(1, 5)) for _ in range(count)]
    sparse = rng.random() < 0.4
    rows = [torch.tensor([rng.randrange(r) for _ in range(rng.randrange(3))], dtype=torch.int64) for r, _ in shapes]
    lists = {
        name: [normal(rng, *shape, dtype=dtype) for shape in shapes]
        for name in ("params", "exp_avgs", "exp_avg_sqs", "anchors")
    }
    grads = [normal(rng, len(i) if sparse else s[0], s[1], dtype=dtype) for i, s in zip(rows, shapes, strict=True)]
    packs = dtype == torch.float32 and not sparse and rng.random() < 0.5
    return lists | {
        "grads": grads, "grad_rows": rows if sparse else [],
        "row_flags": [torch.zeros(r, dtype=torch.uint8) for r, _ in shapes] if sparse else [],
        "packed": [torch.ops.smartcs.pack_weight(p, False) for p in lists["params"]] if packs else [],
        "packed_t": [torch.ops.smartcs.pack_weight(p, True) for p in lists["params"]] if packs else [],
        "steps": [torch.tensor(float(rng.randrange(3))) for _ in shapes],
        "lr": [1e-3] * count, "beta1": [0.9] * count, "beta2": [0.999] * count, "eps": [1e-6] * count,
        "weight_decay": [0.01] * count, "max_grad_norm": rng.choice((None, 1.0)),
        "anchor_weight": rng.choice((0.0, 0.3)), "schedule": None,
    }  # fmt: skip


MAKERS: dict[str, Callable[[random.Random], Arguments]] = {
    "adamw_step": adamw, "attention_fwd": attention, "attention_bwd": attention, "add_layer_norm_fwd": add_layer_norm,
    "add_layer_norm_bwd": add_layer_norm, "bias_gelu_fwd": bias_gelu, "bias_gelu_bwd": bias_gelu,
    "embedding_fwd": embedding, "embedding_bwd": embedding, "embedding_rows": embedding, "linear_fwd": linear,
    "linear_bwd": linear, "pack_weight": linear_bf16, "linear_bf16_fwd": linear_bf16, "linear_bf16_bwd": linear_bf16,
    "perturb_noise": perturb, "perturb_step": perturb, "symmetric_kl_fwd": symmetric_kl,
    "symmetric_kl_bwd": symmetric_kl,
}  # fmt: skip

MOST = 2**24  # numbers of a tensor that is changed further


def freed(tensor: Tensor) -> bool:
    """Whether there is no memory behind a tensor that has numbers."""
    plain = tensor.layout == torch.strided and not tensor.is_meta and tensor.numel() > 0
    return plain and tensor.untyped_storage().nbytes() == 0


def wrong_tensor(rng: random.Random, tensor: Tensor, others: list[Tensor]) -> Any:
    """Something else in a tensor's place."""
    if freed(tensor) or tensor.numel() > MOST:  # PyTorch's own functions, which would change it, crash or take hours
        return tensor
    kind = rng.randrange(16)
    shape = list(tensor.shape)
    if kind == 0:
        return tensor.to(rng.choice(DTYPES)) if not tensor.is_complex() else tensor
    if kind == 1 and shape:
        axis = rng.randrange(len(shape))
        shape[axis] = rng.choice((0, 1, 2, 3, shape[axis] + 1, max(shape[axis] - 1, 0)))
        return torch.ones(shape, dtype=tensor.dtype)
    if kind == 2:
        return tensor.unsqueeze(rng.randrange(len(shape) + 1))
    if kind == 3 and shape:
        return tensor.select(0, 0) if shape[0] else tensor.reshape(-1)
    if kind == 4 and len(shape) > 1:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    if kind == 5 and shape:
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]
    if kind == 6:
        return tensor.to("meta")
    if kind == 7 and shape:  # no numbers, but sizes that overflow when they are multiplied
        shape[rng.randrange(len(shape))] = rng.choice((2**31, 2**40, 2**62))
        shape[rng.randrange(len(shape))] = 0
        return torch.empty(shape, dtype=tensor.dtype)
    if kind == 8 and shape:  # many numbers, one of which has memory
        shape[rng.randrange(len(shape))] = rng.choice((1000, 2**36, 2**40))
        return torch.ones((), dtype=tensor.dtype).expand(shape)
    if kind == 9:
        # Contiguous: PyTorch's own contiguous() crashes on freed memory.
        empty = tensor.clone(memory_format=torch.contiguous_format)
        empty.untyped_storage().resize_(0)
        return empty
    if kind == 10 and others:
        return rng.choice(others)
    if kind == 11 and tensor.is_floating_point() and tensor.numel():
        return torch.full_like(tensor, rng.choice((math.nan, math.inf, -math.inf, 3e38, 1e-40)))
    if kind in (12, 13) and not tensor.is_floating_point() and tensor.numel():
        odd = tensor.clone()
        top = torch.iinfo(tensor.dtype) if tensor.dtype != torch.bool else None
        if top is not None:
            odd.view(-1)[rng.randrange(odd.numel())] = rng.choice((top.min, top.max, -1 if top.min < 0 else 0, 7, 2, 5))
        return odd
    if kind == 14:
        return tensor.to_sparse() if shape else tensor.reshape(1)
    return rng.choice(
        (None, torch.empty(0), torch.tensor(1.0), 3, "x", [], tensor.clone().requires_grad_(tensor.is_floating_point()))
    )


def wrong(rng: random.Random, value: Any, others: list[Tensor]) -> Any:
    """Something else in an argument's place, mostly of its type."""
    if isinstance(value, Tensor):
        return wrong_tensor(rng, value, others)
    if isinstance(value, list):
        changed = list(value)
        kind = rng.randrange(4)
        if kind == 0 and changed:
            changed.pop()
        elif kind == 1 and changed:
            changed.append(changed[0])
        elif changed:
            at = rng.randrange(len(changed))
            changed[at] = wrong(rng, changed[at], others)
        return changed
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(INTEGERS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, torch.dtype):
        return rng.choice(DTYPES)
    if isinstance(value, str):
        return rng.choice(TEXTS)
    return rng.choice((None, 1, 0.5, torch.tensor([2, 3]), torch.tensor(2**62), torch.empty(0, dtype=torch.int64), "x"))
