"""How the encoder scales: tokens per second over tokens, sequence length and hidden size, on 1 and 2 threads.

    python benchmarks/scaling.py --data DIR

Forward and backward of a two-layer encoder with dropout, in training: ours in float32 and in bf16, and Hugging Face's
with SDPA on the same sequences, padded before the clock starts, in turns. Three sweeps of sequences of equal length, so
that nothing is padded, and with `--data` the reviews of its ids-cfimdb-train.csv, whose lengths differ: batches of 8,
up to 512 tokens. Kept are tokens per second and the share of the roof, the operations at the rate of products measured
in the same run. Rows are written after every point, the picture at the end.
"""

import argparse
import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from results_io import RESULTS, Row, bf16_products, environment, ratio_quantiles, read, row, write
from roof import PLAIN, Roof, measure, operations
from setting import WORDS, encoder, mode
from timing import in_turns

import smartcs
from smartcs.data.packing import PackedBatch
from smartcs.model.sources import bundled_minilm
from smartcs.model.tokenizer import load_tokenizer

LAYERS = 2
PEER = "transformers sdpa"
CANDIDATES = ("smartcs fp32", "smartcs bf16", PEER)
TOKENS = (64, 256, 1024, 4096, 16384)
LENGTHS = (16, 32, 64, 128, 256, 512)
HIDDEN = (128, 256, 512, 768, 1024)
COLOURS = dict(zip(CANDIDATES, ("#1d3557", "#e76f51", "#8d99ae"), strict=True))
PICTURE = RESULTS.parent.parent / "docs" / "scaling.png"


def two_layers(hidden: int) -> smartcs.BertModel:
    """With heads of 32 channels as in MiniLM up to its width, of 64 as in BERT beyond."""
    torch.manual_seed(0)
    return encoder((LAYERS, hidden, hidden // (32 if hidden <= 384 else 64), 4 * hidden)).train()


def batch_of(lengths: Sequence[int]) -> PackedBatch:
    generator = torch.Generator().manual_seed(0)
    return PackedBatch.from_lists([torch.randint(WORDS, (n,), generator=generator).tolist() for n in lengths])


def own_step(model: smartcs.BertModel, batch: PackedBatch, precision: str) -> Callable[[], None]:
    layers = list(model.layers.parameters())

    def run() -> None:
        with mode("fused", precision):
            model(batch, smartcs.DropoutKey(1, 1)).last_hidden_state.sum().backward()
        for parameter in layers:
            parameter.grad = None

    # The word table's dense gradient is no part of the question.
    model.embeddings.requires_grad_(False)
    return run


def peer_step(model: smartcs.BertModel, batch: PackedBatch) -> Callable[[], None]:
    from peers import Peer, padded

    peer = Peer(smartcs.MultitaskBert(model), PEER).train()
    peer.bert.embeddings.requires_grad_(False)
    given, layers = padded(batch), list(peer.bert.encoder.parameters())
    real = given.mask.to(torch.bool)

    def run() -> None:
        out = peer.bert(given.ids, given.mask, given.types).last_hidden_state
        out[real].sum().backward()
        for parameter in layers:
            parameter.grad = None

    return run


def point(
    sweep: str, shape: str, hidden: int, lengths: Sequence[int], roof: Roof, threads: int, arguments: argparse.Namespace
) -> list[Row]:
    """The rows of all candidates at one place of a sweep."""
    batch, tokens = batch_of(lengths), sum(lengths)
    model = two_layers(hidden)
    steps: dict[str, Callable[[], None]] = {}
    for name in arguments.candidates:
        steps[name] = peer_step(model, batch) if name == PEER else own_step(model, batch, name.split()[1])
    for step in steps.values():
        step()
    times = in_turns(steps, arguments.rounds)
    work = operations(model.config, lengths, PLAIN)
    rows = []
    for name, values in times.items():
        precision = "bf16" if name.endswith("bf16") else "fp32"
        middle = statistics.median(values)
        least = work["low"] / roof.products(precision) + work["exact"] / roof.float32
        rows.append(
            row(
                sweep,
                name,
                shape,
                precision,
                threads,
                values=values,
                ratios={other: ratio_quantiles(values, times[other]) for other in times if other != name},
                tokens=tokens,
                tokens_per_second=tokens / middle,
                roof_share=least / middle,
                padded=len(lengths) * max(lengths),
            )
        )
    shown = ", ".join(f"{one['candidate']} {one['tokens_per_second']:,.0f} ({one['roof_share']:.0%})" for one in rows)
    print(f"{sweep:8} {shape:28} {threads} threads  tokens/s (of roof): {shown}", flush=True)
    return rows


def reviews(folder: str) -> list[list[int]]:
    """Lengths of the first four batches of 8 reviews, cut to 512 word pieces."""
    found = bundled_minilm()
    path = Path(folder) / "ids-cfimdb-train.csv"
    if found is None or not path.is_file():
        print(f"reviews: not measured, {'no tokenizer is installed' if found is None else f'{path.name} is not there'}")
        return []
    tokenizer = load_tokenizer(found, WORDS)
    with open(path, newline="", encoding="utf-8") as file:
        texts = [one["sentence"] for one, _ in zip(csv.DictReader(file, delimiter="\t"), range(32), strict=False)]
    lengths = [min(512, len(encoding.ids)) for encoding in tokenizer.encode_batch(texts)]
    return [lengths[begin : begin + 8] for begin in range(0, len(lengths), 8)]


def sweeps(folder: str | None) -> list[tuple[str, str, int, list[int]]]:
    """Sweep, shape, hidden size and lengths of every point."""
    points = [("tokens", f"T{t}-S32-C384", 384, [32] * (t // 32)) for t in TOKENS]
    points += [("length", f"T2048-S{n}-C384", 384, [n] * (2048 // n)) for n in LENGTHS]
    points += [("hidden", f"T1024-S32-C{c}", c, [32] * 32) for c in HIDDEN]
    for index, lengths in enumerate(reviews(folder) if folder else []):
        points.append(("reviews", f"batch {index + 1} of 8-C384", 384, lengths))
    return points


def draw(rows: list[Row], path: Path) -> None:
    """Tokens per second over each sweep's axis; full lines 2 threads, dashed 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    names = {"tokens": ("T", "tokens of a batch"), "length": ("S", "tokens of a sequence"), "hidden": ("C", "hidden")}
    for axis, (sweep, (letter, label)) in zip(axes, names.items(), strict=True):
        for candidate in CANDIDATES:
            for threads, style in ((1, "--"), (2, "-")):
                points = sorted(
                    (next(int(part[1:]) for part in one["shape"].split("-") if part[0] == letter), one)
                    for one in rows
                    if (one["case"], one["candidate"], one["threads"]) == (sweep, candidate, threads)
                )
                if points:
                    values = [one["tokens_per_second"] / 1e3 for _, one in points]
                    name = candidate if threads == 2 else None
                    axis.plot([x for x, _ in points], values, style, marker=".", color=COLOURS[candidate], label=name)
        axis.set(xlabel=label, xscale="log", ylabel="thousand tokens/s")
        axis.set_xscale("log", base=2)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False)
    figure.suptitle("two layers, forward and backward, dropout 0.1; 2 threads, dashed 1", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sweeps", nargs="*", choices=("tokens", "length", "hidden", "reviews"))
    parser.add_argument("--most-tokens", type=int, default=max(TOKENS), help="leave larger points out")
    parser.add_argument("--candidates", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--data", help="folder with ids-cfimdb-train.csv")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    if "smartcs bf16" in arguments.candidates and bf16_products().startswith("none"):
        print(f"bf16: not measured, {bf16_products()}")
        arguments.candidates.remove("smartcs bf16")
    about = environment()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        roofs = {hidden: measure(hidden, tries=3) for hidden in (384, 768)}
        for sweep, shape, hidden, lengths in sweeps(arguments.data):
            if sum(lengths) <= arguments.most_tokens and sweep in (arguments.sweeps or (sweep,)):
                roof = roofs[384 if hidden <= 512 else 768]
                rows = point(sweep, shape, hidden, lengths, roof, threads, arguments)
                write("scaling", rows, about, arguments.output)
    picture = PICTURE if arguments.output == RESULTS else arguments.output / "scaling" / PICTURE.name
    draw(read("scaling", arguments.output), picture)
    print(f"drew {picture.name}")


if __name__ == "__main__":
    main()
