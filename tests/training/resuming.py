"""Resuming a run in a test."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from smartcs.training.record import RunResult
from smartcs.training.resume import Resumption
from smartcs.training.run import train


def go_on(folder: Path | str, console: Console | None = None, **values) -> RunResult:
    """Resumes, with other values of some settings."""
    resumed = Resumption.find(folder)
    return train(replace(resumed.config, **values), console or Console(quiet=True), resumed)
