"""Additional pretraining: masked language modelling on the tasks' texts, in the round robin of fine-tuning.

Source: the SMARTCS paper, sections 4 and 5.2. `Pretrainer` takes the steps, `pretrain` runs all epochs of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn

from smartcs.data.encode import EncodedTask
from smartcs.data.examples import DataError
from smartcs.data.masking import MaskedBatch, MaskedTask, TokenMasker
from smartcs.data.sampling import RoundRobinSampler
from smartcs.model.bert import BertModel
from smartcs.model.mlm import MaskedLanguageModel, masked_loss
from smartcs.ops.random import DropoutKey
from smartcs.training.checks import task_names
from smartcs.training.distributed import ALONE, Ranks
from smartcs.training.evaluation import needs_less
from smartcs.training.interrupt import Stopped, StopRequest
from smartcs.training.optim import AdamW
from smartcs.training.plan import describe_batches
from smartcs.training.pretrain_config import PretrainConfig
from smartcs.training.progress import clock, make_progress, watch
from smartcs.training.run_folder import LossLog
from smartcs.training.steps import Loss, Slice, StepLoop

_FIRST_DEV_STEP = 2**62  # names the masking of dev; training counts from 0 and never gets there
# Fine-tuning of the same seed draws other masks and another order: its steps count from 0, its seeds are below 2**63.
_FIRST_KEY = 2**39
_OTHER_SEEDS = 2**63


class Masked(NamedTuple):
    """A slice of a step's batch, the number of tokens before it, and that of hidden ones in the whole."""

    masked: MaskedBatch
    first_token: int
    hidden: int


class Pretrainer(StepLoop[Masked]):
    """Trains an encoder to name hidden tokens.

    Two pretrainers of equal arguments take the same steps, as `Trainer` does: batches, hidden tokens and dropout masks
    follow from the seed. Every epoch hides other tokens.

    Args:
        bert: trained in place, on the CPU; its random head is drawn from `seed` and is not kept.
        tokenizer: the encoder's.
        train, dev: the texts; labels are not used. `settings.tasks` says which of the tasks take part.
        settings: its `epochs` concern `pretrain` alone.
        batch_sizes: task -> sequences per batch; may name more tasks.
        seed: 0 <= seed < 2**63.
        eval_batch_size: sequences per batch when evaluating; changes speed only.
        ranks: the processes that train the encoder together; the first one's weights count.
        accumulate: slices of `batch_sizes` per rank and step.
        max_skipped: see `StepLoop`.

    Raises:
        ValueError: `settings` has a value out of range.
        DataError: a task has no word piece to hide.

    Attributes:
        hidden: word pieces hidden, on which the loss is.
        history: one entry per evaluated epoch: figures of `evaluate`, mean training losses, seconds.
    """

    _where = "in pretraining, "

    def __init__(
        self,
        bert: BertModel,
        tokenizer: Tokenizer,
        train: Mapping[str, EncodedTask],
        dev: Mapping[str, EncodedTask],
        settings: PretrainConfig,
        batch_sizes: Mapping[str, int],
        *,
        seed: int,
        eval_batch_size: int = 64,
        ranks: Ranks = ALONE,
        accumulate: int = 1,
        max_skipped: int = 1,
    ) -> None:
        settings.validate()
        names = task_names(settings.tasks)
        self.settings, self.seed, self.eval_batch_size = settings, seed, eval_batch_size
        self.batch_sizes = {name: batch_sizes[name] for name in names}
        data = {name: train[name] for name in names}
        self.masker = TokenMasker(tokenizer, strategy=settings.strategy, fraction=settings.fraction, seed=seed)
        for split, tasks in (("train", train), ("dev", dev)):
            for name in names:
                if not self.masker.is_word(tasks[name].input_ids).any():
                    raise DataError(f"{name}: no sequence of the {split} split has a word piece to hide")
        self.dev = {
            name: MaskedTask(dev[name], self.masker, _FIRST_DEV_STEP + number) for number, name in enumerate(names)
        }
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # and no GPU's
            self.model = MaskedLanguageModel(bert, settings.head)
        ranks.copy_first(self.model)
        # A step is told by its norm to change nothing.
        optimizer = AdamW(self.model.parameters(), lr=settings.learning_rate, max_grad_norm=math.inf)
        sampler = RoundRobinSampler(
            {name: len(task) for name, task in data.items()},
            {name: ranks.size * accumulate * size for name, size in self.batch_sizes.items()},
            seed=seed + _OTHER_SEEDS,
            cycles=settings.cycles,
        )
        averaged = ranks.averaging(_MaskedLoss(self.model))
        super().__init__(
            data,
            sampler,
            optimizer,
            settings.learning_rate,
            averaged=averaged,
            ranks=ranks,
            accumulate=accumulate,
            max_skipped=max_skipped,
        )
        self.device = next(bert.parameters()).device
        self.hidden = 0
        self.history: list[dict[str, Any]] = []

    def _begin(self) -> None:
        self.model.train(self.settings.dropout)  # dropout is all that the two modes differ in

    def _load(self, task: str, rows: np.ndarray, step: int) -> tuple[list[Slice[Masked]], int]:
        masked = self.masker(self.data[task].batch(rows)[0], step)
        slices = []
        for own in self.own_slices(len(rows)):
            part, first_token = masked.rows(own.start, own.stop)
            # The mean over all hidden tokens, of means over those of a slice.
            weight = len(part.targets) / max(1, len(masked.targets)) * self.ranks.size
            slices.append(Slice(Masked(part, first_token, len(masked.targets)), weight, part.batch.num_tokens))
        return slices, masked.batch.num_tokens

    def _take(self, task: str, slices: Sequence[Slice[Masked]], times: list[float]) -> list[float | None]:
        self.hidden += slices[0].batch.hidden
        return super()._take(task, slices, times)

    def _loss(self, task: str, batch: Masked) -> Loss:
        key = DropoutKey(self.seed, _FIRST_KEY + self.step)
        if batch.first_token:
            offset = DropoutKey.offset_of(_FIRST_KEY + self.step, batch.first_token)
            key = DropoutKey(self.seed, 0, torch.tensor(offset, device=self.device))
        loss = self.averaged(batch.masked.to(self.device), key)
        return Loss(loss, loss)

    def evaluate(self, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """The model on the dev split without dropout, the same tokens hidden every time, as in training.

        Args:
            progress: called after every batch with the number of examples done and in all; it may raise to stop.

        Returns:
            mlm_loss and mlm_accuracy, the means over the tasks, and dev_losses and dev_accuracies of each task.
        """
        total, done, size = sum(map(len, self.dev.values())), 0, self.eval_batch_size
        losses: dict[str, float] = {}
        accuracies: dict[str, float] = {}
        self.model.eval()
        for name, task in self.dev.items():
            order = np.argsort(-task.lengths, kind="stable")
            batches = [order[begin : begin + size] for begin in range(0, len(order), size)]
            sums = torch.zeros(len(batches), 3, dtype=torch.float64)  # of the losses, right and hidden tokens
            for own, dealt in self.ranks.rounds(range(len(batches))):
                for number in own:
                    with torch.inference_mode(), needs_less(name, batches[number], task):
                        batch, positions, targets = task.batch(batches[number]).to(self.device)
                        logits = self.model(batch, positions)
                        loss = masked_loss(logits, targets).item() * len(targets)
                        right = int((logits.argmax(dim=-1) == targets).sum())
                    sums[number] = torch.tensor([loss, right, len(targets)], dtype=torch.float64)
                self.ranks.exchange().wait()
                if progress is not None:
                    progress(done + sum(map(len, batches[:dealt])), total)
            done += len(order)
            # One batch after the other, as one rank adds them up.
            loss, right, hidden = map(sum, zip(*self.ranks.sum(sums).tolist(), strict=True))
            losses[name], accuracies[name] = loss / hidden, right / hidden
        return {
            "mlm_loss": sum(losses.values()) / len(losses),
            "mlm_accuracy": sum(accuracies.values()) / len(accuracies),
            "dev_losses": losses,
            "dev_accuracies": accuracies,
        }

    def metrics(self, *, interrupted: bool = False, diverged: bool = False) -> dict[str, Any]:
        """Figures of the last evaluated epoch and the course so far, JSON-able."""
        seconds = sum(self.seconds.values())
        last = self.history[-1] if self.history else {}
        return {
            "mlm_loss": last.get("mlm_loss"),
            "mlm_accuracy": last.get("mlm_accuracy"),
            "seconds": seconds,
            "tokens_per_second": self.tokens / seconds if seconds else None,
            "interrupted": interrupted,
            "diverged": diverged,
            "epochs": list(self.history),
            "steps": self.step,
            "cycles_per_epoch": self.sampler.cycles,
            "steps_per_epoch": self.sampler.steps_per_epoch,
            "skipped_steps": dict(self.skips.counts),
            "tokens": self.tokens,
            "hidden_tokens": self.hidden,
            "seconds_by_part": self.seconds_by_part(),
        }

    def describe(self) -> str:
        """For people: one line with the settings."""
        settings = self.settings
        hidden = "one token per sequence" if settings.fraction is None else f"{settings.fraction:.4g} of the tokens"
        strategy = "80/10/10" if settings.strategy == "bert" else "always [MASK]"
        batches = describe_batches(self.batch_sizes, self.ranks.size, self.accumulate)
        rate = self.model.bert.config.hidden_dropout_prob
        dropout = f"dropout {rate:g}" if settings.dropout else "no dropout"
        return (
            f"pretraining: masked language modelling, {hidden} hidden ({strategy}), {settings.epochs} x "
            f"{self.sampler.cycles} cycles, batches {batches}, learning rate {settings.learning_rate:g}, "
            f"{dropout}, head from {settings.head} weights"
        )


class _MaskedLoss(nn.Module):
    """`MaskedLanguageModel.loss` as a module's call."""

    def __init__(self, model: MaskedLanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, masked: MaskedBatch, key: DropoutKey) -> Tensor:
        return self.model.loss(masked, key)


def pretrain(
    trainer: Pretrainer,
    console: Console,
    *,
    stop: StopRequest | None = None,
    log: LossLog | None = None,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Runs the epochs of `trainer.settings`, each followed by an evaluation on dev, from where the trainer stands.

    The encoder holds the weights of the last step then, in the mode it had before, and no gradients.

    Args:
        console: where progress goes.
        stop: ends it after the current step as soon as it is set.
        log: gets every step.
        after_step: called after each step but an epoch's last.
        after_epoch: called with the metrics so far after each evaluation.

    Returns:
        `Pretrainer.metrics`; "interrupted" says whether `stop` has ended it.

    Raises:
        NonFiniteLossError: see `Pretrainer.epoch`.
    """
    past = max(sum(trainer.seconds.values()), *(epoch["seconds_total"] for epoch in trainer.history), 0.0)
    begin, was_training = perf_counter() - past, trainer.model.bert.training
    epochs = trainer.settings.epochs
    eval_tokens = sum(int(task.lengths.sum()) for task in trainer.dev.values())
    progress = make_progress(console, epochs, trainer.sampler, eval_tokens)
    try:
        with progress:
            for epoch in range(len(trainer.history) + 1, epochs + 1):
                # Unless its steps were over when the run was stopped.
                for step in trainer.epoch() if trainer.sampler.epoch < epoch else ():
                    if log is not None:
                        log.add(step)
                    progress.step(step)
                    trainer.losses.add(step)
                    if stop:
                        raise Stopped
                    if after_step is not None and not trainer.sampler.epoch_over:
                        after_step()
                figures = trainer.evaluate(watch(progress, "dev", stop))
                trainer.history.append(
                    {
                        "epoch": epoch,
                        **figures,
                        "train_losses": trainer.losses.means(),
                        "seconds": sum(trainer.seconds.values()),
                        "seconds_total": perf_counter() - begin,
                    }
                )
                trainer.losses.clear()
                if after_epoch is not None:
                    after_epoch(trainer.metrics())
                progress.say(
                    f"pretraining epoch {epoch}/{epochs}: dev loss {figures['mlm_loss']:.3f}  "
                    f"accuracy {figures['mlm_accuracy']:.3f}  after {clock(perf_counter() - begin)}"
                )
    except Stopped:
        return trainer.metrics(interrupted=True)
    finally:
        trainer.model.bert.train(was_training)
        trainer.optimizer.zero_grad(set_to_none=True)
    return trainer.metrics()
