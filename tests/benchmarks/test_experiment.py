"""The experiment: what its stages run, how settings are chosen, what is kept, and tables that follow from runs."""

import json
import re
from pathlib import Path

import experiment
import experiment_tables
import pytest

from smartcs.experiments.jobs import make_jobs
from smartcs.reproduce import parse


@pytest.fixture
def options(tmp_path):
    parser = experiment._parser()
    return parser.parse_args(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")])


CHOSEN = {"pooling": "mean", "learning_rate": 5e-5, "warmup": 0}


def jobs(stages, options):
    """Of all stages, by stage and place."""
    found = {}
    for stage in stages:
        _, rows, asked = parse(stage.arguments(options.data, "some/model", options.output, options.jobs))
        found |= {(stage.name, job.place): job for job in make_jobs(rows, asked)}
    return found


def test_nothing_that_settings_are_chosen_by_reads_the_dev_files(options):
    chosen = jobs(experiment.choosing(options), options)
    assert len(chosen) == 30 and {job.config.holdout for job in chosen.values()} == {0.1}


def test_rows_that_report_differ_in_their_method_alone(options):
    found = jobs(experiment.reporting(options, CHOSEN), options)
    same = ("learning_rate", "warmup", "pooling", "epochs", "cycles", "holdout", "batch_sst", "batch_qqp", "precision")
    methods = [job for (stage, _), job in found.items() if stage == "methods"]
    assert len(methods) == 14 + 2 * len(experiment.REPEATED)
    assert len({tuple(getattr(job.config, name) for name in same) for job in methods}) == 1
    first = methods[0].config
    assert (first.pooling, first.learning_rate, first.warmup, first.holdout, first.batch_qqp) == (
        "mean",
        5e-5,
        0,
        0,
        11,
    )
    assert first.epochs == 1, "a best epoch would be chosen on dev"
    assert {job.seed for job in methods if job.row.name in experiment.REPEATED} == {1, 2, 3}
    assert found["float32", "smart-adv/seed-1"].config.precision == "fp32"
    assert found["batches", "batches-32-4-3/seed-1"].config.batch_qqp == 32
    parts = [job for (stage, _), job in found.items() if stage == "parts"]
    assert {job.config.trained_tasks for job in parts} == {("sst",)} and len(parts) == 30


def write_results(output: Path, stage: str, *rows) -> None:
    path = output / stage / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"rows": list(rows)}))


def setting(pooling, rate, warmup, sst, sts):
    config = {"pooling": pooling, "learning_rate": rate, "warmup": warmup, "tasks": "sst+sts"}
    return {"config": config, "mean": {"sst_accuracy": sst, "sts_pearson": sts}, "n_seeds": 2}


def test_the_choice_is_the_sweeps_best_row(tmp_path):
    rows = [setting("mean", 1e-4, 0, 0.4, 0.5), setting("mean", 5e-5, 0, 0.4, 0.6), setting("cls", 3e-5, 0, 0.3, 0.7)]
    write_results(tmp_path, "settings", *rows, {"config": {}, "mean": {}, "n_seeds": 0})
    assert experiment.choose(tmp_path) == CHOSEN


def test_stages_that_did_not_run_here_stay_as_they_were_kept(options, tmp_path):
    kept = tmp_path / "kept"
    for name in ("methods", "parts"):
        (kept / name / "old").mkdir(parents=True)
        (kept / name / "old" / "seed-1.json").write_text("{}")
    with pytest.raises(SystemExit, match="nothing is kept: .* has no results of settings, paper-batches"):
        experiment.keep(options, kept)
    config = {"data": options.data}
    runs = [{"seed": 2, "state": "finished"}, {"seed": 3, "state": "diverged"}]
    write_results(options.output, "parts", {"name": "adv", "config": config, "runs": runs})
    run = options.output / "parts" / "adv" / "seed-2"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({"score": 1, "environment": {}, "data": f"{options.data}, cut"}))
    experiment.keep(options, kept)
    files = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*.json"))
    assert files == ["methods/old/seed-1.json", "parts/about.json", "parts/adv/seed-2.json", "parts/results.json"]
    assert json.loads((kept / "parts" / "adv" / "seed-2.json").read_text()) == {"score": 1, "data": "DIR, cut"}


def test_what_is_kept_names_no_folder_of_this_machine_and_quotes_no_data(tmp_path):
    root = str(experiment.ROOT)
    value = {
        "config": {"data": "/data/x", "model": f"{root}/runs/m"},
        "data": {"source": "/data/x, 0.1 held out", "skipped_rows": ["/data/x/quora.csv, line 3"]},
        "smartcs": {"folder": root},
        "list": ["see /data/x", 3, None],
    }
    kept = experiment._without_paths(value, {"/data/x": "DIR", f"{root}/": ""})
    assert kept == {
        "config": {"data": "DIR", "model": "runs/m"},
        "data": {"source": "DIR, 0.1 held out"},
        "smartcs": {},
        "list": ["see DIR", 3, None],
    }


def test_figures_that_no_run_has_are_found(tmp_path):
    mean, std = ({"sst_accuracy": 0.5, "seconds_per_epoch": 3.0}, {"sst_accuracy": 0.02**0.5, "seconds_per_epoch": 0.0})
    row = {"name": "smart", "n_seeds": 2, "mean": mean, "std": std}
    folder = tmp_path / "experiment" / "methods"
    (folder / "smart").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"rows": [row], "baseline": None}))
    empty = dict.fromkeys((*experiment_tables.FIGURES, "seconds_per_epoch"))
    for seed, accuracy in ((1, 0.4), (2, 0.6)):
        run = {**empty, "sst_accuracy": accuracy, "seconds_per_epoch": 3.0}
        (folder / "smart" / f"seed-{seed}.json").write_text(json.dumps(run))
    assert experiment_tables.from_metrics("methods", tmp_path) == []
    (folder / "smart" / "seed-2.json").write_text(json.dumps({**empty, "sst_accuracy": 0.7, "seconds_per_epoch": 3.0}))
    assert "sst_accuracy of smart is 0.5, its runs say 0.55" in experiment_tables.from_metrics("methods", tmp_path)[0]
    (folder / "smart" / "seed-2.json").unlink()
    assert "1 metrics of smart, expected 2" in experiment_tables.from_metrics("methods", tmp_path)[0]


def test_the_committed_results_name_no_folder_of_a_machine():
    for path in experiment.KEPT.rglob("*.json"):
        assert not re.search(r'["\s]/\w', path.read_text()), path


def test_tables_say_where_nothing_was_run(tmp_path):
    assert {table(tmp_path) for table in experiment_tables.TABLES.values()} == {"Not run."}
