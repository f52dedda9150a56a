"""What earlier commands have left in a reproduction's folder beside the runs that are asked for now."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from smartcs.experiments.figures import Experiment
from smartcs.experiments.jobs import Job, Options, Outcome, find, make_jobs, read_run
from smartcs.experiments.results import RESULTS
from smartcs.model.files import damaged, read_json


def earlier_runs(experiment: Experiment, jobs: Sequence[Job], options: Options) -> tuple[list[Outcome], list[str]]:
    """The runs of other rows and seeds than those of `jobs` that have ended, row by row, seed by seed.

    A run that was taken from another reproduction is found where the last tables say that it lies.

    Returns:
        The runs; and, where `options.overwrite` lets them be, the places of those of other settings or data.

    Raises:
        UsageError, CheckpointError, DataError, ModelSourceError: see `smartcs.experiments.jobs.find`.
    """
    asked_for = {job.place for job in jobs}
    recorded = _recorded(options.output)
    found: list[Outcome] = []
    left_out: list[str] = []
    for row in experiment.rows:
        seeds = {seed for name, seed in recorded if name == row.name} | _seeds(options.output / row.name)
        for job in make_jobs([row], replace(options, seeds=tuple(sorted(seeds))), chosen=False):
            if job.place in asked_for:
                continue
            where = recorded.get((row.name, job.seed), options.output)
            outcome = find(job, replace(options, reuse=where), "leave it out of the tables")
            if outcome.state != "not finished":
                found.append(outcome)
            elif any(read_run(job, place).state != "not finished" for place in (options.output, where)):
                left_out.append(job.place)
    return found, left_out


def _seeds(folder: Path) -> set[int]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {int(match[1]) for name in names if (match := re.fullmatch(r"seed-(\d+)", name))}


def _recorded(output: Path) -> dict[tuple[str, int], Path]:
    """Row and seed -> the reproduction's folder, for the runs of the last tables."""
    if not (output / RESULTS).is_file():
        return {}
    rows = read_json(output / RESULTS).get("rows", [])
    with damaged(output / RESULTS, "what a reproduction writes"):
        return {
            (row["name"], run["seed"]): Path(output / run["folder"]).parent.parent
            for row in rows
            for run in row.get("runs", [])
        }
