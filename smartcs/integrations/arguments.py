"""The settings of SMART and Bregman for Hugging Face models, in one place for plain loops and for `SmartTrainer`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

from smartcs.smart import BetaSchedule, Smoothness

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Weight = float | Callable[[int], float]

LOSSES: dict[ProblemType, Smoothness] = {
    "single_label_classification": "categorical",
    "multi_label_classification": "bernoulli",
    "regression": "squared",
}


@dataclass(frozen=True, kw_only=True)
class SmartArguments:
    """What to regularise with, and how; the defaults are the SMARTCS paper's, whose weight of SMART is 2.

    Attributes:
        smart_weight: lambda, the weight of the smoothness term, or its schedule: a function of the optimizer steps
            taken, such as `WeightSchedule`. 0 switches the term off.
        bregman_weight: mu, the weight of the Bregman proximal term, or its schedule. Off by default, since it keeps a
            second copy of the model; the paper's is 1.
        problem_type: Which distance compares two predictions: the symmetrised KL divergence
            ("single_label_classification"), the same per label ("multi_label_classification"), or the squared
            difference ("regression"). None: by the model's config, as transformers does.
        share_dropout: All passes of a step use the dropout masks of its clean pass, on the CPU and CUDA devices alone.
            False draws new ones for every pass, as mt-dnn does; the term then measures mostly dropout.
        noise_std: Standard deviation of the initial perturbation.
        step_size: Of the ascent on the perturbation. With update="projected" the perturbation gets no larger than the
            smaller of ``radius`` and about steps * step_size (plus the noise): set both.
        radius: Of the ball it is projected on, with update="projected"; no effect beyond about steps * step_size.
        steps: Ascent steps.
        update: "mtdnn" (the papers' code: at its usual settings v stays the random v, see the metric
            ``smart_alignment``), "projected" (Jiang et al., algorithm 1: truly adversarial), or "paper".
        norm: "inf", "2" or "1", over a token's or a sentence's perturbation, by ``level``.
        level: "token" or "sentence".
        norm_eps: Guards the division by the norm.
        detach_targets: The published code's gradients of the divergence instead of the true ones.
        detach_clean: No gradient through the prediction without perturbation.
        beta: Momentum of the anchor, or its `BetaSchedule`.
        inner_steps: Optimizer steps against one frozen anchor.
        seed: Of the initial perturbations.

    Raises:
        ValueError: a weight is negative or not finite, or the problem type is unknown. The other settings are checked
            by `SmartRegularizer` and `BregmanAnchor`.
        TypeError: a weight is neither a number nor a function.
    """

    smart_weight: Weight = 2.0
    bregman_weight: Weight = 0.0
    problem_type: ProblemType | None = None
    share_dropout: bool = True
    noise_std: float = 1e-5
    step_size: float = 1e-3
    radius: float = 1e-5
    steps: int = 1
    update: Literal["mtdnn", "projected", "paper"] = "mtdnn"
    norm: Literal["inf", "2", "1"] = "inf"
    level: Literal["token", "sentence"] = "token"
    norm_eps: float = 1e-6
    detach_targets: bool = False
    detach_clean: bool = False
    beta: float | BetaSchedule = 0.99
    inner_steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("smart_weight", "bregman_weight"):
            weight = getattr(self, name)
            if callable(weight):
                continue
            if not isinstance(weight, Real):
                raise TypeError(
                    f"SmartArguments: {name} is {weight!r}, a {type(weight).__name__}, expected a number or a schedule"
                )
            if not 0 <= float(weight) < math.inf:
                raise ValueError(f"SmartArguments: {name} is {weight!r}, expected a finite number >= 0 or a schedule")
        if self.problem_type is not None and self.problem_type not in get_args(ProblemType):
            known = ", ".join(get_args(ProblemType))
            raise ValueError(f"SmartArguments: problem_type is {self.problem_type!r}, expected None or one of {known}")

    @classmethod
    def of(cls, arguments: SmartArguments | None, **options: Any) -> SmartArguments:
        """``arguments``, or the defaults, with single options replaced.

        Raises:
            TypeError: ``arguments`` is something else, or an option is unknown; the message names it.
        """
        if arguments is not None and not isinstance(arguments, cls):
            raise TypeError(
                f"the settings of SMART are a {type(arguments).__name__}, expected SmartArguments or None; "
                "SmartArguments(**settings) makes one of a dict"
            )
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(f"SmartArguments: unknown {', '.join(unknown)}, expected some of {', '.join(known)}")
        return dataclasses.replace(cls() if arguments is None else arguments, **options)


def weight_at(arguments: SmartArguments, name: str, step: int) -> float:
    """A weight by its name, or its schedule's value after ``step`` optimizer steps.

    Raises:
        ValueError: the schedule's value is negative or not finite.
    """
    weight: Weight = getattr(arguments, name)
    if not callable(weight):
        return float(weight)
    value = float(weight(step))
    if not 0 <= value < math.inf:
        raise ValueError(f"SmartArguments: {name}'s schedule gives {value} at step {step}, expected a number >= 0")
    return value
