"""Where the CUDA ops cannot be built, the build goes on without them and says why (cmake/nvcc.cmake)."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = f"""
include({ROOT}/cmake/nvcc.cmake)
message("${{SMARTCS_NO_CUDA_REASON}}")
"""
RELEASE = "echo Cuda compilation tools, release 13.0, V13.0.88"
FAILS = f"""if [ "$1" = --version ]; then {RELEASE}; else
echo 'cuda.h:3:10: fatal error: "cublas_v2.h": No such file' >&2; exit 1; fi"""
CASES = [
    (None, "13.0", True, "nvcc not found: put it on PATH or set CUDA_HOME"),
    ("exit 1", "13.0", True, "/bin/nvcc does not run"),
    (RELEASE, "12.8", True, "nvcc is CUDA 13.0 and torch's is 12.8: the major versions differ"),
    (RELEASE, "13.1", False, "libc10_cuda not found in "),
    (FAILS, "13.1", True, "torch's CUDA headers: cuda.h:3:10: fatal error: 'cublas_v2.h': No such file"),
]


@pytest.mark.parametrize(("nvcc", "torch_cuda", "library", "reason"), CASES, ids=[case[-1] for case in CASES])
def test_says_why_there_is_no_cuda(tmp_path: Path, nvcc: str | None, torch_cuda: str, library: bool, reason: str):
    cmake = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    if cmake is None:
        pytest.skip("cmake is neither on PATH nor beside this Python")
    for name in ("lib", "bin"):
        (tmp_path / name).mkdir()
    if library:
        (tmp_path / "lib/libc10_cuda.so").touch()
    if nvcc is not None:
        (tmp_path / "bin/nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
        (tmp_path / "bin/nvcc").chmod(0o755)
    (tmp_path / "script.cmake").write_text(SCRIPT)
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_HOME", "CUDA_PATH")}
    result = subprocess.run(
        [cmake, f"-DSMARTCS_TORCH_DIR={tmp_path}", f"-DSMARTCS_TORCH_CUDA={torch_cuda}", "-P", "script.cmake"],
        cwd=tmp_path, env=kept | {"PATH": f"{tmp_path}/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert reason in result.stderr
