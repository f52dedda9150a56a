"""What a training step minimises: the task's loss, SMART's regulariser and the Bregman term.

    loss = task loss + lambda * R_s + mu * D        (SMARTCS paper, equations 1 and 3)

Activations alive at once: the clean pass's, kept for the backward pass, and one more set, first the noise pass's (freed
before the next begins), then the adversarial pass's. The anchor's pass keeps none.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smartcs.data.packing import PackedBatch
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.random import DropoutKey
from smartcs.smart import BetaSchedule, BregmanAnchor, SmartRegularizer, Smoothness, WeightSchedule
from smartcs.smart.gate import known_to_fail
from smartcs.smart.running_means import RunningMeans
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.metrics import task_loss
from smartcs.training.steps import Loss

# l_s of each task: on class probabilities, on the probability of a paraphrase, on the score.
SMOOTHNESS: dict[str, Smoothness] = {"sst": "categorical", "qqp": "bernoulli", "sts": "squared"}
_NOISE_SITE = 2**16 - 1  # the stream of SMART's noise; dropout uses the ones below


class TaskExamples(NamedTuple):
    """Examples of a step's batch.

    Attributes:
        batch, labels: of these.
        first_token, first_example: how many tokens, as the encoder reads them, and examples of that batch lie before.
    """

    batch: PackedBatch
    labels: Tensor
    first_token: int = 0
    first_example: int = 0


class Objective:
    """The loss of a model as a configuration says; holds the regularisers and the anchor.

    Args:
        config: its `smart`, `bregman` and `seed`.
        model: the model that is trained; the anchor starts as its copy.
        steps: optimizer steps of the whole run, for the schedules of lambda and beta.

    Raises:
        UsageError: the run is too short for the schedule of lambda.
    """

    def __init__(self, config: TrainConfig, model: MultitaskBert, steps: int) -> None:
        self.config, self.model = config, model
        smart, bregman = config.smart, config.bregman
        self.regularizers = {
            task: SmartRegularizer(
                step_size=smart.step_size,
                noise_std=smart.noise_std,
                radius=smart.radius,
                norm=smart.norm,
                steps=smart.steps,
                update=smart.update,
                level=smart.level,
                loss=SMOOTHNESS[task],
                detach_targets=smart.detach_targets,
                detach_clean=smart.detach_clean,
                seed=config.seed,
            )
            for task in config.smart_tasks
        }
        if smart.decay != "constant" and steps <= smart.warmup:
            raise UsageError(
                f"smart.warmup is {smart.warmup}, expected less than the run's {steps} optimizer steps, "
                f"because smart.decay is {smart.decay}"
            )
        self.weight = WeightSchedule(smart.weight, smart.warmup, smart.decay, steps)
        self.anchor: BregmanAnchor | None = None
        if config.bregman_tasks:
            counted = (
                steps if bregman.inner_steps == 1 else steps * len(config.bregman_tasks) / len(config.trained_tasks)
            )
            beta = BetaSchedule(early=bregman.beta, late=bregman.late_beta, switch_step=round(bregman.early * counted))
            self.anchor = BregmanAnchor(model, beta, inner_steps=bregman.inner_steps)

    def __call__(self, task: str, batch: PackedBatch, labels: Tensor, step: int) -> Loss:
        """The loss of a batch at optimizer step `step`, counted from 0, which names all its random numbers."""
        encoded = self.model.encoder_input(task, batch)
        return self.terms(*self.arguments(task, TaskExamples(encoded, labels), step))

    def arguments(
        self, task: str, encoded: TaskExamples, step: int
    ) -> tuple[str, PackedBatch, Tensor, DropoutKey, float]:
        """Those of `terms` at optimizer step `step`, for examples as the model's encoder reads them."""
        batch, labels, *first = encoded
        key = DropoutKey(self.config.seed, step)
        if any(first):
            key = DropoutKey(self.config.seed, 0, torch.tensor(DropoutKey.offset_of(step, *first)))
        return task, batch, labels, key, self.weight(step)

    def terms(self, task: str, encoded: PackedBatch, labels: Tensor, key: DropoutKey, weight: float | Tensor) -> Loss:
        """The same from what the model's encoder reads of the batch, the key of the step, and its lambda.

        Nothing here waits for a GPU. There a SMART step that was not finite shows as zeros; on the CPU it has no terms.
        """
        output = self.model(task, encoded, key, encoded=True)
        loss = task_loss(task, output, labels)
        terms = Loss(loss, loss)
        if task in self.regularizers:
            value = self._smart(task, encoded, output, key)
            last = self.regularizers[task].last
            assert last is not None
            terms = terms._replace(total=terms.total + weight * value)
            if not known_to_fail(last.finite):  # else it is counted as a fallback and adds nothing
                terms = terms._replace(smart=last.value, alignment=last.alignment, perturbation=last.perturbation)
        if self.anchor is not None and task in self.config.bregman_tasks:
            divergence = self.anchor.divergence(output, task, encoded, loss=SMOOTHNESS[task], encoded=True)
            terms = terms._replace(
                total=terms.total + self.config.bregman.weight * divergence, bregman=divergence.detach()
            )
        return terms

    def anchor_of(self, task: str) -> BregmanAnchor | None:
        """The anchor that the optimizer step on a batch of `task` is to move, if any.

        With momentum the anchor follows every step. With several inner steps, those of the tasks that have the term
        count: were it every step, the anchor could be moved just before each of them and the term be nothing.
        """
        if self.anchor is not None and (self.anchor.inner_steps == 1 or task in self.config.bregman_tasks):
            return self.anchor
        return None

    def replayed(self, task: str) -> None:
        """Counts, of a step on a batch of `task` that ran again as a CUDA graph, what is counted on the host."""
        if task in self.regularizers:
            self.regularizers[task].means.steps += 1
        if self.anchor is not None and task in self.config.bregman_tasks:
            self.anchor.means.steps += 1

    def weights(self, weight: float, tokens: int) -> list[float]:
        """How much the terms of a slice count in their means over slices: its loss counts `weight`.

        What SMART says of its perturbation are means over tokens or sentences; slices have as many sentences.
        """
        groups = float(tokens) if self.config.smart.level == "token" else weight
        counts = {"alignment": groups, "perturbation": groups}
        return [counts.get(name, weight) for name in Loss._fields]

    def mark(self) -> list[tuple[int, Tensor]]:
        """The means as they are before a step of several slices, for `settle`."""
        return [means.mark() for means in self._means()]

    def settle(
        self, before: list[tuple[int, Tensor]], task: str, numbers: list[float | None], all_finite: bool
    ) -> None:
        """Makes one step of the slices counted since `before`, some of which other ranks have.

        Args:
            numbers: the terms of the step, the same on all ranks; and so are the means then.
            all_finite: whether SMART's were finite in all slices; if not, the step is a fallback.
        """
        terms = dict(zip(Loss._fields, numbers, strict=True))
        for means, mark in zip(self._means(), before, strict=True):
            means.back_to(mark)
        if task in self.regularizers:
            values = [terms[name] for name in ("alignment", "perturbation", "smart")]
            self.regularizers[task].means.add_numbers(values, all_finite)
        if self.anchor is not None and task in self.config.bregman_tasks:
            divergence = terms["bregman"]
            self.anchor.means.add_numbers([divergence], divergence is not None and math.isfinite(divergence))

    def counts(self) -> list[int]:
        """All that is counted on the host, for `recount`."""
        return [means.steps for means in self._means()]

    def recount(self, counts: list[int]) -> None:
        """Takes the counts back to what they were."""
        for means, steps in zip(self._means(), counts, strict=True):
            means.steps = steps

    def _means(self) -> list[RunningMeans]:
        means = [regularizer.means for regularizer in self.regularizers.values()]
        return means if self.anchor is None else [*means, self.anchor.means]

    def metrics(self) -> dict[str, Any]:
        """`smart`: per task steps, fallbacks and means; `bregman`: steps and mean divergence; None where not used."""
        return {
            "smart": {task: reg.statistics() for task, reg in self.regularizers.items()} or None,
            "bregman": None if self.anchor is None else self.anchor.statistics(),
        }

    def _smart(self, task: str, encoded: PackedBatch, output: Tensor, key: DropoutKey) -> Tensor:
        smart = self.config.smart
        word = self.model.bert.embeddings.word.weight
        passes = 0

        def forward(offset: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            masks = key if smart.share_dropout else key.another(passes)
            return self.model(task, encoded, masks, perturbation=offset, perturb_at=smart.perturb_at, encoded=True)

        value: Tensor = self.regularizers[task].from_offsets(
            forward,
            word.new_empty((encoded.num_tokens, word.shape[1])),
            output,
            cu_seqlens=encoded.cu_seqlens,
            stream=key.stream(_NOISE_SITE),
            counter_offset=key.token_offset,
            num_tokens=encoded.cu_seqlens[-2] if encoded.inert else None,
        )
        return value
