"""Rows of an experiment against its baseline row and against each other, run by run and example by example."""

from __future__ import annotations

from dataclasses import replace

from smartcs.experiments.paired import Difference, Predictions, paired_differences
from smartcs.experiments.results import Results, RowResult
from smartcs.model.files import CheckpointError
from smartcs.training.predictions import read_predictions
from smartcs.training.run_folder import PREDICTIONS
from smartcs.training.setup import load_data


def with_differences(results: Results) -> Results:
    """The results with every row's paired differences from the baseline row, and those the experiment names beside.

    Rows that train other tasks than the baseline, or have no seed in common with it, have none. Where predictions are
    missing there are no differences, and a warning says so.

    Raises:
        DataError: the data is not there any more.
    """
    by_name = {result.row.name: result for result in results.rows}
    baseline = by_name.get(results.experiment.baseline or "")
    if baseline is None or len(by_name) < 2:
        return results
    config = baseline.job.config
    folder = load_data(config.data, tasks=config.trained_tasks, holdout=config.holdout)
    split = folder.test if results.split == "test" else folder.dev
    labels = {name: examples.labels for name, examples in split.items() if examples.labels is not None}
    try:
        rows = tuple(
            result if result is baseline else replace(result, differences=_between(result, baseline, labels, results))
            for result in results.rows
        )
        contrasts = {
            (one, other): _between(by_name[one], by_name[other], labels, results)
            for one, other in results.experiment.contrasts
            if one in by_name and other in by_name
        }
    except CheckpointError as error:
        return replace(results, warnings=(*results.warnings, f"No differences between rows: {error}."))
    return replace(results, rows=rows, contrasts={pair: found for pair, found in contrasts.items() if found})


def _between(one: RowResult, other: RowResult, labels: Predictions, results: Results) -> dict[str, Difference]:
    """Over the seeds that both rows have finished."""
    if one.job.config.trained_tasks != other.job.config.trained_tasks:
        return {}
    theirs = {outcome.job.seed: outcome for outcome in other.outcomes if outcome.state == "finished"}
    pairs = [
        (outcome, theirs[outcome.job.seed])
        for outcome in one.outcomes
        if outcome.state == "finished" and outcome.job.seed in theirs
    ]
    if not pairs:
        return {}
    ours, others = (
        [read_predictions(outcome.folder / PREDICTIONS, results.split, labels) for outcome in side]
        for side in zip(*pairs, strict=True)
    )
    return paired_differences(ours, others, labels)
