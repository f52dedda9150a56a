"""Several runs at a time, in processes of their own."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from reproductions import read, states
from rich.console import Console

FIGURES = ("sst_accuracy", "qqp_accuracy", "sts_pearson", "score", "steps", "tokens")


def test_figures_are_those_of_one_after_the_other(reproduce, tmp_path):
    """Rows that share a pretraining, one with its own, and a row that another process has had before."""
    names = ("baseline", "pretrain", "pretrain-cosine", "smart")
    out = io.StringIO()
    one, two = tmp_path / "one", tmp_path / "two"
    reproduce("figure2", *names, output=one)
    result = reproduce("figure2", *names, output=two, jobs=2, console=Console(file=out, width=120))
    assert states(result) == ["finished"] * 4 and result.signal is None
    for name in names:
        first, second = (read(folder / name / "seed-11711" / "metrics.json") for folder in (one, two))
        # One thread here and two there: the last bits of a library's products may differ.
        for figure in FIGURES:
            assert second[figure] == pytest.approx(first[figure], abs=0.02), (name, figure)
    text = out.getvalue()
    assert text.count("additional pretraining, into") == 1 and "pretrained/mlm-seed-11711: started" in text
    assert text.count(": started") == 5 and "4 of 4 after" in text
    lines = text.splitlines()
    assert "figure2" not in lines[0] and "4 runs to do, 2 at a time" in text
    # Not run again.
    again = io.StringIO()
    reproduce("figure2", *names, output=two, jobs=2, console=Console(file=again, width=120))
    assert "started" not in again.getvalue() and again.getvalue().count("not run again") == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_after_their_step(reproduce, tmp_path, number):
    out = io.StringIO()
    timer = threading.Timer(12, os.kill, (os.getpid(), number))
    timer.start()
    try:
        result = reproduce(
            "figure8", "baseline", "dropout", "smart", jobs=2, cycles=10**6, console=Console(file=out, width=120)
        )
    finally:
        timer.cancel()
    assert result.signal == number and set(states(result)) == {"not finished"}
    assert "0 of 3 runs are finished and kept; repeat the command to go on" in out.getvalue()
    assert "smart/seed-11711: started" not in out.getvalue()


def test_what_a_run_raises_reaches_the_caller(reproduce, tmp_path, data_folder):
    broken = shutil.copytree(data_folder, tmp_path / "broken")
    (broken / "ids-sst-train.csv").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"ids-sst-train\.csv"):
        reproduce("figure8", "baseline", "dropout", jobs=2, data=str(broken))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc, which only Linux has")
def test_no_process_outlives_its_parent(data_folder, encoder_folder, tmp_path):
    """Killed without a chance to say so: what is left must not write into a folder that a repeated command uses."""
    command = [sys.executable, "-m", "smartcs.reproduce", "figure8", "--rows", "baseline,dropout", "--jobs", "2"]
    command += ["--data", str(data_folder), "--model", str(encoder_folder), "--output", str(tmp_path / "out")]
    with subprocess.Popen([*command, "--epochs", "1", "--cycles", str(10**6)], stdout=subprocess.DEVNULL) as parent:
        losses = tmp_path / "out" / "baseline" / "seed-11711" / "losses.csv"
        wait_for(lambda: losses.is_file() or parent.poll() is not None)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert len(children) >= 2
        parent.kill()
    wait_for(lambda: not any(running(child) for child in children))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def running(process: str) -> bool:
    """Whether there is such a process, a zombie not counted."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
