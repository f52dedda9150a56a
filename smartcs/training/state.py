"""All that the next step of a run follows from, beside its settings, data and weights: to be saved and gone on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from smartcs.training.pretraining import Pretrainer
from smartcs.training.steps import StepLoop
from smartcs.training.trainer import Trainer


def trainer_state(trainer: Trainer) -> dict[str, Any]:
    """Of fine-tuning: numbers and tensors as `state_files.write_state` takes them. Random numbers follow from the step.

    What is made of the weights or of this state (packed weights, row flags of sparse gradients, CUDA graphs) is made
    again.
    """
    objective = trainer.objective
    return {
        "loop": _loop_state(trainer),
        "optimizer": trainer.optimizer.named_state(_parameters(trainer.model)),
        "objective": {
            "smart": {task: regularizer.state_dict() for task, regularizer in objective.regularizers.items()},
            "bregman": None if objective.anchor is None else objective.anchor.state_dict(),
        },
    }


def load_trainer_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Goes on from a `trainer_state`.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: it is another run's, or not whole.
    """
    objective = trainer.objective
    _load_loop_state(trainer, state["loop"])
    trainer.optimizer.load_named_state(state["optimizer"], _parameters(trainer.model))
    smart, bregman = state["objective"]["smart"], state["objective"]["bregman"]
    if set(smart) != set(objective.regularizers) or (bregman is None) != (objective.anchor is None):
        raise ValueError("the state is of other regularisers")
    for task, regularizer in objective.regularizers.items():
        regularizer.load_state_dict(smart[task])
    if objective.anchor is not None:
        objective.anchor.load_state_dict(bregman)


def pretrainer_state(pretrainer: Pretrainer) -> dict[str, Any]:
    """The same of pretraining, with its head."""
    return {
        "loop": {
            **_loop_state(pretrainer),
            "hidden": pretrainer.hidden,
            "history": pretrainer.history,
        },
        "optimizer": pretrainer.optimizer.named_state(_parameters(pretrainer.model)),
        "head": pretrainer.model.head.state_dict(),
    }


def load_pretrainer_state(pretrainer: Pretrainer, state: Mapping[str, Any]) -> None:
    """Goes on from a `pretrainer_state`. Raises as `load_trainer_state`."""
    loop = state["loop"]
    _load_loop_state(pretrainer, loop)
    pretrainer.hidden, pretrainer.history = int(loop["hidden"]), list(loop["history"])
    pretrainer.optimizer.load_named_state(state["optimizer"], _parameters(pretrainer.model))
    pretrainer.model.head.load_state_dict(state["head"])


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def _loop_state(loop: StepLoop[Any]) -> dict[str, Any]:
    return {
        "step": loop.step,
        "tokens": loop.tokens,
        "seconds": dict(loop.seconds),
        "background_seconds": loop.background_seconds,
        "sampler": loop.sampler.state_dict(),
        "losses": loop.losses.state_dict(),
        "skips": loop.skips.state_dict(),
    }


def _load_loop_state(loop: StepLoop[Any], state: Mapping[str, Any]) -> None:
    loop.step, loop.tokens = int(state["step"]), int(state["tokens"])
    # By part; another device has other parts, and begins to count.
    loop.seconds |= {part: float(value) for part, value in state["seconds"].items() if part in loop.seconds}
    loop.background_seconds = float(state["background_seconds"])
    loop.sampler.load_state_dict(state["sampler"])
    loop.losses.load_state_dict(state["losses"])
    loop.skips.load_state_dict(state["skips"])
