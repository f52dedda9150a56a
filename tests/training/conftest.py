"""A way to configure and run a training of a second, and to interrupt it."""

from contextlib import ExitStack

import pytest
from rich.console import Console
from training.resuming import stopping

from smartcs.training import run as run_module
from smartcs.training.config import TrainConfig
from smartcs.training.record import RunResult
from smartcs.training.run import train


@pytest.fixture
def config(data_folder, encoder_folder, tmp_path):
    """Makes configurations for the tiny data and model, one epoch of 8 cycles without checkpoints unless said so."""

    def make(**values) -> TrainConfig:
        defaults = {
            "data": data_folder,
            "model": str(encoder_folder),
            "output": tmp_path / "run",
            "epochs": 1,
            "cycles": 8,
            "batch_qqp": 8,
            "learning_rate": 1e-3,
            "report": False,
            "keep": 0,
            "device": "cpu",
        }
        return TrainConfig.from_dict({**defaults, **values})

    return make


@pytest.fixture
def quiet_train():
    """`train` without output."""

    def run(config: TrainConfig) -> RunResult:
        return train(config, Console(quiet=True))

    return run


@pytest.fixture
def short(config, tmp_path):
    """Configurations of a run of two epochs of six steps, with dropout, in a folder of that name."""

    def make(name="run", **values):
        settings = {"epochs": 2, "cycles": 2, "checkpoint_every": 5, "keep": 2, "encoder_dropout": 0.1}
        if "pretrain" in values.get("recipe", ""):
            settings |= {"pretrain.epochs": 2, "pretrain.cycles": 1, "pretrain.dropout": True}
        return config(**{**settings, "output": tmp_path / name, **values})

    return make


@pytest.fixture
def stop_at():
    """Sends a signal when that step, of fine-tuning or of pretraining, has been taken; once."""
    with ExitStack() as stack:
        yield lambda *step, **options: stack.enter_context(stopping(*step, **options))


@pytest.fixture
def best_is(monkeypatch):
    """Makes the "first" or the "last" epoch the best on dev, by the weights alone: also where a run is resumed."""
    evaluate = run_module.evaluate

    def choose(which):
        def scored(model, *arguments):
            result = evaluate(model, *arguments)
            if "score" in result.figures:
                size = model.heads["sst_output"].bias.abs().sum().item()
                result.figures["score"] = size if which == "last" else 1.0 - size
            return result

        monkeypatch.setattr(run_module, "evaluate", scored)

    return choose
