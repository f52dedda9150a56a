"""The operators of one optimizer step as a GPU takes it, recorded without a GPU and without computing anything.

Tensors are torch's fake ones on the CPU, which have shapes and dtypes but no values, so that BERT-base takes seconds.
Where smartcs does otherwise on a CPU than on a GPU, it is patched to the latter; what the GPU's step then consists of
is counted by hand in tests/benchmarks/test_gpu_model.py.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import smartcs
from smartcs.data.packing import PackedBatch
from smartcs.model import bert
from smartcs.model.bert import BertConfig, BertModel
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.linear import _Linear, linear_reference
from smartcs.ops.packed_weights import Seen
from smartcs.smart import adversarial
from smartcs.training import objective
from smartcs.training.config import TrainConfig
from smartcs.training.device_step import DeviceStep, Inputs, _Shape
from smartcs.training.objective import Objective
from smartcs.training.optim import AdamW

BASE = BertConfig()
MINILM = replace(BASE, hidden_size=384, num_hidden_layers=6, intermediate_size=1536, pooling="mean")
SHAPES = {"minilm": MINILM, "base": BASE}
# Word pieces of every sequence of a batch of the paper's size: 150, 1,220 and 113 together.
LENGTHS = {
    "sst": (34, 21, 17, 39, 12, 27),
    "qqp": (24, 31, 26, 41, 19, 28, 35, 24, 30, 63, 27, 20, 33, 25, 38, 23, 29, 18, 32, 44) * 2,
    "sts": (22, 39, 18, 34),
}


class Spec(NamedTuple):
    """What is kept of a tensor: keeping the tensor would make autograd copy gradients that it otherwise hands on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of its elements, those of expanded dimensions once."""
        distinct = (n for n, step in zip(self.shape, self.stride, strict=True) if step != 0)
        return math.prod(distinct) * self.dtype.itemsize if self.numel else 0


class Call(NamedTuple):
    """One operator: its arguments by name, with those left out, and what it returned, tensors as `Spec`."""

    name: str
    arguments: dict[str, Any]
    results: list[Spec]
    is_view: bool
    written: tuple[str, ...]  # arguments

    def specs(self, *names: str) -> list[Spec]:
        """The tensors in these arguments, in all if none is named."""
        values = [self.arguments[name] for name in names or self.arguments]
        return [leaf for leaf in _leaves(values) if isinstance(leaf, Spec)]


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema, kwargs = func._schema, kwargs or {}
        given = {}
        for i, argument in enumerate(schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            given[argument.name] = tree_map(_spec, value)
        result = func(*args, **kwargs)
        aliases = [returned.alias_info for returned in schema.returns]
        written = tuple(a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write)
        self.calls.append(
            Call(
                schema.name,
                given,
                [_spec(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)],
                any(alias is not None and not alias.is_write for alias in aliases),
                written,
            )
        )
        return result


def _spec(value: Any) -> Any:
    return Spec(tuple(value.shape), value.stride(), value.dtype) if isinstance(value, Tensor) else value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple) and not isinstance(value, Spec):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


@contextmanager
def fake() -> Iterator[None]:
    """Within it no tensor has values."""
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield


def recorded(function: Callable[[], object]) -> list[Call]:
    """The operators that a function calls; within `fake`."""
    with Recorder() as recorder:
        function()
    return recorder.calls


def _one_hot(index: Tensor, count: int) -> Tensor:
    """By the operators that a GPU runs; fake tensors go another way."""
    return index.new_zeros((*index.shape, count)).scatter_(-1, index.unsqueeze(-1), 1)


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """Within it smartcs takes a GPU's ways with tensors on the CPU."""
    linear = sys.modules[_Linear.__module__]  # smartcs.ops.linear is the function
    with ExitStack() as stack:
        change = partial(_change, stack)
        for module in (adversarial, objective):
            change(module, "known_to_fail", lambda finite: False)
        change(PackedBatch, "__post_init__", lambda batch: None)  # looks at offsets
        change(bert, "_sum_by_index", bert._sum_by_product)
        change(torch.nn.functional, "one_hot", _one_hot)
        change(_Linear, "apply", linear_reference)
        change(linear, "has_bf16_products", lambda: True)
        change(linear, "_form", lambda weight, packed, transposed: packed.get(weight, transposed=False))
        change(Seen, "still", lambda seen, tensor: seen._version == tensor._version)
        yield


def _change(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(owner, name, value))


def filled_lengths(task: str) -> tuple[int, ...]:
    """Tokens of the sequences that a GPU gets: those of the batch, and the row that fills it up."""
    return tuple(_filled(task).lengths.tolist())


def _filled(task: str) -> PackedBatch:
    return PackedBatch.from_lists([[0] * n for n in LENGTHS[task]]).filled()


def step_calls(shape: str, recipe: str, precision: str, task: str, bert_config: BertConfig | None = None) -> list[Call]:
    """The operators of one step that is not the first.

    Args:
        bert_config: instead of the shape's.
    """
    config = TrainConfig.from_dict({"recipe": recipe, "precision": precision, "model": "random"})
    filled = _filled(task)
    device = torch.device("cpu")
    with like_a_gpu(), fake(), smartcs.precision(config.precision):
        model = MultitaskBert(BertModel(bert_config or SHAPES[shape])).train()
        optimizer = AdamW(model.parameters(), lr=config.learning_rate, max_grad_norm=math.inf)
        for parameter in model.parameters():
            optimizer._state(parameter)
        steps = DeviceStep(Objective(config, model, 1000), optimizer, config.seed, device)
        values = {
            "input_ids": filled.input_ids,
            "token_type_ids": filled.token_type_ids,
            "position_ids": filled.position_ids,
            "cu_seqlens": filled.cu_seqlens,
            "labels": torch.zeros(len(LENGTHS[task]), dtype=torch.int64 if task == "sst" else torch.float32),
            "counter_offset": torch.zeros(3, dtype=torch.int64),
            "smart_weight": torch.zeros((), dtype=torch.float32),
            "schedule": torch.zeros(2, dtype=torch.float64),
        }
        prepared = _Shape(Inputs(values, device), filled.max_seqlen)
        if config.precision == "bf16":  # the first packs the weights
            steps._step(task, prepared)
        return recorded(lambda: steps._step(task, prepared))
