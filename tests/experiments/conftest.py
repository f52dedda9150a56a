"""Reproductions of a second: tiny data, a tiny model, two cycles."""

import pytest
from rich.console import Console

from smartcs.experiments import data_check, runner, running
from smartcs.experiments.jobs import Options
from smartcs.experiments.studies import EXPERIMENTS


@pytest.fixture
def options(data_folder, encoder_folder, tmp_path):
    """Makes options for the tiny data and model, one epoch of two cycles unless said otherwise."""

    def make(**values) -> Options:
        defaults = {
            "output": tmp_path / "out",
            "data": str(data_folder),
            "model": str(encoder_folder),
            "epochs": 1,
            "cycles": 2,
            "pretrain_epochs": 1,
            "pretrain_cycles": 1,
            "report": False,
        }
        return Options(**{**defaults, **values})

    return make


@pytest.fixture(autouse=True)
def _cold(monkeypatch):
    """No training ahead of the first run: what counts runs or stops in one shall meet no other."""
    monkeypatch.setattr(runner, "warm_up", lambda config, contents: None)


@pytest.fixture
def warmed_up(_cold, monkeypatch):
    """There is, and with these configurations."""
    configs = []

    def record(config, contents):
        configs.append(config)
        return data_check.warm_up(config, contents)

    monkeypatch.setattr(runner, "warm_up", record)
    return configs


@pytest.fixture
def started(monkeypatch):
    """The runs that are started, by their folders below the reproduction's, in order."""
    places = []

    def counting(original):
        def start(config, console):
            places.append("/".join(config.output.split("/")[-2:]))
            return original(config, console)

        return start

    for name in ("train", "pretrain_run"):
        monkeypatch.setattr(running, name, counting(getattr(running, name)))
    return places


@pytest.fixture
def reproduce(options):
    """Runs the named rows of an experiment without output; keyword arguments go to the options."""

    def run(experiment, *names, console=None, **values) -> runner.Reproduction:
        spec = EXPERIMENTS[experiment]
        rows = [row for row in spec.rows if row.name in names]
        assert len(rows) == len(names)
        return runner.reproduce(spec, rows, options(**values), console or Console(quiet=True))

    return run
