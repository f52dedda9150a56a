"""The goals of the CPU engine, what was measured, and whether it is reached: a table made from the committed rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from results_io import RESULTS, Row, read

PEERS = ("transformers", "sentence-transformers", "onnxruntime")


class Goal(NamedTuple):
    """`least` is to be reached, `aim` is aimed at; both are the most allowed where `below`, else the least."""

    name: str
    least: float
    aim: float
    measured: float | None
    below: bool = False
    percent: bool = False

    def line(self) -> str:
        shown = "not measured" if self.measured is None else self._show(self.measured)
        return f"| {self.name} | {self._show(self.least)} | {self._show(self.aim)} | {shown} | {self._verdict()} |"

    def _show(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}"

    def _verdict(self) -> str:
        if self.measured is None:
            return ""
        sign = -1 if self.below else 1
        if sign * self.measured >= sign * self.aim:
            return "aim reached"
        return "reached" if sign * self.measured >= sign * self.least else "missed"


def goals_table(folder: Path = RESULTS) -> str:
    """Markdown; what has no rows is "not measured"."""
    cycle, memory, cost, embed = (read(name, folder) for name in ("cycle", "memory", "cost", "embed"))
    goals = [
        Goal("cycle, BERT-base, float32: times faster than the best peer", 2.5, 3, speed_up(cycle, "base", "fp32")),
        Goal("cycle, BERT-base, bf16 (the goal is for AMX)", 6, 10, speed_up(cycle, "base", "bf16")),
        Goal("cycle, MiniLM, float32", 3, 4, speed_up(cycle, "minilm", "fp32")),
        Goal("cycle, MiniLM, bf16 (the goal is for AMX)", 5, 8, speed_up(cycle, "minilm", "bf16")),
    ]
    for shape in ("minilm", "base"):
        for precision in ("fp32", "bf16"):
            name = f"SMART + Bregman over our baseline cycle, {shape}, {precision}"
            goals.append(Goal(name, 1.26, 1.20, over_baseline(cost, shape, precision), below=True))
    for precision in ("fp32", "bf16"):
        share = memory_share(memory, "base", precision)
        goals.append(Goal(f"peak memory over the best peer's, BERT-base, {precision}", 0.45, 0.35, share, below=True))
    for shape in ("minilm", "base"):
        for precision in ("fp32", "bf16"):
            one = _own(cycle, shape, precision)
            over = one["over_floor"] if one else None
            goals.append(Goal(f"cycle's time over floor, {shape}, {precision}", 1.35, 1.15, over, below=True))
    for precision in ("fp32", "bf16"):
        one = _own(cycle, "minilm", precision)
        what, share = data_share(one["parts"] if one else {})
        goals.append(Goal(f"{what}'s share of a step, minilm, {precision}", 0.02, 0.01, share, True, percent=True))
    goals.append(Goal("embed, float32: times faster than the best peer", 1.7, 2, embed_speed_up(embed, "fp32")))
    goals.append(Goal("embed, bf16 (the goal is for AMX)", 3, 5, embed_speed_up(embed, "bf16")))
    lines = ["| goal | at least | aim | measured | |", "|---|---|---|---|---|", *(goal.line() for goal in goals)]
    return "\n".join(lines)


def data_share(parts: Mapping[str, float]) -> tuple[str, float | None]:
    """What of the data was measured, and its share of a step: the wait, and the preparation beside it if known."""
    background = parts.get("data_background")
    step = sum(seconds for part, seconds in parts.items() if part != "data_background")
    share = (parts["data"] + (background or 0.0)) / step if parts else None
    return "waiting for data" if background is None else "data loading", share


def speed_up(rows: Sequence[Row], shape: str, precision: str) -> float | None:
    """How many times faster our smart-bregman cycle is than that of the fastest peer, median over turns."""
    return _best_peer(_of_cycle(rows, shape), precision)


def embed_speed_up(rows: Sequence[Row], precision: str) -> float | None:
    """The same of sentence embeddings."""
    return _best_peer(_measured(rows), precision)


def over_baseline(rows: Sequence[Row], shape: str, precision: str) -> float | None:
    found = [
        r for r in _measured(rows) if (r["case"], r["shape"], r["precision"]) == ("smart-bregman", shape, precision)
    ]
    return found[0]["ratios"]["baseline"][1] if found else None


def memory_share(rows: Sequence[Row], shape: str, precision: str) -> float | None:
    """Our peak over that of the peer with the smallest."""
    found = _of_cycle(rows, shape)
    peaks = [r["median"] for r in found if r["candidate"].startswith(PEERS)]
    own = [r["median"] for r in found if r["candidate"] == f"smartcs {precision}"]
    return own[0] / min(peaks) if own and peaks else None


def _best_peer(rows: Sequence[Row], precision: str) -> float | None:
    own = f"smartcs {precision}"
    peers = [r for r in rows if r["candidate"].startswith(PEERS) and own in r["ratios"]]
    return min(peers, key=lambda r: r["median"])["ratios"][own][1] if peers else None


def _of_cycle(rows: Sequence[Row], shape: str) -> list[Row]:
    return [r for r in _measured(rows) if r["shape"] == shape and r["case"] == "smart-bregman"]


def _own(rows: Sequence[Row], shape: str, precision: str) -> Row | None:
    found = [r for r in _of_cycle(rows, shape) if r["candidate"] == f"smartcs {precision}"]
    return found[0] if found else None


def _measured(rows: Sequence[Row]) -> list[Row]:
    """The measured rows of the most threads there are."""
    found = [r for r in rows if r["status"] == "measured"]
    most = max((r["threads"] for r in found), default=0)
    return [r for r in found if r["threads"] == most]
