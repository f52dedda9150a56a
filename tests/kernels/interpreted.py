"""Runs an op on its Triton kernels, interpreted: with a GPU's roundings, watched memory and poisoned results.

A kernel that reads or writes beyond its arguments, or whose programs touch what another program of the launch writes,
fails here; so does one that leaves a part of its results unwritten, for `torch.empty` is full of NaN.
"""

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

import smartcs
from smartcs import kernels
from smartcs.ops import backend


@contextmanager
def on_triton(*ops: str) -> Iterator[None]:
    """Within it these ops run on their Triton kernels for CPU tensors, float16 included."""
    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*overrid.*")
            for op in ops:
                stack.callback(kernels.register(op, "CPU")._destroy)
        stack.enter_context(patch.object(backend, "CPU_DTYPES", (*backend.CPU_DTYPES, torch.float16)))
        for context in (smartcs.backend("fused"), _gpu_roundings(), _watched_memory(), poisoned()):
            stack.enter_context(context)
        yield


@contextmanager
def mutant(op: str, file: str, right: str, wrong: str, count: int = 1) -> Iterator[None]:
    """`on_triton` with one mistake in kernels/<file>.py: ``wrong`` for the ``count`` places that say ``right``."""
    path = Path(kernels.__file__).with_name(f"{file}.py")
    source = path.read_text()
    assert source.count(right) == count, f"{path} has {source.count(right)} times {right!r}"
    prefix = f"{kernels.__name__}."
    loaded = {name: module for name, module in sys.modules.items() if name.startswith(prefix)}
    copy = path.with_name(f"_mutant_{file}.py")  # a file, because the interpreter reads a kernel's source from there
    try:
        for name in loaded:
            del sys.modules[name]
        copy.write_text(source.replace(right, wrong))
        spec = importlib.util.spec_from_file_location(prefix + file, copy)
        sys.modules[prefix + file] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with on_triton(op):
            yield
    finally:
        copy.unlink(missing_ok=True)
        for name in [name for name in sys.modules if name.startswith(prefix)]:
            del sys.modules[name]
        sys.modules |= loaded


@contextmanager
def _gpu_roundings() -> Iterator[None]:
    """What the interpreter computes unlike a GPU.

    From float32 to bfloat16 it cuts the low bits off (Triton 3.6 to 3.9; its rounding to nearest loses the carry into
    the exponent), where the hardware rounds to nearest, ties to even. And numpy warns of infinity and NaN.
    """
    original = interpreter._convert_float

    def convert(data, from_dtype, to_dtype, rounding_mode):
        if (from_dtype, to_dtype) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(data)).bfloat16()
            return rounded.view(torch.int16).numpy().view(np.uint16).reshape(data.shape)
        if (from_dtype, to_dtype) == (tl.bfloat16, tl.float32):
            return data.astype(np.uint32) << 16
        return original(data, from_dtype, to_dtype, rounding_mode)

    with patch.object(interpreter, "_convert_float", convert), np.errstate(all="ignore"):
        yield


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, or the largest integer; only here, though others may keep these functions for longer."""
    active = True

    def poisoning(make):
        def poisoned(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if not active:
                return tensor
            return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)

        return poisoned

    with ExitStack() as stack:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            stack.enter_context(patch.object(owner, name, poisoning(getattr(owner, name))))
        try:
            yield
        finally:
            active = False


class _Launch:
    """What one launch may touch and has touched, element by element."""

    def __init__(self) -> None:
        self.patched: set[str] = set()  # modules
        self.tensors: list[tuple[int, int]] = []
        self.touched: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"read": [], "written": []}

    def touch(self, how: str, pointers, mask) -> None:
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        inside = np.zeros(addresses.shape, bool)
        for begin, end in self.tensors:
            inside |= (addresses >= begin) & (addresses + np.uint64(size) <= end)
        assert inside.all(), f"{(~inside).sum()} elements {how} outside of every argument"
        grid, program = interpreter.interpreter_builder.grid_dim, interpreter.interpreter_builder.grid_idx
        flat = (program[0] * grid[1] + program[1]) * grid[2] + program[2]
        self.touched[how].append((addresses, np.full(addresses.shape, flat)))

    def check_races(self) -> None:
        """No program touches what another writes: their order is anybody's guess."""
        written, writer = self._all("written")
        order = np.argsort(written, kind="stable")
        written, writer = written[order], writer[order]
        if len(written) == 0:
            return
        same = written[1:] == written[:-1]
        assert not (same & (writer[1:] != writer[:-1])).any(), "two programs of a launch write the same element"
        read, reader = self._all("read")
        place = np.minimum(np.searchsorted(written, read), len(written) - 1)
        mixed = (written[place] == read) & (writer[place] != reader)
        assert not mixed.any(), "a program reads what another of the same launch writes"

    def _all(self, how: str) -> tuple[np.ndarray, np.ndarray]:
        touched = self.touched[how] or [(np.zeros(0, np.uint64), np.zeros(0, np.int64))]
        return np.concatenate([a for a, _ in touched]), np.concatenate([p for _, p in touched])


@contextmanager
def _watched_memory() -> Iterator[None]:
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    convert, load, store, call = (
        interpreter._implicit_cvt,
        builder.create_masked_load,
        builder.create_masked_store,
        executor.__call__,
    )
    patch_language, launches = interpreter._patch_lang, [_Launch()]

    def patched_once(function):
        # The interpreter does so again for every call of a function by a kernel: half of its time.
        if function.__module__ in launches[-1].patched:
            return interpreter._LangPatchScope()
        launches[-1].patched.add(function.__module__)
        return patch_language(function)

    def watched_convert(argument):
        if isinstance(argument, torch.Tensor):
            begin = argument.data_ptr()
            launches[-1].tensors.append((begin, begin + argument.numel() * argument.element_size()))
        return convert(argument)

    def watched_load(self, pointers, mask, *rest):
        launches[-1].touch("read", pointers, mask)
        return load(self, pointers, mask, *rest)

    def watched_store(self, pointers, value, mask, *rest):
        launches[-1].touch("written", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def watched_call(self, *args, **kwargs):
        launches.append(_Launch())
        call(self, *args, **kwargs)
        launches.pop().check_races()

    with (
        patch.object(interpreter, "_patch_lang", patched_once),
        patch.object(interpreter, "_implicit_cvt", watched_convert),
        patch.object(builder, "create_masked_load", watched_load),
        patch.object(builder, "create_masked_store", watched_store),
        patch.object(executor, "__call__", watched_call),
    ):
        yield
