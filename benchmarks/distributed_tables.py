"""What several GPUs would cost and save, on paper: docs/distributed.md's modelled tables; needs no torch.

A step is that of gpu-model.json launched kernel by kernel (graphs are off with several processes), its gradients are
those of all parameters in float32, and a ring sends 2 (N - 1) / N of them over every link. Gradients are ready from the
last layer to the first during the backward pass of the clean forward pass, the last that runs; the bucket with the
embeddings comes at its end, so nothing hides that one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from gpu_tables import cycle, read
from results_io import Row
from results_io import read as read_rows

CARD = "H100"
LAUNCH = 5.0  # microseconds of the host per launch, as docs/gpu.md assumes
BUCKET = 25e6  # bytes, DistributedDataParallel's
GIGA = 1e9


@dataclass(frozen=True)
class Shape:
    """An encoder of BERT's kind with this project's heads."""

    name: str
    layers: int
    hidden: int
    words: int = 30522
    positions: int = 512

    @property
    def embeddings(self) -> int:
        return (self.words + self.positions + 2 + 2) * self.hidden

    @property
    def parameters(self) -> int:
        c = self.hidden
        layer = 12 * c * c + 13 * c
        pooler_and_heads = 3 * (c * c + c) + 7 * c + 7
        return self.embeddings + self.layers * layer + pooler_and_heads


MINILM, BASE, LARGE = Shape("MiniLM", 6, 384), Shape("BERT-base", 12, 768), Shape("BERT-large", 24, 1024)
WIDE = Shape("of BERT-large's kind, 48 layers of 2,048", 48, 2048)


@dataclass(frozen=True)
class Network:
    """Links, by what their makers say of one direction, times the share of it that is assumed to be reached.

    Attributes:
        inside: bytes per second of a GPU within its machine: NVLink 4.
        between: of a machine's way to another: 400 Gb/s InfiniBand, times the cards that a machine has.
        latency: seconds of a message, assumed, within a machine and between two.
    """

    inside: float = 0.8 * 450e9
    between: float = 0.9 * 50e9
    latency: tuple[float, float] = (3e-6, 8e-6)

    def all_reduce(self, size: float, gpus: int, cards: int = 1) -> float:
        """Seconds to add up so many bytes on 8 GPUs, or on machines of 8."""
        inside, machines = min(gpus, 8), max(1, gpus // 8)
        buckets = max(1.0, size / BUCKET)
        seconds = 2 * (inside - 1) * (size / inside / self.inside + buckets * self.latency[0])
        if machines > 1:
            # Each GPU of a machine adds up its eighth with its like in the others.
            seconds += 2 * (machines - 1) * (size / machines / (cards * self.between) + buckets * self.latency[1])
        return seconds


NETWORK = Network()


def step_seconds(found: Row, recipe: str, shape: str, precision: str) -> dict[str, float]:
    """Task -> modelled seconds of its step, launched kernel by kernel."""
    return {
        one["task"]: cycle([one], CARD, LAUNCH)[1]
        for one in found["steps"]
        if (one["recipe"], one["shape"], one["precision"]) == (recipe, shape, precision)
    }


def optimizer_seconds(shape: Shape, bandwidth: float, anchored: bool) -> float:
    """AdamW reads weight, gradient and both moments and writes all but the gradient; an anchor is read and written."""
    return shape.parameters * 4 * (7 + 2 * anchored) / bandwidth


def exposed(shape: Shape, step: float, optimizer: float, passes: int, gpus: int, cards: int) -> tuple[float, float]:
    """Seconds of a step's all-reduce, and what of them nothing hides.

    Args:
        step, optimizer: seconds of both; the passes take the rest.
        passes: in units of a forward pass; the clean backward pass is two of them.
    """
    whole = NETWORK.all_reduce(4 * shape.parameters, gpus, cards)
    last = NETWORK.all_reduce(4 * shape.embeddings, gpus, cards)
    hidden = 2 / passes * max(0.0, step - optimizer)
    return whole, max(last, whole - hidden)


def communication_table(folder: Path) -> str:
    """Computation, communication and efficiency of a cycle's steps on 8 and on 64 GPUs."""
    found = read(folder)
    bandwidth = next(card["bandwidth"] for card in found["cards"] if card["name"] == CARD)
    networks = {"8 GPUs": (8, 1), "64 GPUs, one card": (64, 1), "64 GPUs, eight cards": (64, 8)}
    heads = ["modelled, per step", "gradients, MB", "computation, ms"]
    for name in networks:
        heads += [f"{name}: all-reduce, ms", "not hidden", "efficiency"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for key, shape in (("minilm", MINILM), ("base", BASE)):
        for precision in ("fp32", "bf16"):
            for recipe in ("baseline", "smart-bregman"):
                for task, step in step_seconds(found, recipe, key, precision).items():
                    if task == "sts" or (task == "qqp" and recipe == "smart-bregman"):
                        continue  # much like sst's and the baseline's
                    smart = recipe == "smart-bregman"
                    optimizer = optimizer_seconds(shape, bandwidth, smart)
                    cells = [
                        f"{shape.name} {precision}, {task.upper()}{', SMART + Bregman' if smart else ''}",
                        f"{4e-6 * shape.parameters:,.0f}",
                        f"{1e3 * step:.2f}",
                    ]
                    for gpus, cards in networks.values():
                        whole, open_ = exposed(shape, step, optimizer, 9 if smart else 3, gpus, cards)
                        cells += [f"{1e3 * whole:.2f}", f"{1e3 * open_:.2f}", f"{step / (step + open_):.0%}"]
                    lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table(folder: Path) -> str:
    """Bytes of a model's state on each GPU, by what is sharded."""
    found = read(folder)
    bandwidth = next(card["bandwidth"] for card in found["cards"] if card["name"] == CARD)
    heads = ["modelled, GB per GPU", "million parameters", "DDP", "ZeRO-1 on 8", "FSDP on 8"]
    heads += ["activations, SMART, 1,280 tokens", "AdamW and anchor, ms", "sharded over 8"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for shape in (MINILM, BASE, LARGE, WIDE):
        count, state = shape.parameters, {"weights": 4, "gradients": 4, "moments": 8, "anchor": 4}
        whole = sum(state.values())
        zero = state["weights"] + state["gradients"] + (state["moments"] + state["anchor"]) / 8
        # Two sets; per token and layer qkv 3 C, context C, two LayerNorms' inputs and outputs 4 C, and 8 C inside.
        activations = 2 * 1280 * shape.layers * 16 * 4 * shape.hidden
        optimizer = optimizer_seconds(shape, bandwidth, anchored=True)
        cells = [shape.name, f"{1e-6 * count:,.0f}", f"{whole * count / GIGA:.2f}", f"{zero * count / GIGA:.2f}"]
        cells += [f"{whole * count / 8 / GIGA:.2f}", f"{activations / GIGA:.2f}"]
        cells += [f"{1e3 * optimizer:.2f}", f"{1e3 * optimizer / 8:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def throughput_table(folder: Path) -> str:
    """Measured: tokens per second of one process and of two, of one thread each."""
    rows = [one for one in read_rows("distributed", folder) if one["status"] == "measured"]
    if not rows:
        return "Not measured."
    about = rows[0]
    names = list(dict.fromkeys(one["candidate"] for one in rows))
    lines = [
        f"{about['cpu']}, one thread a process, load {about['load']} at the start, torch {about['torch']}, commit "
        f"{about['commit']}{' with changes' if about['dirty'] else ''}, {about['date']}:",
        "",
        f"| cycle, tokens/s | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for case, shape in dict.fromkeys((one["case"], one["shape"]) for one in rows):
        found = {one["candidate"]: one for one in rows if (one["case"], one["shape"]) == (case, shape)}
        cells = [f"{one['median']:,.0f}{_over_one(one)}" for one in found.values()]
        lines.append(f"| `{case}`, {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _over_one(one: Row) -> str:
    low, middle, high = one["ratios"]["1 process"]
    return "" if one["candidate"] == "1 process" else f", {middle:.2f} times ({low:.2f} - {high:.2f})"


def equality_table(folder: Path) -> str:
    """How far steps of several processes, or of several slices, are from those of one."""
    path = folder / "distributed-equality.json"
    if not path.is_file():
        return "Not measured."
    lines = [
        "| training, six steps | two processes | three | three slices of one process | tolerance |",
        "|---|---|---|---|---|",
    ]
    for one in json.loads(path.read_text()):
        cells = [one["training"], *(f"{one[name]:.0e}" for name in ("processes 2", "processes 3", "slices"))]
        lines.append(f"| {' | '.join(cells)} | {one['tolerance']:.0e} |")
    return "\n".join(lines)


TABLES = {
    "distributed-equality": equality_table,
    "distributed-communication": communication_table,
    "distributed-memory": memory_table,
    "distributed-throughput": throughput_table,
}
