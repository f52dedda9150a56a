"""Fine-tuning: the tasks in turn, one optimizer step per batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter

import numpy as np
from torch import Tensor

from smartcs.data.encode import EncodedTask
from smartcs.data.packing import PackedBatch
from smartcs.data.sampling import AnnealedDeterministicSampler, AnnealedSampler, RoundRobinSampler
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import get_backend
from smartcs.smart import BregmanAnchor
from smartcs.training.config import TrainConfig
from smartcs.training.device_step import DeviceStep, Recorder
from smartcs.training.objective import Objective
from smartcs.training.optim import AdamW
from smartcs.training.steps import DEVICE_PARTS, PARTS, Loss, Step, StepLoop, check_loss, check_norm


class Trainer(StepLoop[tuple[PackedBatch, Tensor]]):
    """Trains a model on encoded tasks; evaluation, files and messages are others' business (see `run`).

    Two trainers of equal config, data and initial weights take the same steps, bit for bit on one CPU and
    number of threads, and within rounding on the two backends: batches, noise and dropout masks follow from the seed.

    Args:
        config: batch sizes, cycles, seed, the regularisers' and the optimizer's settings.
        model: trained in place. Where it is on a GPU, its steps are a `DeviceStep`'s.
        data: the tasks of a cycle, in its order, all with labels.
        recorder: of a GPU's steps; None to launch their kernels one by one.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: MultitaskBert,
        data: Mapping[str, EncodedTask],
        recorder: Recorder | None = None,
    ) -> None:
        device = next(model.parameters()).device
        waits = device.type == "cpu" and recorder is None
        optimizer = AdamW(
            model.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # On a device a step is told to change nothing by its norm, so there always is one.
            max_grad_norm=config.max_grad_norm or (None if waits else math.inf),
        )
        sampler = make_sampler(config, {name: len(task) for name, task in data.items()})
        super().__init__(data, sampler, optimizer, config.learning_rate, PARTS if waits else DEVICE_PARTS)
        self.config, self.model = config, model
        self.objective = Objective(config, model, config.epochs * sampler.steps_per_epoch)
        self.device_step = None if waits else DeviceStep(self.objective, optimizer, config.seed, device, recorder)

    def epoch(self) -> Iterator[Step]:
        """As in `StepLoop`. With the fused ops on a CPU the gradient of the word embeddings is sparse meanwhile."""
        with _sparse_gradient(self.model, self.device_step is None and get_backend() == "fused"):
            yield from super().epoch()

    def graphs(self) -> dict[str, int] | None:
        """How many CUDA graphs were recorded, and how many steps they took; None on the CPU."""
        steps = self.device_step
        return None if steps is None else {"recorded": steps.recorded, "replayed_steps": steps.replayed}

    def _begin(self) -> None:
        self.model.train()

    def _load(self, task: str, rows: np.ndarray, step: int) -> tuple[tuple[PackedBatch, Tensor], int]:
        batch, labels = self.data[task].batch(rows)
        assert labels is not None
        return (batch, labels), batch.num_tokens

    def _take(self, task: str, batch: tuple[PackedBatch, Tensor], times: list[float]) -> list[float | None]:
        if self.device_step is None:
            return super()._take(task, batch, times)
        encoded, labels = self.model.encoder_input(task, batch[0]), batch[1]
        terms, norm = self.device_step(task, encoded, labels, self.step, self._lr_share)
        check_loss(task, terms)
        check_norm(task, norm)
        times.append(perf_counter())
        return terms

    def _loss(self, task: str, batch: tuple[PackedBatch, Tensor]) -> Loss:
        return self.objective(task, *batch, self.step)

    @property
    def _lr_share(self) -> float:
        return min(1.0, (self.step + 1) / max(1, self.config.warmup))  # full from step `warmup` on, counted from 1

    def _update(self, task: str) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr_share * self.learning_rate
        super()._update(task)

    def _anchor(self, task: str) -> BregmanAnchor | None:
        return self.objective.anchor_of(task)


@contextmanager
def _sparse_gradient(model: MultitaskBert, wanted: bool) -> Iterator[None]:
    """Within the block, the word table's gradient holds the rows in use and nothing of the table's size is touched."""
    word = model.bert.embeddings.word
    before, word.sparse = word.sparse, wanted
    try:
        yield
    finally:
        word.sparse = before


def make_sampler(config: TrainConfig, sizes: Mapping[str, int]) -> RoundRobinSampler:
    """The sampler that `config` names, for tasks with these numbers of examples."""
    batch_sizes = {name: config.batch_sizes[name] for name in sizes}
    seed, cycles = config.seed, config.cycles
    if config.sampler == "annealed":
        return AnnealedSampler(sizes, batch_sizes, seed=seed, cycles=cycles, epochs=config.epochs)
    if config.sampler == "annealed_deterministic":
        return AnnealedDeterministicSampler(sizes, batch_sizes, seed=seed, cycles=cycles, solo_steps=config.solo_steps)
    return RoundRobinSampler(sizes, batch_sizes, seed=seed, cycles=cycles)
