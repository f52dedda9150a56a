"""Starting processes as torchrun does."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
LIMIT = 240  # seconds, for a quiet machine far too many


def launch(size: int, *command: str) -> list[str]:
    """The command line of so many processes on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), *command]


def environment() -> dict[str, str]:
    """One thread each, and this source."""
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def torchrun(size: int, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs to the end; that all went well, where asked for."""
    arguments = {"env": environment(), "timeout": LIMIT, "capture_output": True, "text": True}
    done = subprocess.run(launch(size, *command), **arguments)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
