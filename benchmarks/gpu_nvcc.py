"""Compiles every kernel of csrc/cuda with nvcc for a chip that is not here, and reads what ptxas says of them."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEVICE_CODE, INSTANCES = ROOT / "csrc" / "cuda", ROOT / "tests" / "cuda" / "instances.cu"
FLAGS = ("-std=c++17", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills,--warning-as-error")
TYPES = {"f": "float32", "d": "float64", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
ARGUMENT = "|".join([*TYPES, r"L[ib]\d+E"])


@dataclass(frozen=True)
class Instance:
    """A kernel with its template's arguments, and what it takes."""

    kernel: str
    """FILE.NAME in csrc/cuda/FILE.cuh."""
    dtype: str
    numbers: tuple[int, ...]
    figures: dict[str, int]


def version() -> str | None:
    """nvcc's, None where there is none."""
    if shutil.which("nvcc") is None:
        return None
    output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"V([\d.]+)", output)[-1]


def files_of_kernels() -> dict[str, str]:
    """Kernel -> the file that it is in."""
    found = {}
    for path in sorted(DEVICE_CODE.glob("*.cuh")):
        for name in re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", path.read_text()):
            found[name] = path.stem
    return found


def compiled(chip: str) -> list[Instance]:
    """All instances, compiled for "sm_80" or another.

    Raises:
        RuntimeError: nvcc fails, warns, or spills registers; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", *FLAGS, f"-arch={chip}", f"-I{DEVICE_CODE}", "--keep", "--keep-dir", folder]
        result = subprocess.run(
            [*command, str(INSTANCES), "-o", f"{folder}/kernels.cubin"], capture_output=True, text=True, check=False
        )
        output = result.stdout + result.stderr
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{output}")
        return instances(output, Path(folder, f"{INSTANCES.stem}.ptx").read_text())


def instances(output: str, ptx: str) -> list[Instance]:
    """From what ptxas said with -v, and the code that it compiled."""
    files, found = files_of_kernels(), []
    # A kernel's threads are those of its launch bounds, which say the same constant as its launch.
    threads = dict(re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx))
    for part in re.split(r"Compiling entry function ", output)[1:]:
        symbol = part.split("'")[1]
        kernel, types, numbers = parsed(symbol)
        # Of the kernel and of functions that it calls.
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        stack, stores, loads = (sum(map(int, column)) for column in zip(*frames, strict=True))
        figures = {
            "threads": int(threads[symbol]),
            "registers": _number(r"Used (\d+) registers", part),
            "spills": stores + loads,
            "stack": stack,
            "static": _number(r"(\d+) bytes smem", part, 0),
        }
        found.append(Instance(f"{files[kernel]}.{kernel}", ", ".join(types), numbers, figures))
    return sorted(found, key=lambda one: (one.kernel, one.dtype, one.numbers))


def parsed(symbol: str) -> tuple[str, list[str], tuple[int, ...]]:
    """A mangled kernel's name, types and numbers."""
    rest, name = symbol.removeprefix("_ZN"), ""
    while match := re.match(r"\d+", rest):
        end = match.end() + int(match[0])
        name, rest = rest[match.end() : end], rest[end:]
    match = re.match(rf"(?:I((?:{ARGUMENT})+)E)?E", rest)
    if match is None or not name.endswith("_kernel"):
        raise ValueError(f"{symbol} is no ..._kernel with template arguments among {', '.join(TYPES)} and integers")
    arguments = re.findall(ARGUMENT, match[1] or "")
    numbers = tuple(int(one[2:-1]) for one in arguments if one not in TYPES)
    return name, [TYPES[one] for one in arguments if one in TYPES], numbers


def _number(pattern: str, text: str, default: Any = None) -> int:
    found = re.findall(pattern, text)
    if len(found) != 1 and (found or default is None):
        raise ValueError(f"{pattern!r} is {len(found)} times in ptxas's log:\n{text}")
    return int(found[0]) if found else default
