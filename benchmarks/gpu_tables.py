"""The tables of the modelled GPU times, from benchmarks/results/gpu-model.json; needs no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_SHAPES = {"minilm": "MiniLM", "base": "BERT-base"}
_LAUNCH = "5"  # microseconds a launch, where only one is shown


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "gpu-model.json").read_text())
    return found


def cycle(steps: Sequence[Row], card: str, launch: float) -> tuple[float, float]:
    """Seconds of steps one after the other, as graphs and launch by launch."""
    graphs = [1e-6 * one["microseconds"][card] for one in steps]
    return sum(graphs), sum(max(g, 1e-6 * launch * one["launches"]) for g, one in zip(graphs, steps, strict=True))


def _line(name: str, steps: Sequence[Row], found: dict[str, Any]) -> str:
    cells = [name, f"{sum(one['launches'] for one in steps):,}", f"{1e-9 * sum(one['bytes'] for one in steps):.2f}"]
    cells.append(f"{1e-9 * sum(sum(one['operations'].values()) for one in steps):,.0f}")
    for card in (one["name"] for one in found["cards"]):
        times = {each: cycle(steps, card, each) for each in found["launch_microseconds"]}
        shares = {each: 1 - graphs / eager for each, (graphs, eager) in times.items()}
        low, high = shares[min(shares)], shares[max(shares)]
        graphs, eager = times[float(_LAUNCH)]
        cells += [f"{1e3 * graphs:.2f}", f"{1e3 * eager:.2f}", f"{shares[float(_LAUNCH)]:.0%} ({low:.0%} - {high:.0%})"]
    return f"| {' | '.join(cells)} |"


def steps_table(folder: Path) -> str:
    """Steps and cycles: launches, traffic, operations, and times on each card."""
    found = read(folder)
    cards = [one["name"] for one in found["cards"]]
    heads = ["modelled step", "launches", "GB", "GFLOP"]
    for card in cards:
        heads += [f"{card}: ms as graphs", "ms without", "launch latency's share"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for shape, title in _SHAPES.items():
        for precision in dict.fromkeys(one["precision"] for one in found["steps"]):
            rows = [one for one in found["steps"] if (one["shape"], one["precision"]) == (shape, precision)]
            both = {r: [one for one in rows if one["recipe"] == r] for r in ("smart-bregman", "baseline")}
            for one in both["smart-bregman"]:
                step = f"{one['task'].upper()}{', SMART + Bregman' if one['task'] == 'sst' else ''}"
                lines.append(_line(f"{title} {precision}, {step}", [one], found))
            lines.append(_line(f"{title} {precision}, SMART + Bregman cycle", both["smart-bregman"], found))
            lines.append(_line(f"{title} {precision}, baseline cycle", both["baseline"], found))
    return "\n".join(lines)


def kernels_table(folder: Path, shape: str = "base", precision: str = "bf16") -> str:
    """The ops of the SST step with SMART and Bregman, and what eager PyTorch moves instead."""
    found = read(folder)
    cards = [one["name"] for one in found["cards"]]
    heads = ["modelled op", "launches", "MB", "GFLOP", *(f"{card}, µs" for card in cards)]
    heads += ["eager: launches", "MB", "traffic saved, times"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    rows = [one for one in found["kernels"] if (one["shape"], one["precision"]) == (shape, precision)]
    for one in sorted(rows, key=lambda one: -one["microseconds"][cards[0]]):
        cells = [f"`{one['op']}`", f"{one['launches']:,}", _megabytes(one["bytes"])]
        cells.append(f"{1e-9 * sum(one['operations'].values()):,.1f}")
        cells += [f"{one['microseconds'][card]:,.0f}" for card in cards]
        eager = one.get("eager")
        cells += (
            [f"{eager['launches']:,}", _megabytes(eager["bytes"]), f"{eager['bytes'] / one['bytes']:.2f}"]
            if eager
            else ["", "", ""]
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _megabytes(count: int) -> str:
    return f"{1e-6 * count:,.1f}" if count >= 50_000 else "< 0.1"


def sentence(folder: Path) -> str:
    """README's."""
    found = read(folder)
    parts = []
    for shape, title in _SHAPES.items():
        steps = [
            one
            for one in found["steps"]
            if (one["shape"], one["precision"], one["recipe"]) == (shape, "bf16", "smart-bregman")
        ]
        graphs, eager = cycle(steps, "H100", float(_LAUNCH))
        count = sum(one["launches"] for one in steps)
        parts.append(
            f"{title}'s bf16 SMART + Bregman cycle is {count:,} kernels, {1e3 * graphs:.1f} ms on an H100 as CUDA "
            f"graphs and {1e3 * eager:.1f} ms launched one by one, {1 - graphs / eager:.0%} of it launch latency"
        )
    return (
        f"Modelled, not measured: {'; '.join(parts)} (at an assumed {_LAUNCH} µs a launch; "
        "[docs/gpu.md](docs/gpu.md#modelled-speed))."
    )


TABLES = {"gpu-model": sentence, "gpu-model-steps": steps_table, "gpu-model-kernels": kernels_table}
