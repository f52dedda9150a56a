"""Compiles Triton kernels for chips that are not here, and reads what ptxas says of them.

Triton needs neither a GPU nor a driver to compile, but it must not interpret: a process that was started for it does
the work, without $TRITON_INTERPRET, and compiles anew whatever Triton's cache holds.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHIPS = (80, 90, 100)
"""Compute capabilities times ten: A100, H100, B200."""


@dataclass(frozen=True)
class Build:
    """One compilation.

    Args:
        kernel: "module:name" of what @triton.jit decorates.
        signature: The type of each argument that is not constexpr: "*bf16", "i32", "fp64". Pointers are taken to be
            aligned to 16 bytes, as torch's are.
        constexprs: The values of the others, of types that JSON has.
        divisible: Integer arguments taken to be multiples of 16, as Triton finds out at a launch.
    """

    kernel: str
    signature: dict[str, str]
    constexprs: dict[str, Any]
    cc: int
    num_warps: int = 4
    num_stages: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()


def resources_of(builds: Sequence[Build]) -> list[dict[str, int]]:
    """Registers per thread, and bytes of spills, stack and shared memory: [{"registers": ..., "spills": ...}, ...].

    All in one process: importing torch takes longer than compiling a kernel.
    """
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}
        settings |= {"TRITON_CACHE_DIR": folder, "PYTHONPATH": paths}
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | settings
        process = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps([asdict(build) for build in builds]),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode:
        raise RuntimeError(f"compiling failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout)


def _compile(build: Build) -> dict[str, int]:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = build.kernel.split(":")
    kernel = reduce(getattr, name.split("."), import_module(module))
    signature = {name: build.signature.get(name, "constexpr") for name in kernel.arg_names}
    known = [kind.startswith("*") or name in build.divisible for name, kind in signature.items()]
    aligned = {(i,): [["tt.divisibility", 16]] for i, multiple in enumerate(known) if multiple}
    source = ASTSource(kernel, signature, build.constexprs, aligned)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages, **build.options}
    with contextlib.redirect_stdout(io.StringIO()) as log:
        program = compile(source, target=GPUTarget("cuda", build.cc, 32), options=options)
    return {
        "registers": _number(r"Used (\d+) registers", log.getvalue()),
        "spills": sum(_number(rf"(\d+) bytes spill {way}", log.getvalue()) for way in ("stores", "loads")),
        "stack": _number(r"(\d+) bytes stack frame", log.getvalue()),
        "shared": program.metadata.shared,
    }


def _number(pattern: str, log: str) -> int:
    found = re.findall(pattern, log)
    if len(found) != 1:
        raise ValueError(f"{pattern!r} is {len(found)} times in ptxas's log:\n{log}")
    return int(found[0])


if __name__ == "__main__":
    # What Triton prints goes to stderr: stdout is for the answer.
    with contextlib.redirect_stdout(sys.stderr):
        answers = [_compile(Build(**build)) for build in json.load(sys.stdin)]
    print(json.dumps(answers))
