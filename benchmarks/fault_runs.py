"""Short runs of the real command line, to be broken and mended, and how they are compared with one in one piece."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed_equality import settings
from run_comparison import MODEL, differences

from smartcs.model.files import CheckpointError
from smartcs.training.checkpoint import Checkpoint, listed
from smartcs.training.run_folder import CHECKPOINTS, LOSSES

EVERY = 7  # steps between checkpoints
LIMIT = 120  # seconds that no run may take
FLAGS = [
    "--recipe", "smart-bregman", "--epochs", "2", "--cycles", "20", "--checkpoint-every", str(EVERY), "--keep", "2",
    "--learning-rate", "1e-3", "--encoder-dropout", "0.1", "--no-report", "--device", "cpu", "--fused",
]  # fmt: skip

# The same command line, where the thread that prepares batches is ended once it has prepared that many.
DYING = """
import sys
from smartcs.data import prefetch
from smartcs.train import main
from smartcs.training.commandline import run_command
left, make = [int(sys.argv.pop(1))], prefetch._make
def ending(items):
    for item in items:
        left[0] -= 1
        if left[0] == 0:
            raise SystemExit
        yield item
prefetch._make = lambda items, *others: make(ending(items), *others)
run_command(main)
"""


class Fault(AssertionError):
    """A run that did not do what it must after a fault."""


@dataclass
class Row:
    """What came of one kind of fault.

    Attributes:
        injected: faults.
        resumed: runs that were gone on from a checkpoint and ended.
        again: runs that had none that was whole, said so, and were started again.
        refused: runs or resumptions that ended in one clear line before anything was lost.
        went_on: runs that the fault did not end.
        steps_lost: the most that had been logged and had to be taken again: the interval of checkpoints bounds it, or
            two of them where checkpoints were damaged or could not be written.
        bytes_corrupted: that differ from the run in one piece once the broken one has ended.
        moments: how many faults hit what.
    """

    injected: int = 0
    resumed: int = 0
    again: int = 0
    refused: int = 0
    went_on: int = 0
    steps_lost: int = 0
    bytes_corrupted: int = 0
    moments: dict[str, int] = field(default_factory=dict)

    def hit(self, moment: str) -> None:
        """Counts a fault."""
        self.injected += 1
        self.moments[moment] = self.moments.get(moment, 0) + 1


class Runs:
    """Runs of one training on small data with a small model, below a folder.

    Args:
        folder: empty.
        prefix: the command before `-m smartcs.train`, such as torchrun's.
    """

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.prefix = [*prefix] or [sys.executable]
        made = settings(folder)
        self.flags = ["--data", str(made["data"]), "--model", str(made["model"]), *FLAGS]
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.seconds = 0.0

    def process(
        self, *arguments: str, limit: Callable[[], object] | None = None, dies_at: int | None = None
    ) -> subprocess.Popen[str]:
        """A run; `limit` is called in its process before it begins, `dies_at` is for DYING."""
        what = ["-m", "smartcs.train"] if dies_at is None else ["-c", DYING, str(dies_at)]
        return subprocess.Popen(
            [*self.prefix, *what, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=limit,
            start_new_session=True,
        )

    def start(self, run: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
        """A new run into a folder; options as of `process`."""
        return self.process(*self.flags, "--output", str(run), *more, **options)

    def whole(self) -> Path:
        """The run in one piece, made at the first call."""
        run = self.folder / "whole"
        if not run.exists():
            begun = time.monotonic()
            done(self.start(run))
            self.seconds = time.monotonic() - begun
        return run

    def go_on(self, run: Path, row: Row) -> str:
        """Resumes a broken run, or starts it again where there is nothing to resume, and compares; what was printed."""
        checkpoint, process = newest(run), self.process("--resume", str(run))
        if checkpoint is None:
            refused(process, "holds no checkpoint", "is no folder")
            return self.again(run, row)
        row.steps_lost = max(row.steps_lost, steps_logged(run) - checkpoint.step)
        row.resumed += 1
        return self._compared(process, run, row)

    def again(self, run: Path, row: Row) -> str:
        """Starts a run again, and compares."""
        shutil.rmtree(run, ignore_errors=True)
        row.again += 1
        return self._compared(self.start(run), run, row)

    def _compared(self, process: subprocess.Popen[str], run: Path, row: Row) -> str:
        said = done(process)
        row.bytes_corrupted += bytes_that_differ(self.whole(), run)
        return said


def done(process: subprocess.Popen[str]) -> str:
    """What a process that must succeed has printed."""
    said, _ = process.communicate(timeout=LIMIT)
    if process.returncode != 0:
        raise Fault(f"exit status {process.returncode}: {said[-1500:]}")
    return said


def refused(process: subprocess.Popen[str], *words: str, traceback: bool = False) -> str:
    """What a process that must fail has printed: no traceback, or only another's, and a word at its end."""
    said, _ = process.communicate(timeout=LIMIT)
    last = " ".join(said.strip().splitlines()[-4:])
    plain = traceback or "Traceback" not in said
    if process.returncode in (0, -signal.SIGKILL) or not plain or not any(word in last for word in words):
        raise Fault(f"exit status {process.returncode}, expected an error with one of {words}: {said[-1500:]}")
    return said


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it is true, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def has_checkpoints(run: Path, count: int) -> Callable[[], bool]:
    """Whether there are that many."""
    return lambda: len(listed(run / CHECKPOINTS)) >= count


def newest(run: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole."""
    for path in listed(run / CHECKPOINTS):
        try:
            return Checkpoint.read(path)
        except (CheckpointError, OSError):
            continue
    return None


def steps_logged(run: Path) -> int:
    """The last step that losses.csv has; a line that was cut counts for nothing."""
    path = run / LOSSES
    lines = path.read_text(errors="replace").splitlines()[1:] if path.is_file() else []
    numbers = [line.split(",")[0] for line in lines if line.count(",") >= 8]
    return int(numbers[-1]) if numbers and numbers[-1].isdigit() else 0


def bytes_that_differ(one: Path, other: Path) -> int:
    """Between what two runs have left; what is not a file's own bytes, such as a figure in metrics.json, counts 1."""
    count = 0
    for name in differences(one, other):
        print(f"{other.name}: {name}", flush=True)
        paths = (one / name, other / name)
        if name in (*MODEL, LOSSES) and all(path.is_file() for path in paths):
            left, right = (path.read_bytes() for path in paths)
            count += sum(a != b for a, b in zip(left, right, strict=False)) + abs(len(left) - len(right))
        else:
            count += 1
    return count
