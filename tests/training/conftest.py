"""A model and a data folder small enough to train in a second, and a way to run commands."""

import importlib
import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import smartcs
from smartcs import BertConfig, BertModel
from smartcs.data.examples import DataFolder, Examples
from smartcs.data.formats import save_folder
from smartcs.data.sample import sample_folder, sample_tokenizer
from smartcs.training.commandline import run_command
from smartcs.training.config import TrainConfig
from smartcs.training.run import RunResult, train

SIZES = {"train": 48, "dev": 24, "test": 16}


def first(examples: Examples, count: int) -> Examples:
    return replace(examples, ids=examples.ids[:count], texts=examples.texts[:count], labels=examples.labels[:count])


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m smartcs.NAME ARGS` in this process: exit code, stdout, stderr."""

    def run(name, *arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        raw = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        monkeypatch.setenv("COLUMNS", "100")
        backend = smartcs.get_backend()
        try:
            with pytest.raises(SystemExit) as exit_info:
                run_command(importlib.import_module(f"smartcs.{name}").main)
        finally:
            smartcs.set_backend(backend)
        captured = capsys.readouterr()
        return exit_info.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    """Course files with the first rows of the sample."""
    sample, folder = sample_folder(), tmp_path_factory.mktemp("data")
    splits = {
        split: {task: first(examples, count) for task, examples in getattr(sample, split).items()}
        for split, count in SIZES.items()
    }
    save_folder(DataFolder("part of the sample", **splits), folder)
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A random encoder of 2 layers and hidden size 32 with the sample's tokenizer."""
    tokenizer, folder = sample_tokenizer(), tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.2,
            pooling="mean",
        )
        BertModel(shape).save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture
def config(data_folder, encoder_folder, tmp_path):
    """Makes configurations for the tiny data and model, one epoch of 8 cycles unless said otherwise."""

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
        }
        return TrainConfig.from_dict({**defaults, **values})

    return make


@pytest.fixture
def quiet_train():
    """`train` without output."""

    def run(config: TrainConfig) -> RunResult:
        return train(config, Console(quiet=True))

    return run
