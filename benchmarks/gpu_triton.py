"""Compiles Triton kernels for chips that are not here, and reads what ptxas says of them.

Triton needs neither a GPU nor a driver to compile, but it must not interpret: processes that were started for it do
the work, without $TRITON_INTERPRET, and compile anew whatever Triton's cache holds.
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
PACKAGE = "smartcs.kernels"


@dataclass(frozen=True)
class Build:
    """One compilation.

    Args:
        kernel: "FILE.NAME" of what @triton.jit decorates, in kernels/FILE.py.
        arguments: The types of those that are not compiled in: "*bf16", "i32", "fp64"; "i32:16" is known to be a
            multiple of 16. Pointers are taken to be aligned to 16 bytes, as torch's are.
        constants: The values of the others, of types that JSON has.
        options: num_warps, num_stages and others of Triton's.
    """

    kernel: str
    arguments: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]


def resources_of(builds: Sequence[tuple[Build, int]], jobs: int = 1) -> Iterator[list[dict[str, int]]]:
    """What every (build, compute capability x 10) takes.

    Yields:
        Of the next batch: threads per block, registers per thread, bytes of spills, stack and dynamic shared memory,
        columns of tensor memory, and how many parameters are numbers in float64, as [{"threads": ..., ...}, ...].
    """
    batch = max(1, min(64, -(-len(builds) // jobs)))
    batches = [builds[first : first + batch] for first in range(0, len(builds), batch)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda batch: _answer([[asdict(build), cc] for build, cc in batch], folder), batches)


def versions(ccs: Sequence[int]) -> dict[str, str]:
    """Of Triton and of the ptxas it brings for each chip."""
    from triton import __version__
    from triton.backends.nvidia.compiler import get_ptxas

    return {"Triton": __version__, **{ptxas_of(cc): get_ptxas(cc).version for cc in ccs}}


def ptxas_of(cc: int) -> str:
    """Its name among the versions."""
    return f"its ptxas for sm_{cc}"


def code_of(file: str, folder: Path = KERNELS) -> str:
    """A digest of what is compiled of kernels/FILE.py and the files that it imports; comments and docstrings aside."""
    waiting, parts = [file], {}
    while waiting:
        name = waiting.pop()
        if name in parts:
            continue
        tree = ast.parse((folder / f"{name}.py").read_text())
        waiting += [n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module]
        parts[name] = [ast.dump(_without_docstring(node)) for node in tree.body if _compiled_in(node)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _compiled_in(node: ast.stmt) -> bool:
    marks = [*node.decorator_list] if isinstance(node, ast.FunctionDef) else [node] * isinstance(node, ast.Assign)
    return any(word in ast.dump(mark) for mark in marks for word in ("'jit'", "'constexpr'"))


def _without_docstring(node: ast.stmt) -> ast.stmt:
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        node.body = node.body[1:]
    return node


def _answer(builds: list[Any], folder: str) -> list[dict[str, int]]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}
    settings |= {"TRITON_CACHE_DIR": folder, "PYTHONPATH": paths}
    process = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(builds),
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"compiling failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout)


def _compile(build: Build, cc: int) -> dict[str, int]:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = build.kernel.split(".")
    kernel = reduce(getattr, name.split("."), import_module(f"{PACKAGE}.{module}"))
    types = {name: build.arguments.get(name, "constexpr") for name in kernel.arg_names}
    _check_types(build, {one.name: one.annotation_type for one in kernel.params})
    known = [kind.startswith("*") or kind.endswith(":16") for kind in types.values()]
    aligned = {(i,): [["tt.divisibility", 16]] for i, multiple in enumerate(known) if multiple}
    source = ASTSource(kernel, {n: kind.removesuffix(":16") for n, kind in types.items()}, build.constants, aligned)
    with contextlib.redirect_stdout(io.StringIO()) as log:
        program = compile(source, target=GPUTarget("cuda", cc, 32), options=build.options)
    return {
        "threads": 32 * program.metadata.num_warps,
        "registers": _number(r"Used (\d+) registers", log.getvalue()),
        "spills": sum(_number(rf"(\d+) bytes spill {way}", log.getvalue()) for way in ("stores", "loads")),
        "stack": _number(r"(\d+) bytes stack frame", log.getvalue()),
        "dynamic": program.metadata.shared,
        "tensor": getattr(program.metadata, "tmem_size", None) or 0,
        "doubles": len(re.findall(r"\.param \.f64 ", program.asm["ptx"])),
    }


def _check_types(build: Build, annotated: dict[str, str]) -> None:
    """Raises unless a launch's types are those of the build: an annotation's, and float32 for a float without one."""
    for name, kind in build.arguments.items():
        expected = annotated[name] or ("fp32" if kind in ("fp64", "fp32") else kind)
        if kind.removesuffix(":16") != expected.removesuffix(":16"):
            raise ValueError(f"{build.kernel}: {name} is {kind} in the build, but {expected} in a launch")


def _number(pattern: str, log: str) -> int:
    found = re.findall(pattern, log)
    if len(found) != 1:
        raise ValueError(f"{pattern!r} is {len(found)} times in ptxas's log:\n{log}")
    return int(found[0])


def _main() -> None:
    answers = []
    # What Triton prints goes to stderr: stdout is for the answer.
    with contextlib.redirect_stdout(sys.stderr):
        for build, cc in json.load(sys.stdin):
            try:
                answers.append(_compile(Build(**build), cc))
            except Exception as error:
                raise RuntimeError(f"sm_{cc}: {build}") from error
    print(json.dumps(answers))


if __name__ == "__main__":
    _main()
