"""benchmarks/faults.py in small: runs of the real command line that are ended by force."""

import random
import shutil
import signal

import fault_places
import fault_runs
import faults
import pytest
import torch
from safetensors.torch import load_file, save_file

from smartcs.training import checkpointing


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = fault_runs.Runs(tmp_path_factory.mktemp("faults"))
    made.whole()
    return made


def test_killed(runs):
    """In a checkpoint's write, and at a random moment."""
    row = faults.kill(runs, random.Random(1), 4)
    assert row.injected == row.resumed + row.again == 4 and row.resumed > 0
    assert row.bytes_corrupted == 0 and row.steps_lost <= fault_runs.EVERY


def test_files_that_may_not_grow(runs):
    """What a full disk or a quota does, without the rights to mount one."""
    row, largest = fault_runs.Row(), max(path.stat().st_size for path in runs.whole().rglob("*") if path.is_file())
    fault_places.bounded(runs, runs.folder / "quota", row, largest // 2)
    assert (row.refused, row.again, row.bytes_corrupted) == (1, 1, 0)


def test_corruption_is_counted(runs):
    """One number of a weight and one byte of a log: the comparison sees them."""
    one, other = runs.whole(), runs.folder / "other"
    shutil.copytree(one, other)
    assert fault_runs.bytes_that_differ(one, other) == 0
    content = bytearray((other / "losses.csv").read_bytes())
    content[-5] ^= 1
    (other / "losses.csv").write_bytes(content)
    weights = load_file(other / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] = torch.nextafter(weights[name].view(-1)[0], torch.tensor(9.0))
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert fault_runs.bytes_that_differ(one, other) >= 2


def test_a_process_that_was_killed_is_no_clear_error(runs):
    process = runs.start(runs.folder / "signal")
    process.send_signal(signal.SIGKILL)
    with pytest.raises(fault_runs.Fault):
        fault_runs.refused(process, "")


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
