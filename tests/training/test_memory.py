"""Freed memory stays with the process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import smartcs

# In a process of its own: the setting cannot be taken back. Prints page faults of 20 rounds of 32 MiB.
SCRIPT = """
import resource, runpy, sys
if sys.argv[2] == "keep":
    assert runpy.run_path(sys.argv[1])["keep_freed_memory"]()
for round in range(21):
    if round == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**25
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_pages_are_used_again():
    def faults(mode: str) -> int:
        file = Path(smartcs.__file__).parent / "training" / "memory.py"
        run = [sys.executable, "-c", SCRIPT, str(file), mode]
        return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") < 0.1 * faults("leave")
