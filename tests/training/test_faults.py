"""benchmarks/faults.py in small: runs of the real command line that are ended by force."""

import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from smartcs.training import checkpointing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def faults():
    """The script's modules."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fault_places
        import fault_runs
        import faults

        yield faults, fault_runs, fault_places
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def runs(faults, tmp_path_factory):
    made = faults[1].Runs(tmp_path_factory.mktemp("faults"))
    made.whole()
    return made


def test_killed(faults, runs):
    """In a checkpoint's write, and at a random moment."""
    row = faults[0].kill(runs, random.Random(1), 4)
    assert row.injected == row.resumed + row.again == 4 and row.resumed > 0
    assert row.bytes_corrupted == 0 and row.steps_lost <= faults[1].EVERY


def test_files_that_may_not_grow(faults, runs):
    """What a full disk or a quota does, without the rights to mount one."""
    row, run = faults[1].Row(), runs.folder / "quota"
    most = max(path.stat().st_size for path in runs.whole().rglob("*") if path.is_file()) // 2
    process = runs.start(run, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    faults[2].broken(runs, process, run, row, ("File too large",), lambda: None)
    assert (row.refused, row.again, row.bytes_corrupted) == (1, 1, 0)


def test_corruption_is_counted(faults, runs):
    """One number of a weight and one byte of a log: the comparison sees them."""
    one, other = runs.whole(), runs.folder / "other"
    shutil.copytree(one, other)
    assert faults[1].bytes_that_differ(one, other) == 0
    content = bytearray((other / "losses.csv").read_bytes())
    content[-5] ^= 1
    (other / "losses.csv").write_bytes(content)
    weights = load_file(other / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert faults[1].bytes_that_differ(one, other) >= 2


def test_a_process_that_was_killed_is_no_clear_error(faults, runs):
    process = runs.start(runs.folder / "signal")
    process.send_signal(signal.SIGKILL)
    with pytest.raises(faults[1].Fault):
        faults[1].refused(process, "")


@pytest.mark.parametrize(("failing", "ends"), [({1}, False), ({1, 3}, False), ({1, 2}, True), ({2, 3}, True)])
def test_one_checkpoint_that_cannot_be_written_is_a_warning_two_in_a_row_end_the_run(
    short, quiet_train, monkeypatch, failing, ends
):
    calls, write = [], checkpointing.write_checkpoint

    def full(*arguments):
        calls.append(arguments)
        if len(calls) in failing:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(checkpointing, "write_checkpoint", full)
    if not ends:
        assert quiet_train(short()).signal is None
        return
    with pytest.raises(OSError, match=r"checkpoint of step \d+ could not be written .*No space left"):
        quiet_train(short())
    assert len(calls) == max(failing)
