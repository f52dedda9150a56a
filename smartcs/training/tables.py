"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from smartcs.training.evaluation import Evaluation

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
