"""The CUDA device code of csrc/cuda on the host: compiled below tests/cuda/emulation.h, called with torch tensors.

Every call runs the kernels twice, on memory between guarded pages: threads shuffled and tensors at the end of their
pages, then threads in reverse and tensors at the beginning. Both must give the same bits, and inputs must stay as they
were. Outputs are filled with NaN before.
"""

import ctypes
import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
DEVICE_CODE, EMULATION = ROOT / "csrc/cuda", ROOT / "tests/cuda"
STORAGE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
DTYPES = tuple(STORAGE)
# Each library keeps its own statics, though several with the same names are loaded.
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-fno-threadsafe-statics", "-fno-gnu-unique", "-Wl,-Bsymbolic")
# "address,undefined" under make sanitize, which preloads what such a library needs. asan-stack=0: fibers jump out of
# frames on stacks that AddressSanitizer does not know, and it would take what is left there for guarded.
SANITIZE = os.environ.get("SMARTCS_SANITIZE")
SANITIZER = (
    (f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-g1", "-Wno-clobbered", "--param=asan-stack=0")
    if SANITIZE
    else ()
)
STRICT, MUTANT = ("-O1", "-Wall", "-Wextra", "-Werror"), ("-O0", "-DONLY_FLOAT")
SCHEDULES = ((7, True), (1, False))  # seed of the threads' order, whether tensors stand at the end of their pages


class EmulationError(Exception):
    """What the emulation found wrong: divergence, a race, memory that is not the kernel's."""


@dataclass(frozen=True)
class Patch:
    """A mistake: `old` becomes `new` in a file of csrc/cuda, where it must occur exactly `count` times."""

    file: str
    old: str
    new: str
    count: int = 1


@dataclass(frozen=True)
class Out:
    """An argument that is written."""

    shape: Sequence[int]
    dtype: torch.dtype


@dataclass(frozen=True)
class InOut:
    """An argument that is read and written."""

    tensor: Tensor


def identical(x: Tensor, y: Tensor) -> bool:
    """Equal to the last bit, where all NaN are one."""
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x[~x.isnan()], y[~y.isnan()])


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def build(op: str, folder: Path, patches: Sequence[Patch] = ()) -> "Library":
    """Compiles an op, with mistakes if wanted, into `folder`."""
    sources = DEVICE_CODE
    if patches:
        sources = folder / "patched"
        shutil.copytree(DEVICE_CODE, sources)
        for patch in patches:
            text = (sources / patch.file).read_text()
            assert text.count(patch.old) == patch.count, f"{patch.file} has no longer {patch.count} x {patch.old!r}"
            (sources / patch.file).write_text(text.replace(patch.old, patch.new))
    target, found = folder / f"{op}.so", compiler()
    assert found is not None
    command = [*found.split(), *FLAGS, *SANITIZER, *(MUTANT if patches else STRICT), f"-I{sources}", f"-I{EMULATION}"]
    command += [str(EMULATION / f"{op}.cpp"), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
    return Library(target)


class Library:
    """A compiled op."""

    def __init__(self, path: Path) -> None:
        self.code = ctypes.CDLL(str(path))
        self.code.guarded_allocate.restype = ctypes.c_void_p
        self.code.guarded_allocate.argtypes = [ctypes.c_size_t, ctypes.c_bool]
        self.code.guarded_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def call(self, name: str, *arguments: Any) -> tuple[Tensor, ...]:
        """Runs a function of the library.

        Args:
            arguments: tensors, Out and InOut (passed as addresses), None (a null pointer), numbers.

        Returns:
            The tensors of all Out and InOut, in order.
        """
        results = []
        for seed, at_end in SCHEDULES:
            with Memory(self, at_end) as memory:
                results.append(self.once(name, arguments, memory, seed))
        for first, second in zip(*results, strict=True):
            assert identical(first, second), f"{name} depends on the order of its threads"
        return results[0]

    def once(self, name: str, arguments: Sequence[Any], memory: "Memory", seed: int) -> tuple[Tensor, ...]:
        self.code.set_schedule(seed)
        placed, inputs, passed = [], [], []
        for argument in arguments:
            if isinstance(argument, Out):
                argument = InOut(torch.full(argument.shape, math.nan, dtype=argument.dtype))
            tensor = argument.tensor if isinstance(argument, InOut) else argument
            if not isinstance(tensor, Tensor):
                passed.append(_number(argument))
                continue
            copy = memory.place(tensor)
            (placed if isinstance(argument, InOut) else inputs).append((copy, tensor))
            passed.append(ctypes.c_void_p(copy.data_ptr() if copy.numel() else None))
        function = getattr(self.code, name)
        function.restype = ctypes.c_char_p
        message = function(*passed)
        if message is not None:
            raise EmulationError(message.decode())
        for copy, tensor in inputs:
            assert identical(copy, tensor), f"{name} writes to its input"
        return tuple(copy.clone() for copy, _ in placed)


def _number(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, bool):
        return ctypes.c_bool(value)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)


class Memory:
    """Tensors between guarded pages, until the ``with`` block ends."""

    def __init__(self, library: Library, at_end: bool) -> None:
        self.library, self.at_end = library, at_end
        self.taken: list[tuple[int, int]] = []

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        for address, size in self.taken:
            self.library.code.guarded_free(address, size)

    def place(self, tensor: Tensor) -> Tensor:
        """A contiguous copy."""
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            return torch.empty_like(tensor)
        address = self.library.code.guarded_allocate(size, self.at_end)
        self.taken.append((address, size))
        raw = (ctypes.c_char * size).from_address(address)
        copy = torch.frombuffer(raw, dtype=tensor.dtype).reshape(tensor.shape)
        return copy.copy_(tensor)
