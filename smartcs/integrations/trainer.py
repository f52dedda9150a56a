"""`SmartTrainer`: transformers' Trainer with SMART and Bregman in the training loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .arguments import SmartArguments
from .objective import SmartObjective

STATE_FILE = "smartcs_state.pt"
logger = logging.getLogger(__name__)


class SmartTrainer(Trainer):
    """A Trainer whose training loss has SMART's and Bregman's terms; evaluation is the Trainer's own.

    Beside ``loss``, the metrics of `SmartObjective.metrics` are logged. Checkpoints hold the anchor and the counters of
    the noise next to the optimizer's state, and resuming continues from them.

    With gradient accumulation the loss is the mean over the labels of all accumulated batches, for every model. (The
    plain Trainer leaves that to the model's ``num_items_in_batch``, which many classifiers accept and ignore, those of
    BERT in transformers 5 among them; their gradient is then too large by the number of accumulated batches.)

    Args:
        args, kwargs: The Trainer's.
        smart: The settings; by default SMART with the paper's values and no Bregman term.

    Attributes:
        objective: The `SmartObjective` of the present or latest training; None before the first.

    Raises:
        ValueError: the training is set up for DataParallel (several GPUs in one process), FSDP or DeepSpeed, or a
            setting is out of range, or the model is of a kind that SMART does not fit.
        TypeError: ``smart`` is something else, or the model has no input embeddings.
    """

    def __init__(self, *args: Any, smart: SmartArguments | None = None, **kwargs: Any) -> None:
        self.smart = SmartArguments.of(smart)
        super().__init__(*args, **kwargs)
        for unsupported, name in (
            (self.args.n_gpu > 1, f"DataParallel over {self.args.n_gpu} GPUs"),
            (self.is_fsdp_enabled, "FSDP"),
            (self.is_deepspeed_enabled, "DeepSpeed"),
        ):
            if unsupported:
                raise ValueError(
                    f"SmartTrainer: the training is set up for {name}, expected the whole model on one device per "
                    "process (torchrun, accelerate launch, or CUDA_VISIBLE_DEVICES with one GPU)"
                )
        assert isinstance(self.model, nn.Module)  # Trainer has made it, or raised
        SmartObjective.validate(self.model, self.smart)
        # The Trainer is to count the labels for every model, and to leave the scaling of the loss to `compute_loss`.
        self._model_wants_items, self.model_accepts_loss_kwargs = self.model_accepts_loss_kwargs, True
        self.objective: SmartObjective | None = None
        self._resumed: Mapping[str, Any] | None = None
        self.add_callback(_Steps(self))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The Trainer's loss, with the regularisers' terms in training; see `Trainer.compute_loss`."""
        objective = self.objective
        if objective is None or not objective.training(model):
            return self._plain_loss(model, inputs, return_outputs, num_items_in_batch)
        objective.check(inputs)
        share = self._share(inputs["labels"], num_items_in_batch)
        # A loss function of the user's divides by the number of items; without it, the loss is the mean of this batch.
        items = num_items_in_batch if self.compute_loss_func is not None else None
        with objective.clean_pass() as clean:
            # A copy: label smoothing takes the labels out.
            loss, outputs = self._plain_loss(model, dict(inputs), True, items)
        terms = objective.terms(inputs, outputs, clean)
        total = (loss if items is not None else share * loss) + share * terms.weighted
        return (total, outputs) if return_outputs else total

    def _plain_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool, items: Tensor | int | None
    ) -> Any:
        self.model_accepts_loss_kwargs = self._model_wants_items
        try:
            return super().compute_loss(model, inputs, return_outputs, items)
        finally:
            self.model_accepts_loss_kwargs = True

    def _share(self, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
        """What makes a batch's mean its part of the mean over all accumulated batches and, with
        ``average_tokens_across_devices``, all processes."""
        if num_items_in_batch is None:
            return 1.0
        share = labels.ne(-100).sum() / num_items_in_batch
        return share * self.accelerator.num_processes if self.args.average_tokens_across_devices else share

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the regularisers' metrics to the Trainer's logs of training."""
        if self.objective is not None and "loss" in logs:
            logs |= self.objective.metrics()
        super().log(logs, *args, **kwargs)

    # The two below are not in the Trainer's documented interface, but are called where the optimizer's state is written
    # and read, and only then: not for save_only_model, and not after a checkpoint has been pushed or rotated away.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.objective is not None and self.args.should_save:
            torch.save(self.objective.state_dict(), Path(output_dir, STATE_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed = None
        if checkpoint is None:
            return
        if Path(checkpoint, STATE_FILE).is_file():
            self._resumed = torch.load(Path(checkpoint, STATE_FILE), map_location="cpu", weights_only=True)
        else:
            logger.warning("%s has no %s: SMART starts anew, an anchor from its weights", checkpoint, STATE_FILE)


class _Steps(TrainerCallback):
    """Tells the objective when training begins, when the optimizer took a step, and what went wrong in the end."""

    def __init__(self, trainer: SmartTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self.trainer
        assert isinstance(trainer.model_wrapped, nn.Module)  # Trainer has made it, or raised
        trainer.objective = SmartObjective(trainer.model_wrapped, trainer.smart)
        if trainer._resumed is not None:
            trainer.objective.load_state_dict(trainer._resumed)
            trainer._resumed = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Skipped: the gradients of float16 overflowed, and the weights are as before.
        if self.trainer.objective is not None and not self.trainer.accelerator.optimizer_step_was_skipped:
            self.trainer.objective.update()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        smart = None if self.trainer.objective is None else self.trainer.objective.statistics()["smart"]
        if smart is not None and smart["fallbacks"]:
            logger.warning(
                "SMART was left out of %d of %d batches, where its gradient or value was not finite",
                smart["fallbacks"],
                smart["steps"],
            )
