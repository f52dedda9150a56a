"""The loop that fine-tuning and pretraining share: a batch, its loss, a backward pass, an update."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from time import perf_counter, thread_time
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from smartcs.data.encode import EncodedTask
from smartcs.data.prefetch import Prefetcher
from smartcs.data.sampling import RoundRobinSampler
from smartcs.smart import BregmanAnchor
from smartcs.training.distributed import ALONE, Ranks, noticing, without_averaging
from smartcs.training.epoch_losses import EpochLosses
from smartcs.training.optim import AdamW
from smartcs.training.out_of_memory import telling_what_needs_less
from smartcs.training.skipping import NonFiniteLossError, NotFinite, Skips, check_loss, check_norm

PARTS = ("data", "forward", "backward", "optimizer")
DEVICE_PARTS = ("data", "step")  # where the host waits for a step as a whole
_SHOWN = 5  # examples that an error names before the rest is only counted

Batch = TypeVar("Batch")


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


SMART_TERMS = ("smart", "alignment", "perturbation")  # those that are missing where SMART was not finite
_TASK, _SMART = Loss._fields.index("task"), Loss._fields.index("smart")


class Step(NamedTuple):
    """One optimizer step. `step`, `epoch` and `cycle` (within the epoch) count from 1; before the first cycle, while
    the sampler hands out the largest set alone, `cycle` is 0.

    `loss` is the task's; `smart`, `alignment`, `perturbation` and `bregman` are the other terms of `Loss`. Where one of
    them or the gradient is not finite, `skipped` says which, and on what examples; such a step has changed nothing.
    """

    step: int
    epoch: int
    cycle: int
    task: str
    loss: float
    tokens: int
    seconds: float
    skipped: str = ""
    smart: float | None = None
    alignment: float | None = None
    perturbation: float | None = None
    bregman: float | None = None

    def terms(self) -> dict[str, float | None]:
        """The terms beside the task's loss, by name."""
        return {name: getattr(self, name) for name in ("smart", "alignment", "perturbation", "bregman")}


class Slice(NamedTuple, Generic[Batch]):
    """A slice of a step's batch: what a rank computes at once.

    batch: the slice.
    weight: of its loss. Summed over a rank's slices, and averaged over the ranks, the weighted losses are the step's.
    tokens: that the encoder reads.
    """

    batch: Batch
    weight: float
    tokens: int


class StepLoop(ABC, Generic[Batch]):
    """Takes optimizer steps on the batches that a sampler hands out.

    The next batches are prepared in the background while a step runs. The sampler's state nevertheless counts those
    whose step has begun and no other: a copy of it draws ahead.

    Each batch is cut into `accumulate` slices for each of the ranks, one after the other in it. The gradients of a
    rank's slices add up, and are averaged over the ranks once, with those of the last: the step is that of the whole
    batch. So are its figures, the same on all ranks, which also decide alike whether the run goes on.

    Args:
        data: the tasks of a cycle.
        sampler: of the same tasks; its batches have a multiple of `accumulate` examples for each rank.
        optimizer: of the weights that `_loss` depends on; its groups' "lr" is `learning_rate` when this is made.
        parts: what a step's time is told apart by.
        ranks: the processes that share the steps.
        accumulate: slices per rank and step.
        averaged: what `Ranks.averaging` has returned; its results are the loss.
        max_skipped: that many steps of a task in a row that have to be skipped end the run.

    Attributes:
        step: optimizer steps taken.
        tokens: word pieces trained on.
        seconds: time spent in the steps, by part: data (waiting for the batch), and forward, backward, optimizer or,
            on a GPU, step.
        background_seconds: processor time of preparing batches meanwhile.
        losses: of the present epoch; whoever takes the steps adds them, and clears it.
        skips: the steps that were skipped.
    """

    _where = ""  # begins the message of a failure

    def __init__(
        self,
        data: Mapping[str, EncodedTask],
        sampler: RoundRobinSampler,
        optimizer: AdamW,
        learning_rate: float,
        parts: tuple[str, ...] = PARTS,
        *,
        averaged: nn.Module,
        ranks: Ranks = ALONE,
        accumulate: int = 1,
        max_skipped: int = 1,
    ) -> None:
        self.data, self.sampler, self.optimizer, self.learning_rate = data, sampler, optimizer, learning_rate
        self.ranks, self.accumulate, self.averaged = ranks, accumulate, averaged
        self.step = 0
        self.tokens = 0
        self.seconds = dict.fromkeys(parts, 0.0)
        self.background_seconds = 0.0
        self.losses = EpochLosses(data)
        self.skips = Skips(data, max_skipped)

    def seconds_by_part(self) -> dict[str, float]:
        """`seconds`, and beside them, since they pass meanwhile, `background_seconds` as "data_background"."""
        return {**self.seconds, "data_background": self.background_seconds}

    def epoch(self) -> Iterator[Step]:
        """Takes the steps of one epoch, yielding after each.

        A step whose loss or, if the optimizer has a `max_grad_norm`, whose gradient's norm is NaN or infinite is
        skipped: weights, moments and anchor stay as they are.

        Raises:
            NonFiniteLossError: `max_skipped` steps of a task in a row; names the last one and its examples.
            OutOfMemory: names the batch and the settings that need less.
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
                skipped = ""
                with telling_what_needs_less(partial(self._describe_need, task, rows)):
                    slices, tokens = next(prepared)
                    times = [begin, perf_counter()]
                    try:
                        numbers = self._take(task, slices, times)
                        self.skips.taken(task)
                    except NotFinite as failure:
                        skipped, numbers = f"the {failure} {self._describe_batch(task, epoch, rows)}", failure.numbers
                        times += times[-1:] * (1 + len(self.seconds) - len(times))
                        if self.skips.skipped(task):
                            raise NonFiniteLossError(self._describe_failure(skipped)) from None
                del slices
                _, value, *others = numbers
                assert value is not None
                for part, (start, end) in zip(self.seconds, pairwise(times), strict=True):
                    self.seconds[part] += end - start
                cycle = max(-1, (self.step - first - self.sampler.solo_steps) // len(self.data)) + 1
                self.step += 1
                self.tokens += tokens
                yield Step(self.step, epoch, cycle, task, value, tokens, times[-1] - begin, skipped, *others)

    def _take(self, task: str, slices: Sequence[Slice[Batch]], times: list[float]) -> list[float | None]:
        """One step: the terms of its `Loss` as numbers. Appends the time after each of its parts but the first."""
        terms, forward = [], 0.0
        for number, part in enumerate(slices, start=1):
            with without_averaging(self.averaged, number < len(slices)), noticing():
                begin = perf_counter()
                loss = self._loss(task, part.batch)
                terms.append(_numbers(loss))
                forward += perf_counter() - begin
                if number == len(slices):
                    # Under way while gradients are.
                    exchange = self.ranks.exchange(() if self.whole else self._weighted(terms, slices))
                backward(loss.total, part.weight)
                del loss
        numbers, all_finite = (terms[0], True) if self.whole else weighted_means(exchange.wait())
        times.append(times[-1] + forward)
        times.append(perf_counter())

        if not self.whole:
            self._count(task, numbers, all_finite)
        try:
            check_loss(task, numbers)
        except NotFinite:
            self.optimizer.zero_grad(set_to_none=True)
            raise
        self._update(task)
        if self.optimizer.grad_norm is not None:  # where it is not finite, the optimizer has changed nothing
            check_norm(task, numbers, self.optimizer.grad_norm.item())
        times.append(perf_counter())
        return numbers

    def _count(self, task: str, numbers: list[float | None], all_finite: bool) -> None:
        """Told the terms of a step of several slices, and whether SMART's were finite in all of them."""

    @property
    def whole(self) -> bool:
        """Whether a step's batch is one slice."""
        return self.ranks.size * self.accumulate == 1

    def own_slices(self, examples: int) -> list[slice]:
        """Where in a batch of so many examples this rank's slices lie."""
        each = examples // (self.ranks.size * self.accumulate)
        first = self.ranks.rank * self.accumulate
        return [slice(number * each, (number + 1) * each) for number in range(first, first + self.accumulate)]

    def _weighted(self, terms: Sequence[list[float | None]], slices: Sequence[Slice[Batch]]) -> list[float]:
        """This rank's row for `weighted_means`."""
        weights = [self._weights(part) for part in slices]
        pairs = [list(zip(row, each, strict=True)) for row, each in zip(terms, weights, strict=True)]
        columns = list(zip(*pairs, strict=True))
        return [
            *(sum(value * weight for value, weight in column if value is not None) for column in columns),
            *(sum(weight for value, weight in column if value is not None) for column in columns),
        ]

    def _weights(self, part: Slice[Batch]) -> list[float]:
        """How much each term of a slice's loss counts in the mean over all slices."""
        return [part.weight] * len(Loss._fields)

    def _prepare(self, sampler: RoundRobinSampler, step: int) -> Iterator[tuple[list[Slice[Batch]], int]]:
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
    def _load(self, task: str, rows: np.ndarray, step: int) -> tuple[list[Slice[Batch]], int]:
        """This rank's slices of the batch of these examples for step number `step`, from 0; word pieces of the whole.

        Called in a background thread and ahead of its time: it changes nothing and runs no parallel tensor operation.
        """

    @abstractmethod
    def _loss(self, task: str, batch: Batch) -> Loss:
        """The loss of a slice, with its graph, from `averaged`."""

    def _update(self, task: str) -> None:
        """One optimizer step, on the gradients of a batch of `task`."""
        self.optimizer.step(anchor=self._anchor(task))
        # To None, not to zero: AdamW then leaves the heads of the other tasks alone, and no gradient takes room
        # beside the next step's activations.
        self.optimizer.zero_grad(set_to_none=True)

    def _anchor(self, task: str) -> BregmanAnchor | None:
        """The anchor that moves with the step on a batch of `task`, if any."""
        return None

    def _describe_batch(self, task: str, epoch: int, rows: np.ndarray) -> str:
        ids = ", ".join(self.data[task].ids[row] for row in rows[:_SHOWN])
        if len(rows) > _SHOWN:
            ids += f" and {len(rows) - _SHOWN} more"
        return f"at step {self.step + 1} (epoch {epoch}) on the examples {ids}"

    def _describe_failure(self, skipped: str) -> str:
        in_a_row = f", the last of {self.skips.most} in a row" if self.skips.most > 1 else ""
        return f"{self._where}{skipped}{in_a_row}; the learning rate is {self.learning_rate:g}, a lower one may help"

    def _describe_need(self, task: str, rows: np.ndarray) -> str:
        longest = int(np.diff(self.data[task].offsets)[rows].max())
        size = len(rows) // (self.ranks.size * self.accumulate)
        return (
            f"{self._where}at step {self.step + 1}, a batch of {size} {task} examples of up to {longest} word pieces: "
            f"lower --batch-{task} (with a higher --accumulate for steps of the same size), or --max-length"
        )


def backward(total: Tensor, weight: float) -> None:
    """Adds the gradients of a slice's loss, by its weight."""
    (total if weight == 1 else total * weight).backward()


def _numbers(terms: Loss) -> list[float | None]:
    """The terms as Python numbers, by one read from their device."""
    there = [term.detach() for term in terms if term is not None]
    numbers = iter(torch.stack(there).tolist())
    return [None if term is None else next(numbers) for term in terms]


def weighted_means(rows: Sequence[Sequence[float]]) -> tuple[list[float | None], bool]:
    """Means of terms over all slices, and whether none of these lacked SMART's: it is left out where not finite.

    Args:
        rows: of every rank the sums of its terms, in the order of `Loss`, times their weights, then those of the
            weights. A term that no slice has, by its weights, is None.
    """
    sums = [sum(column) for column in zip(*rows, strict=True)]
    values, weights = sums[: len(Loss._fields)], sums[len(Loss._fields) :]
    means = [value / weight if weight else None for value, weight in zip(values, weights, strict=True)]
    return means, weights[_SMART] == weights[_TASK]
