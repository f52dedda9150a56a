"""nvcc takes every kernel for three generations of GPUs, without a warning, and gives the recorded figures."""

import gpu_nvcc
import gpu_resources
import pytest
from gpu_occupancy import CHIPS
from gpu_resources_table import CPP, figures_of, read_resources

STALE = "; run make gpu-resources"


def recorded():
    return gpu_resources.named(row for row in read_resources()["rows"] if row["language"] == CPP)


def test_every_kernel_is_recorded():
    kernels = {f"{file}.{name}" for name, file in gpu_nvcc.files_of_kernels().items()}
    assert kernels == {row["kernel"] for row in recorded().values()}, STALE


@pytest.mark.parametrize("chip", CHIPS)
def test_nothing_spills(chip):
    for name, row in recorded().items():
        check_figures(name, figures_of(row, chip))


def check_figures(name, figures):
    assert figures["spills"] == 0, f"{name}: {figures}"
    # The noise in float64: sincos of angles that do not occur.
    assert figures["stack"] == 0 or name.startswith("perturb.perturb_noise_kernel<float64>"), f"{name}: {figures}"
    assert figures["registers"] <= 128, f"{name}: fewer than two blocks of 256 threads per multiprocessor: {figures}"


@pytest.mark.parametrize("chip", CHIPS)
def test_nvcc_takes_every_kernel(chip):
    if gpu_nvcc.version() is None:
        pytest.skip("nvcc is not on PATH")
    rows, before = gpu_resources.named(gpu_resources.compile_cpp([chip])), recorded()
    for name, row in rows.items():
        check_figures(name, figures_of(row, chip))
    assert not gpu_resources.stale(before, rows.keys()), STALE
    versions = read_resources()["versions"].get("nvcc"), gpu_nvcc.version()
    if versions[0] != versions[1]:
        pytest.skip(f"nothing spills, but figures are of nvcc {versions[0]}, not {versions[1]}: not compared")
    assert not gpu_resources.differences(before, rows), STALE


SYMBOLS = {
    "_ZN7smartcs4cuda26categorical_forward_kernelI13__nv_bfloat16Li1EEEvNS0_18SymmetricKlForwardE": (
        "categorical_forward_kernel",
        ["bfloat16"],
        (1,),
    ),
    "_ZN7smartcs4cuda19adamw_update_kernelILi256EEEvNS0_9AdamWStepE": ("adamw_update_kernel", [], (256,)),
    "_ZN7smartcs4cuda12plain_kernelENS0_4ArgsE": ("plain_kernel", [], ()),
}


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_mangled_names(symbol):
    assert gpu_nvcc.parsed(symbol) == SYMBOLS[symbol]


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="no ..._kernel"):
        gpu_nvcc.parsed("_ZN7smartcs4cuda4copyEv")


LOG = """
ptxas info    : Compiling entry function '{0}' for 'sm_90'
ptxas info    : Function properties for {0}
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 46 registers, used 1 barriers, 8 bytes cumulative stack size, 64 bytes smem
ptxas info    : Function properties for __internal_accurate_pow
    0 bytes stack frame, 1 bytes spill stores, 0 bytes spill loads
"""


def test_what_ptxas_says_is_read():
    """Spills too, also those of functions that a kernel calls."""
    symbol = list(SYMBOLS)[1]
    ptx = f".visible .entry {symbol}(\n.param .align 8 .b8 x[96]\n)\n.maxntid 256\n{{"
    (found,) = gpu_nvcc.instances(LOG.format(symbol), ptx)
    assert found.kernel == "adamw.adamw_update_kernel" and found.numbers == (256,)
    assert found.figures == {"threads": 256, "registers": 46, "spills": 17, "stack": 8, "static": 64}
    with pytest.raises(AssertionError, match="spills"):
        check_figures("adamw", found.figures)
