"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import os
import signal
from dataclasses import replace

import pytest
from rich.console import Console
from run_comparison import differences

from smartcs.training.pretraining import Pretrainer
from smartcs.training.recipes import RECIPES
from smartcs.training.resume import Resumption
from smartcs.training.run import train
from smartcs.training.trainer import Trainer

STEPS = 12  # of a run: two epochs of two cycles


@pytest.fixture
def short(config, tmp_path):
    """Configurations of a run of twelve steps with dropout and checkpoints, in a folder of that name."""

    def make(name="run", **values):
        settings = {"epochs": 2, "cycles": 2, "checkpoint_every": 5, "keep": 2, "encoder_dropout": 0.1}
        if "pretrain" in values.get("recipe", ""):
            settings |= {"pretrain.epochs": 2, "pretrain.cycles": 1, "pretrain.dropout": True}
        return config(**{**settings, "output": tmp_path / name, **values})

    return make


@pytest.fixture
def stop_at(monkeypatch):
    """Sends a signal as a step of fine-tuning, or of pretraining, ends."""

    def stop(step, loop=Trainer, number=signal.SIGINT):
        original = loop.epoch

        def epoch(self):
            for taken in original(self):
                if taken.step == step:
                    os.kill(os.getpid(), number)
                    monkeypatch.setattr(loop, "epoch", original)
                yield taken

        monkeypatch.setattr(loop, "epoch", epoch)

    return stop


def go_on(folder, **values):
    resumed = Resumption.find(folder)
    return train(replace(resumed.config, **values), Console(quiet=True), resumed)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "reference"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_is_uninterrupted(short, quiet_train, stop_at, recipe, fused):
    """In the middle of the second epoch, and in that of the first before it: with pretraining, of its second one."""
    whole = quiet_train(short("whole", recipe=recipe, fused=fused)).folder
    stop_at(5, Pretrainer) if "pretrain" in recipe else stop_at(4, number=signal.SIGTERM)
    parts = quiet_train(short("parts", recipe=recipe, fused=fused))
    assert parts.signal is not None
    stop_at(8)
    assert go_on(parts.folder).metrics["steps"] == 8
    assert go_on(parts.folder).signal is None
    assert differences(whole, parts.folder) == []
