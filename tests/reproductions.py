"""What the tests of reproductions look at and do to them."""

import json
import os
import signal

from smartcs.training.pretraining import Pretrainer
from smartcs.training.trainer import Trainer


def read(path) -> dict:
    return json.loads(path.read_text())


def states(result) -> list[str]:
    return [outcome.state for outcome in result.results.outcomes]


def stop_in_run(monkeypatch, number, how=signal.SIGINT):
    """A signal after the second step of the run of this number (from 1), pretraining included."""
    count = [0]

    def stopping(original):
        def epoch(self):
            count[0] += 1
            for step in original(self):
                if count[0] == number and step.step == 2:
                    os.kill(os.getpid(), how)
                yield step

        return epoch

    for kind in (Trainer, Pretrainer):
        monkeypatch.setattr(kind, "epoch", stopping(kind.epoch))
