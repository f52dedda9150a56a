"""Figures that set the rows of a reproduction beside each other and beside the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smartcs.report.comparison import ComparisonRow
from smartcs.report.drawing import COLOURS, Picture, finish, mark, new_figure, powers
from smartcs.report.run_data import task_label
from smartcs.report.training_figures import FIGURES

_TASK_MARKERS = {
    "sst": ("o", "sst"),
    "qqp": ("s", "qqp"),
    "sts": ("^", "sts"),
    # One mean over several tasks.
    "sst+qqp+sts": ("D", "score"),
    "sst+qqp": ("v", "score"),
    "sst+sts": ("P", "score"),
    "qqp+sts": ("X", "score"),
}
_LONGEST = 26  # characters of a label before it goes on another line


def figure_dots(rows: Sequence[ComparisonRow], quantity: str, split: str) -> Picture | None:
    """One of the dev or test figures: ours with its spread, the paper's, a line between them."""
    if not any(quantity in row.mean for row in rows):
        return None
    figure, axes = _row_axes(rows)
    for number, row in enumerate(rows):
        mine, theirs, spread = row.mean.get(quantity), row.paper.get(quantity), row.std.get(quantity, 0.0)
        if mine is not None and theirs is not None:
            axes.plot([mine, theirs], [number, number], color=COLOURS["line"], linewidth=2.5, zorder=1)
        if theirs is not None:
            axes.plot([theirs], [number], **mark("theirs"))
        if mine is not None:
            axes.errorbar(
                [mine], [number], xerr=[spread] if spread else None, color=COLOURS["ours"], linewidth=1.6, capsize=3
            )
            axes.plot([mine], [number], **mark("ours"))
    axes.margins(x=0.08)
    axes.set_title(f"{FIGURES[quantity]}, {split}")
    _key(figure, rows, quantity, "this reproduction")
    caption = f"{FIGURES[quantity]} on {split}."
    if any(quantity in row.std for row in rows):
        caption += " Bars through the dots: one standard deviation over the seeds to either side."
    if axes.get_xlim()[0] > 0:
        caption += " The axis does not start at zero."
    return finish(figure, f"compare-{quantity}", caption)


def time_ratios(rows: Sequence[ComparisonRow]) -> Picture | None:
    """Time per epoch over the baseline's, ours and the paper's."""
    return _time_bars(
        rows, "time_ratio", "Time per epoch, baseline = 1", "× the baseline's time", "compare-time",
        "Training time per epoch as a multiple of the baseline row's. The ratio carries over between machines, seconds "
        "do not.",
    )  # fmt: skip


def epoch_times(rows: Sequence[ComparisonRow]) -> Picture | None:
    """Our seconds per epoch; the paper's are another machine's."""
    return _time_bars(
        [_without_paper(row) for row in rows], "seconds_per_epoch", "Training seconds per epoch", "seconds",
        "compare-seconds", "Training seconds per epoch on this machine, mean over the seeds.",
    )  # fmt: skip


def _time_bars(
    rows: Sequence[ComparisonRow], quantity: str, title: str, unit: str, name: str, caption: str
) -> Picture | None:
    if not any(quantity in row.mean for row in rows):
        return None
    figure, axes = _row_axes(rows)
    # Where the longest bar ends, its spread included.
    ours = [row.mean[quantity] + row.std.get(quantity, 0.0) for row in rows if quantity in row.mean]
    top = max(*ours, *(row.paper[quantity] for row in rows if quantity in row.paper), 0.0)
    paired = any(quantity in row.paper for row in rows)
    for number, row in enumerate(rows):
        for kind, values, shift in (("ours", row.mean, -0.2), ("theirs", row.paper, 0.2)):
            value = values.get(quantity)
            if value is None:
                continue
            where = number + (shift if paired else 0.0)
            axes.barh(
                where, value, height=0.36 if paired else 0.6, color=COLOURS[kind], alpha=0.9 if kind == "ours" else 0.55
            )
            text = f"{value:.2f}" if quantity == "time_ratio" else f"{value:,.1f}"
            end = value
            if kind == "ours" and row.std.get(quantity):
                axes.errorbar(
                    [value], [where], xerr=[row.std[quantity]], color=COLOURS["ink"], linewidth=1.1, capsize=2.5
                )
                end += row.std[quantity]
            axes.annotate(
                text, (end, where), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5,
                color=COLOURS["ink"] if kind == "ours" else COLOURS["muted"],
                bbox={"facecolor": COLOURS["page"], "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    if quantity == "time_ratio":
        axes.axvline(1, color=COLOURS["ink"], linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.9)
    axes.set_xlim(0, 1.25 * top or 1.0)
    axes.set_xlabel(unit)
    axes.set_title(title)
    if paired:
        _key(figure, rows, quantity, "this reproduction", bars=True)
    return finish(figure, name, caption)


def diagnostics(rows: Sequence[ComparisonRow]) -> list[Picture]:
    """SMART's quantities and the anchor divergence across the rows that have them."""
    pictures = []
    for quantity, (title, log, caption) in DIAGNOSTICS.items():
        values = {row.name: _by_task(row, quantity) for row in rows}
        shown = [row for row in rows if values[row.name]]
        if not shown:
            continue
        figure, axes = _row_axes(shown)
        tasks = [task for task in _TASK_MARKERS if any(task in values[row.name] for row in shown)]
        for task in tasks:
            points = [(values[row.name][task], number) for number, row in enumerate(shown) if task in values[row.name]]
            axes.plot(
                *zip(*points, strict=True), _TASK_MARKERS[task][0], color=COLOURS[_TASK_MARKERS[task][1]], markersize=8,
                linestyle="none", label=task_label(task),
            )  # fmt: skip
        numbers = [value for row in shown for value in values[row.name].values()]
        if log and min(numbers) > 0 and max(numbers) > 30 * min(numbers):
            axes.set_xscale("log")
            powers(axes.xaxis)
            axes.margins(x=0.1)
            caption += " Logarithmic axis."
        elif quantity == "adversarial_alignment":
            axes.set_xlim(min(-0.1, 1.1 * min(numbers)), 1.05)
            axes.axvline(0, color=COLOURS["muted"], linewidth=0.9)
        else:
            axes.set_xlim(min(0.0, 1.1 * min(numbers)), 1.15 * max(*numbers, 0.0) or 1.0)
        figure.legend(loc="outside lower center", ncols=len(tasks), handletextpad=0.2)
        axes.set_title(title)
        pictures.append(finish(figure, f"compare-{quantity.replace('_', '-')}", caption))
    return pictures


# Quantity -> title, whether a logarithmic axis may suit it, caption.
DIAGNOSTICS = {
    "adversarial_alignment": (
        "Adversarial alignment",
        False,
        "Cosine of the perturbation with the gradient it should climb, mean over the run: 1 follows it, 0 is a random "
        "direction.",
    ),
    "perturbation_norm": ("Perturbation size", True, "Norm of the perturbation, mean over the run."),
    "regulariser": ("Regulariser", True, "How far the output moves under the perturbation, before it is weighted."),
    "anchor_divergence": ("Divergence from the anchor", True, "How far the output is from that of the Bregman anchor."),
}


def _by_task(row: ComparisonRow, quantity: str) -> dict[str, float]:
    if quantity == "anchor_divergence":
        return dict(row.anchor_divergence)
    return {task: values[quantity] for task, values in row.smart.items() if quantity in values}


def _without_paper(row: ComparisonRow) -> ComparisonRow:
    return ComparisonRow(row.name, row.label, row.n_seeds, row.mean, row.std)


def _row_axes(rows: Sequence[ComparisonRow]) -> tuple[Any, Any]:
    from matplotlib.ticker import MaxNLocator

    labels = [_wrapped(row.label) for row in rows]
    lines = sum(max(2, label.count("\n") + 1) for label in labels)
    figure, axes = new_figure(5.2, 1.25 + 0.19 * lines)
    axes.set_yticks(range(len(rows)), labels, color=COLOURS["ink"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _wrapped(label: str) -> str:
    """On lines of about `_LONGEST` characters, at most three."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _LONGEST:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    if len(lines) > 3:
        lines = [*lines[:2], lines[2] + " …"]
    return "\n".join(line if len(line) <= _LONGEST + 14 else line[: _LONGEST + 13] + "…" for line in lines)


def _key(figure: Any, rows: Sequence[ComparisonRow], quantity: str, ours: str, bars: bool = False) -> None:
    """A legend, where there is more than one kind to tell apart."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if not any(quantity in row.paper for row in rows):
        return
    handles: list[Any] = []
    for kind, label in (("ours", ours), ("theirs", "the paper")):
        if bars:
            handles.append(Patch(color=COLOURS[kind], alpha=0.9 if kind == "ours" else 0.55, label=label))
        else:
            handles.append(Line2D([], [], label=label, **mark(kind)))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handletextpad=0.4)
