"""What installation must guarantee, without a network; tests/install_matrix.sh does the installing itself.

What is decided at import is tried in processes of their own, where a sitecustomize module, which Python imports before
anything else, puts a fake extension in the place of the real one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

import smartcs
from smartcs import _extension
from smartcs.info import render

ROOT = Path(__file__).resolve().parent.parent
AVAILABLE, REASON = _extension.extension_status()
needs_extension = pytest.mark.skipif(not AVAILABLE, reason=f"the extension is not loaded: {REASON}")

FACTS = {
    "torch": str(torch.__version__), "compiler": "GNU 1", "build_type": "Release", "cxx_standard": 202002,
    "threads": "OpenMP", "instruction_sets": ["baseline"], "cuda": None, "no_cuda_reason": "none",
    "git_commit": "unknown",
}  # fmt: skip
MISSING = "import sys; sys.modules['smartcs._C'] = None"
OTHER_TORCH = f"""
import sys, types
module = types.ModuleType("smartcs._C")
module.build_facts = lambda: {FACTS | {"torch": "1.0.0+cpu"}}
sys.modules["smartcs._C"] = module
"""


def python(
    *arguments: str, folder: Path, site: str = "", path: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python with `site` as its sitecustomize and none of the caller's smartcs settings."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(site)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SMARTCS_")}
    inherited["PYTHONPATH"] = os.pathsep.join([str(folder / "site"), *([str(ROOT)] if path is None else [])])
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT if path is None else path, env={**inherited, **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_version_has_one_source() -> None:
    assert smartcs.__version__ == importlib.metadata.version("smartcs")


@needs_extension
def test_build_facts_describe_this_process() -> None:
    facts = _extension.build_facts()
    assert facts is not None
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["cxx_standard"] >= 202002
    assert facts["instruction_sets"][0] == "baseline"
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(-dirty)?", facts["git_commit"])
    assert (facts["cuda"] is None) == bool(facts["no_cuda_reason"])
    assert torch.ops.smartcs.instruction_set() in facts["instruction_sets"]


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """smartcs._extension as it is before it has looked for the extension."""
    monkeypatch.setattr(_extension, "_status", None)
    monkeypatch.setattr(_extension, "_facts", None)
    for name in ("SMARTCS_BACKEND", "SMARTCS_REQUIRE_EXT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def found(monkeypatch: pytest.MonkeyPatch, **facts: object) -> None:
    """Puts an extension with these build facts in the place of the real one."""
    module = ModuleType("smartcs._C")
    vars(module)["build_facts"] = lambda: FACTS | facts
    monkeypatch.setitem(sys.modules, "smartcs._C", module)


def test_import_refuses_an_extension_for_another_torch(tmp_path: Path) -> None:
    refused = python("-c", "import smartcs", folder=tmp_path, site=OTHER_TORCH)
    assert refused.returncode != 0
    for words in ("ImportError", "torch 1.0.0+cpu", torch.__version__, "pip install -e .", "SMARTCS_BACKEND=reference"):
        assert words in refused.stderr


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"torch": "1.0.0+cpu"}, "for torch 1.0.0.cpu, this is torch"),
        ({"cuda": "1.0"}, "for CUDA 1.0, this torch has"),
    ],
    ids=["torch", "cuda"],
)
def test_refusal_says_what_to_do(not_loaded: pytest.MonkeyPatch, facts: dict[str, object], message: str) -> None:
    found(not_loaded, **facts)
    with pytest.raises(ImportError, match=f"{message}.*pip install"):
        _extension.load_extension()
    available, reason = _extension.extension_status()
    assert not available and "pip install" in reason


def test_reference_on_request_loads_nothing(not_loaded: pytest.MonkeyPatch) -> None:
    found(not_loaded, torch="1.0.0")
    not_loaded.setenv("SMARTCS_BACKEND", "reference")
    _extension.load_extension()
    assert _extension.extension_status() == (False, "SMARTCS_BACKEND=reference is set, so the extension was not loaded")


def test_missing_extension_is_an_error_only_on_request(not_loaded: pytest.MonkeyPatch) -> None:
    not_loaded.setitem(sys.modules, "smartcs._C", None)
    _extension.load_extension()
    assert not _extension.extension_status()[0]
    not_loaded.setattr(_extension, "_status", None)
    not_loaded.setenv("SMARTCS_REQUIRE_EXT", "1")
    with pytest.raises(ImportError, match="SMARTCS_REQUIRE_EXT is set, but the compiled extension is not there"):
        _extension.load_extension()


def test_library_that_does_not_load_is_refused(not_loaded: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found(not_loaded)
    (tmp_path / "_ops.so").write_bytes(b"not a library")
    not_loaded.setattr(_extension, "_FOLDER", tmp_path)
    with pytest.raises(ImportError, match=r"_ops\.so does not load .*pip install"):
        _extension.load_extension()


def test_another_minor_version_of_cuda_is_taken(not_loaded: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found(not_loaded, cuda="13.0")
    (tmp_path / "_ops.so").write_bytes(b"not a library")
    not_loaded.setattr(_extension, "_FOLDER", tmp_path)
    for running, message in (("13.2", r"_ops\.so does not load"), ("12.9", "for CUDA 13.0, this torch has 12.9")):
        not_loaded.setattr(_extension, "_status", None)
        not_loaded.setattr(torch.version, "cuda", running)
        with pytest.raises(ImportError, match=message):
            _extension.load_extension()


def test_extension_for_another_python_is_named(not_loaded: pytest.MonkeyPatch, tmp_path: Path) -> None:
    not_loaded.setitem(sys.modules, "smartcs._C", None)
    (tmp_path / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    not_loaded.setattr(_extension, "_FOLDER", tmp_path)
    _extension.load_extension()
    reason = _extension.extension_status()[1]
    assert "another Python (_C.cpython-39-x86_64-linux-gnu.so)" in reason and "pip install" in reason


@pytest.mark.parametrize(
    ("site", "says"),
    [("", ""), (MISSING, "is not there"), (OTHER_TORCH, "torch 1.0.0")],
    ids=["plain", "missing", "refused"],
)
def test_info_works_whatever_the_extension(tmp_path: Path, site: str, says: str) -> None:
    answer = python("-m", "smartcs.info", "--json", folder=tmp_path, site=site)
    assert answer.returncode == 0, answer.stderr
    info = json.loads(answer.stdout)
    assert info["versions"]["torch"] == importlib.metadata.version("torch")
    assert info["extension"]["loaded"] == (AVAILABLE and not says)
    assert says in (info["extension"]["reason"] or "")
    assert {"attention", "add_layer_norm", "bias_gelu", "symmetric_kl"} <= {row["op"] for row in info["ops"]}
    assert all(row["reason"] for row in info["ops"])
    assert ("NOT loaded" in render(info)) == (not info["extension"]["loaded"])
    assert says in render(info)


@needs_extension
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_threads_are_those_of_torch(tmp_path: Path) -> None:
    script = r"""
import os, re, torch, smartcs
torch.set_num_threads(1)
x, bias = torch.ones(4096, 768), torch.ones(768)
torch.set_num_threads(5)
before = len(os.listdir("/proc/self/task"))
torch.ops.smartcs.bias_gelu_fwd(x, bias)
print(len(os.listdir("/proc/self/task")) - before)
files = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(*(name for name in files if re.search(r"/lib(gomp|omp|iomp5)\b", name)))
"""
    answer = python("-c", script, folder=tmp_path)
    assert answer.returncode == 0, answer.stderr
    started, runtimes = answer.stdout.splitlines()
    facts = _extension.build_facts()
    assert facts is not None
    # A second OpenMP runtime would mean a second pool of threads, which torch.set_num_threads does not reach.
    assert len(runtimes.split()) == 1, runtimes
    assert int(started) == (4 if facts["threads"] == "OpenMP" else 0)


@needs_extension
def test_wide_kernels_define_nothing_shared() -> None:
    """The linker keeps one copy of an inline function: were it the AVX-512 one, older CPUs would die in the baseline.

    Nor may they run code when the library is loaded, before the instruction set is chosen.
    """
    if shutil.which("nm") is None or not (ROOT / "smartcs" / "_ops.so").is_file():
        pytest.skip("the extension was not built in this checkout, or binutils is missing")
    build = max((ROOT / "build").glob("*/_ops.so"), key=lambda path: path.stat().st_mtime).parent
    facts = _extension.build_facts()
    assert facts is not None
    for isa in facts["instruction_sets"]:
        objects = sorted((build / "CMakeFiles" / f"kernels_{isa}.dir").rglob("*.o"))
        assert objects, f"no object files of {isa} in {build}"
        for path in objects:
            symbols = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True)
            lines = [line.split(maxsplit=2) for line in symbols.stdout.splitlines()]
            shared = [name for _, kind, name in lines if kind in "WVuTDRB" and f"smartcs::{isa}::" not in name]
            assert not shared, f"{path.name} of {isa} defines {shared}"
            sections = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True)
            assert ".init_array" not in sections.stdout, f"{path.name} of {isa} runs code when it is loaded"


def test_kernels_folder_is_no_top_level_package(tmp_path: Path) -> None:
    script = """
import importlib.util, smartcs.kernels
assert importlib.util.find_spec("kernels") is None
print(smartcs.kernels.unavailable_reason())
"""
    answer = python("-c", script, folder=tmp_path, path=str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_checkout_works_without_installation(tmp_path: Path) -> None:
    script = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path.insert(0, {str(ROOT)!r})
import smartcs, smartcs.kernels
assert smartcs.__file__.startswith({str(ROOT)!r})
print(smartcs.kernels.__file__, smartcs.kernels.__name__)
"""
    answer = python("-c", script, folder=tmp_path, path=str(tmp_path), SMARTCS_BACKEND="reference")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == [str(ROOT / "kernels" / "__init__.py"), "smartcs.kernels"]


# ---- setup.py: the environment pip builds in sees setuptools but none of the target's packages -------------------


@pytest.fixture
def isolation(tmp_path: Path) -> str:
    """A sitecustomize that hides site-packages but for setuptools, as pip's build isolation does."""
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    packages = Path(sysconfig.get_path("purelib"))
    for path in [*packages.glob("setuptools*"), packages / "_distutils_hack"]:
        (overlay / path.name).symlink_to(path)
    hidden = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    return f"import sys\nsys.path = [{str(overlay)!r}, *(path for path in sys.path if path not in {hidden!r})]\n"


def requirements(folder: Path, site: str, **environment: str) -> tuple[list[str], str]:
    """The requirements that setup.py writes into the metadata, and what it says on standard error."""
    (folder / "egg").mkdir()
    command = ["setup.py", "-q", "egg_info", "--egg-base", str(folder / "egg")]
    answer = python(*command, folder=folder, site=site, **environment)
    assert answer.returncode == 0, answer.stderr
    written = (folder / "egg" / "smartcs.egg-info" / "requires.txt").read_text().split("\n[")[0]
    return written.split(), answer.stderr


def test_build_finds_the_torch_of_its_target(tmp_path: Path, isolation: str) -> None:
    if shutil.which("c++") is None and "CXX" not in os.environ:
        pytest.skip("no compiler, so nothing is tied to a torch")
    required, _ = requirements(tmp_path, isolation)
    assert f"torch=={torch.__version__.split('+')[0]}" in required


def test_no_compiler_is_said_and_can_be_made_an_error(tmp_path: Path, isolation: str) -> None:
    nowhere = {"PATH": str(tmp_path), "CXX": ""}
    required, message = requirements(tmp_path, isolation, **nowhere)
    assert any(re.fullmatch(r"torch>=[\d.]+", requirement) for requirement in required)
    assert "no C++ compiler found" in message and "apt install g++" in message
    strict = python("setup.py", "--version", folder=tmp_path, site=isolation, SMARTCS_REQUIRE_EXT="1", **nowhere)
    assert strict.returncode != 0
    assert "SMARTCS_REQUIRE_EXT is set, but the extension cannot be compiled: no C++ compiler" in strict.stderr


def test_compiler_named_but_absent_is_an_error(tmp_path: Path, isolation: str) -> None:
    answer = python("setup.py", "--version", folder=tmp_path, site=isolation, CXX="no-such-compiler -O2")
    assert answer.returncode != 0
    assert "'no-such-compiler' is not on PATH" in answer.stderr
