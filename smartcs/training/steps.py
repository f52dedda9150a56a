"""The loop that fine-tuning and pretraining share: a batch, its loss, a backward pass, an update."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import pairwise
from time import perf_counter, thread_time
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from smartcs.data.encode import EncodedTask
from smartcs.data.prefetch import Prefetcher
from smartcs.data.sampling import RoundRobinSampler
from smartcs.smart import BregmanAnchor
from smartcs.training.epoch_losses import EpochLosses
from smartcs.training.optim import AdamW

PARTS = ("data", "forward", "backward", "optimizer")
DEVICE_PARTS = ("data", "step")  # where the host waits for a step as a whole
_SHOWN = 5  # examples that an error names before the rest is only counted

Batch = TypeVar("Batch")


class NonFiniteLossError(RuntimeError):
    """A loss or its gradient is NaN or infinite; the weights are those before this step's update."""


class Loss(NamedTuple):
    """The terms of a step's loss, 0-dim tensors; None where a step has no such term.

    total: what is minimised. task: the task's loss. smart, bregman: the terms before their weights. alignment,
    perturbation: the cosine between SMART's perturbation and the gradient it ascends, and its norm (means over tokens
    or sentences).
    """

    total: Tensor
    task: Tensor
    smart: Tensor | None = None
    alignment: Tensor | None = None
    perturbation: Tensor | None = None
    bregman: Tensor | None = None


class Step(NamedTuple):
    """One optimizer step. `step`, `epoch` and `cycle` (within the epoch) count from 1; before the first cycle, while
    the sampler hands out the largest set alone, `cycle` is 0.

    `loss` is the task's; `smart`, `alignment`, `perturbation` and `bregman` are the other terms of `Loss`.
    """

    step: int
    epoch: int
    cycle: int
    task: str
    loss: float
    tokens: int
    seconds: float
    smart: float | None = None
    alignment: float | None = None
    perturbation: float | None = None
    bregman: float | None = None

    def terms(self) -> dict[str, float | None]:
        """The terms beside the task's loss, by name."""
        return {name: getattr(self, name) for name in ("smart", "alignment", "perturbation", "bregman")}


class StepLoop(ABC, Generic[Batch]):
    """Takes optimizer steps on the batches that a sampler hands out.

    The next batches are prepared in the background while a step runs. The sampler's state nevertheless counts those
    whose step has begun and no other: a copy of it draws ahead.

    Args:
        data: the tasks of a cycle.
        sampler: of the same tasks.
        optimizer: of the weights that `_loss` depends on; its groups' "lr" is `learning_rate` when this is made.
        parts: what a step's time is told apart by.

    Attributes:
        step: optimizer steps taken.
        tokens: word pieces trained on.
        seconds: time spent in the steps, by part: data (waiting for the batch), and forward, backward, optimizer or,
            on a GPU, step.
        background_seconds: processor time of preparing batches meanwhile.
        losses: of the present epoch; whoever takes the steps adds them, and clears it.
    """

    _where = ""  # begins the message of a failure

    def __init__(
        self,
        data: Mapping[str, EncodedTask],
        sampler: RoundRobinSampler,
        optimizer: AdamW,
        learning_rate: float,
        parts: tuple[str, ...] = PARTS,
    ) -> None:
        self.data, self.sampler, self.optimizer, self.learning_rate = data, sampler, optimizer, learning_rate
        self.step = 0
        self.tokens = 0
        self.seconds = dict.fromkeys(parts, 0.0)
        self.background_seconds = 0.0
        self.losses = EpochLosses(data)

    def seconds_by_part(self) -> dict[str, float]:
        """`seconds`, and beside them, since they pass meanwhile, `background_seconds` as "data_background"."""
        return {**self.seconds, "data_background": self.background_seconds}

    def epoch(self) -> Iterator[Step]:
        """Takes the steps of one epoch, yielding after each.

        Raises:
            NonFiniteLossError: a loss or, where the optimizer has a `max_grad_norm`, its gradient's norm is NaN or
                infinite; names the step and the examples.
        """
        # A resumed epoch began before its first step here.
        epoch, first = self.sampler.epoch + 1, self.step - self.sampler.position
        self._begin()
        batches = self.sampler.batches()
        with closing(Prefetcher(self._prepare(copy.deepcopy(self.sampler), self.step))) as prepared:
            while True:
                begin = perf_counter()
                drawn = next(batches, None)
                if drawn is None:
                    return
                task, rows = drawn
                batch, tokens = next(prepared)
                times = [begin, perf_counter()]

                try:
                    _, value, *others = self._take(task, batch, times)
                except _NotFinite as failure:
                    raise NonFiniteLossError(self._describe_failure(task, str(failure), epoch, rows)) from None
                assert value is not None
                for part, (start, end) in zip(self.seconds, pairwise(times), strict=True):
                    self.seconds[part] += end - start
                cycle = max(-1, (self.step - first - self.sampler.solo_steps) // len(self.data)) + 1
                self.step += 1
                self.tokens += tokens
                yield Step(self.step, epoch, cycle, task, value, tokens, times[-1] - begin, *others)

    def _take(self, task: str, batch: Batch, times: list[float]) -> list[float | None]:
        """One step: the terms of its `Loss` as numbers. Appends the time after each of its parts but the first."""
        terms = self._loss(task, batch)
        numbers = _numbers(terms)
        check_loss(task, numbers)
        times.append(perf_counter())

        terms.total.backward()
        del terms
        times.append(perf_counter())

        self._update(task)
        norm = self.optimizer.grad_norm  # the optimizer itself would skip such steps, and so for ever
        if norm is not None:
            check_norm(task, norm.item())
        times.append(perf_counter())
        return numbers

    def _prepare(self, sampler: RoundRobinSampler, step: int) -> Iterator[tuple[Batch, int]]:
        """The batches of an epoch, the first for the step number `step`; iterated in a background thread."""
        begin = thread_time()
        for number, (task, rows) in enumerate(sampler.batches(), start=step):
            loaded = self._load(task, rows, number)
            self.background_seconds += thread_time() - begin
            yield loaded
            begin = thread_time()

    @abstractmethod
    def _begin(self) -> None:
        """Sets the mode of the model."""

    @abstractmethod
    def _load(self, task: str, rows: np.ndarray, step: int) -> tuple[Batch, int]:
        """The batch of these examples for step number `step`, from 0, and its number of word pieces.

        Called in a background thread and ahead of its time: it changes nothing and runs no parallel tensor operation.
        """

    @abstractmethod
    def _loss(self, task: str, batch: Batch) -> Loss:
        """The loss of the batch, with its graph."""

    def _update(self, task: str) -> None:
        """One optimizer step, on the gradients of a batch of `task`."""
        self.optimizer.step(anchor=self._anchor(task))
        # To None, not to zero: AdamW then leaves the heads of the other tasks alone, and no gradient takes room
        # beside the next step's activations.
        self.optimizer.zero_grad(set_to_none=True)

    def _anchor(self, task: str) -> BregmanAnchor | None:
        """The anchor that moves with the step on a batch of `task`, if any."""
        return None

    def _describe_failure(self, task: str, what: str, epoch: int, rows: np.ndarray) -> str:
        ids = ", ".join(self.data[task].ids[row] for row in rows[:_SHOWN])
        if len(rows) > _SHOWN:
            ids += f" and {len(rows) - _SHOWN} more"
        return (
            f"{self._where}the {what} at step {self.step + 1} (epoch {epoch}) on the examples {ids}; "
            f"the learning rate is {self.learning_rate:g}, a lower one may help"
        )


class _NotFinite(Exception):
    """Which number of a step is not."""


def check_loss(task: str, numbers: list[float | None]) -> None:
    """Ends the step unless the total and the task's loss, the first of a `Loss`'s terms, are finite."""
    total, value = numbers[:2]
    assert total is not None and value is not None
    if not math.isfinite(value):
        raise _NotFinite(f"{task} loss is {value}")
    if not math.isfinite(total):
        raise _NotFinite(f"{task} loss with its regularisers is {total}")


def check_norm(task: str, norm: float) -> None:
    """The same of the norm of the gradients."""
    if not math.isfinite(norm):
        raise _NotFinite(f"{task} gradient's norm is {norm}")


def _numbers(terms: Loss) -> list[float | None]:
    """The terms as Python numbers, by one read from their device."""
    there = [term.detach() for term in terms if term is not None]
    numbers = iter(torch.stack(there).tolist())
    return [None if term is None else next(numbers) for term in terms]
