"""What an op launches, as compilations for chips that are not here: the launcher's own options, not a copy of them."""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import torch
from compiled import CHIPS, Build, resources_of
from triton.runtime.interpreter import InterpretedFunction

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"}
Launch = tuple[InterpretedFunction, tuple[Any, ...], dict[str, Any]]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within it kernels are not run, but noted with their arguments."""
    launches: list[Launch] = []

    def note(self, *args, grid, warmup, **kwargs):
        launches.append((self, args, kwargs))

    with patch.object(InterpretedFunction, "run", note):
        yield launches


def build(launch: Launch, cc: int) -> Build:
    """What Triton would compile at this launch."""
    kernel, args, kwargs = launch
    parameters = inspect.signature(kernel.fn).parameters
    options = {name: value for name, value in kwargs.items() if name not in parameters}
    values = inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in kwargs.items() if k in parameters}).arguments
    free = kernel.kwargs.get("do_not_specialize") or ()
    fixed = {name for name, parameter in parameters.items() if "constexpr" in str(parameter.annotation)}
    # Triton takes an integer that is 1 for a constant.
    fixed |= {n for n, value in values.items() if isinstance(value, int) and value == 1 and n not in free}
    fixed |= {name for name, value in values.items() if value is None}
    signature = {name: _type(value, parameters[name]) for name, value in values.items() if name not in fixed}
    divisible = [n for n in signature if isinstance(values[n], int) and n not in free and values[n] % 16 == 0]
    name = f"{kernel.fn.__module__}:{kernel.fn.__name__}"
    sizes = {n: options.pop(n) for n in ("num_warps", "num_stages") if n in options}
    constants = {n: values[n] for n in fixed}
    return Build(name, signature, constants, cc, options=options, divisible=tuple(divisible), **sizes)


def _type(value: Any, parameter: inspect.Parameter) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp64" if "float64" in str(parameter.annotation) else "fp32"
    return "i64" if "int64" in str(parameter.annotation) else "i32"


def check_no_spills(launches: list[Launch], chips: Sequence[int] = CHIPS) -> None:
    """Every distinct one of the launches must compile for every chip, without spilling registers.

    Shared memory must be what a block may have on each chip: 99 KiB on the smallest of their generations (sm_86).
    """
    builds = {json.dumps(asdict(b), sort_keys=True): b for b in (build(each, cc) for each in launches for cc in chips)}
    assert builds
    for each, used in zip(builds.values(), resources_of(list(builds.values())), strict=True):
        assert used["spills"] == used["stack"] == 0, f"{each} spills: {used}"
        assert used["shared"] <= 99 * 1024, f"{each} takes {used}"
