"""benchmarks/faults.py in small: runs of the real command line that are ended by force."""

import random
import shutil
import signal
from pathlib import Path

import fault_places
import fault_runs
import faults
import pytest
import torch
from run_comparison import differences
from safetensors.torch import load_file, save_file
from training.resuming import go_on

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
    row = fault_runs.Row()
    fault_places.bounded(runs, runs.folder / "quota", row, 0.5)
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


# Which writes fail, of checkpoints after steps 2, 4, 6, 8, 10, 12; epochs end, and are the best so far, at 6 and 12.
@pytest.mark.parametrize(
    ("failing", "ends"),
    [({1}, None), ({1, 4}, None), ({1, 2}, 2), ({4, 5}, 5), ({3}, 3), ({6}, None)],
    ids=str,
)
def test_checkpoints_that_cannot_be_written(short, quiet_train, best_is, monkeypatch, failing, ends):
    """One is a warning; a second in a row ends the run, as does that of the best epoch but the last; it is gone on with
    from what is there.
    """
    calls, write = [], checkpointing.write_checkpoint

    def full(*arguments):
        calls.append(arguments)
        if len(calls) in failing:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    best_is("last")
    whole = quiet_train(short("whole", checkpoint_every=2))
    assert whole.metrics["best_epoch"] == 2
    monkeypatch.setattr(checkpointing, "write_checkpoint", full)
    if ends is None:
        result = quiet_train(short(checkpoint_every=2))
        assert result.metrics["finished"] and result.metrics["test"] == whole.metrics["test"]
        return
    with pytest.raises(OSError, match=rf"checkpoint of step {2 * ends} could not be written .*No space left"):
        quiet_train(short(checkpoint_every=2))
    assert len(calls) == ends
    if ends > 2:
        assert go_on(short().output).metrics["steps"] == 12
        assert differences(whole.folder, Path(short().output)) == []
