"""From the runs in a folder to figures over seeds, beside the paper's, and the files that hold them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from smartcs import info
from smartcs.experiments.figures import Experiment, Row
from smartcs.experiments.jobs import Job, Options, Outcome
from smartcs.experiments.paired import Difference
from smartcs.report.comparison import QUANTITIES, ComparisonRow
from smartcs.training import paper
from smartcs.training.config import flat
from smartcs.training.recipes import SMALL_MODEL, model_name
from smartcs.training.run_folder import REPORT

RESULTS = "results.json"
_RUN_ONLY = ("seed", "output", "overwrite", "report")  # not what a row is
_RUN_VALUES = ("best_epoch", "seconds_per_epoch", "seconds", "seconds_total", "tokens_per_second", "steps", "tokens")


@dataclass(frozen=True)
class RowResult:
    """A row, its runs in the order of the seeds, and what they come to.

    Attributes:
        row, outcomes: see there.
        values: means, spreads and the paper's figures; its note says all that a page must.
        note: what a table must say that has a column for the time of pretraining.
        pretrain_seconds: mean time of the additional pretraining; None where there was none.
        differences: from the baseline's runs of the same seeds, by quantity; see `smartcs.experiments.differences`.
    """

    row: Row
    outcomes: tuple[Outcome, ...]
    values: ComparisonRow
    note: str
    pretrain_seconds: float | None
    differences: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The first seed's."""
        return self.outcomes[0].job


@dataclass(frozen=True)
class Results:
    """An experiment as far as it has been run.

    Attributes:
        experiment: which.
        options: what was asked for, with the seeds of all runs.
        rows: in the experiment's order.
        split: whose figures are ours, "dev" or "test".
        notes: what a reader must know of the table.
        slips: where the paper's scores do not follow from its figures.
        warnings: what is missing.
        contrasts: pairs of rows that the experiment names -> their differences; see `smartcs.experiments.differences`.
    """

    experiment: Experiment
    options: Options
    rows: tuple[RowResult, ...]
    split: str
    notes: tuple[str, ...]
    slips: tuple[str, ...]
    warnings: tuple[str, ...]
    contrasts: Mapping[tuple[str, str], Mapping[str, Difference]] = field(default_factory=dict)

    @property
    def outcomes(self) -> list[Outcome]:
        """Those of all rows."""
        return [outcome for result in self.rows for outcome in result.outcomes]

    @property
    def quantities(self) -> list[str]:
        """Those that a row has measured or the paper gives; time ratios wherever the experiment is about them."""
        there = {name for result in self.rows for name in (*result.values.mean, *result.values.paper)}
        there |= {"time_ratio"} if self.experiment.baseline else set()
        return [name for name in QUANTITIES if name in there]

    @property
    def conditions(self) -> list[str]:
        """What ours and what the paper's figures are of."""
        options = self.options
        finished = next((outcome.metrics for outcome in self.outcomes if outcome.state == "finished"), None)
        parts = [f"Ours: {self.split} split", f"model {model_name(options.model)}", options.describe_seeds()]
        parts.append(f"{'fused' if options.fused else 'reference'} ops")
        if finished:
            epochs, cycles = finished["config"]["epochs"], finished["cycles_per_epoch"]
            parts.insert(1, finished["data"]["source"])
            parts.append(f"first row {_count(epochs, 'epoch')} of {_count(cycles, 'cycle')}")
        return [
            f"{', '.join(parts)}.",
            f"The paper's: {self.experiment.split} split, BERT base, the full data, ten epochs.",
        ]

    def as_dict(self) -> dict[str, Any]:
        """The content of results.json."""
        environments = [outcome.metrics["environment"] for outcome in self.outcomes if outcome.metrics]
        versions = sorted({environment["smartcs"]["version"] for environment in environments})
        return {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "command": self.options.command,
            "split": self.split,
            "conditions": self.conditions,
            "baseline": self.experiment.baseline,
            "seeds": list(self.options.seeds),
            "notes": [*self.notes, *self.slips],
            "warnings": list(self.warnings),
            "rows": [_row_dict(result, self) for result in self.rows],
            "contrasts": [
                {"row": one, "minus": other, "difference": {name: value.as_dict() for name, value in found.items()}}
                for (one, other), found in self.contrasts.items()
            ],
            "data": next((outcome.metrics["data"] for outcome in self.outcomes if outcome.metrics), None),
            "version": ", ".join(versions) or None,
            "environment": environments[0] if environments else info.collect(),
        }


def collect(
    experiment: Experiment, outcomes: Sequence[Outcome], options: Options, left_out: Sequence[str] = ()
) -> Results:
    """The results of these runs.

    Args:
        outcomes: in any order.
        left_out: places of runs in the folder that have other settings.
    """
    names = [row.name for row in experiment.rows]
    outcomes = sorted(outcomes, key=lambda outcome: (names.index(outcome.job.row.name), outcome.job.seed))
    options = replace(options, seeds=tuple(sorted({outcome.job.seed for outcome in outcomes})))
    by_row: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_row.setdefault(outcome.job.row.name, []).append(outcome)
    finished = [outcome for outcome in outcomes if outcome.state == "finished"]
    labelled = all("score" in (outcome.metrics["test"] or {}) for outcome in finished)
    split = experiment.split if labelled else "dev"
    baseline = {
        outcome.job.seed: outcome.metrics["seconds_per_epoch"]
        for outcome in finished
        if outcome.job.row.name == experiment.baseline
    }
    rows = tuple(
        _row_result(found, split, baseline, options, is_baseline=name == experiment.baseline)
        for name, found in by_row.items()
    )
    return Results(
        experiment,
        options,
        rows,
        split,
        tuple(_notes(experiment, rows, split, finished, baseline, options)),
        tuple(slip for result in rows if (slip := paper.score_slip(result.row.label, result.row.paper))),
        tuple(_warnings(outcomes, left_out)),
    )


def write_page(results: Results) -> Path:
    """Writes report.html and its pictures into the output folder; returns the page's path."""
    from smartcs.report import write_comparison_report  # matplotlib takes a second to load

    experiment, options = results.experiment, results.options
    return write_comparison_report(
        options.output,
        experiment.title,
        [result.values for result in results.rows],
        split=results.split,
        intro=results.conditions,
        notes=results.notes,
        warnings=results.warnings,
        command=options.command,
    )


def json_text(results: Results) -> str:
    """results.json; what is not finite, which JSON cannot hold, has been null in metrics.json already."""
    return json.dumps(results.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _row_result(
    outcomes: Sequence[Outcome], split: str, baseline: Mapping[int, float], options: Options, *, is_baseline: bool
) -> RowResult:
    row = outcomes[0].job.row
    finished = [outcome for outcome in outcomes if outcome.state == "finished"]
    pretraining = [outcome.pretraining["seconds"] for outcome in finished if outcome.pretraining]
    seconds = fmean(pretraining) if pretraining else None
    notes = _row_notes(row, outcomes, split)
    before = [] if seconds is None else [f"after {seconds:,.0f} s of additional pretraining, not counted"]
    pages = [outcome.folder / REPORT for outcome in finished]
    values = ComparisonRow.from_metrics(
        row.name,
        row.label,
        [outcome.metrics for outcome in finished],
        split=split,
        baseline_seconds=[_baseline_of(outcome, baseline) for outcome in finished] if baseline else None,
        paper=row.paper,
        reports=[Path(os.path.relpath(page, options.output)).as_posix() for page in pages if page.is_file()],
        note="; ".join([*notes, *before]),
    )
    if is_baseline:
        # Every seed over itself.
        values = replace(values, std={name: std for name, std in values.std.items() if name != "time_ratio"})
    return RowResult(row, tuple(outcomes), values, "; ".join(notes), seconds)


def _baseline_of(outcome: Outcome, baseline: Mapping[int, float]) -> float:
    """Seconds that the time of a run is compared with: the same seed's, else the mean."""
    return baseline.get(outcome.job.seed) or fmean(list(baseline.values()))


def _row_notes(row: Row, outcomes: Sequence[Outcome], split: str) -> list[str]:
    notes = [row.note] if row.note else []
    if row.extra:
        notes.append("not in the paper's table")
    stage = outcomes[0].job.stage
    if stage and stage.config.pretrain.epochs != row.settings.get("pretrain.epochs", stage.config.pretrain.epochs):
        notes.append(f"here {_count(stage.config.pretrain.epochs, 'epoch')} of pretraining")
    for state in ("diverged", "pretraining diverged", "not finished"):
        seeds = ", ".join(str(outcome.job.seed) for outcome in outcomes if outcome.state == state)
        if seeds:
            notes.append(f"{state} with seed {seeds}" if len(outcomes) > 1 else state)
    figures = [outcome.metrics[split] for outcome in outcomes if outcome.state == "finished"]
    for name in QUANTITIES[:4]:
        missing = sum(run.get(name) is None for run in figures)
        if missing and (missing < len(figures) or name in row.paper):
            notes.append(f"{name} undefined in {missing} of {_count(len(figures), 'run')}")
    return notes


def _notes(
    experiment: Experiment,
    rows: Sequence[RowResult],
    split: str,
    finished: Sequence[Outcome],
    baseline: Mapping[int, float],
    options: Options,
) -> list[str]:
    notes = list(experiment.notes)
    if split != experiment.split:
        notes.append(
            f"The data has no labelled {experiment.split} split: our figures are of {split}, the paper's of "
            f"{experiment.split}."
        )
    if experiment.baseline and not baseline:
        among = any(result.row.name == experiment.baseline for result in rows)
        why = "has no finished run" if among else "is not among the rows"
        notes.append(f"No time ratio of ours: the row {experiment.baseline} {why}.")
    alone = [outcome.job.place for outcome in finished if baseline and outcome.job.seed not in baseline]
    if alone:
        notes.append(
            f"Time ratio of {', '.join(alone)}: over the mean of the row {experiment.baseline}, which has no run with "
            "that seed."
        )
    rates = any(name.endswith("learning_rate") for result in rows for name in result.row.settings)
    if rates and model_name(options.model) == SMALL_MODEL:
        notes.append(
            "The rows' learning rates are the paper's, of a pretrained encoder; the one here starts from random "
            "weights, for which they are low."
        )
    environments = [(run.metrics["environment"]["versions"], run.metrics["environment"]["machine"]) for run in finished]
    if any(environment != environments[0] for environment in environments):
        notes.append("The runs differ in machine, threads or versions: their times cannot be compared.")
    return notes


def _warnings(outcomes: Sequence[Outcome], left_out: Sequence[str]) -> list[str]:
    warnings = []
    for state, what in (("diverged", "diverged"), ("pretraining diverged", "diverged in pretraining")):
        places = [outcome.job.place for outcome in outcomes if outcome.state == state]
        if places:
            warnings.append(f"{', '.join(places)} {what}: the loss was not finite.")
    missing = sum(outcome.state == "not finished" for outcome in outcomes)
    if missing:
        warnings.append(f"{missing} of {len(outcomes)} runs are not finished; the same command goes on.")
    if left_out:
        warnings.append(f"Not in the tables, being of other settings or data: {', '.join(left_out)}.")
    return warnings


def _row_dict(result: RowResult, results: Results) -> dict[str, Any]:
    values, row = result.values, result.row
    config = {name: value for name, value in flat(result.job.config).items() if name not in _RUN_ONLY}
    stage = result.job.stage
    if stage is not None:
        # What the row is, not how it was run: from the given model, with the pretraining that its stage has done.
        settings = flat(stage.config)
        config |= {name: value for name, value in settings.items() if name.startswith("pretrain.") or name == "model"}
    return {
        "name": row.name,
        "label": row.label,
        "recipe": row.recipe,
        "extra": row.extra,
        "note": result.note,
        "n_seeds": values.n_seeds,
        "mean": dict(values.mean),
        "std": dict(values.std),
        "paper": dict(values.paper),
        "difference": {name: value.as_dict() for name, value in result.differences.items()},
        "pretrain_seconds": result.pretrain_seconds,
        "smart": values.smart,
        "anchor_divergence": values.anchor_divergence,
        "runs": [_run_dict(outcome, results) for outcome in result.outcomes],
        "config": config | {"recipe": row.recipe},
    }


def _run_dict(outcome: Outcome, results: Results) -> dict[str, Any]:
    metrics = outcome.metrics
    figures = (metrics.get(results.split) or {}) if outcome.state == "finished" else {}
    pretraining = {name: outcome.pretraining.get(name) for name in ("seconds", "mlm_loss", "mlm_accuracy")}
    return {
        "seed": outcome.job.seed,
        "state": outcome.state,
        "folder": Path(os.path.relpath(outcome.folder, results.options.output)).as_posix(),
        **{name: figures.get(name) for name in QUANTITIES[:4]},
        **{name: metrics.get(name) for name in _RUN_VALUES},
        "smart": metrics.get("smart"),
        "bregman": metrics.get("bregman"),
        "pretrain": pretraining if outcome.pretraining else None,
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
