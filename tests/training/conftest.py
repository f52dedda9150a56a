"""A way to configure and run a training of a second."""

import pytest
from rich.console import Console

from smartcs.training.config import TrainConfig
from smartcs.training.run import RunResult, train


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
