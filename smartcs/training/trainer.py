"""The training loop: the tasks in turn, one optimizer step per batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import NamedTuple

import numpy as np

from smartcs.data.encode import EncodedTask
from smartcs.data.sampling import AnnealedDeterministicSampler, AnnealedSampler, RoundRobinSampler
from smartcs.model.multitask import MultitaskBert
from smartcs.training.config import TrainConfig
from smartcs.training.objective import Objective
from smartcs.training.optim import AdamW

PARTS = ("data", "forward", "backward", "optimizer")
_SHOWN = 5  # examples that an error names before the rest is only counted


class NonFiniteLossError(RuntimeError):
    """A loss is NaN or infinite; the weights are those before this step's update."""


class Step(NamedTuple):
    """One optimizer step. `step`, `epoch` and `cycle` (within the epoch) count from 1.

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


class Trainer:
    """Trains a model on encoded tasks; evaluation, files and messages are others' business (see `run`).

    Two trainers of equal config, data and initial weights take the same steps, bit for bit on one machine and
    number of threads, and within rounding on the two backends: batches and dropout masks follow from the seed.

    Args:
        config: batch sizes, cycles, seed and the optimizer's settings.
        model: trained in place, on the CPU.
        data: the tasks of a cycle, in its order, all with labels.

    Attributes:
        step: optimizer steps taken.
        tokens: word pieces trained on.
        seconds: time spent in the steps, by part: data, forward, backward, optimizer.
    """

    def __init__(self, config: TrainConfig, model: MultitaskBert, data: Mapping[str, EncodedTask]) -> None:
        self.config, self.model, self.data = config, model, data
        self.optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.sampler = make_sampler(config, {name: len(task) for name, task in data.items()})
        self.objective = Objective(config, model, config.epochs * self.sampler.steps_per_epoch)
        self.step = 0
        self.tokens = 0
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def epoch(self) -> Iterator[Step]:
        """Takes the steps of one epoch, yielding after each.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; names the step and the examples.
        """
        epoch, first = self.sampler.epoch + 1, self.step
        self.model.train()
        batches = self.sampler.batches()
        while True:
            begin = perf_counter()
            drawn = next(batches, None)
            if drawn is None:
                return
            task, rows = drawn
            batch, labels = self.data[task].batch(rows)
            assert labels is not None
            times = [begin, perf_counter()]

            terms = self.objective(task, batch, labels, self.step)
            total, value, *others = (None if term is None else term.item() for term in terms)
            assert total is not None and value is not None
            if not math.isfinite(total):
                raise NonFiniteLossError(self._describe_failure(task, value, total, epoch, rows))
            times.append(perf_counter())

            terms.total.backward()
            del terms
            times.append(perf_counter())

            self._warm_up()
            self.optimizer.step()
            # To None, not to zero: AdamW then leaves the heads of the other tasks alone, and no gradient takes room
            # beside the next step's activations.
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.after_step()
            times.append(perf_counter())

            for part, start, end in zip(PARTS, times, times[1:], strict=False):
                self.seconds[part] += end - start
            cycle = max(0, self.step - first - self.sampler.solo_steps) // len(self.data) + 1
            self.step += 1
            self.tokens += batch.num_tokens
            yield Step(self.step, epoch, cycle, task, value, batch.num_tokens, times[-1] - begin, *others)

    def _describe_failure(self, task: str, value: float, total: float, epoch: int, rows: np.ndarray) -> str:
        ids = ", ".join(self.data[task].ids[row] for row in rows[:_SHOWN])
        if len(rows) > _SHOWN:
            ids += f" and {len(rows) - _SHOWN} more"
        what = f"{task} loss with its regularisers is {total}" if math.isfinite(value) else f"{task} loss is {value}"
        return (
            f"the {what} at step {self.step + 1} (epoch {epoch}) on the examples {ids}; "
            f"the learning rate is {self.config.learning_rate:g}, a lower one may help"
        )

    def _warm_up(self) -> None:
        """Sets the learning rate of the coming step, counted from 0: full from step `warmup` - 1 on."""
        share = min(1.0, (self.step + 1) / max(1, self.config.warmup))
        for group in self.optimizer.param_groups:
            group["lr"] = share * self.config.learning_rate


def make_sampler(config: TrainConfig, sizes: Mapping[str, int]) -> RoundRobinSampler:
    """The sampler that `config` names, for tasks with these numbers of examples."""
    batch_sizes = {name: config.batch_sizes[name] for name in sizes}
    seed, cycles = config.seed, config.cycles
    if config.sampler == "annealed":
        return AnnealedSampler(sizes, batch_sizes, seed=seed, cycles=cycles, epochs=config.epochs)
    if config.sampler == "annealed_deterministic":
        return AnnealedDeterministicSampler(sizes, batch_sizes, seed=seed, cycles=cycles, solo_steps=config.solo_steps)
    return RoundRobinSampler(sizes, batch_sizes, seed=seed, cycles=cycles)
