"""The page of a reproduction: its rows beside each other and beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smartcs.report import comparison_figures
from smartcs.report.comparison import QUANTITIES, ComparisonRow
from smartcs.report.drawing import house_style
from smartcs.report.page import DASH, Section, Table, figure_text, write_page
from smartcs.report.run_data import task_label
from smartcs.report.training_figures import FIGURES
from smartcs.training import paper

PICTURES = (
    *(f"compare-{name}" for name in FIGURES),
    "compare-time",
    "compare-seconds",
    *(f"compare-{name.replace('_', '-')}" for name in comparison_figures.DIAGNOSTICS),
)
"""Every picture that the page of a reproduction can have."""

_COLUMNS = {**FIGURES, "seconds_per_epoch": "s / epoch", "time_ratio": "Time ratio"}
_DIGITS = {"seconds_per_epoch": 1, "time_ratio": 2}


def write_comparison_report(
    folder: str | Path,
    title: str,
    rows: Sequence[ComparisonRow],
    *,
    split: str = "dev",
    intro: Sequence[str] = (),
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    command: str = "",
) -> Path:
    """Writes report.html and figures/*.png of a reproduction; returns the page's path.

    Quantities that no row has measured are left out. The page is one file that needs no network.

    Args:
        folder: created if missing; the rows' `reports` are relative to it.
        title: e.g. "Figure 2: development set performance".
        rows: in the order of the page, of different names; those of 0 seeds are listed with the paper's values.
        split: "dev" or "test": what the figures are of.
        intro: paragraphs below the title, e.g. what was run on which data and model.
        notes: paragraphs below the table. Scores of the paper that its formula does not give are named by itself.
        warnings: paragraphs that stand out, e.g. rows that failed.
        command: makes the page again.

    Raises:
        ValueError: no rows, or two of one name.
    """
    names = [row.name for row in rows]
    if not rows or len(set(names)) != len(names):
        raise ValueError(f"write_comparison_report: rows are named {names}, expected at least one, each its own name")
    with house_style():
        sections = [section for section in _sections(rows, split) if section]
    columns = [name for name in QUANTITIES if any(name in row.mean or name in row.paper for row in rows)]
    context = {
        "title": f"{title}: reproduction",
        "heading": title,
        "intro": list(intro),
        "warnings": list(warnings),
        "sections": sections,
        "columns": [
            {"label": _label(name, split), "paired": any(name in row.paper for row in rows)} for name in columns
        ],
        "rows": [_table_row(row, rows, columns) for row in rows],
        "notes": [*notes, *_notes(rows)],
        "command": command,
    }
    pictures = [picture for section in sections for picture in section.pictures]
    return write_page(Path(folder), "comparison.html.j2", pictures, context, PICTURES)


def _label(name: str, split: str) -> str:
    return f"{_COLUMNS[name]}, {split}" if name in FIGURES else _COLUMNS[name]


def _table_row(row: ComparisonRow, rows: Sequence[ComparisonRow], columns: Sequence[str]) -> dict[str, Any]:
    cells = []
    for name in columns:
        digits = _DIGITS.get(name, 3)
        cells.append(
            {
                "ours": figure_text(row.mean.get(name), digits),
                "spread": figure_text(row.std[name], digits) if name in row.std else "",
                "paired": any(name in other.paper for other in rows),
                "paper": figure_text(row.paper.get(name), digits),
            }
        )
    return {"label": row.label, "note": row.note, "cells": cells, "n_seeds": row.n_seeds, "reports": row.reports}


def _notes(rows: Sequence[ComparisonRow]) -> list[str]:
    notes = ["Score = (SST accuracy + QQP accuracy + (STS Pearson + 1) / 2) / 3."]
    if any("seconds_per_epoch" in row.mean for row in rows):
        notes.append("s / epoch: seconds of training steps per epoch, evaluation not counted.")
    if any("time_ratio" in row.mean for row in rows):
        notes.append("Time ratio: over the baseline row's time per epoch.")
    if any(row.std for row in rows):
        notes.append("After ±: one standard deviation over the seeds.")
    return [*notes, *(slip for row in rows if (slip := paper.score_slip(row.label, row.paper)))]


def _sections(rows: Sequence[ComparisonRow], split: str) -> list[Section]:
    figures = [comparison_figures.figure_dots(rows, name, split) for name in FIGURES]
    times = [comparison_figures.time_ratios(rows), comparison_figures.epoch_times(rows)]
    diagnostics = comparison_figures.diagnostics(rows)
    return [
        Section("charts", "Beside the paper", pictures=[picture for picture in figures if picture is not None]),
        Section("time", "Run time", pictures=[picture for picture in times if picture is not None]),
        Section("smart", "SMART and Bregman", pictures=diagnostics, tables=_smart_table(rows)),
    ]


def _smart_table(rows: Sequence[ComparisonRow]) -> list[Table]:
    headings = ["Row", "Task", "Fallbacks", "Alignment", "Perturbation", "Regulariser", "Anchor divergence"]
    keys = ("fallbacks", "adversarial_alignment", "perturbation_norm", "regulariser")
    lines = []
    for row in rows:
        for task in dict.fromkeys([*row.smart, *row.anchor_divergence]):
            values = row.smart.get(task, {})
            numbers = [*(values.get(key) for key in keys), row.anchor_divergence.get(task)]
            lines.append(
                [row.label, task_label(task), *(DASH if value is None else f"{value:.4g}" for value in numbers)]
            )
    return [Table(headings, lines)] if lines else []
