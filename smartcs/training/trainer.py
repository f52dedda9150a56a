"""Fine-tuning: the tasks in turn, one optimizer step per batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np
from torch import nn

from smartcs.data.encode import EncodedTask
from smartcs.data.sampling import AnnealedDeterministicSampler, AnnealedSampler, RoundRobinSampler
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import get_backend
from smartcs.smart import BregmanAnchor
from smartcs.training.config import TrainConfig
from smartcs.training.device_step import DeviceStep, Recorder
from smartcs.training.distributed import ALONE, Ranks
from smartcs.training.objective import Objective, TaskExamples
from smartcs.training.optim import AdamW
from smartcs.training.skipping import check_loss, check_norm
from smartcs.training.steps import DEVICE_PARTS, PARTS, Loss, Slice, Step, StepLoop


class Trainer(StepLoop[TaskExamples]):
    """Trains a model on encoded tasks; evaluation, files and messages are others' business (see `run`).

    Two trainers of equal config, data and initial weights take the same steps, bit for bit on one CPU and
    number of threads, and within rounding on the two backends: batches, noise and dropout masks follow from the seed.
    Also within rounding, where several ranks, or slices of accumulated gradients, have a batch between them.

    Args:
        config: batch sizes, cycles, seed, the regularisers' and the optimizer's settings.
        model: trained in place. Where it is on a GPU, its steps are a `DeviceStep`'s. The first rank's weights count.
        data: the tasks of a cycle, in its order, all with labels.
        recorder: of a GPU's steps; None to launch their kernels one by one.
        ranks: the processes that train the model together.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: MultitaskBert,
        data: Mapping[str, EncodedTask],
        recorder: Recorder | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        device = next(model.parameters()).device
        waits = device.type == "cpu" and recorder is None
        optimizer = AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # A step is told by its norm to change nothing, so there always is one.
            max_grad_norm=config.max_grad_norm or math.inf,
        )
        sampler = make_sampler(config, {name: len(task) for name, task in data.items()}, ranks)
        ranks.copy_first(model)  # before the anchor becomes its copy
        objective = Objective(config, model, config.epochs * sampler.steps_per_epoch)
        self._sparse = waits and get_backend() == "fused"
        with _sparse_gradient(model, self._sparse):
            averaged = ranks.averaging(_Terms(objective))
        super().__init__(
            data,
            sampler,
            optimizer,
            config.learning_rate,
            PARTS if waits else DEVICE_PARTS,
            averaged=averaged,
            ranks=ranks,
            accumulate=config.accumulate,
            max_skipped=config.max_skipped_steps,
        )
        self.config, self.model, self.objective = config, model, objective
        self.device_step = (
            None if waits else DeviceStep(objective, optimizer, config.seed, device, recorder, ranks, averaged)
        )

    def epoch(self) -> Iterator[Step]:
        """As in `StepLoop`. With the fused ops on a CPU the gradient of the word embeddings is sparse meanwhile."""
        with _sparse_gradient(self.model, self._sparse):
            yield from super().epoch()

    def graphs(self) -> dict[str, int] | None:
        """How many CUDA graphs were recorded, and how many steps they took; None on the CPU."""
        steps = self.device_step
        return None if steps is None else {"recorded": steps.recorded, "replayed_steps": steps.replayed}

    def _begin(self) -> None:
        self.model.train()

    def _load(self, task: str, rows: np.ndarray, step: int) -> tuple[list[Slice[TaskExamples]], int]:
        data = self.data[task]
        lengths = data.offsets[rows + 1] - data.offsets[rows]
        before = np.concatenate([[0], np.cumsum(self.model.encoder_lengths(task, lengths))])
        slices = []
        for own in self.own_slices(len(rows)):
            batch, labels = data.batch(rows[own])
            assert labels is not None
            first, end = int(before[own.start]), int(before[own.stop])
            slices.append(Slice(TaskExamples(batch, labels, first, own.start), 1 / self.accumulate, end - first))
        return slices, int(lengths.sum())

    def _take(self, task: str, slices: Sequence[Slice[TaskExamples]], times: list[float]) -> list[float | None]:
        if not self.whole:
            self._before = self.objective.mark()
        if self.device_step is None:
            return super()._take(task, slices, times)
        exchange = self.ranks.exchange()
        terms, norm, all_finite = self.device_step(
            task,
            [part._replace(batch=self._encoded(task, part.batch)) for part in slices],
            self.step,
            self._lr_share,
        )
        exchange.wait()
        if not self.whole:
            self._count(task, terms, all_finite)
        check_loss(task, terms)
        check_norm(task, terms, norm)
        times.append(perf_counter())
        return terms

    def _loss(self, task: str, batch: TaskExamples) -> Loss:
        loss: Loss = self.averaged(*self.objective.arguments(task, self._encoded(task, batch), self.step))
        return loss

    def _encoded(self, task: str, batch: TaskExamples) -> TaskExamples:
        """With what the encoder reads of them as the batch."""
        return batch._replace(batch=self.model.encoder_input(task, batch.batch))

    def _weights(self, part: Slice[TaskExamples]) -> list[float]:
        return self.objective.weights(part.weight, part.tokens)

    def _count(self, task: str, numbers: list[float | None], all_finite: bool) -> None:
        self.objective.settle(self._before, task, numbers, all_finite)

    @property
    def _lr_share(self) -> float:
        return min(1.0, (self.step + 1) / max(1, self.config.warmup))  # full from step `warmup` on, counted from 1

    def _update(self, task: str) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr_share * self.learning_rate
        super()._update(task)

    def _anchor(self, task: str) -> BregmanAnchor | None:
        return self.objective.anchor_of(task)


class _Terms(nn.Module):
    """`Objective.terms` as a module whose parameters are the model's alone, and not the anchor's."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self._objective = (objective,)  # out of the module's sight

    def forward(self, *arguments: Any) -> Loss:
        return self._objective[0].terms(*arguments)


@contextmanager
def _sparse_gradient(model: MultitaskBert, wanted: bool) -> Iterator[None]:
    """Within the block, the word table's gradient holds the rows in use and nothing of the table's size is touched."""
    word = model.bert.embeddings.word
    before, word.sparse = word.sparse, wanted
    try:
        yield
    finally:
        word.sparse = before


def make_sampler(config: TrainConfig, sizes: Mapping[str, int], ranks: Ranks = ALONE) -> RoundRobinSampler:
    """The sampler that `config` names, for tasks with these numbers of examples; its batches are those of all ranks."""
    slices = ranks.size * config.accumulate
    batch_sizes = {name: slices * config.batch_sizes[name] for name in sizes}
    seed, cycles = config.seed, config.cycles
    if config.sampler == "annealed":
        return AnnealedSampler(sizes, batch_sizes, seed=seed, cycles=cycles, epochs=config.epochs)
    if config.sampler == "annealed_deterministic":
        return AnnealedDeterministicSampler(sizes, batch_sizes, seed=seed, cycles=cycles, solo_steps=config.solo_steps)
    return RoundRobinSampler(sizes, batch_sizes, seed=seed, cycles=cycles)
