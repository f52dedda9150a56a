"""Every row of an experiment against its baseline row, run by run and example by example."""

from __future__ import annotations

from dataclasses import replace

from smartcs.experiments.paired import paired_differences
from smartcs.experiments.results import Results
from smartcs.training.predictions import read_predictions
from smartcs.training.run_folder import PREDICTIONS
from smartcs.training.setup import load_data


def with_differences(results: Results) -> Results:
    """The results with every row's paired differences from the baseline row, from the runs' predictions.

    Rows that train other tasks or without a seed in common with the baseline have none.

    Raises:
        DataError: the data is not there any more.
        CheckpointError: a run has lost its predictions.
    """
    by_name = {result.row.name: result for result in results.rows}
    baseline = by_name.get(results.experiment.baseline or "")
    if baseline is None or len(by_name) < 2:
        return results
    config = baseline.job.config
    folder = load_data(config.data, tasks=config.trained_tasks, holdout=config.holdout)
    split = folder.test if results.split == "test" else folder.dev
    labels = {name: examples.labels for name, examples in split.items() if examples.labels is not None}
    theirs = {o.job.seed: o for o in baseline.outcomes if o.state == "finished"}
    rows = []
    for result in results.rows:
        pairs = [(o, theirs[o.job.seed]) for o in result.outcomes if o.state == "finished" and o.job.seed in theirs]
        if result is not baseline and pairs and result.job.config.trained_tasks == config.trained_tasks:
            runs = [
                [read_predictions(outcome.folder / PREDICTIONS, results.split, labels) for outcome in side]
                for side in zip(*pairs, strict=True)
            ]
            result = replace(result, differences=paired_differences(runs[0], runs[1], labels))
        rows.append(result)
    return replace(results, rows=tuple(rows))
