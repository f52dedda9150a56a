"""The table of proofs says what tests have measured, all of it and nothing else."""

import json
from pathlib import Path

import gpu_proofs
import pytest
from gpu_proofs import OPS, OTHERS, evidence, ops_table, others_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path):
    """The committed evidence and resources, to be changed."""
    for name in (gpu_proofs.EVIDENCE, gpu_proofs.RESOURCES):
        (tmp_path / name).write_text((gpu_proofs.RESULTS / name).read_text())

    def change(do):
        found = evidence(tmp_path)
        do(found)
        (tmp_path / gpu_proofs.EVIDENCE).write_text(json.dumps(found))
        return tmp_path

    return change


def test_every_kernel_has_its_rows():
    """Each kernel that was compiled is one of the table's, and the other way round."""
    resources = json.loads((gpu_proofs.RESULTS / gpu_proofs.RESOURCES).read_text())
    assert {row["kernel"] for row in resources["rows"]} == {kernel for op in OPS for kernel in op.kernels}
    assert all((ROOT / "tests" / op.file).is_file() for op in OPS) and all(
        (ROOT / "tests" / f).is_file() for f in OTHERS
    )


def test_rows(copy):
    table = ops_table(copy(lambda found: None)).splitlines()
    assert len(table) == 2 + sum(len(op.dtypes) for op in OPS)
    row = next(line for line in table if line.startswith("| `attention` | backward | bfloat16 |"))
    held = evidence()["tests/kernels/test_attention.py"]["held"]["backward"]["bfloat16"]
    assert (
        f"| {held['comparisons']:,} | {held['share']:.0%} |" in row and "pytest tests/kernels/test_attention.py" in row
    )
    assert len(others_table(copy(lambda found: None)).splitlines()) == 2 + len(OTHERS)


def test_what_is_missing_is_an_error(copy):
    folder = copy(lambda found: found["tests/cuda/test_adamw.py"]["held"]["forward"].pop("float64"))
    with pytest.raises(ValueError, match="no comparison of adamw, forward, float64"):
        ops_table(folder)
    with pytest.raises(ValueError, match="no test of training/test_device_step.py"):
        others_table(copy(lambda found: found.pop("tests/training/test_device_step.py")))


def test_everything_held_and_every_mistake_was_refused():
    for op in OPS:
        tests = evidence()[f"tests/{op.file}"]
        assert tests["mistakes"] >= 3, op.file
        assert all(one["share"] <= 1 for held in tests["held"].values() for one in held.values())


def test_spills_show(copy):
    folder = copy(lambda found: None)
    path = folder / gpu_proofs.RESOURCES
    resources = json.loads(path.read_text())
    row = next(r for r in resources["rows"] if r["kernel"].startswith("attention.") and r["dtype"] == "bfloat16")
    row["sm_90"][resources["figures"].index("spills")] = 24
    path.write_text(json.dumps(resources))
    assert "up to 24 bytes spilled" in ops_table(folder)
