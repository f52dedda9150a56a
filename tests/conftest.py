"""What every test can rely on, and a model and a data folder small enough to train in a second."""

import importlib
import io
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

# What tests/gpu runs on. Whether Triton interprets is settled when it is first imported, and smartcs imports it.
if os.environ.setdefault("SMARTCS_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu") == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import error_budget
import evidence
from small_models import small_config

import smartcs
from smartcs import BertModel
from smartcs._extension import extension_status
from smartcs.data.examples import DataFolder, Examples
from smartcs.data.formats import save_folder
from smartcs.data.sample import sample_folder, sample_tokenizer
from smartcs.ops.precision import has_bf16_products
from smartcs.training.commandline import run_command

# A shell's background jobs start with SIGINT ignored, and so would every process the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SIZES = {"train": 48, "dev": 24, "test": 16}


def first(examples: Examples, count: int) -> Examples:
    return replace(examples, ids=examples.ids[:count], texts=examples.texts[:count], labels=examples.labels[:count])


@pytest.fixture(params=["reference", "fused"])
def backend(request):
    """Each backend in turn, the fused one where it is there."""
    available, reason = extension_status()
    if request.param == "fused" and not available:
        pytest.skip(f"no fused ops: {reason}")
    with smartcs.backend(request.param):
        yield request.param


@pytest.fixture
def fused_products():
    """The name of fused bf16 products that are used, also on a machine where they are slower than float32."""
    available, reason = extension_status()
    if not available:
        pytest.skip(f"no fused ops: {reason}")
    torch.ops.smartcs.set_bf16_products("auto" if has_bf16_products() else "portable")
    yield str(torch.ops.smartcs.bf16_products())
    torch.ops.smartcs.set_bf16_products("auto")


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
    folder = tmp_path_factory.mktemp("encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(small_config()).save_pretrained(folder, sample_tokenizer())
    return folder


def pytest_addoption(parser):
    parser.addoption("--evidence", type=Path, help="write what was held to its tolerances to this file, as JSON")


def pytest_runtest_setup(item):
    evidence.planted = item.get_closest_marker("mistake") is not None


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("evidence"):
        passed = [(r.nodeid, "mistake" in r.keywords) for r in terminalreporter.stats.get("passed", [])]
        evidence.write(config.getoption("evidence"), passed)
    if error_budget.observed:
        terminalreporter.section("largest share of the error budget used")
        for (kind, dtype), used in sorted(error_budget.observed.items()):
            terminalreporter.write_line(f"{kind:20} {dtype:10} {used:6.1%}")
