"""The settings of the two regularisers; a file of their own because `TrainConfig` holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from smartcs.model.bert import PerturbAt
from smartcs.ops.perturb import Norm, Update
from smartcs.smart.layout import Level
from smartcs.smart.schedule import Decay
from smartcs.training.checks import Fields


@dataclass(frozen=True)
class SmartConfig:
    """SMART's regulariser: lambda times how far a task's output moves when its input is perturbed."""

    tasks: str = "none"
    """Tasks it is added to: none, all, or some of sst, qqp, sts joined by +."""
    weight: float = 2.0
    """Its weight in the loss, the paper's lambda."""
    warmup: int = 0
    """Optimizer steps over which the weight rises linearly from zero."""
    decay: Decay = "constant"
    """After the warm-up: constant, or falling to zero at the end of the run along a line or half a cosine."""
    update: Update = "mtdnn"
    """The ascent. mtdnn: v + step size * g, divided by its norm (mt-dnn, smart-pytorch).
    projected: v + step size * normalised g, projected onto the ball of the radius (Jiang et al., algorithm 1).
    paper: v + step size * g, divided by the norm of g (figure 5 to the letter)."""
    norm: Norm = "inf"
    """Of the perturbation: inf, 2 or 1; for mtdnn, 1 means the sign as in that code."""
    level: Level = "token"
    """What is normalised on its own."""
    steps: int = 1
    """Ascent steps per batch, the paper's T."""
    step_size: float = 1e-3
    """Of the ascent, the paper's alpha."""
    noise_std: float = 1e-5
    """Standard deviation of the noise the ascent starts from, the paper's sigma."""
    radius: float = 1e-5
    """Of the ball that `projected` stays in, the paper's epsilon."""
    perturb_at: PerturbAt = "word_embeddings"
    """Where: before positions and types are added and normalised, or after the embedding layer."""
    share_dropout: bool = True
    """Let all passes of a step share their dropout masks; if not, every pass draws its own, as in mt-dnn."""
    detach_clean: bool = False
    """Keep the clean output constant: gradients reach the weights through the perturbed one alone."""
    detach_targets: bool = False
    """Use the published code's gradient of the divergence instead of the true one."""

    def validate(self, prefix: str) -> None:
        """Raises ValueError where a value is out of range; `prefix` stands before the name of a field."""
        check = Fields(self, f"{prefix}{{}}")
        check.tasks("tasks")
        check.number("weight", "step_size")
        check.number("noise_std", "radius", above=True)
        check.integer("warmup", low=0)
        check.integer("steps", low=1, high=100)
        check.flag("share_dropout", "detach_clean", "detach_targets")
        for field_name, choices in (
            ("decay", Decay),
            ("update", Update),
            ("norm", Norm),
            ("level", Level),
            ("perturb_at", PerturbAt),
        ):
            check.choice(field_name, get_args(choices))


@dataclass(frozen=True)
class BregmanConfig:
    """Bregman proximal point: mu times how far a task's output moves from that of an average of past weights."""

    tasks: str = "none"
    """Tasks it is added to: none, all, or some of sst, qqp, sts joined by +."""
    weight: float = 1.0
    """Its weight in the loss, the paper's mu."""
    beta: float = 0.99
    """Momentum of the anchor in the early part of the run: anchor = beta * anchor + (1 - beta) * weights.
    With 0 here and in late_beta, and one inner step, the anchor is the weights: no gradient, but for dropout."""
    late_beta: float = 0.999
    """Momentum after the early part of the run."""
    early: float = 0.1
    """The early part, as a share of the run's optimizer steps."""
    inner_steps: int = 1
    """Optimizer steps between two moves of the anchor; if several, those of the tasks that have the term."""

    def validate(self, prefix: str) -> None:
        """Raises ValueError where a value is out of range; `prefix` stands before the name of a field."""
        check = Fields(self, f"{prefix}{{}}")
        check.tasks("tasks")
        check.number("weight")
        check.number("beta", "late_beta", below=1)
        check.number("early")
        check.that("early", self.early <= 1, "a number from 0 to 1")
        check.integer("inner_steps", low=1)
