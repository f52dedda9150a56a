"""Figures of where the model is right and wrong on the dev split: the paper's figures 4, 9 and 10, and more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smartcs.report.drawing import COLOURS, Picture, finish, mark, new_figure
from smartcs.training import paper

_QQP_CLASSES = ("different", "duplicate")


def confusion(task: str, matrix: Sequence[Sequence[int]]) -> Picture:
    """Counts, shaded by their share of the true class."""
    classes = paper.SST_CLASSES if task == "sst" else _QQP_CLASSES
    count = len(classes)
    figure, axes = new_figure(4.7, 3.9) if task == "sst" else new_figure(3.7, 3.0)
    for row, counts in enumerate(matrix):
        total = sum(counts)
        for column, number in enumerate(counts):
            share = number / total if total else 0.0
            # The share of ink that leaves its number readable in either theme.
            axes.fill(
                [column - 0.48, column + 0.48, column + 0.48, column - 0.48],
                [row - 0.47, row - 0.47, row + 0.47, row + 0.47],
                color=COLOURS[task], alpha=0.04 + 0.5 * share, linewidth=0,
            )  # fmt: skip
            weight = "bold" if row == column else "normal"
            axes.text(column, row - 0.1, f"{number:,}", ha="center", va="center", weight=weight)
            axes.text(
                column, row + 0.22, f"{share:.0%}", ha="center", va="center", fontsize=7.5, color=COLOURS["muted"]
            )
    names = [name.replace(" ", "\n") for name in classes]
    axes.set_xticks(range(count), names, color=COLOURS["ink"])
    axes.set_yticks(range(count), names, color=COLOURS["ink"])
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set(xlabel="predicted", ylabel="true")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{task.upper()} confusion")
    caption = (
        "Examples by true and predicted class; shade and percentage are of the true class, so a row adds up to 100 %."
    )
    if task == "qqp":
        caption += " The paper's figure 4; it is a picture there, without numbers to set beside these."
    return finish(figure, f"{task}-confusion", caption)


def sst_by_class(measure: str, values: Sequence[float | None]) -> Picture:
    """Recall or precision per SST class beside the paper's."""
    theirs = paper.SST_RECALL if measure == "recall" else paper.SST_PRECISION
    figure, axes = new_figure(4.5, 2.9)
    _bars(axes, values, COLOURS["sst"])
    bar = mark("theirs", upright=False) | {"markersize": 25}
    rim = {"color": COLOURS["page"], "markersize": 29, "markeredgewidth": 6}
    axes.plot(range(len(theirs)), theirs, **bar | rim)
    axes.plot(range(len(theirs)), theirs, label="the paper", **bar)
    _class_axis(axes, measure)
    figure.legend(loc="outside lower right", markerscale=0.7)
    axes.set_title(f"SST {measure}")
    of = "that are found" if measure == "recall" else "that are right"
    subject = "Examples of a class" if measure == "recall" else "Predictions of a class"
    return finish(
        figure, f"sst-{measure}", f"{subject} {of} (bars) beside the paper's figure 9 (lines).{_undefined(values)}"
    )


def adjacent_errors(analysis: Mapping[str, Any]) -> Picture:
    """Share of wrong predictions that are a neighbouring class."""
    values = analysis["adjacent_errors_by_class"]
    low, high = paper.SST_ADJACENT_ERRORS
    figure, axes = new_figure(4.5, 2.9)
    axes.axhspan(low, high, color=COLOURS["theirs"], alpha=0.16, linewidth=0, label="range of the paper's classes")
    _bars(axes, values, COLOURS["sst"])
    _class_axis(axes, "share of the class's errors")
    figure.legend(loc="outside lower right", handlelength=1.2)
    axes.set_title("SST errors in a neighbouring class")
    overall = analysis.get("adjacent_errors")
    caption = (
        f"Of the wrong predictions for a true class, the share that is off by one class only; the paper reports "
        f"{low:.0%} to {high:.0%} (band)."
    )
    if overall is not None:
        caption += f" Over all classes it is {overall:.1%} here."
    return finish(figure, "sst-adjacent", caption + _undefined(values))


def _bars(axes: Any, values: Sequence[float | None], colour: str) -> None:
    for column, value in enumerate(values):
        if value is not None:
            axes.bar(column, value, width=0.62, color=colour, alpha=0.85)
        inside = value is not None and value > 0.14
        axes.annotate(
            "–" if value is None else f"{value:.2f}", (column, 0 if inside else value or 0), xytext=(0, 4),
            textcoords="offset points", ha="center", fontsize=8.5, color=COLOURS["page" if inside else "ink"],
        )  # fmt: skip


def _class_axis(axes: Any, label: str) -> None:
    axes.set_xticks(range(5), [name.replace(" ", "\n") for name in paper.SST_CLASSES], color=COLOURS["ink"])
    axes.set_xlim(-0.55, 4.55)
    axes.set_ylim(0, 1)
    axes.set_ylabel(label)
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)


def _undefined(values: Sequence[float | None]) -> str:
    return " A dash: there is nothing to take a share of." if any(value is None for value in values) else ""


def sts_histograms(analysis: Mapping[str, Any]) -> Picture:
    """True and predicted similarity."""
    edges, true, predicted = analysis["bins"], analysis["true"], analysis["predicted"]
    figure, axes = new_figure(4.7, 3.0)
    axes.stairs(true, edges, fill=True, color=COLOURS["majority"], alpha=0.45, linewidth=0, label="true")
    axes.stairs(predicted, edges, color=COLOURS["sts"], linewidth=1.9, label="predicted")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.08 * max([1, *true, *predicted]))
    axes.set_xticks(range(6))
    axes.set(xlabel="similarity", ylabel="pairs")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower right", ncols=2, handlelength=1.4)
    axes.set_title("STS scores")
    caption = (
        "Pairs by similarity, the labels filled and the predictions as a line (the paper's figure 10). The outermost "
        "bins hold predictions beyond 0 and 5 as well."
    )
    return finish(figure, "sts-histogram", caption)
