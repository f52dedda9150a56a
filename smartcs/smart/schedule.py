"""Values that change over the steps of a run: the weight of a term, the momentum of the anchor."""

import math
from dataclasses import dataclass
from typing import Literal

from .losses import check_option

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class WeightSchedule:
    """lambda, the weight of a regulariser, by step: rises linearly, then stays or falls to 0.

    Attributes:
        weight: The full weight; the paper's is 2.
        warmup_steps: Steps until it is reached: step s, counted from 0, has the share (s + 1) / warmup_steps of it.
        decay: After that "constant", or "linear" or "cosine" down to 0 at total_steps, and 0 from there on.
        total_steps: Needed for a decay.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    weight: float
    warmup_steps: int = 0
    decay: Decay = "constant"
    total_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"WeightSchedule: weight is {self.weight}, expected a finite number >= 0")
        if self.warmup_steps < 0:
            raise ValueError(f"WeightSchedule: warmup_steps is {self.warmup_steps}, expected >= 0")
        check_option("WeightSchedule", "decay", self.decay, Decay)
        if self.decay != "constant" and self.total_steps <= self.warmup_steps:
            raise ValueError(
                f"WeightSchedule: total_steps is {self.total_steps}, expected more than warmup_steps = "
                f"{self.warmup_steps} for decay={self.decay!r}"
            )

    def __call__(self, step: int) -> float:
        """The weight of a step, counted from 0."""
        if step + 1 < self.warmup_steps:
            return self.weight * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.weight
        done = min(1.0, max(0.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)))
        return self.weight * (1 - done if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True, kw_only=True)
class BetaSchedule:
    """The anchor's momentum by step: one value early, when the weights move fast, another one late.

    Jiang et al. 2019 (SMART) use 0.99 for the first 10 % of the steps and 0.999 for the rest.

    Attributes:
        switch_step: The first step, counted from 0, with the late value.
        early, late: The two values, in [0, 1].

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    switch_step: int
    early: float = 0.99
    late: float = 0.999

    def __post_init__(self) -> None:
        for name in ("early", "late"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"BetaSchedule: {name} is {getattr(self, name)}, expected 0 <= {name} <= 1")
        if self.switch_step < 0:
            raise ValueError(f"BetaSchedule: switch_step is {self.switch_step}, expected >= 0")

    def __call__(self, step: int) -> float:
        """The momentum of a step, counted from 0."""
        return self.early if step < self.switch_step else self.late
