"""How every command starts and ends, in processes of their own."""

import subprocess
import sys

import pytest

from smartcs import info


@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "info"])
def test_ctrl_c_while_importing(name):
    """Sent as soon as smartcs has begun to import torch."""
    code = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
import runpy
sys.argv = ["-m"]
sys.orig_argv = ["python", "-m", "smartcs.NAME"]
runpy.run_module("smartcs.NAME", run_name="__main__", alter_sys=True)
"""
    process = subprocess.run([sys.executable, "-c", code.replace("NAME", name)], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "error: interrupted\n")


def test_info_on_a_full_disk():
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-m", "smartcs.info"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1
    assert process.stderr == "error: [Errno 28] No space left on device\n"


def test_info_without_docstrings(monkeypatch, capsys):
    """As under python -OO, for whose first run everything torch has would be compiled."""
    monkeypatch.setattr(info, "__doc__", None)
    monkeypatch.setattr(sys, "argv", ["info", "--help"])
    monkeypatch.setattr(info, "collect", lambda: pytest.fail("--help needs no facts"))
    with pytest.raises(SystemExit) as exit_info:
        info.main()
    assert not exit_info.value.code and "which backend each op will use" in capsys.readouterr().out
