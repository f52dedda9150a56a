"""The README's picture: loss curves of the two backends, and dev figures of the longer run.

    python benchmarks/picture.py collect FUSED_RUN REFERENCE_RUN LONG_RUN   keeps what the picture needs of three runs
    python benchmarks/picture.py draw                                      draws it; needs matplotlib

The runs are those of the README's section on figures; `collect` keeps losses and dev figures only.
"""

import csv
import json
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "training"
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "training.png"
RUNS = ("fused", "reference", "long")
TASKS = {"sst": "SST, cross entropy", "qqp": "QQP, binary cross entropy", "sts": "STS, squared error"}
FIGURES = {"sst_accuracy": "SST accuracy", "qqp_accuracy": "QQP accuracy", "sts_pearson": "STS Pearson"}
KEPT = ("seconds", "tokens_per_second", "best_epoch", "dev", "epochs", "steps", "cycles_per_epoch", "tokens")
SETTINGS = ("fused", "model", "epochs", "cycles", "learning_rate", "pooling", "seed")
WINDOW = 25  # steps of one task averaged per point


def collect(*runs: str) -> None:
    """Copies losses.csv and the figures of metrics.json, without paths, from the three run folders."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, run in zip(RUNS, runs, strict=True):
        metrics = json.loads((Path(run) / "metrics.json").read_text())
        kept = {key: metrics[key] for key in KEPT}
        kept["config"] = {key: metrics["config"][key] for key in SETTINGS}
        kept["threads"] = metrics["environment"]["machine"]["threads"]
        kept["cpu"] = metrics["environment"]["machine"]["cpu"]
        kept["commit"] = (metrics["environment"]["extension"]["build"] or {}).get("git_commit")
        kept["torch"] = metrics["environment"]["versions"]["torch"]
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
        (RESULTS / f"{name}.csv").write_text((Path(run) / "losses.csv").read_text())
    print(f"largest difference of the 50-step means, relative: {largest_difference():.2e}")


def losses(name: str) -> dict[str, list[float]]:
    """The losses of a collected run, per task."""
    columns: dict[str, list[float]] = {task: [] for task in TASKS}
    with open(RESULTS / f"{name}.csv", newline="") as file:
        for row in csv.DictReader(file):
            columns[row["task"]].append(float(row["loss"]))
    return columns


def largest_difference(steps: int = 50) -> float:
    """Over tasks and blocks of that many steps: |fused - reference| / reference of the block's mean loss."""
    fused, reference = losses("fused"), losses("reference")
    worst = 0.0
    for task in TASKS:
        for begin in range(0, len(reference[task]), steps):
            a, b = (sum(run[task][begin : begin + steps]) for run in (fused, reference))
            worst = max(worst, abs(a - b) / b)
    return worst


def draw() -> None:
    """Writes docs/training.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    runs = {name: losses(name) for name in ("reference", "fused")}
    for axis, (task, title) in zip(axes, TASKS.items(), strict=False):
        for name, style in (("reference", {"lw": 5, "color": "#f4a261"}), ("fused", {"lw": 1.3, "color": "#1d3557"})):
            values = runs[name][task]
            means = [sum(values[i : i + WINDOW]) / WINDOW for i in range(len(values) - WINDOW + 1)]
            axis.plot(range(WINDOW, len(values) + 1), means, label=name, **style)
        axis.set(title=title, xlabel="cycle")
        axis.legend(frameon=False)
    long = json.loads((RESULTS / "long.json").read_text())
    cycles = [(i + 1) * long["cycles_per_epoch"] for i in range(len(long["epochs"]))]
    for (key, label), color in zip(FIGURES.items(), ("#1d3557", "#2a9d8f", "#e76f51"), strict=True):
        axes[3].plot(cycles, [epoch[key] for epoch in long["epochs"]], marker="o", label=label, color=color)
        axes[3].axhline(long["dev"]["majority"][key], ls=":", lw=1, color=color)
    axes[3].set(title="longer run: dev (dotted: majority)", xlabel="cycle", ylim=(-0.03, 1))
    axes[3].legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.05))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"] and len(sys.argv) == 5:
        collect(*sys.argv[2:])
    elif sys.argv[1:] == ["draw"]:
        draw()
    else:
        sys.exit(__doc__)
