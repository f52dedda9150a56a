"""Pretraining as the first stage of a training run: what it leaves when it is stopped, diverges or is asked in vain."""

import io
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from rich.console import Console

import smartcs
from smartcs.data.examples import DataError
from smartcs.training.commandline import UsageError
from smartcs.training.pretraining import Pretrainer
from smartcs.training.run import train
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.trainer import Trainer

STAGE = {"recipe": "pretrain+smart-bregman", "pretrain.epochs": 2, "pretrain.cycles": 4, "cycles": 2}


@pytest.fixture
def spoil(monkeypatch):
    """Runs a function before step number `at` of the pretraining stage."""

    def install(at, action):
        original = Pretrainer._loss

        def loss(self, task, batch):
            if self.step == at:
                action(self)
            return original(self, task, batch)

        monkeypatch.setattr(Pretrainer, "_loss", loss)

    return install


def test_the_stage_and_the_anchor_that_begins_after_it(config, monkeypatch):
    anchors = []
    original = Trainer.__init__

    def make(self, *arguments):
        original(self, *arguments)
        anchors.append(self.objective.anchor.anchor.bert.embeddings.word.weight.clone())

    monkeypatch.setattr(Trainer, "__init__", make)
    result = train(config(**STAGE, **{"pretrain.learning_rate": 1e-2}), Console(quiet=True))
    pretrained = smartcs.BertModel.from_pretrained(result.folder / "pretrained")
    assert not torch.equal(anchors[0], anchors[-1])
    torch.testing.assert_close(anchors[-1], pretrained.embeddings.word.weight)
    assert result.metrics["pretrain"]["steps"] == 24 and result.metrics["steps"] == 6


def test_stopped_in_the_stage(config, spoil):
    spoil(7, lambda stage: os.kill(os.getpid(), signal.SIGINT))
    out = io.StringIO()
    result = train(config(**STAGE), Console(file=out))
    assert result.signal == signal.SIGINT
    assert (
        "stopped by SIGINT in pretraining, after step 8 of 24: the weights of this step, their heads un"
        in out.getvalue()
    )
    assert result.metrics["interrupted"] and result.metrics["pretrain"]["interrupted"]
    assert result.metrics["pretrain"]["steps"] == 8 and result.metrics["steps"] == 0
    assert not (result.folder / "pretrained" / "model.safetensors").exists()
    assert smartcs.MultitaskBert.from_pretrained(result.folder).sentiment(["fine"]).shape == (1, 5)


def test_diverged_in_the_stage(config, spoil, quiet_train, tmp_path):
    def break_it(stage):
        with torch.no_grad():
            stage.model.head.bias.fill_(math.nan)

    spoil(5, break_it)
    with pytest.raises(NonFiniteLossError, match=r"in pretraining, the sts loss is nan at step 6 \(epoch 1\)"):
        quiet_train(config(**STAGE, max_skipped_steps=1))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["diverged"] and metrics["pretrain"]["diverged"] and metrics["pretrain"]["steps"] == 5


def test_what_cannot_be_pretrained_is_found_before_anything_is_lost(config, quiet_train, tmp_path, monkeypatch):
    quiet_train(config(cycles=1))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def nothing_to_hide(*args, **kwargs):
        raise DataError("sst: no sequence of the train split has a word piece to hide")

    monkeypatch.setattr(Pretrainer, "__init__", nothing_to_hide)
    with pytest.raises(DataError):
        quiet_train(config(**STAGE, overwrite=True))
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_the_two_stages_draw_other_masks_and_another_order(config, monkeypatch):
    keys, rows = {"pretraining": [], "fine-tuning": []}, {"pretraining": [], "fine-tuning": []}
    stage = ["pretraining"]
    encoder = smartcs.BertModel.forward

    def forward(self, batch, dropout_key=None, **perturbation):
        if self.training and dropout_key is not None:
            keys[stage[0]].append(dropout_key)
        return encoder(self, batch, dropout_key, **perturbation)

    monkeypatch.setattr(smartcs.BertModel, "forward", forward)
    for kind, name in ((Pretrainer, "pretraining"), (Trainer, "fine-tuning")):
        load, begin = kind._load, kind._begin

        def loading(self, task, indices, step, load=load, name=name):
            rows[name].append((task, tuple(np.sort(indices))))
            return load(self, task, indices, step)

        def beginning(self, begin=begin, name=name):
            stage[0] = name
            begin(self)

        monkeypatch.setattr(kind, "_load", loading)
        monkeypatch.setattr(kind, "_begin", beginning)
    values = {**STAGE, "pretrain.epochs": 1, "pretrain.cycles": 2, "pretrain.dropout": True, "encoder_dropout": 0.1}
    train(config(**values), Console(quiet=True))
    assert len(keys["pretraining"]) == 6 and not set(keys["pretraining"]) & set(keys["fine-tuning"])
    assert not set(rows["pretraining"]) & set(rows["fine-tuning"])


@pytest.mark.parametrize(("rate", "text"), [(0.1, "dropout 0.1"), (0.0, "dropout 0,")])
def test_the_dropout_that_is_announced_is_the_encoders(config, rate, text):
    out = io.StringIO()
    train(config(**STAGE, encoder_dropout=rate, **{"pretrain.dropout": True}), Console(file=out))
    assert text in next(line for line in out.getvalue().splitlines() if line.startswith("pretraining:"))


def test_the_folder_a_run_starts_from_is_not_overwritten(config, quiet_train, encoder_folder, tmp_path):
    quiet_train(config(cycles=1))
    run = tmp_path / "run"
    with pytest.raises(
        UsageError, match=r"run is, or holds, the folder that --model starts from: pass another --output"
    ):
        quiet_train(config(cycles=1, model=str(run), output=run, overwrite=True))
    assert smartcs.MultitaskBert.from_pretrained(run) is not None
