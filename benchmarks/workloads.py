"""Every op at the sizes of fine-tuning, as workloads: what `bench_ops.py` and `ratio.py` time.

Sizes (T tokens, C hidden channels): SST's six sentences and QQP's forty pairs on MiniLM's shape, QQP's on BERT-base's.
Attention, the one op that sees sentences, also at 1,024 tokens in sentences of 16, 128 and 512.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from optimizer_workload import OptimizerWorkload
from torch import Tensor
from workload import MODES, PRECISIONS, Problem, Step, Values, Workload, integers, normal, offsets

from smartcs.ops import (
    add_layer_norm,
    attention,
    bias_gelu,
    embedding,
    linear,
    perturb,
    perturb_noise,
    symmetric_kl,
)

SIZES = ((150, 384), (1220, 384), (1220, 768))
SENTENCES = (16, 128, 512)
ROWS = (8, 64)  # predictions SMART compares at once


class Timed(Protocol):
    """What a workload offers to be timed."""

    def verify(self, precision: str) -> None: ...
    def step(self, candidate: str, mode: str, precision: str) -> Step: ...
    def bytes(self, mode: str, precision: str) -> int: ...
    def operations(self, mode: str) -> int: ...
    def rate(self, precision: str) -> str: ...


class Entry(NamedTuple):
    """How to make a workload, and in which modes and precisions there is something to time."""

    make: Callable[[], Timed]
    modes: tuple[str, ...] = MODES
    precisions: tuple[str, ...] = PRECISIONS


def sentence_lengths(tokens: int) -> list[int]:
    """Lengths of 20 to 40 tokens that sum to ``tokens``."""
    lengths: list[int] = []
    pattern = cycle((20, 33, 27, 40, 24, 30, 22, 36))
    while sum(lengths) < tokens:
        lengths.append(min(next(pattern), tokens - sum(lengths)))
    return lengths


def attention_workload(tokens: int, width: int, sentence: int | None = None) -> Workload:
    lengths, heads = [sentence] * (tokens // sentence) if sentence else sentence_lengths(tokens), 12
    longest, size = max(lengths), width // heads
    tensors = {
        "qkv": normal(tokens, 3, heads, size, seed=1),
        "cu_seqlens": offsets(lengths),
        "grad_y": normal(tokens, heads, size, seed=2),
    }
    place = torch.arange(longest) < torch.tensor(lengths)[:, None]

    def padded(packed: Tensor) -> Tensor:
        whole = packed.new_zeros(len(lengths), longest, *packed.shape[1:])
        whole[place] = packed
        return whole

    def arrange(values: Values) -> Values:
        """As Hugging Face carries them: (B, H, S, D), padded, with a mask."""
        q, k, v = padded(values["qkv"]).permute(2, 0, 3, 1, 4).contiguous().unbind()
        qkv = torch.stack([q, k, v])
        return {"qkv": qkv, "mask": place[:, None, None], "grad_y": padded(values["grad_y"]).transpose(1, 2)}

    def restore(results: Values) -> Values:
        y, grad = results["y"].transpose(1, 2)[place], results["qkv"].permute(1, 3, 0, 2, 4)[place]
        return {"y": y, "qkv": grad}

    def builtin(qkv: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
        return F.scaled_dot_product_attention(*qkv.unbind(), attn_mask=mask, dropout_p=dropout_p)

    row = tokens * width
    problem = Problem(attention, tensors, {"y": "forward", "qkv": "activation gradient"}, {"max_seqlen": longest})
    products = 4 * width * sum(n * n for n in lengths)
    return Workload(problem, builtin, (4 * row, 7 * row), (products, 2 * products), arrange=arrange, restore=restore)


def add_layer_norm_workload(tokens: int, width: int) -> Workload:
    tensors = {
        "x": normal(tokens, width, seed=1),
        "residual": normal(tokens, width, seed=2),
        "weight": normal(width, seed=3) + 1,
        "bias": normal(width, seed=4),
        "input_bias": normal(width, seed=5),
        "grad_y": normal(tokens, width, seed=6),
    }
    kinds = {"y": "forward", "x": "activation gradient", "residual": "activation gradient"}
    kinds |= dict.fromkeys(("weight", "bias", "input_bias"), "summed gradient")

    def builtin(
        x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, input_bias: Tensor, dropout_p: float
    ) -> Tensor:
        h = residual + F.dropout(x + input_bias, dropout_p)
        return F.layer_norm(h, h.shape[-1:], weight, bias, 1e-12)

    row = tokens * width
    problem = Problem(add_layer_norm, tensors, kinds)
    return Workload(problem, builtin, (3 * row, 5 * row))


def bias_gelu_workload(tokens: int, width: int) -> Workload:
    inner = 4 * width
    tensors = {
        "x": normal(tokens, inner, seed=1),
        "bias": normal(inner, seed=2),
        "grad_y": normal(tokens, inner, seed=3),
    }
    kinds = {"y": "forward", "x": "activation gradient", "bias": "summed gradient"}
    row = tokens * inner
    return Workload(
        Problem(bias_gelu, tensors, kinds),
        lambda x, bias: F.gelu(x + bias),
        (2 * row, 3 * row),
        dropout=False,
    )


def embedding_workload(tokens: int, width: int, sparse: bool = False, words: int = 30522) -> Workload:
    tensors = {
        "input_ids": integers(words, tokens, seed=1),
        "token_type_ids": integers(2, tokens, seed=2),
        "position_ids": integers(64, tokens, seed=3),
        "word": normal(words, width, seed=4),
        "token_type": normal(2, width, seed=5),
        "position": normal(512, width, seed=6),
        "weight": normal(width, seed=7) + 1,
        "bias": normal(width, seed=8),
        "grad_y": normal(tokens, width, seed=9),
    }
    kinds = {"y": "forward"} | dict.fromkeys(("word", "token_type", "position", "weight", "bias"), "summed gradient")

    def builtin(
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        word: Tensor,
        token_type: Tensor,
        position: Tensor,
        weight: Tensor,
        bias: Tensor,
        dropout_p: float,
    ) -> Tensor:
        h = F.embedding(input_ids, word, sparse=sparse and dropout_p > 0) + F.embedding(token_type_ids, token_type)
        h = h + F.embedding(position_ids, position)
        return F.dropout(F.layer_norm(h, h.shape[-1:], weight, bias, 1e-12), dropout_p)

    row = tokens * width
    # Dense gradients of the tables are zeros, mostly, which are written, too.
    tables = (514 * width + row) if sparse else (words + 514) * width
    return Workload(
        Problem(embedding, tensors, kinds),
        builtin,
        (2 * row, 3 * row + tables),
        timed={"sparse": True} if sparse else {},
        smaller=partial(embedding_workload, tokens, width, sparse, 500) if words > 500 else None,
    )


def linear_workload(tokens: int, width: int, gelu: bool = False) -> Workload:
    inner = 4 * width
    tensors = {
        "x": normal(tokens, width, seed=1),
        "weight": normal(inner, width, seed=2) * width**-0.5,
        "bias": normal(inner, seed=3),
        "grad_y": normal(tokens, inner, seed=4),
    }
    kinds = {"y": "forward", "x": "activation gradient", "weight": "summed gradient", "bias": "summed gradient"}

    def builtin(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.linear(x, weight, bias)
        return F.gelu(y) if gelu else y

    numbers = tokens * width + inner * width + tokens * inner
    products = 2 * tokens * width * inner
    return Workload(
        Problem(linear, tensors, kinds, {"activation": "gelu"} if gelu else {}),
        builtin,
        (numbers, 2 * numbers + (tokens * inner if gelu else 0)),
        (products, 2 * products),
        dropout=False,
        wide=("weight", "bias"),
        low_settings={"out_dtype": torch.bfloat16},
    )


def perturb_workload(tokens: int, width: int) -> Workload:
    """One step of the published rule at its published settings, with the statistics the op returns."""
    noise = perturb_noise(torch.empty(tokens, width, dtype=torch.float64), std=1e-5, seed=1, stream=2)
    tensors = {"v": noise, "g": 1e-7 * normal(tokens, width, seed=1)}

    def builtin(v: Tensor, g: Tensor) -> Tensor:
        w = v + 1e-3 * g
        moved = w / (w.abs().amax(dim=-1, keepdim=True) + 1e-6)
        cosine, size = F.cosine_similarity(moved, g, dim=-1), moved.abs().amax(dim=-1)
        finite = (g.isfinite() & moved.isfinite()).all(dim=-1)
        torch.stack([cosine, size, finite.to(size.dtype)], dim=-1)
        return moved

    row = tokens * width
    problem = Problem(lambda **arguments: perturb(**arguments)[0], tensors, {"y": "forward"})
    return Workload(problem, builtin, (3 * row, 0), dropout=False)


def symmetric_kl_workload(rows: int) -> Workload:
    a = normal(rows, 5, seed=1)
    tensors = {"a": a, "b": a + 0.5 * normal(rows, 5, seed=2), "grad_y": torch.ones((), dtype=torch.float64)}
    kinds = {"y": "statistic", "a": "activation gradient", "b": "activation gradient"}

    def builtin(a: Tensor, b: Tensor) -> Tensor:
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        p_to_q = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return p_to_q + F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)

    size = rows * 5
    return Workload(Problem(symmetric_kl, tensors, kinds), builtin, (2 * size, 4 * size), dropout=False)


def workloads(sizes: Sequence[tuple[int, int]] = SIZES) -> dict[str, Entry]:
    """Every op at every size, by name; T tokens, S tokens of a sentence, C channels, N predictions of K classes."""
    ops: dict[str, Entry] = {
        "attention": Entry(attention_workload),
        "add_layer_norm": Entry(add_layer_norm_workload),
        "bias_gelu": Entry(bias_gelu_workload),
        "embedding": Entry(embedding_workload, MODES, PRECISIONS[:1]),
        "embedding_sparse": Entry(partial(embedding_workload, sparse=True), MODES[1:], PRECISIONS[:1]),
        "linear": Entry(linear_workload),
        "linear_gelu": Entry(partial(linear_workload, gelu=True)),
        "perturb": Entry(perturb_workload, MODES[:1], PRECISIONS[:1]),
    }
    made = {
        f"{op}-T{tokens}-C{width}": entry._replace(make=partial(entry.make, tokens, width))
        for op, entry in ops.items()
        for tokens, width in sizes
    }
    for length in SENTENCES:
        made[f"attention-T1024-S{length}-C768"] = Entry(partial(attention_workload, 1024, 768, length))
    for rows in ROWS:
        made[f"symmetric_kl-N{rows}-K5"] = Entry(partial(symmetric_kl_workload, rows), MODES, PRECISIONS[:1])
    for shape in ("minilm", "base"):
        made[f"adamw-{shape}"] = Entry(partial(OptimizerWorkload, shape), MODES[1:], PRECISIONS[:1])
    return made
