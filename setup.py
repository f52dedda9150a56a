"""Drives CMake (which owns sources, flags and instruction sets) and ties the result to the torch it was built for.

pip builds in an isolated environment that sees none of the target's packages, yet the extension must be compiled
against the torch that will load it. So torch is looked up twice: here, and with the target's own Python outside of
that isolation. Only where neither has one is torch asked for as a build requirement.

Without a usable C++ toolchain nothing is compiled and the package runs on its PyTorch reference; a toolchain that is
there but fails stops the installation. SMARTCS_REQUIRE_EXT=1 makes a missing one an error, SMARTCS_WERROR=1 turns
compiler warnings into errors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = "2.11"
OLDEST_CMAKE = (3, 21)
SANITIZE = os.environ.get("SMARTCS_SANITIZE", "")  # address,undefined or thread: a build for tests/sanitize/run.py
DEPENDENCIES = ["numpy", "tokenizers", "safetensors", "huggingface_hub", "tyro", "rich", "matplotlib>=3.7", "jinja2>=3"]

# Run by an interpreter to say which torch it would import, without importing it (seconds, and it may be broken).
FIND_TORCH = """
import importlib.util, json, pathlib
spec = importlib.util.find_spec("torch")
if spec is not None and spec.origin is not None:
    folder = pathlib.Path(spec.origin).parent
    facts = {}
    exec((folder / "version.py").read_text(), facts)
    print(json.dumps({"folder": str(folder), "version": facts["__version__"], "cuda": facts.get("cuda")}))
"""


@dataclass(frozen=True)
class Torch:
    """A torch installation: its package folder, full version (2.13.0+cpu) and CUDA version, None on a CPU build."""

    folder: str
    version: str
    cuda: str | None

    @property
    def public_version(self) -> str:
        return self.version.split("+")[0]


def flag(name: str) -> bool:
    """True where the environment variable is set to anything but 0 or nothing."""
    return os.environ.get(name, "0") not in ("", "0")


def torch_of(environment: dict[str, str]) -> Torch | None:
    """The torch that this interpreter imports under `environment`."""
    # -P: the current folder is not a place to find torch in.
    command = [sys.executable, "-P", "-c", FIND_TORCH]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        print(f"smartcs: looking for torch failed:\n{answer.stderr}", file=sys.stderr)
    return Torch(**json.loads(answer.stdout)) if answer.stdout.strip() else None


def find_torch() -> Torch | None:
    """The torch to compile against: the build environment's, else the one of the environment pip installs into."""
    environment = dict(os.environ)
    here = torch_of(environment)
    if here is not None:
        return here
    # pip's isolation is PYTHONPATH (a sitecustomize that hides site-packages) and PYTHONNOUSERSITE.
    for name in ("PYTHONPATH", "PYTHONNOUSERSITE"):
        environment.pop(name, None)
    return torch_of(environment)


def missing_toolchain() -> str | None:
    """Why nothing can be compiled here, with what to do; None where it can."""
    asked = shlex.split(os.environ.get("CXX", ""))
    if asked and shutil.which(asked[0]) is None:
        sys.exit(f"smartcs: CXX is {os.environ['CXX']!r}, but {asked[0]!r} is not on PATH. Unset CXX or correct it.")
    if not asked and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "no C++ compiler found (looked for $CXX, c++, g++, clang++): install one, e.g. apt install g++"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        return f"Python's headers are missing ({include}/Python.h): install them, e.g. apt install python3-dev"
    return None


def tools(name: str) -> list[str]:
    """The programs of that name on PATH, then beside this interpreter (its environment need not be activated)."""
    found = [shutil.which(name), shutil.which(name, path=sysconfig.get_path("scripts"))]
    return [path for path in found if path is not None]


def cmake_command() -> str | None:
    """A CMake that runs and is new enough, or None."""
    for cmake in tools("cmake"):
        answer = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"version (\d+)\.(\d+)", answer.stdout)
        if version and (int(version[1]), int(version[2])) >= OLDEST_CMAKE:
            return cmake
    return None


def git_commit() -> str:
    """The checkout's commit, with -dirty where tracked files differ from it; 'unknown' outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # A source archive unpacked inside another project's checkout must not report that project's commit.
    top = git("rev-parse", "--show-toplevel")
    commit = git("rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != ROOT:
        return "unknown"
    return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


def tested_torch() -> str:
    """The torch requirement of constraints.txt: what a build brings in where there is none."""
    return next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


def the_torch() -> Torch:
    """The torch to compile against, found when this file began to run."""
    if TORCH is None:
        sys.exit(f"smartcs: torch is not installed. Run: pip install {tested_torch()}")
    return TORCH


class CMakeBuild(build_ext):
    """Configures and builds in build/<tag>, which ninja reuses, and puts _C and _ops beside the Python files."""

    def run(self) -> None:
        if PROBLEM is not None:
            sys.exit(f"smartcs: the extension cannot be compiled: {PROBLEM}")
        self.built: list[str] = []
        folder = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        target = folder / "smartcs"
        target.mkdir(parents=True, exist_ok=True)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        build = self.build_folder()
        self.compile(build, suffix)
        for name in (f"_C{suffix}", "_ops.so"):
            # Replaced in one step: a running process keeps the file it has mapped.
            fresh = target / f"{name}.new"
            shutil.copy2(build / name, fresh)
            os.replace(fresh, target / name)
            self.built.append(str(target / name))

    def build_folder(self) -> Path:
        """One folder per Python, torch and compiler settings: alternating between them rebuilds nothing."""
        settings = [os.environ.get(name, "") for name in ("CXX", "CXXFLAGS", "LDFLAGS")]
        settings.append(shutil.which("c++") or "")
        if the_torch().cuda is not None:
            names = ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CMAKE_CUDA_ARCHITECTURES", "TORCH_CUDA_ARCH_LIST")
            settings += [*(os.environ.get(name, "") for name in names), shutil.which("nvcc") or ""]
        if SANITIZE:
            settings.append(SANITIZE)
        digest = hashlib.sha256(json.dumps([*settings, flag("SMARTCS_WERROR")]).encode()).hexdigest()[:8]
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{the_torch().version}-{digest}"
        cache = build / "CMakeCache.txt"
        if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
            shutil.rmtree(build)  # the checkout was moved or copied; CMake refuses such a cache
        return build

    def compile(self, build: Path, suffix: str) -> None:
        cmake, ninja = cmake_command(), next(iter(tools("ninja")), None)
        lacking = [name for name, found in (("cmake", cmake), ("ninja", ninja)) if found is None]
        if importlib.util.find_spec("pybind11") is None:
            lacking.append("pybind11")
        if lacking:
            sys.exit(f"smartcs: not found: {', '.join(lacking)}. Run: pip install {' '.join(lacking)}")
        assert cmake is not None and ninja is not None
        import pybind11

        torch = the_torch()

        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": ninja,
            "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
            "SMARTCS_TORCH_DIR": torch.folder,
            "SMARTCS_TORCH_VERSION": torch.version,
            "SMARTCS_TORCH_CUDA": torch.cuda or "",
            "SMARTCS_PYTHON_INCLUDE": sysconfig.get_path("include"),
            "SMARTCS_PYBIND11_INCLUDE": pybind11.get_include(),
            "SMARTCS_EXT_SUFFIX": suffix,
            "SMARTCS_GIT_COMMIT": git_commit(),
            "SMARTCS_WERROR": "ON" if flag("SMARTCS_WERROR") else "OFF",
            "SMARTCS_SANITIZE": SANITIZE,
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *definitions],
            [cmake, "--build", str(build)],
        ):
            print("smartcs:", shlex.join(command), flush=True)
            if subprocess.run(command, check=False).returncode != 0:
                sys.exit("smartcs: compiling the extension failed, the compiler's messages are above.")

    def get_outputs(self) -> list[str]:
        return self.built

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class FreshBuildPy(build_py):
    """Starts from an empty build/lib*: setuptools would put files deleted since the last build into the wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "smartcs"), ignore_errors=True)
        elif PROBLEM is not None:
            # An extension left by an earlier installation may be for another torch, which import would refuse.
            for stale in [*Path(ROOT, "smartcs").glob("_C*.so"), Path(ROOT, "smartcs", "_ops.so")]:
                stale.unlink(missing_ok=True)
        super().run()


PROBLEM = missing_toolchain()
TORCH = None if PROBLEM else find_torch()
if PROBLEM is not None:
    if flag("SMARTCS_REQUIRE_EXT"):
        sys.exit(f"smartcs: SMARTCS_REQUIRE_EXT is set, but the extension cannot be compiled: {PROBLEM}")
    print(f"smartcs: NOT compiling the fused ops, the PyTorch reference will run: {PROBLEM}", file=sys.stderr)

# Asked for through get_requires_for_build_*: a compiler without torch or CMake gets them in the build environment.
build_requirements = []
if PROBLEM is None:
    build_requirements += [] if TORCH else [tested_torch()]
    build_requirements += [] if cmake_command() else [f"cmake>={'.'.join(map(str, OLDEST_CMAKE))}"]

# The binary is tied to the torch it was compiled against: say so to pip, so that it never changes it underneath.
torch_requirement = f"torch=={TORCH.public_version}" if TORCH else f"torch>={OLDEST_TORCH}"

setup(
    packages=[
        "smartcs.kernels",
        *find_namespace_packages(include=["smartcs", "smartcs.*"], exclude=["*.__pycache__"]),
    ],
    # kernels/ stands at the top of the checkout, but a top-level import "kernels" belongs to another project.
    package_dir={"smartcs": "smartcs", "smartcs.kernels": "kernels"},
    package_data={"": ["*.json", "*.txt", "*.csv", "*.html", "*.j2", "py.typed"]},
    install_requires=[torch_requirement, *DEPENDENCIES],
    setup_requires=build_requirements,
    ext_modules=[] if PROBLEM else [Extension("smartcs._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": FreshBuildPy},
)
