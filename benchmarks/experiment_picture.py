"""The experiment's pictures: what each recipe and each part of SMART changes, and where two recipes are right.

Made by `python benchmarks/tables.py` from results/experiment; needs matplotlib.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment_tables import rows_of
from results_io import RESULTS

OURS, PAPER, QUIET = "#1d3557", "#e76f51", "#8d99ae"


def draw_finding(path: Path, folder: Path = RESULTS) -> None:
    """Differences in SST accuracy with their intervals: recipes on three tasks, and SMART's parts on SST alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    methods = rows_of("methods", folder)
    baseline = next(row for row in methods if row["name"] == "baseline")
    left = [row for row in methods if row["difference"]]
    right = [row for row in rows_of("parts", folder) if row["difference"]]
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), layout="constrained")
    _intervals(axes[0], left, [row["name"] for row in left], "Minus the baseline, three tasks")
    for at, row in enumerate(left):
        if "sst_accuracy" in row["paper"]:
            theirs = row["paper"]["sst_accuracy"] - baseline["paper"]["sst_accuracy"]
            axes[0].plot(theirs, at, "|", ms=13, mew=2.5, color=PAPER, label="the paper, one run" if at == 0 else None)
    axes[0].legend(frameon=False, loc="upper left")
    labels = []
    for row in right:
        labels.append(f"{row['label']}\nR_s {row['smart']['sst']['regulariser']:.2g}")
    _intervals(axes[1], right, labels, "Minus no regulariser, SST alone")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _intervals(axis: Any, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], title: str) -> None:
    for at, row in enumerate(rows):
        found = row["difference"]["sst_accuracy"]
        several = len(found["each"]) > 1
        colour = OURS if found["clear"] else QUIET
        axis.plot([found["low"], found["high"]], [at, at], lw=2, color=colour)
        axis.plot(found["mean"], at, "o", ms=7, mec=colour, mfc=colour if several else "white")
        if several:
            axis.plot(found["each"], [at] * len(found["each"]), "|", ms=7, mew=1.2, color=colour)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel("SST accuracy; dark: the 95 % interval excludes 0; hollow: one seed; ticks: seeds", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def draw_analysis(path: Path, names: Sequence[str] = ("baseline", "smart-bregman"), folder: Path = RESULTS) -> None:
    """The paper's figures 4, 9 and 10 and its adjacent errors, of the first seed of some recipes, a row each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import image, pyplot

    from smartcs.report import analysis_figures
    from smartcs.report.drawing import house_style

    found = [row for row in rows_of("methods", folder) if row["name"] in names]
    figure, axes = pyplot.subplots(len(found), 5, figsize=(20, 3.6 * len(found)), layout="constrained", squeeze=False)
    for line, row in zip(axes, found, strict=True):
        seed = row["runs"][0]["seed"]
        kept = folder / "experiment" / "methods" / row["name"] / f"seed-{seed}.json"
        analysis = json.loads(kept.read_text())["analysis"]
        with house_style():
            pictures = [
                analysis_figures.confusion("qqp", analysis["qqp"]["confusion"]),
                analysis_figures.sst_by_class("recall", analysis["sst"]["recall"]),
                analysis_figures.sst_by_class("precision", analysis["sst"]["precision"]),
                analysis_figures.adjacent_errors(analysis["sst"]),
                analysis_figures.sts_histograms(analysis["sts"]),
            ]
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(image.imread(io.BytesIO(picture.png)))
            axis.axis("off")
        line[0].set_title(f"{row['name']}, seed {seed}", loc="left", fontsize=13)
    figure.savefig(path, dpi=80, metadata={"Software": None})
