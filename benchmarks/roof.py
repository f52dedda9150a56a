"""What this machine can do, measured in the same run, and what a cycle needs at least: the roof and the floor.

    python benchmarks/roof.py --threads 2

The roof is the best rate of matrix products of BERT's shapes, in float32 and in bfloat16, and of a copy in memory. The
floor of a training cycle is its operations at the rate of products of their precision, plus the bytes that no
implementation avoids at the rate of the copy. Operations of one token in one pass forward, hidden size C, L layers,
sentences of n tokens:

    products 2 (4 C^2 + 2 C I) L     (24 C^2 L with I = 4 C)
    attention 4 n C L

Backward takes twice the products, or once for input gradients alone, and twice the attention either way.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from results_io import bf16_products, environment, row, write
from timing import seconds

from smartcs import ops
from smartcs.model.bert import BertConfig

FLOAT, LOW = 4, 2  # bytes
_ROWS = (150, 300, 1220, 4096)
# Reads and writes of AdamW per parameter: weight, gradient and two moments in, weight and moments out; the anchor in
# and out; a packed bfloat16 copy in each of two layouts.
ADAMW_BYTES, ANCHOR_BYTES, PACK_BYTES = 7 * FLOAT, 2 * FLOAT, 2 * LOW
# Columns of C a layer keeps for its backward pass at least: x, q, k, v, context, x after attention, and 4 of the inner
# layer before GELU (what follows GELU can be computed again).
_KEPT = 10


@dataclass(frozen=True)
class Roof:
    """Rates of one run: operations per second of float32 and bfloat16 products (None where the CPU has none worth
    using), and bytes per second of a copy, read and written.
    """

    float32: float
    bfloat16: float | None
    copy: float

    def products(self, precision: str) -> float:
        """The rate of products in "fp32" or "bf16"; float32's where bfloat16 falls back to it."""
        return self.bfloat16 if precision == "bf16" and self.bfloat16 else self.float32

    def describe(self) -> str:
        low = f"{self.bfloat16 / 1e9:.0f}" if self.bfloat16 else "none"
        return f"products {self.float32 / 1e9:.0f} GFLOP/s float32, {low} bfloat16; copy {self.copy / 1e9:.1f} GB/s"


def measure(width: int = 768, tries: int = 5) -> Roof:
    """The best of several tries on each shape; takes about two seconds."""
    low = None if bf16_products().startswith("none") else _best(_bf16_product, width, tries)
    return Roof(max(_best(_torch_product, width, tries), _best(_own_product, width, tries)), low, copy_rate())


def copy_rate(megabytes: int = 256) -> float:
    """Bytes per second, read and written, of the best copy that no cache holds."""
    source = torch.zeros(megabytes * 2**20 // FLOAT)
    target = torch.empty_like(source)
    return 2 * source.numel() * FLOAT / min(seconds(lambda: target.copy_(source)) for _ in range(8))


def _best(make: Callable[[int, int, int], Callable[[], object]], width: int, tries: int) -> float:
    """Over BERT's products at several numbers of rows."""
    best = 0.0
    for rows in _ROWS:
        for inputs, outputs in ((width, 3 * width), (width, 4 * width), (4 * width, width)):
            step = make(rows, inputs, outputs)
            step()
            best = max(best, 2 * rows * inputs * outputs / min(seconds(step) for _ in range(tries)))
    return best


def _torch_product(rows: int, inputs: int, outputs: int) -> Callable[[], object]:
    x, weight, y = torch.randn(rows, inputs), torch.randn(inputs, outputs), torch.empty(rows, outputs)
    return lambda: torch.mm(x, weight, out=y)


def _own_product(rows: int, inputs: int, outputs: int) -> Callable[[], object]:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    return lambda: ops.linear(x, weight)


def _bf16_product(rows: int, inputs: int, outputs: int) -> Callable[[], object]:
    x, weight = torch.randn(rows, inputs).to(torch.bfloat16), torch.randn(outputs, inputs)
    packed = torch.ops.smartcs.pack_weight(weight, False)
    return lambda: torch.ops.smartcs.linear_bf16_fwd(x, packed, outputs, None, False, False, False, torch.bfloat16)


@dataclass(frozen=True)
class Passes:
    """What one step sends through the encoder, in passes over its tokens.

    forward, full, inputs: passes forward, backward with all gradients, and backward with input gradients alone, in the
    run's precision. exact_forward, exact_inputs: those that stay float32 whatever the precision (SMART's noise pass).
    """

    forward: int
    full: int
    inputs: int = 0
    exact_forward: int = 0
    exact_inputs: int = 0


PLAIN = Passes(forward=1, full=1)
# Clean, adversarial and the anchor's pass; the noise pass with its input gradient.
SMART_BREGMAN = Passes(forward=3, full=2, exact_forward=1, exact_inputs=1)
SMART = Passes(forward=2, full=2, exact_forward=1, exact_inputs=1)


def passes(recipe: str, task: str) -> Passes:
    """Of a step of `task`, where the recipe's extra terms are on SST."""
    if task != "sst" or recipe == "baseline":
        return PLAIN
    return SMART_BREGMAN if "bregman" in recipe else SMART


def operations(config: BertConfig, lengths: Sequence[int], counted: Passes) -> dict[str, float]:
    """Floating-point operations of one step: "low" in the run's precision, "exact" in float32.

    Args:
        lengths: tokens of every sequence of the batch.
    """
    c, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    products = 2 * (4 * c * c + 2 * c * inner) * layers * sum(lengths)
    attention = 4 * c * layers * sum(n * n for n in lengths)
    low = products * (counted.forward + 2 * counted.full + counted.inputs)
    exact = products * (counted.exact_forward + counted.exact_inputs)
    both = counted.forward + counted.exact_forward + 2 * (counted.full + counted.inputs + counted.exact_inputs)
    return {"low": low, "exact": exact + attention * both}


def bytes_moved(config: BertConfig, tokens: int, counted: Passes, precision: str, anchor: bool) -> float:
    """Bytes of one step: the optimizer's, rows of the word table without a gradient left alone, and what a layer keeps
    from forward to backward, written and read once.
    """
    c, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    weights = (4 * c * c + 2 * c * inner) * layers
    others = (9 * c + inner) * layers + (config.max_position_embeddings + config.type_vocab_size + 2 + tokens) * c
    each = ADAMW_BYTES + (ANCHOR_BYTES if anchor else 0)
    optimizer = (weights + others) * each + (weights * PACK_BYTES if precision == "bf16" else 0)
    kept = 2 * _KEPT * c * layers * tokens * (LOW if precision == "bf16" else FLOAT)
    return optimizer + kept * (counted.full + counted.inputs) + kept * counted.exact_inputs


def floor(
    roof: Roof, config: BertConfig, batches: Mapping[str, Sequence[int]], recipe: str, precision: str
) -> dict[str, float]:
    """Seconds that a cycle takes at least, by task.

    Args:
        batches: task -> tokens of every sequence of its batch.
    """
    result = {}
    for task, lengths in batches.items():
        counted = passes(recipe, task)
        work = operations(config, lengths, counted)
        moved = bytes_moved(config, sum(lengths), counted, precision, anchor="bregman" in recipe)
        result[task] = work["low"] / roof.products(precision) + work["exact"] / roof.float32 + moved / roof.copy
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, about = [], environment()
    for shape, width in (("minilm", 384), ("base", 768)):
        found = measure(width)
        print(f"{shape}, {arguments.threads} threads: {found.describe()}")
        rows.append(
            row("roof", "fp32 products", shape, "fp32", arguments.threads, unit="FLOP/s", values=[found.float32])
        )
        if found.bfloat16:
            values = [found.bfloat16]
            rows.append(row("roof", "bf16 products", shape, "bf16", arguments.threads, unit="FLOP/s", values=values))
        rows.append(row("roof", "copy", shape, "fp32", arguments.threads, unit="B/s", values=[found.copy]))
    write("roof", rows, about)


if __name__ == "__main__":
    main()
