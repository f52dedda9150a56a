"""An optimizer step on a GPU: nothing waits for it between the batch's arrival and the numbers for the log.

At the batch sizes of fine-tuning a kernel takes microseconds, and a step has thousands: the host cannot launch them as
fast as they run. So batches are filled up to few shapes (`PackedBatch.filled`), and the whole step of a task at one
shape (passes, backward, clipping, AdamW, the anchor's move) is recorded as a CUDA graph, which is one launch.

What differs from step to step must then be in device memory, at one place: the batch, the number of the step, which
names its noise and dropout masks, lambda, the learning rate's share, how far the anchor moves. Without graphs the same
function runs on the same inputs, so its numbers are the same.

With several processes DistributedDataParallel waits once a step, at the end of its backward pass, to learn which
parameters no process has used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from smartcs.data.packing import PackedBatch
from smartcs.ops import packed_weights
from smartcs.ops.random import DropoutKey
from smartcs.training.distributed import ALONE, Ranks, without_averaging
from smartcs.training.objective import Objective, TaskExamples
from smartcs.training.optim import AdamW
from smartcs.training.steps import SMART_TERMS, Loss, Slice, backward, weighted_means

_ALIGNMENT = 16  # bytes; what kernels read at once
_WARM_UP = 2  # steps of a shape before it is recorded: they compile kernels and make the optimizer's state
_MOST_GRAPHS = 128  # thousands of launches each, kept by the driver; batches of rarer shapes are launched


class Recorder(Protocol):
    """Records what a function does on the device, without doing it.

    Attributes:
        required: whether a step that cannot be recorded is an error.
    """

    required: bool

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What does it, every time it is called, and the tensor that holds the function's result then."""

    def stream(self) -> AbstractContextManager[object]:
        """Where everything runs that belongs to a step, recorded or not."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory, since no two run at a time."""

    def __init__(self, device: torch.device, required: bool = False) -> None:
        self.required = required
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads prepare batches meanwhile: their calls are none of the graph's business.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = function()
        return graph.replay, output

    def stream(self) -> AbstractContextManager[object]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)


class Inputs:
    """Tensors at a fixed place on a device, that one copy from the host fills.

    Attributes:
        host: by name, to be written; pinned for a GPU. Not before the copy of the step before is over.
        device: by name, the same after `send`.
    """

    def __init__(self, like: dict[str, Tensor], device: torch.device) -> None:
        ends = [0]
        for tensor in like.values():
            size = tensor.numel() * tensor.element_size()
            ends.append(ends[-1] + size + -size % _ALIGNMENT)
        self._host = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.empty(ends[-1], dtype=torch.uint8, device=device)

        def views(memory: Tensor) -> dict[str, Tensor]:
            places = zip(like.items(), ends, strict=False)
            return {
                name: memory[begin : begin + t.numel() * t.element_size()].view(t.dtype).view(t.shape)
                for (name, t), begin in places
            }

        self.host, self.device = views(self._host), views(self._device)

    def send(self, values: dict[str, Tensor]) -> None:
        """Puts the values on the device, in stream order."""
        for name, value in values.items():
            self.host[name].copy_(value)
        self._device.copy_(self._host, non_blocking=True)


@dataclass
class _Shape:
    """What there is of one task at one shape."""

    inputs: Inputs
    max_seqlen: int
    runs: int = 0
    replay: Callable[[], None] | None = None
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    terms: tuple[int, ...] = ()  # which of a Loss's terms are in the output
    updated: list[Tensor] = field(default_factory=list)  # parameters that a step changes
    written_packed: set[Tensor] = field(default_factory=set)  # those whose packed forms it writes


class DeviceStep:
    """Takes the optimizer steps of one objective on a device.

    The optimizer's learning rates must be those at the end of the warm-up, and it must measure the gradients' norm. A
    loss that is not finite makes that norm NaN, so that nothing is changed by its step.

    Args:
        objective, optimizer: of a model on the device.
        seed: of the run.
        device: where.
        recorder: None to run every step launch by launch. Records steps of one slice on one rank alone.
        ranks, averaged: see `StepLoop`; `averaged` takes the arguments of `Objective.terms`, which is used without it.

    Attributes:
        recorded: how many graphs there are.
        replayed: how many steps were a graph's.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: AdamW,
        seed: int,
        device: torch.device,
        recorder: Recorder | None = None,
        ranks: Ranks = ALONE,
        averaged: Callable[..., Loss] | None = None,
    ) -> None:
        if optimizer.max_grad_norm is None:
            raise ValueError("DeviceStep: optimizer has max_grad_norm None, expected a number; math.inf only measures")
        self.objective, self.optimizer, self.seed, self.device = objective, optimizer, seed, device
        self.recorder, self.ranks = recorder, ranks
        self.recorded = self.replayed = 0
        self._averaged = objective.terms if averaged is None else averaged
        self._shapes: dict[tuple[str, int, int, int, int], _Shape] = {}

    def __call__(
        self, task: str, slices: Sequence[Slice[TaskExamples]], step: int, lr_share: float
    ) -> tuple[list[float | None], float, bool]:
        """One step; waits for it.

        Args:
            task: its name.
            slices: of this rank, on the CPU; their `batch` is what the model's encoder reads.
            step: counts from 0.
            lr_share: of the learning rate.

        Returns:
            The terms of the `Loss` as numbers, the gradients' norm, and whether SMART's were finite in all slices.
        """
        anchor = self.objective.anchor_of(task)
        schedule = torch.tensor([lr_share, anchor.next_weight() if anchor else 0.0], dtype=torch.float64)
        with self.recorder.stream() if self.recorder is not None else nullcontext():
            shapes = []
            for number, part in enumerate(slices):
                self.objective.model.bert.check_length(part.batch.batch)
                shapes.append(self._send(task, number, part, step, schedule))
            packed_weights.renew(self.objective.model.parameters())  # a graph reads them as they are
            output = self._run(task, shapes, slices).tolist()
        self._weights_changed(shapes[0])
        if anchor is not None and math.isfinite(output[-1]):
            anchor.moved()
        if len(slices) * self.ranks.size > 1:
            means, all_finite = weighted_means([output[:-1]])
            return means, output[-1], all_finite
        terms: list[float | None] = [None] * len(Loss._fields)
        for index, number in zip(shapes[0].terms, output[:-1], strict=True):
            terms[index] = number
        return terms, output[-1], True

    def _send(self, task: str, number: int, part: Slice[TaskExamples], step: int, schedule: Tensor) -> _Shape:
        """Puts a slice and what goes with it where steps of its shape read them."""
        batch, labels, first_token, first_example = part.batch
        filled = batch.filled()
        values = {
            "input_ids": filled.input_ids,
            "token_type_ids": filled.token_type_ids,
            "position_ids": filled.position_ids,
            "cu_seqlens": filled.cu_seqlens,
            "labels": labels,
            "counter_offset": torch.tensor(DropoutKey.offset_of(step, first_token, first_example)),
            "smart_weight": torch.tensor(self.objective.weight(step), dtype=torch.float32),
            "term_weights": torch.tensor(self.objective.weights(part.weight, part.tokens), dtype=torch.float64),
            "schedule": schedule,
        }
        # A slice's memory is written to while those before it may still be on their way.
        key = (task, number, filled.batch_size, filled.num_tokens, filled.max_seqlen)
        if key not in self._shapes:
            self._shapes[key] = _Shape(Inputs(values, self.device), filled.max_seqlen)
        self._shapes[key].inputs.send(values)
        return self._shapes[key]

    def _run(self, task: str, shapes: list[_Shape], slices: Sequence[Slice[TaskExamples]]) -> Tensor:
        for shape in shapes:
            shape.runs += 1
        if len(slices) * self.ranks.size > 1:
            return self._step_of_slices(task, shapes, slices)
        (shape,) = shapes
        if shape.replay is not None:
            self.objective.replayed(task)
        elif self.recorder is not None and shape.runs > _WARM_UP and self.recorded < _MOST_GRAPHS:
            self._record(task, shape, self.recorder)
        if shape.replay is None:
            shape.output = self._step(task, shape)
        else:
            shape.replay()
            self.replayed += 1
        return shape.output

    def _record(self, task: str, shape: _Shape, recorder: Recorder) -> None:
        """Makes the shape's graph; where that fails, and it may, there is none, nor any later."""
        counts = self.objective.counts()
        try:
            shape.replay, shape.output = recorder(lambda: self._step(task, shape))
            self.recorded += 1
        except RuntimeError as error:
            if recorder.required:
                raise
            # The failed recording has changed nothing but what the host keeps.
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.recount(counts)
            self.recorder = None
            # Nor has it packed what it seems to have packed.
            torch.autograd.graph.increment_version(list(self.objective.model.parameters()))
            cause = error if error.__context__ is None else error.__context__
            warnings.warn(f"smartcs: steps are not recorded as CUDA graphs any more: {cause}", stacklevel=2)

    def _step(self, task: str, shape: _Shape) -> Tensor:
        """The terms and the norm, in one tensor."""
        loss = self._terms(task, shape)
        loss.total.backward()
        norm = self._update(task, shape, loss.total.detach())
        shape.terms = tuple(index for index, term in enumerate(loss) if term is not None)
        terms = [term.detach() for term in loss if term is not None]
        return torch.stack([term.double() for term in (*terms, norm)])

    def _step_of_slices(self, task: str, shapes: list[_Shape], slices: Sequence[Slice[TaskExamples]]) -> Tensor:
        """A row of `weighted_means`, and the norm, in one tensor, the same on all ranks."""
        rows = []
        for number, (shape, part) in enumerate(zip(shapes, slices, strict=True), start=1):
            with without_averaging(self._averaged, number < len(slices)):
                loss = self._terms(task, shape)
                backward(loss.total, part.weight)
            rows.append(self._weighted(task, loss, shape.inputs.device["term_weights"]))
            del loss
        sums = self.ranks.sum(torch.stack(rows).sum(dim=0))
        return torch.cat([sums, self._update(task, shapes[0], sums[0]).reshape(1)])

    def _terms(self, task: str, shape: _Shape) -> Loss:
        # Nobody writes the anchor's packed forms: those made before a recording would be old at its replay.
        torch.autograd.graph.increment_version(self._anchors())
        there = shape.inputs.device
        batch = PackedBatch(
            there["input_ids"], there["token_type_ids"], there["position_ids"], there["cu_seqlens"], shape.max_seqlen, 1
        )
        key = DropoutKey(self.seed, 0, there["counter_offset"])
        loss: Loss = self._averaged(task, batch, there["labels"], key, there["smart_weight"])
        return loss

    def _update(self, task: str, shape: _Shape, total: Tensor) -> Tensor:
        """The optimizer's step, unless the total of the loss is not finite, and the gradients' norm."""
        self._guard(total)
        shape.updated = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        schedule = shape.inputs.device["schedule"]
        self.optimizer.step(anchor=self.objective.anchor_of(task), schedule=schedule)
        shape.written_packed = self.optimizer.written_packed
        self.optimizer.zero_grad(set_to_none=True)
        assert self.optimizer.grad_norm is not None
        return self.optimizer.grad_norm.double()

    def _weighted(self, task: str, loss: Loss, weights: Tensor) -> Tensor:
        """The terms of a slice times their weights, then those. What is finite is known on the device alone."""
        regularizer = self.objective.regularizers.get(task)
        last = None if regularizer is None else regularizer.last
        zero, terms, counts = weights.new_zeros(()), [], []
        for name, term, weight in zip(Loss._fields, loss, weights, strict=True):
            terms.append(zero if term is None else term.detach().double())
            counts.append(zero if term is None else weight * last.finite if last and name in SMART_TERMS else weight)
        of_terms, of_slice = torch.stack(terms), torch.stack(counts)
        return torch.cat([of_terms * of_slice, of_slice])

    def _anchors(self) -> list[Tensor]:
        anchor = self.objective.anchor
        return [] if anchor is None else list(anchor.anchor.parameters())

    def _weights_changed(self, shape: _Shape) -> None:
        """Lets everybody know who keeps what was made of the weights: a graph writes to them behind torch's back."""
        torch.autograd.graph.increment_version([*shape.updated, *self._anchors()])
        for parameter in shape.written_packed:
            packed_weights.written(parameter)

    def _guard(self, total: Tensor) -> None:
        """Lets a loss that is not finite into a gradient, whose norm then keeps the optimizer from doing anything."""
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        smallest = min(grads, key=Tensor.numel)
        smallest += (total * 0).to(smallest.dtype)
