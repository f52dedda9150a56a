"""The record of what kernels take: what is compiled again, what counts as different, how the table reads."""

import gpu_resources
import pytest
from gpu_resources import differences, name_of, named, same_compiler, stale
from gpu_resources_table import CPP, TRITON, read_resources, resources_table
from gpu_triton import Build, code_of

VERSIONS = {"Triton": "3", "its ptxas for sm_80": "12", "its ptxas for sm_90": "13", "nvcc": "13"}
FIGURES = {"threads": 128, "registers": 33, "spills": 0, "stack": 0}


def row(registers=33, **changes):
    made = {"language": TRITON, "kernel": "rows.kernel", "dtype": "float32", "bert_base": True, "arguments": "*fp32"}
    made |= {"instance": {"BLOCK": 64}} | changes
    figures = FIGURES | {"registers": registers}
    return made | {chip: gpu_resources.figures(chip, **figures) for chip in ("sm_80", "sm_90", "sm_100")}


def test_differences():
    recorded = named([row()])
    assert not differences(recorded, named([row()]))
    (line,) = differences(recorded, named([row() | {"sm_90": gpu_resources.figures("sm_90", **FIGURES, dynamic=8)}]))
    assert "kernel<float32>(*fp32) BLOCK=64 on sm_90: dynamic 0, now 8" in line
    (line,) = differences(recorded, named([row(instance={"BLOCK": 128})]))
    assert line.endswith("BLOCK=128 is not recorded")


def test_stale():
    names = {name_of(row()), "new"}
    assert stale(named([row()]), {name_of(row())}) == []
    assert stale(named([row()]), names) == ["new is not recorded"]
    assert stale(named([row()]), set()) == [f"{name_of(row())} is recorded but no longer there"]


def test_compilers():
    assert same_compiler(VERSIONS, VERSIONS, TRITON, "sm_90")
    newer = VERSIONS | {"its ptxas for sm_90": "14"}
    assert not same_compiler(VERSIONS, newer, TRITON, "sm_90") and same_compiler(VERSIONS, newer, TRITON, "sm_80")
    assert same_compiler(VERSIONS, newer, CPP, "sm_90") and not same_compiler(VERSIONS, {"Triton": "3"}, CPP, "sm_90")
    assert not same_compiler({}, {}, CPP, "sm_90")


CODE = """'doc'
from .other import used

@triton.jit
def kernel(x):
    'doc'
    return used(x) + 1
"""
OTHER = """import torch
W = tl.constexpr(1)

@triton.jit(do_not_specialize=['n'])
def used(x):
    return x

def host():
    pass
"""
EDITS = {
    "a comment": ("    return x\n", "    # Why.\n    return x\n", False),
    "code of the host": ("    pass\n", "    return 1\n", False),
    "code of a file that is imported": ("return x", "return -x", True),
    "how it is compiled": ("'n'", "'n', 'm'", True),
    "a constant": ("constexpr(1)", "constexpr(2)", True),
}


@pytest.mark.parametrize("edit", EDITS)
def test_digest_of_code(tmp_path, edit):
    before, after, differs = EDITS[edit]
    assert before in OTHER
    digests = []
    for text in (OTHER, OTHER.replace(before, after)):
        (tmp_path / "file.py").write_text(CODE)
        (tmp_path / "other.py").write_text(text)
        digests.append(code_of("file", tmp_path))
    assert (digests[0] != digests[1]) == differs
    (tmp_path / "file.py").write_text(CODE.replace("doc", "another"))
    assert code_of("file", tmp_path) == digests[1]
    (tmp_path / "file.py").write_text(CODE.replace("+ 1", "+ 2"))
    assert code_of("file", tmp_path) != digests[1]


@pytest.fixture
def compiled(monkeypatch):
    """What `update` has compiled: (block, chip), while the kernels and compilers are other ones than these."""
    pairs, build = [], Build("rows.kernel", {"x": "*fp32"}, {}, {})

    def compile_triton(wanted, jobs, after):
        for target, _, chip in wanted:
            pairs.append((target["instance"]["BLOCK"], chip))
            target[chip] = row()[chip]
            after(len(pairs))

    def builds():
        chips = ("sm_80", "sm_90", "sm_100")
        plain = [{k: v for k, v in row(instance={"BLOCK": n}).items() if k not in chips} for n in (64, 128)]
        return [(one, build) for one in plain]

    monkeypatch.setattr(gpu_resources, "triton_builds", builds)
    monkeypatch.setattr(gpu_resources, "compile_triton", compile_triton)
    monkeypatch.setattr(gpu_resources, "compile_cpp", lambda chips, jobs: [row(language=CPP, kernel="file.cpp")])
    monkeypatch.setattr(gpu_resources, "versions", lambda: VERSIONS | {"its ptxas for sm_100": "13"})
    monkeypatch.setattr(gpu_resources, "codes", lambda rows: {"rows": "digest"})
    return pairs


def test_only_what_changed_is_compiled(compiled, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_resources, "RESULTS", tmp_path)

    def update(recorded, everything=False):
        compiled.clear()
        found = gpu_resources.update(recorded, everything, 1)
        return found, len(compiled)

    found, count = update(read_resources(tmp_path))
    assert count == 6 and len(found["rows"]) == 3
    gpu_resources.write(found)
    recorded = read_resources(tmp_path)
    assert named(recorded["rows"]) == named(update(recorded)[0]["rows"])
    assert update(recorded)[1] == 0 and update(recorded, everything=True)[1] == 6
    assert update(recorded | {"code": {"rows": "older"}})[1] == 6
    assert update(recorded | {"versions": recorded["versions"] | {"its ptxas for sm_80": "11"}})[1] == 2
    assert update(recorded | {"rows": recorded["rows"][1:]})[1] == 3


def test_it_goes_on_where_it_was_interrupted(compiled, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_resources, "RESULTS", tmp_path)

    def interrupt(found):
        gpu_resources.write(found)
        if len(compiled) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu_resources.update(read_resources(tmp_path), False, 1, interrupt)
    assert gpu_resources.update(read_resources(tmp_path), False, 1)["rows"]
    assert compiled[4:] == [(128, chip) for chip in ("sm_80", "sm_90", "sm_100")]


def test_table(tmp_path, monkeypatch):
    """BERT-base's instances, the worst of all, and dtypes that agree in one line."""
    monkeypatch.setattr(gpu_resources, "RESULTS", tmp_path)
    assert resources_table(TRITON, tmp_path) == "Not compiled."
    wide = {"bert_base": False, "instance": {"BLOCK": 128}}
    rows = [row(32), row(219, **wide), row(32, dtype="float16"), row(219, dtype="float16", **wide)]
    rows += [row(33, dtype="float64"), row(language=CPP, kernel="file.cpp")]
    gpu_resources.write({"versions": VERSIONS, "code": {}, "figures": [], "rows": rows})
    head, _, *table = resources_table(TRITON, tmp_path).splitlines()
    assert head.startswith("5 instances for 3 chips; 0 of 15 compilations spill; Triton 3") and "nvcc" not in head
    assert table[2] == "| `rows.kernel` | float32, float16 | 32 | 0 | 100% | 100% | 100% | 2 | 219 | 12% | none |"
    assert table[3].startswith("| `rows.kernel` | float64 | 33 | 0 | 75% registers |")
    assert "nvcc 13" in resources_table(CPP, tmp_path)
