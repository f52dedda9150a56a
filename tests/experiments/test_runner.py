"""Running an experiment: what is run, what is not run again, and what an interruption leaves."""

import io
import json
import os
import signal
import statistics
from dataclasses import replace

import pytest
import torch
from reproductions import read, states, stop_in_run
from rich.console import Console

from smartcs.experiments import runner, running
from smartcs.experiments.studies import EXPERIMENTS
from smartcs.model.files import CheckpointError
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.pretraining import Pretrainer
from smartcs.training.record import RunResult
from smartcs.training.run import train
from smartcs.training.skipping import Skips
from smartcs.training.trainer import Trainer

FIGURES = ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score")


def train_alone(options, output, **values) -> RunResult:
    """A run as `smartcs.train` makes it, on the data and model of `options`."""
    common = {"data": options.data, "model": options.model, "output": output, "report": False}
    return train(TrainConfig.from_dict({**common, **values}), Console(quiet=True))


def poison(monkeypatch, kind, at_seed):
    """Every loss of the runs with this seed is NaN."""
    original = kind.epoch

    def epoch(self):
        seed = self.config.seed if kind is Trainer else self.seed
        if seed == at_seed:
            self.skips = Skips(self.data, 1)  # the first ends the run
            with torch.no_grad():
                self.model.bert.embeddings.word.weight.fill_(float("nan"))
        yield from original(self)

    monkeypatch.setattr(kind, "epoch", epoch)


def test_rows_and_seeds_run_in_order_and_only_once(reproduce, started, tmp_path):
    out = tmp_path / "out"
    result = reproduce("figure8", "smart", "baseline", seeds=(3, 5))
    order = ["baseline/seed-3", "baseline/seed-5", "smart/seed-3", "smart/seed-5"]
    assert started == order and result.signal is None and states(result) == ["finished"] * 4
    results = read(out / "results.json")
    assert [row["name"] for row in results["rows"]] == ["baseline", "smart"]
    metrics = {place: read(out / place / "metrics.json") for place in order}
    for row in results["rows"]:
        runs = [metrics[f"{row['name']}/seed-{seed}"] for seed in (3, 5)]
        for name in FIGURES:
            values = [run[name] for run in runs]
            assert [run[name] for run in row["runs"]] == values
            assert row["mean"][name] == pytest.approx(statistics.mean(values), rel=1e-12)
            assert row["std"][name] == pytest.approx(statistics.stdev(values), abs=1e-12)
        seconds = [run["seconds_per_epoch"] for run in runs]
        baseline = [metrics[f"baseline/seed-{seed}"]["seconds_per_epoch"] for seed in (3, 5)]
        assert row["mean"]["seconds_per_epoch"] == pytest.approx(statistics.mean(seconds))
        ratios = [mine / its for mine, its in zip(seconds, baseline, strict=True)]
        assert row["mean"]["time_ratio"] == pytest.approx(statistics.mean(ratios))
    assert results["rows"][1]["config"]["smart.tasks"] == "sst" and results["rows"][1]["smart"]["sst"]["steps"] == 2
    # Not run again; a seed and a row more are all that is run.
    tables = {name: (out / name).read_text() for name in ("results.md", "results.csv", "results.json")}
    reproduce("figure8", "smart", "baseline", seeds=(3, 5))
    assert started == order and tables == {name: (out / name).read_text() for name in tables}
    reproduce("figure8", "baseline", "dropout", seeds=(5, 7))
    assert started[4:] == ["baseline/seed-7", "dropout/seed-5", "dropout/seed-7"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(reproduce, started, monkeypatch, tmp_path, number):
    out = io.StringIO()
    with monkeypatch.context() as patch:
        stop_in_run(patch, 2, number)
        result = reproduce("figure8", "baseline", "dropout", "smart", console=Console(file=out, width=100))
    assert result.signal == number and states(result) == ["finished", "not finished", "not finished"]
    assert "1 of 3 runs are finished and kept; repeat the command to go on" in out.getvalue()
    rows = read(tmp_path / "out" / "results.json")["rows"]
    assert [row["n_seeds"] for row in rows] == [1, 0, 0] and rows[1]["note"] == "not finished"
    assert started == ["baseline/seed-11711", "dropout/seed-11711"]
    result = reproduce("figure8", "baseline", "dropout", "smart")
    assert started[2:] == ["dropout/seed-11711", "smart/seed-11711"] and states(result) == ["finished"] * 3
    assert read(tmp_path / "out" / "dropout" / "seed-11711" / "metrics.json")["steps"] == 6


def test_interrupted_between_runs(reproduce, monkeypatch, tmp_path):
    """Python's own exception, before a run listens to signals."""
    original = running.train

    def failing(config, console):
        if "dropout" in config.output:
            raise KeyboardInterrupt
        return original(config, console)

    monkeypatch.setattr(running, "train", failing)
    result = reproduce("figure8", "baseline", "dropout")
    assert result.signal == signal.SIGINT and states(result) == ["finished", "not finished"]
    assert "1 of 2 runs are not finished" in (tmp_path / "out" / "results.md").read_text()


def test_a_killed_run_starts_again(reproduce, started, tmp_path):
    reproduce("figure8", "baseline")
    path = tmp_path / "out" / "baseline" / "seed-11711" / "metrics.json"
    path.write_text(json.dumps({**read(path), "finished": False}))
    reproduce("figure8", "baseline")
    path.unlink()
    reproduce("figure8", "baseline")
    assert len(started) == 3 and read(path)["finished"]


def test_other_settings_are_an_error(reproduce, started, tmp_path):
    reproduce("figure8", "baseline", "smart")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = r"baseline/seed-11711 is finished with other settings \(cycles 2, now 1\): pass --overwrite"
    with pytest.raises(UsageError, match=message):
        reproduce("figure8", "dropout", "baseline", cycles=1)
    with pytest.raises(UsageError, match="fused True, now False"):
        reproduce("figure8", "smart", fused=False)
    assert len(started) == 2
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # Only what differs is run again.
    reproduce("figure8", "baseline", cycles=1, overwrite=True)
    result = reproduce("figure8", "baseline", "smart", cycles=1, overwrite=True)
    assert started[2:] == ["baseline/seed-11711", "smart/seed-11711"]
    assert [outcome.metrics["steps"] for outcome in result.results.outcomes] == [3, 3]


def test_what_is_no_setting_of_the_method_may_change(reproduce, started, tmp_path):
    reproduce("figure8", "baseline")
    (tmp_path / "out").rename(tmp_path / "moved")
    reproduce("figure8", "baseline", output=tmp_path / "moved", report=True)
    assert len(started) == 1 and (tmp_path / "moved" / "report.html").is_file()


def test_divergence_is_recorded_and_the_rest_goes_on(reproduce, started, monkeypatch, tmp_path):
    poison(monkeypatch, Trainer, 5)
    result = reproduce("figure8", "baseline", "smart", seeds=(3, 5))
    assert states(result) == ["finished", "diverged"] * 2 and result.signal is None
    row = read(tmp_path / "out" / "results.json")["rows"][0]
    assert row["n_seeds"] == 1 and row["note"] == "diverged with seed 5" and row["std"] == {}
    assert [run["state"] for run in row["runs"]] == ["finished", "diverged"] and row["runs"][1]["score"] is None
    assert "baseline/seed-5, smart/seed-5 diverged: the loss was not finite." in result.results.warnings
    reproduce("figure8", "baseline", "smart", seeds=(3, 5))
    assert len(started) == 4


def test_pretraining_is_shared(reproduce, started, tmp_path):
    out, names = tmp_path / "out", ("pretrain", "pretrain-smart-bregman", "baseline")
    result = reproduce("figure2", *names)
    assert started == [
        "baseline/seed-11711",
        "pretrained/mlm-seed-11711",
        "pretrain/seed-11711",
        "pretrain-smart-bregman/seed-11711",
    ]
    config = read(out / "pretrain-smart-bregman" / "seed-11711" / "metrics.json")["config"]
    assert config["model"] == str(out / "pretrained" / "mlm-seed-11711") and config["pretrain"]["epochs"] == 0
    assert config["recipe"] == "pretrain-smart-bregman"
    rows = read(out / "results.json")["rows"]
    seconds = read(out / "pretrained" / "mlm-seed-11711" / "metrics.json")["seconds"]
    assert [row["pretrain_seconds"] for row in rows] == [None, seconds, seconds]
    assert rows[1]["config"]["pretrain.epochs"] == 1 and rows[1]["config"]["recipe"] == "pretrain"
    assert rows[1]["config"]["model"] == rows[0]["config"]["model"] != config["model"]
    assert states(result) == states(reproduce("figure2", *names)) and len(started) == 4
    # Neither another place nor the encoder's absence matters to what is finished.
    out.rename(tmp_path / "moved")
    (tmp_path / "moved" / "pretrained").rename(tmp_path / "elsewhere")
    reproduce("figure2", *names, output=tmp_path / "moved")
    assert len(started) == 4


def test_sharing_is_as_good_as_pretraining_in_every_run(reproduce, options, tmp_path):
    """The same figures, to the last bit, as `smartcs.train --recipe pretrain-smart-bregman`."""
    result = reproduce("figure2", "pretrain-smart-bregman")
    values = {"epochs": 1, "cycles": 2, "pretrain.epochs": 1, "pretrain.cycles": 1}
    alone = train_alone(options(), tmp_path / "alone", recipe="pretrain-smart-bregman", **values).metrics
    metrics = result.results.outcomes[0].metrics
    assert alone["pretrain"]["mlm_loss"] == result.results.outcomes[0].pretraining["mlm_loss"]
    assert {name: metrics[name] for name in FIGURES} == {name: alone[name] for name in FIGURES}
    assert metrics["dev"]["losses"] == alone["dev"]["losses"]


def test_what_is_pretrained_otherwise_is_another_run(reproduce, started, tmp_path):
    """Its own settings are the same, those of the encoder it started from are not."""
    reproduce("figure2", "pretrain", "pretrain-cosine")
    with pytest.raises(UsageError, match=r"pretrain/seed-11711 is finished .*\(pretrain.cycles 1, now 2\)"):
        reproduce("figure2", "pretrain", pretrain_cycles=2)
    reproduce("figure2", "pretrain", pretrain_cycles=2, overwrite=True)
    assert started[3:] == ["pretrained/mlm-seed-11711", "pretrain/seed-11711"]
    for names in (["pretrain", "pretrain-cosine"], ["pretrain"]):
        with pytest.raises(UsageError, match="pretrain-cosine/seed-11711 is finished with other settings"):
            reproduce("figure2", *names, pretrain_cycles=2)
    # Killed after fine-tuning, before it was recorded what it had started from.
    (tmp_path / "out" / "pretrain" / "seed-11711" / "pretraining.json").unlink()
    reproduce("figure2", "pretrain", pretrain_cycles=2, overwrite=True)
    assert started[5:] == ["pretrain/seed-11711"]


def test_each_pretraining_has_its_own_encoder(reproduce, started):
    reproduce("pretrain", "pretrain", "pretrain-mask", "pretrain-epochs-3", pretrain_epochs=None)
    stages = [place for place in started if place.startswith("pretrained/")]
    assert stages == [f"pretrained/mlm{kind}-seed-11711" for kind in ("", "-strategy-mask", "-epochs-3")]


def test_the_number_of_pretraining_epochs_is_for_all_rows_but_those_about_it(reproduce, started):
    first = reproduce("pretrain", "pretrain-epochs-3", pretrain_epochs=None)
    result = reproduce("pretrain", "pretrain", "pretrain-mask", pretrain_epochs=1)
    assert [outcome.pretraining["config"]["pretrain"]["epochs"] for outcome in result.results.outcomes] == [1, 1, 3]
    assert result.results.outcomes[-1].metrics == first.results.outcomes[0].metrics and len(started) == 6
    assert [row.note for row in result.results.rows] == [*["here 1 epoch of pretraining"] * 2, ""]


def test_interrupted_while_pretraining(reproduce, started, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_run(patch, 1)
        result = reproduce("figure2", "pretrain", "cosine")
    assert result.signal == signal.SIGINT and states(result) == ["not finished"] * 2
    result = reproduce("figure2", "pretrain", "cosine")
    assert states(result) == ["finished"] * 2
    assert [place.split("/")[0] for place in started] == ["pretrained", "pretrained", "pretrain", "cosine"]


def test_pretraining_that_diverges(reproduce, started, monkeypatch):
    poison(monkeypatch, Pretrainer, 3)
    for _ in range(2):
        result = reproduce("figure2", "baseline", "pretrain", "pretrain-cosine", seeds=(3,))
        assert states(result) == ["finished", "pretraining diverged", "pretraining diverged"]
        assert started == ["baseline/seed-3", "pretrained/mlm-seed-3"]
    assert result.results.rows[1].note == "pretraining diverged" and result.results.rows[1].values.n_seeds == 0


def test_runs_of_another_reproduction_are_reused(reproduce, started, tmp_path):
    first = reproduce("figure2", "smart", "pretrain-smart-bregman", output=tmp_path / "first")
    del started[:]
    result = reproduce("figure3", "smart", "smart-bregman", "pretrain-smart-bregman", reuse=tmp_path / "first")
    assert started == ["smart-bregman/seed-11711"]
    rows = read(tmp_path / "out" / "results.json")["rows"]
    assert [row["runs"][0]["folder"] for row in rows] == [
        "../first/smart/seed-11711",
        "smart-bregman/seed-11711",
        "../first/pretrain-smart-bregman/seed-11711",
    ]
    assert result.results.outcomes[0].metrics == first.results.outcomes[0].metrics
    assert rows[0]["mean"]["score"] == first.results.outcomes[0].metrics["test"]["score"]
    # Other settings are not taken over.
    reproduce("figure3", "smart", cycles=1, output=tmp_path / "third", reuse=tmp_path / "first")
    assert started[1:] == ["smart/seed-11711"]
    with pytest.raises(UsageError, match="--reuse .*none: no results.json there"):
        reproduce("figure3", "smart", reuse=tmp_path / "none")


def test_folders_that_hold_something_else(reproduce, started, options, tmp_path):
    single = train_alone(options(), tmp_path / "run", epochs=1, cycles=1).folder
    with pytest.raises(UsageError, match="--output .*run is the folder of a single run"):
        reproduce("figure8", "baseline", output=single)
    reproduce("figure8", "baseline")
    with pytest.raises(UsageError, match="--output .*out holds figure8: expected another folder for figure2"):
        reproduce("figure2", "baseline")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file, expected a folder"):
        reproduce("figure8", "baseline", output=tmp_path / "file")
    (tmp_path / "out" / "baseline" / "seed-11711" / "metrics.json").write_text("{")
    with pytest.raises(CheckpointError, match="baseline/seed-11711/metrics.json: not valid JSON"):
        reproduce("figure8", "baseline")
    (tmp_path / "out" / "baseline" / "seed-11711" / "metrics.json").write_text('{"finished": true}')
    with pytest.raises(
        CheckpointError, match="baseline/seed-11711/metrics.json: no diverged, seconds, .*environment: "
    ):
        reproduce("figure8", "baseline")
    assert len(started) == 1


def test_flags_must_not_replace_what_rows_are(reproduce, started, tmp_path):
    for number in (3, 10):
        with pytest.raises(UsageError, match=f"--pretrain-epochs would replace what row pretrain-epochs-{number} is"):
            reproduce("pretrain", "pretrain", f"pretrain-epochs-{number}", pretrain_epochs=1)
    with pytest.raises(ValueError, match="TrainConfig: epochs is 0"):
        reproduce("figure8", "baseline", epochs=0)
    assert not started and not (tmp_path / "out").exists()


def test_progress(reproduce, tmp_path, monkeypatch):
    """Which row of how many, and the time left from the runs that are finished."""
    original = runner.find

    def timed(job, options):
        outcome = original(job, options)
        return replace(outcome, metrics={**outcome.metrics, "seconds_total": 65.0}) if outcome.metrics else outcome

    monkeypatch.setattr(runner, "find", timed)
    out = io.StringIO()
    reproduce("figure2", "baseline", "pretrain", "smart", console=Console(file=out, width=100))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("row ")]
    assert lines == [
        "row 1 of 3: Baseline (baseline), seed 11711; run 1 of 3",
        # Two runs, and a pretraining of which no time is known yet.
        "row 2 of 3: Pretrain (pretrain), seed 11711; run 2 of 3, about 3:15 left for all",
        "row 3 of 3: SMART Loss (smart), seed 11711; run 3 of 3, about 1:05 left for all",
    ]
    assert "Figure 2: development set performance of all approaches: 3 rows, seed 11711" in out.getvalue()
    out = io.StringIO()
    reproduce("figure2", "baseline", console=Console(file=out, width=100))
    assert "baseline/seed-11711: finished, not run again" in out.getvalue() and "row 1 of" not in out.getvalue()


def test_two_tasks_without_a_score(reproduce, tmp_path):
    result = reproduce("figure6", "learning-rate-1e-5")
    row = result.results.rows[0]
    assert set(row.values.mean) == {"sst_accuracy", "sts_pearson", "seconds_per_epoch"}
    header, _, line = (tmp_path / "out" / "results.md").read_text().splitlines()[4:7]
    assert header == "| Row | Seeds | SST | paper | STS | paper | s/epoch |" and "| 0.474 |" in line


def test_models_and_data_are_named_for_good(options, monkeypatch, tmp_path, encoder_folder, data_folder):
    """A relative path means the same from another folder, "auto" the same after an installation."""
    row = EXPERIMENTS["figure8"].rows[0]
    monkeypatch.chdir(encoder_folder.parent)
    (job,) = runner.make_jobs([row], options(model=encoder_folder.name, data=os.path.relpath(data_folder)))
    assert job.config.model == str(encoder_folder) and job.config.data == str(data_folder)
    for model, name in (("auto", "small"), ("small", "small"), ("a/b", "a/b")):
        monkeypatch.setattr("smartcs.training.recipes.bundled_minilm", lambda: None)
        (job,) = runner.make_jobs([row], options(model=model, data="sample"))
        assert (job.config.model, job.config.data) == (name, "sample")
