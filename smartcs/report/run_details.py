"""Sections of a run's page on how it ran: SMART, pretraining, time, configuration, environment."""

from __future__ import annotations

from dataclasses import asdict

from smartcs.report import training_figures
from smartcs.report.page import DASH, Section, Table, counted, figure_text, plain
from smartcs.report.papers_row import has_row
from smartcs.report.run_data import RunData, anchor_divergence, flat, task_label
from smartcs.training import paper
from smartcs.training.config import TrainConfig


def smart(run: RunData) -> Section:
    """What SMART and the Bregman anchor did."""
    pictures = training_figures.diagnostics(run)
    means, divergence = run.section("smart"), anchor_divergence(run.metrics)
    tables = []
    if means:
        rows = [
            [
                task.upper(),
                *(f"{values.get(name) or 0:,}" for name in ("steps", "fallbacks")),
                *(_significant(values.get(name)) for name in _SMART_COLUMNS),
            ]
            for task, values in means.items()
        ]
        tables.append(Table(["SMART", "Steps", "Fallbacks", *_SMART_COLUMNS.values()], rows))
    if divergence:
        rows = [[task_label(task), _significant(value)] for task, value in divergence.items()]
        tables.append(Table(["Bregman", "Divergence from the anchor"], rows))
    title = "SMART and Bregman" if means and divergence else "Bregman" if divergence else "SMART"
    notes = ["Means over the run's steps that did not fall back."] if means else []
    return Section("smart", title, pictures=pictures, tables=tables, notes=notes)


_SMART_COLUMNS = {
    "adversarial_alignment": "Alignment",
    "perturbation_norm": "Perturbation",
    "regulariser": "Regulariser",
}


def _significant(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


def pretraining(run: RunData) -> Section:
    """The stage before fine-tuning."""
    stage = run.metrics if run.is_pretraining else run.section("pretrain")
    if not stage:
        return Section("pretrain", "Additional pretraining")
    picture = training_figures.pretraining(stage)
    counts = [("Optimizer steps", "steps"), ("Word pieces read", "tokens"), ("Word pieces hidden", "hidden_tokens")]
    rows = [[label, f"{stage[name]:,}"] for label, name in counts if stage.get(name) is not None]
    figures = [("Dev loss", "mlm_loss"), ("Dev accuracy", "mlm_accuracy")]
    rows += [[label, figure_text(stage[name])] for label, name in figures if stage.get(name) is not None]
    if stage.get("seconds") is not None:
        rows.append(["Training seconds", f"{stage['seconds']:,.1f}"])
    return Section(
        "pretrain",
        "Additional pretraining",
        pictures=[picture] if picture else [],
        tables=[Table(["Masked language modelling", ""], rows)] if rows else [],
    )


def time(run: RunData) -> Section:
    """Where the time went."""
    pictures = [training_figures.time_parts(run), training_figures.epoch_seconds(run)]
    metrics, rows = run.metrics, []
    for label, name in (
        ("Training seconds", "seconds"),
        ("Training seconds per epoch", "seconds_per_epoch"),
        ("Seconds in all, with loading and evaluation", "seconds_total"),
    ):
        if metrics.get(name) is not None:
            rows.append([label, f"{metrics[name]:,.1f}"])
    for label, name in (("Word pieces trained on", "tokens"), ("Word pieces per second", "tokens_per_second")):
        if metrics.get(name) is not None:
            rows.append([label, f"{metrics[name]:,.0f}"])
    notes = []
    if run.recipe in paper.EPOCH_SECONDS and has_row(run):
        notes.append(
            f"The paper gives {paper.EPOCH_SECONDS[run.recipe]:,.0f} s per epoch for this row on its own machine, "
            f"{paper.time_ratio(run.recipe):.2f} times its baseline; only the ratio can be compared."
        )
    drawn = [picture for picture in pictures if picture is not None]
    return Section("time", "Run time", pictures=drawn, tables=[Table(["", ""], rows)] if rows else [], notes=notes)


def configuration(run: RunData) -> Section:
    """All settings, those that differ from the defaults first."""
    config = run.config
    if not config:
        return Section("configuration", "Configuration")
    defaults = flat(asdict(TrainConfig()))
    rows = [[name, plain(value), plain(defaults.get(name))] for name, value in config.items()]
    changed = [row for row in rows if row[0] not in defaults or config[row[0]] != defaults[row[0]]]
    rest = [row[:2] for row in rows if row not in changed]
    tables = []
    if changed:
        tables.append(
            Table(
                ["Setting", "Value", "Default"],
                changed,
                f"Other than the defaults ({len(changed)})",
                words=True,
                marked=len(changed),
            )
        )
    if rest:
        tables.append(Table(["Setting", "Value"], rest, f"As by default ({len(rest)})", folded=True, words=True))
    return Section("configuration", "Configuration", tables=tables, notes=["The defaults are the paper's settings."])


def environment(run: RunData) -> Section:
    """Data, machine, versions and ops."""
    found, data, tables = run.section("environment"), run.section("data"), []
    examples, truncated = data.get("examples") or {}, data.get("truncated") or {}
    rows = [
        [f"{split} {task.upper()}", f"{count:,}", f"{(truncated.get(split) or {}).get(task, 0):,}"]
        for split, counts in examples.items()
        for task, count in counts.items()
    ]
    if rows:
        tables.append(Table(["Data", "Examples", "Cut to the longest length"], rows))
    skipped = data.get("skipped_rows") or []
    if skipped:
        tables.append(
            Table(
                ["Row"], [[row] for row in skipped], f"Rows left out ({data.get('skipped'):,})", folded=True, words=True
            )
        )
    facts = {name: value for name, value in found.items() if name != "ops"}
    if facts:
        rows = [[name, plain(value)] for name, value in flat(facts).items()]
        tables.append(Table(["Fact", "Value"], rows, "Machine and versions", folded=True, words=True))
    ops = found.get("ops") or []
    if ops:
        rows = [[plain(op.get(name)) for name in ("op", "backend", "reason")] for op in ops]
        tables.append(Table(["Op", "Backend", "Why"], rows, "Ops", folded=True, words=True))
    machine, versions = found.get("machine") or {}, found.get("versions") or {}
    lead = []
    if machine or versions:
        lead = [
            f"{plain(machine.get('cpu'))}, {counted(machine.get('threads'), 'thread')}; "
            f"Python {plain(versions.get('python'))}, torch {plain(versions.get('torch'))}."
        ]
    return Section("environment", "Data and environment", lead=lead, tables=tables)
