"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from smartcs.training.evaluation import Evaluation
from smartcs.training.progress import clock

_ROWS = {
    "sst_accuracy": ("SST accuracy", "sst"),
    "qqp_accuracy": ("QQP accuracy", "qqp"),
    "sts_pearson": ("STS Pearson", "sts"),
    "score": ("score", None),
}


def figures_table(split: str, evaluation: Evaluation, majority: Mapping[str, float] | None = None) -> Table:
    """The figures of a split, beside what the commonest training label reaches."""
    table = Table(box=box.SIMPLE_HEAD, title=f"{split} figures", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in (split, *(["majority class"] if majority else []), "loss", "examples"):
        table.add_column(heading, justify="right")
    for key, (label, task) in _ROWS.items():
        if key not in evaluation.figures:
            continue
        cells = [label, f"{evaluation.figures[key]:.3f}"]
        if majority:
            cells.append(f"{majority[key]:.3f}")
        if task is not None:
            cells += [f"{evaluation.losses[task]:.3f}", f"{evaluation.examples[task]:,}"]
        table.add_row(*cells)
    return table


def figures_line(figures: Mapping[str, float]) -> str:
    """The figures in one line."""
    return "  ".join(f"{label} {figures[key]:.3f}" for key, (label, _) in _ROWS.items() if key in figures)


def closing_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What a run with these metrics says at its end: how much it trained, and warnings."""
    lines = [
        f"trained {metrics['steps']:,} steps on {metrics['tokens']:,} tokens in "
        f"{clock(metrics['seconds'])} ({metrics['tokens_per_second'] or 0:,.0f} tokens/s), "
        f"{clock(metrics['seconds_total'])} in all"
    ]
    lines += [
        f"warning: {count:,} {task} steps were skipped, their loss or gradient was not finite"
        for task, count in metrics["skipped_steps"].items()
        if count
    ]
    for task, figures in (metrics["smart"] or {}).items():
        if figures["fallbacks"]:
            lines.append(
                f"warning: SMART's gradient or value was not finite in {figures['fallbacks']:,} of "
                f"{figures['steps']:,} {task} steps; those had the plain loss"
            )
    return lines
