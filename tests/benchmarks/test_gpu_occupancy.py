"""Occupancy: values worked out by hand, and NVIDIA's own calculator where its header is."""

import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
from gpu_occupancy import CHIPS, occupancy

A100, H100, B200 = CHIPS.values()
KIB = 1024
BY_HAND = [
    # 32 x 32 registers a warp, 16 warps in each of 4 partitions: 64, as many as there can be.
    (A100, (128, 32, 0), 16, 1.0, "warps, registers"),
    # 33 x 32 = 1056 become 1280: 12 warps in a partition, 48 in all, 6 blocks of 8.
    (A100, (256, 33, 0), 6, 0.75, "registers"),
    (A100, (256, 40, 0), 6, 0.75, "registers"),
    # 219 x 32 = 7008 become 7168: 2 warps in a partition, though 9 of them are no more than all registers.
    (H100, (32, 219, 0), 8, 0.125, "registers"),
    # 9 warps in each partition at 56 registers (1792): 36, of which 7 blocks of 5 take 35.
    (A100, (160, 56, 0), 7, 35 / 64, "registers"),
    (A100, (32, 32, 0), 32, 0.5, "blocks"),
    # 41 KiB a block with the reserved one: 4 in 164, 5 in 228.
    (A100, (128, 32, 40 * KIB), 4, 0.25, "shared memory"),
    (H100, (128, 32, 40 * KIB), 5, 0.3125, "shared memory"),
    # 10126 + 1024 bytes would fit 15 times, but they become 11264.
    (A100, (128, 32, 10126), 14, 0.875, "shared memory"),
    (A100, (128, 32, 163 * KIB), 1, 0.0625, "shared memory"),
    (A100, (128, 32, 163 * KIB + 1), 0, 0.0, "shared memory"),
    (H100, (128, 32, 227 * KIB), 1, 0.0625, "shared memory"),
    (A100, (1024, 64, 0), 1, 0.5, "registers"),
    (A100, (1024, 65, 0), 0, 0.0, "registers"),
    (A100, (1025, 16, 0), 0, 0.0, "warps"),
    (A100, (32, 256, 0), 0, 0.0, "registers"),
    # 512 columns of tensor memory: 8 times 64, and 48 are 64.
    (B200, (128, 32, 0, 64), 8, 0.5, "tensor memory"),
    (B200, (128, 32, 0, 48), 8, 0.5, "tensor memory"),
    (B200, (128, 32, 0, 1), 16, 1.0, "warps, registers, tensor memory"),
    (H100, (128, 32, 0, 64), 0, 0.0, "tensor memory"),
]


@pytest.mark.parametrize(("chip", "kernel", "blocks", "share", "limit"), BY_HAND)
def test_by_hand(chip, kernel, blocks, share, limit):
    found = occupancy(chip, *kernel)
    assert (found.blocks, found.share, found.limit) == (blocks, share, limit)


WRONG = [
    {"register_unit": 32},
    {"partitions": 1},
    {"shared_unit": 1},
    {"shared_reserved": 128},
    {"shared": 100 * KIB},
    {"shared_per_block": 164 * KIB},
    {"warps": 48},
    {"blocks": 24},
    {"registers": 32768},
    {"registers_per_thread": 256},
    {"threads_per_block": 2048},
]


@pytest.mark.parametrize("mistake", WRONG, ids=str)
def test_every_limit_matters(mistake):
    for chip, kernel, blocks, share, limit in BY_HAND:
        found = occupancy(replace(chip, **mistake), *kernel)
        if (found.blocks, found.share, found.limit) != (blocks, share, limit):
            return
    pytest.fail("no value by hand depends on it")


@pytest.mark.parametrize("kernel", [(0, 32, 0), (32, 0, 0), (32, 32, -1), (32, 32, 0, -1)])
def test_numbers_that_no_kernel_has(kernel):
    with pytest.raises(ValueError, match="expected >="):
        occupancy(A100, *kernel)


PROGRAM = r"""
#include <cuda_occupancy.h>
#include <stdio.h>
int main() {
  int major, threads, registers; size_t shared, per_block, dynamic;
  while (scanf("%d %zu %zu %d %d %zu", &major, &shared, &per_block, &threads, &registers, &dynamic) == 6) {
    cudaOccDeviceProp chip;
    chip.computeMajor = major; chip.computeMinor = 0; chip.warpSize = 32;
    chip.maxThreadsPerBlock = 1024; chip.maxThreadsPerMultiprocessor = 2048; chip.numSms = 1;
    chip.regsPerBlock = chip.regsPerMultiprocessor = 65536;
    chip.sharedMemPerBlock = 48 * 1024; chip.sharedMemPerMultiprocessor = shared;
    chip.sharedMemPerBlockOptin = per_block; chip.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024; kernel.numRegs = registers; kernel.numBlockBarriers = 1;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN; kernel.maxDynamicSharedSizeBytes = per_block;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &chip, &kernel, &state, threads, dynamic);
    printf("%d\n", error ? -1 : result.activeBlocksPerMultiprocessor);
  }
}
"""


def test_as_nvidia_calculates(tmp_path):
    """For thousands of kernels, with the header that nvcc and Triton bring."""
    compiler, nvcc, triton = shutil.which("g++"), shutil.which("nvcc"), find_spec("triton")
    folders = [Path(triton.origin).parent / "backends/nvidia/include"] if triton else []
    folders += [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    folder = next((folder for folder in folders if (folder / "cuda_occupancy.h").is_file()), None)
    if compiler is None or folder is None:
        pytest.skip("g++ or cuda_occupancy.h is missing")
    (tmp_path / "program.cpp").write_text(PROGRAM)
    subprocess.run([compiler, "-w", f"-I{folder}", "program.cpp", "-o", "program"], cwd=tmp_path, check=True)
    shared = [0, 1, 1024, 5000, 20480, 40 * KIB, 81920, 99 * KIB, 162 * KIB, 163 * KIB, 200 * KIB, 227 * KIB]
    kernels = list(product(CHIPS.values(), (32, 64, 96, 128, 160, 256, 512, 800, 1024), range(16, 256, 3), shared))
    lines = [f"{chip.cc // 10} {chip.shared} {chip.shared_per_block} {t} {r} {s}" for chip, t, r, s in kernels]
    result = subprocess.run([tmp_path / "program"], input="\n".join(lines), capture_output=True, text=True, check=True)
    theirs = [int(line) for line in result.stdout.split()]
    assert theirs == [occupancy(*kernel).blocks for kernel in kernels]
    assert len(set(theirs)) > 10
