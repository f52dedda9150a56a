"""The settings of additional pretraining; a file of their own because `TrainConfig` holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_args

from tyro.conf import arg

from smartcs.data.masking import MaskStrategy
from smartcs.model.mlm import HeadStart
from smartcs.training.checks import Fields


@dataclass(frozen=True)
class PretrainConfig:
    """Masked language modelling on the tasks' training texts, before fine-tuning.

    The defaults are what the paper chose, but for `epochs`: it took 5, and 0 is no pretraining. It tried 3, 5 and 10
    epochs, learning rates 1e-5, 2e-5 and 3e-5, both strategies, SST alone and all tasks, with and without dropout.
    Batch sizes are the run's.
    """

    epochs: int = 0
    """Epochs of masked language modelling before fine-tuning; 0 for none."""
    cycles: Annotated[
        int | None, arg(metavar="INT", help_behavior_hint="(default: until the task with fewest batches is exhausted)")
    ] = None
    """Cycles per epoch; a cycle is one batch and one optimizer step of each task."""
    learning_rate: float = 1e-5
    """AdamW's learning rate, constant."""
    strategy: MaskStrategy = "bert"
    """What stands for a hidden token: "bert", [MASK] 80 %, a random word piece 10 %, itself 10 %; "mask", [MASK]."""
    fraction: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="(default: one token per sequence)")] = (
        None
    )
    """Share of the tokens to hide, at least one per sequence; the original BERT's is 0.15."""
    tasks: str = "all"
    """Whose texts: all, or some of sst, qqp, sts joined by +."""
    dropout: bool = False
    """Apply the encoder's dropout."""
    head: HeadStart = "random"
    """Where the layer over the vocabulary starts: random weights, or a copy of the word embeddings."""

    def validate(self, prefix: str = "PretrainConfig: ") -> None:
        """Checks every value.

        Args:
            prefix: what the message of an error puts before the name of the value.

        Raises:
            ValueError: a value out of range, as "TrainConfig: pretrain.epochs is -1, expected ...".
        """
        fields = Fields(self, f"{prefix}{{}}")
        fields.integer("epochs", low=0)
        fields.integer("cycles", low=1, optional=True)
        fields.number("learning_rate", above=True)
        fields.choice("strategy", get_args(MaskStrategy))
        if self.fraction is not None:
            fields.number("fraction", above=True)
            fields.that("fraction", self.fraction <= 1, "a number above 0 and at most 1")
        fields.tasks("tasks", none=False)
        fields.flag("dropout")
        fields.choice("head", get_args(HeadStart))
