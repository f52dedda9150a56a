"""A CUDA graph on a CPU: the operators that a function calls, called again on the same tensors.

As in a graph, Python's part runs once; sizes and numbers are those of the recording; results are where they were; and
the recording itself changes nothing. What would make the host wait for a GPU, or copy from it, is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from smartcs.data import packing

WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_consecutive", "aten::_unique2",
    "aten::equal", "aten::lift_fresh", "aten::repeat_interleave.Tensor",
}  # fmt: skip


class Waits(Exception):
    """The host would wait for the device."""


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # by storage: what was written to, and its old content
        self.made: set[int] = set()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name + (f".{func._overloadname}" if func._overloadname != "default" else "")
        sized = name == "aten::repeat_interleave.Tensor" and kwargs.get("output_size") is not None
        boolean = name.startswith("aten::index") and any(
            isinstance(t, Tensor) and t.dtype == torch.bool for t in tree_leaves(args[1:])
        )
        if (name in WAITS and not sized) or boolean:
            raise Waits(name)
        for written in _written(func, args, kwargs):
            storage = written.untyped_storage().data_ptr()
            if storage not in self.made and storage not in self.before:
                whole = written.detach().as_strided((written.untyped_storage().nbytes() // written.itemsize,), (1,), 0)
                self.before[storage] = whole, whole.clone()
        result = func(*args, **kwargs)
        results = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        mine = any(r.alias_info is not None for r in func._schema.returns)
        if not mine:
            self.made |= {t.untyped_storage().data_ptr() for t in results}
        if not (mine and not any(True for _ in _written(func, args, kwargs))):  # a view needs no second look
            self.calls.append((func, args, kwargs, [] if mine else results))
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    values = [*args, *(None,) * (len(func._schema.arguments) - len(args))]
    found = []
    for argument, value in zip(func._schema.arguments, values, strict=True):
        value = kwargs.get(argument.name, value)
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.numel() > 0]
    return found


def _refuse(*_: Any) -> None:
    raise Waits("a tensor's content on the host")


@contextmanager
def nothing_waits() -> Iterator[_Recording]:
    """Within it Waits is raised for what would make the host wait for a GPU."""
    with (
        patch.object(Tensor, "tolist", _refuse),
        patch.object(packing, "_check_offsets", lambda *_: None),  # on the CPU alone
        _Recording() as recording,
    ):
        yield recording


class RecordedCalls:
    """A `Recorder` of steps on the CPU.

    Attributes:
        calls: the operators of each recording, by name.
    """

    required = True

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        with nothing_waits() as recording:
            output = function()
        for now, before in recording.before.values():
            now.copy_(before)
        self.calls.append([func._schema.name for func, *_ in recording.calls])

        @torch.no_grad()
        def replay() -> None:
            for func, args, kwargs, results in recording.calls:
                again = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for result, value in zip(results, again if results else [], strict=True):
                    result.detach().copy_(value)

        return replay, output

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()
