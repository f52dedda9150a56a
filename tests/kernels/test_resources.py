"""benchmarks/results/gpu-resources.json: every launch is in it, nothing spills, and compiling gives the same figures.

Here BERT-base's kernels are compiled, each for one of the chips; `make gpu-resources ARGS=--check` compiles all.
"""

from dataclasses import replace

import gpu_resources
import pytest
from gpu_occupancy import CHIPS
from gpu_resources_table import TRITON, figures_of, read_resources
from gpu_triton import resources_of

STALE = "; run make gpu-resources"
SMALLEST = 99 * 1024
"""Bytes of shared memory that a block can have on the smallest chip of these generations (sm_86)."""


@pytest.fixture(scope="module")
def recorded():
    return read_resources()


def of_triton(recorded):
    return gpu_resources.named(row for row in recorded["rows"] if row["language"] == TRITON)


def test_every_launch_is_recorded(interpreter, recorded):
    rows = gpu_resources.named(row for row, _ in gpu_resources.triton_builds())
    found = of_triton(recorded)
    assert not gpu_resources.stale(found, rows.keys()), STALE
    assert {name for name in rows if rows[name]["bert_base"]} == {name for name in rows if found[name]["bert_base"]}
    assert all(chip in row for row in found.values() for chip in CHIPS)


def test_it_is_of_this_code(recorded):
    assert gpu_resources.codes(of_triton(recorded).values()) == recorded["code"], STALE


def test_nothing_spills(recorded):
    for name, row in of_triton(recorded).items():
        for chip in CHIPS:
            check_figures(name, figures_of(row, chip))


def check_figures(name, figures):
    assert figures["occupancy"] > 0, f"{name} cannot be launched: {figures}"
    assert figures["spills"] == figures["stack"] == 0, f"{name} spills: {figures}"
    assert figures["static"] + figures["dynamic"] <= SMALLEST, f"{name} takes {figures}"


def test_compiled_again(interpreter, recorded):
    """Every kernel of BERT-base in float32 and bfloat16, in turns for A100, H100 and B200."""
    pytest.importorskip("triton")
    builds = [one for one in gpu_resources.triton_builds(True) if one[0]["dtype"] in ("float32", "bfloat16")]
    wanted = [(row, build, list(CHIPS)[i % len(CHIPS)]) for i, (row, build) in enumerate(builds)]
    gpu_resources.compile_triton(wanted, jobs=2)
    here, other = gpu_resources.versions(), set()
    for row, _, chip in wanted:
        check_figures(gpu_resources.name_of(row), figures_of(row, chip))
        if not gpu_resources.same_compiler(recorded["versions"], here, TRITON, chip):
            other.add(chip)
    same = [row for row, _, chip in wanted if chip not in other]
    assert not gpu_resources.differences(of_triton(recorded), gpu_resources.named(same)), STALE
    if other:
        pytest.skip(f"nothing spills, but figures are of {recorded['versions']}, not {here}: not compared")


def test_spills_are_seen(interpreter):
    """Rows of twice the width that is allowed."""
    rows = gpu_resources.triton_builds(True)
    build = next(one for row, one in rows if row["kernel"] == "layer_norm_row._backward_kernel")
    wide = replace(build, constants=build.constants | {"ROWS": 1, "BLOCK": 8192})
    ((found,),) = resources_of([(wide, 90)])
    assert found["spills"] > 0
    with pytest.raises(AssertionError, match="spills"):
        check_figures("wide", found | {"static": 0, "occupancy": 1})


NUMBERS = {
    "add_layer_norm._forward_kernel": 2,
    "attention._forward": 2,
    "attention._gradients_of_keys": 2,
    "attention._gradients_of_queries": 2,
    "embedding._forward_kernel": 2,
    "layer_norm_row._backward_kernel": 1,
}
"""Kernel -> how many of its arguments are numbers and no integers: scales, dropout's factor, eps."""


def float64_builds():
    return {row["kernel"]: one for row, one in gpu_resources.triton_builds(True) if row["dtype"] == "float64"}


def test_numbers_are_float64(interpreter):
    """As compiled: Triton takes a float for float32, and its interpreter, where it is Python's, does not show that."""
    builds = {name: one for name, one in float64_builds().items() if name in NUMBERS}
    (found,) = resources_of([(build, 90) for build in builds.values()])
    assert {name: figures["doubles"] for name, figures in zip(builds, found, strict=True)} == NUMBERS


def test_numbers_of_another_type_are_refused(interpreter):
    """A build must have the types that a launch has."""
    build = float64_builds()["embedding._forward_kernel"]
    wrong = replace(build, arguments=build.arguments | {"eps": "fp32"})
    with pytest.raises(RuntimeError, match="eps is fp32 in the build, but fp64 in a launch"):
        next(resources_of([(wrong, 90)]))
