"""nvcc takes every kernel for three generations of GPUs, without a warning and without spilled registers."""

import re
import shutil
import subprocess

import pytest
from emulated_cuda import DEVICE_CODE, EMULATION

KERNELS = {
    "categorical_forward_kernel": 8, "categorical_backward_kernel": 8, "bernoulli_forward_kernel": 4,
    "bernoulli_backward_kernel": 4, "perturb_noise_kernel": 4, "perturb_step_kernel": 4, "adamw_squares_kernel": 1,
    "adamw_prepare_kernel": 1, "adamw_update_kernel": 1,
}  # fmt: skip
"""How many instances of each there are. The noise in float64 has a stack: sincos of angles that do not occur."""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_nvcc_takes_every_kernel(tmp_path, architecture):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    command = [nvcc, "-std=c++17", "-cubin", f"-arch={architecture}", "-Werror", "all-warnings"]
    command += ["-Xptxas", "-v,-warn-spills,--warning-as-error", f"-I{DEVICE_CODE}"]
    command += [str(EMULATION / "instances.cu"), "-o", str(tmp_path / "kernels.cubin")]
    result = subprocess.run(command, capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    compiled = re.findall(r"Compiling entry function '\w*?\d+([a-z_]+_kernel)I", output)
    assert {name: compiled.count(name) for name in set(compiled)} == KERNELS
    frames = re.findall(
        r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) .*?, (\d+) bytes spill", output
    )
    assert len(frames) >= sum(KERNELS.values())
    for name, stack, *spills in frames:
        assert spills == ["0", "0"], name
        assert stack == "0" or "perturb_noise_kernelId" in name, f"{name} uses {stack} bytes of local memory"
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", output)]
    assert max(registers) <= 128, f"{max(registers)} registers: fewer than two blocks of 256 threads per processor"
