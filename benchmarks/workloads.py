"""What the op benchmarks time: each op on the shapes of fine-tuning, fused, on the reference, and as torch has it.

A workload is verified against the error budget before anything is timed. "forward" is evaluation: no gradient, no
dropout. "training" is forward and backward with dropout 0.1 where the op has dropout.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# Outside pytest, whose configuration names this folder.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from op_harness import Problem, Values, check_budget, check_results, integers, normal, offsets  # noqa: E402

from smartcs.ops import (  # noqa: E402
    add_layer_norm,
    attention,
    bias_gelu,
    embedding,
    linear,
    perturb,
    perturb_noise,
    symmetric_kl,
)
from smartcs.ops.backend import backend  # noqa: E402

TOKENS = (150, 300, 1220)  # packed tokens of 8 SST sentences, of 8 pairs, and of 32 pairs
WIDTHS = (384, 768)
ROWS = (8, 64)  # predictions SMART compares at once
MODES = ("forward", "training")
CANDIDATES = ("fused", "reference", "torch")
FLOAT = 4

Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """One op at one shape.

    Args:
        problem: Tensors and the op itself, without dropout; "grad_y" among them if there is a backward pass.
        dropout: The op's dropout settings in training.
        builtin: The same with torch's functions, from the same tensors (or those of ``arrange``) and dropout_p.
        forward_bytes, backward_bytes: Float32 traffic no implementation can avoid: each operand read or written once.
        arrange: Brings tensors into the layout torch wants; not timed.
        restore: Brings torch's result and gradients back.
        smaller: Makes a workload to verify instead, where verifying this one takes too long.
    """

    problem: Problem
    builtin: Callable[..., Tensor]
    forward_bytes: int
    backward_bytes: int
    dropout: bool = True
    arrange: Callable[[Values], Values] = dict
    restore: Callable[[Values], Values] = dict
    smaller: "Callable[[], Workload] | None" = None

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes there are: an op without gradients has no training mode of its own."""
        return MODES if "grad_y" in self.problem.tensors else MODES[:1]

    def bytes(self, mode: str) -> int:
        return self.forward_bytes + (self.backward_bytes if mode == "training" else 0)

    def settings(self, mode: str) -> dict[str, object]:
        drop = mode == "training" and self.dropout
        return self.problem.settings | ({"dropout_p": 0.1, "seed": 1, "stream": 2} if drop else {})

    def verify(self) -> None:
        """Holds the fused op to the error budget, with and without dropout, and torch's functions in float64.

        In float64 because how torch rounds in float32 is its own affair: only that both compute the same matters.
        """
        if self.smaller is not None:
            self.smaller().verify()
            return
        p = self.problem
        for mode in self.modes:
            check_budget(Problem(p.op, p.tensors, p.kinds, self.settings(mode)), torch.float32)
        step, leaves, y = self._builtin("forward", torch.float64, grad="training" in self.modes)
        step()
        results = self.restore({"y": y[0].detach()} | {name: leaf.grad for name, leaf in leaves.items()})
        check_results(p, torch.float64, results)

    def step(self, candidate: str, mode: str) -> Step:
        """A function that does the timed work once."""
        if candidate == "torch":
            return self._builtin(mode, torch.float32, grad=mode == "training")[0]
        values, settings = self.problem.rounded(torch.float32), self.settings(mode)
        grad_y = values.pop("grad_y", None)
        grad = mode == "training"
        leaves = {name: values[name].requires_grad_(grad) for name in self.problem.kinds if name != "y"}

        def run() -> None:
            with backend(candidate), torch.set_grad_enabled(grad):  # type: ignore[arg-type]
                y = self.problem.op(**values, **settings)
            _backward(y, leaves, grad_y, grad)

        return run

    def _builtin(self, mode: str, dtype: torch.dtype, grad: bool) -> tuple[Step, Values, list[Tensor]]:
        values = {name: t.clone() for name, t in self.arrange(self.problem.rounded(dtype)).items()}
        grad_y = values.pop("grad_y", None)
        leaves = {name: t.requires_grad_(grad) for name, t in values.items() if name in self.problem.kinds}
        settings = {"dropout_p": 0.1 if mode == "training" else 0.0} if self.dropout else {}
        result: list[Tensor] = []

        def run() -> None:
            with torch.set_grad_enabled(grad):
                result[:] = [self.builtin(**values, **settings)]
            _backward(result[0], leaves, grad_y, grad)

        return run, leaves, result


def _backward(y: Tensor, leaves: Values, grad_y: Tensor | None, grad: bool) -> None:
    if grad and grad_y is not None:
        for leaf in leaves.values():
            leaf.grad = None
        y.backward(grad_y.reshape(y.shape))


def sentence_lengths(tokens: int) -> list[int]:
    """Lengths of 20 to 40 tokens that sum to ``tokens``."""
    lengths: list[int] = []
    pattern = cycle((20, 33, 27, 40, 24, 30, 22, 36))
    while sum(lengths) < tokens:
        lengths.append(min(next(pattern), tokens - sum(lengths)))
    return lengths


def attention_workload(tokens: int, width: int) -> Workload:
    lengths, heads = sentence_lengths(tokens), 12
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

    row = tokens * width * FLOAT
    problem = Problem(attention, tensors, {"y": "forward", "qkv": "activation gradient"}, {"max_seqlen": longest})
    return Workload(problem, builtin, 4 * row, 7 * row, arrange=arrange, restore=restore)


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

    row = tokens * width * FLOAT
    problem = Problem(add_layer_norm, tensors, kinds)
    return Workload(problem, builtin, 3 * row, 5 * row)


def bias_gelu_workload(tokens: int, width: int) -> Workload:
    inner = 4 * width
    tensors = {
        "x": normal(tokens, inner, seed=1),
        "bias": normal(inner, seed=2),
        "grad_y": normal(tokens, inner, seed=3),
    }
    kinds = {"y": "forward", "x": "activation gradient", "bias": "summed gradient"}
    row = tokens * inner * FLOAT
    return Workload(
        Problem(bias_gelu, tensors, kinds),
        lambda x, bias: F.gelu(x + bias),
        2 * row,
        3 * row,
        dropout=False,
    )


def embedding_workload(tokens: int, width: int, words: int = 30522) -> Workload:
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
        h = F.embedding(input_ids, word) + F.embedding(token_type_ids, token_type)
        h = h + F.embedding(position_ids, position)
        return F.dropout(F.layer_norm(h, h.shape[-1:], weight, bias, 1e-12), dropout_p)

    row = tokens * width * FLOAT
    tables = (words + 2 + 512) * width * FLOAT  # the gradients of the tables are dense: zeros are written too
    problem = Problem(embedding, tensors, kinds)
    smaller = partial(embedding_workload, tokens, width, 500) if words > 500 else None
    return Workload(problem, builtin, 2 * row, 3 * row + tables, smaller=smaller)


def linear_workload(tokens: int, width: int) -> Workload:
    inner = 4 * width
    tensors = {
        "x": normal(tokens, width, seed=1),
        "weight": normal(inner, width, seed=2),
        "bias": normal(inner, seed=3),
        "grad_y": normal(tokens, inner, seed=4),
    }
    kinds = {"y": "forward", "x": "activation gradient", "weight": "summed gradient", "bias": "summed gradient"}
    sizes = (tokens * width + inner * width + tokens * inner) * FLOAT
    return Workload(
        Problem(linear, tensors, kinds),
        lambda x, weight, bias: F.linear(x, weight, bias),
        sizes,
        2 * sizes,
        dropout=False,
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

    row = tokens * width * FLOAT
    problem = Problem(lambda **arguments: perturb(**arguments)[0], tensors, {"y": "forward"})
    return Workload(problem, builtin, 3 * row, 0, dropout=False)


def symmetric_kl_workload(rows: int) -> Workload:
    a = normal(rows, 5, seed=1)
    tensors = {"a": a, "b": a + 0.5 * normal(rows, 5, seed=2), "grad_y": torch.ones((), dtype=torch.float64)}
    kinds = {"y": "statistic", "a": "activation gradient", "b": "activation gradient"}

    def builtin(a: Tensor, b: Tensor) -> Tensor:
        log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
        p_to_q = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return p_to_q + F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)

    size = rows * 5 * FLOAT
    problem = Problem(symmetric_kl, tensors, kinds)
    return Workload(problem, builtin, 2 * size, 4 * size, dropout=False)


def workloads() -> dict[str, Callable[[], Workload]]:
    """Makes every op at every shape, by name; T tokens, C hidden channels, N predictions of K classes."""
    makers = {
        "attention": attention_workload,
        "add_layer_norm": add_layer_norm_workload,
        "bias_gelu": bias_gelu_workload,
        "embedding": embedding_workload,
        "linear": linear_workload,
        "perturb": perturb_workload,
    }
    made = {
        f"{op}-T{tokens}-C{width}": partial(make, tokens, width)
        for op, make in makers.items()
        for width in WIDTHS
        for tokens in TOKENS
    }
    return made | {f"symmetric_kl-N{rows}-K5": partial(symmetric_kl_workload, rows) for rows in ROWS}
