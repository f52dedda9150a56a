"""Interrupting and resuming a run in a test."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from smartcs.training.record import RunResult
from smartcs.training.resume import Resumption
from smartcs.training.run import train
from smartcs.training.trainer import Trainer


def go_on(folder: Path | str, console: Console | None = None, **values) -> RunResult:
    """Resumes, with other values of some settings."""
    resumed = Resumption.find(folder)
    return train(replace(resumed.config, **values), console or Console(quiet=True), resumed)


@contextmanager
def stopping(step: int, loop: type = Trainer, number: int = signal.SIGINT) -> Iterator[None]:
    """Within it a signal is sent when that step, of fine-tuning or of pretraining, has been taken; once."""
    original, sent = loop.epoch, []

    def epoch(self):
        for taken in original(self):
            if taken.step == step and not sent:
                sent.append(step)
                os.kill(os.getpid(), number)
            yield taken

    with patch.object(loop, "epoch", epoch):
        yield
