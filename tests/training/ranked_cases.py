"""The trainings that test_distributed and benchmarks/distributed_equality.py compare, and how far apart two are."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from training.ranked import Case

from smartcs._extension import extension_status

EXACT, ROUNDED = 1e-10, 2e-5  # of losses and weights, relative to 1: float64 on the reference, float32 fused

# A perturbation along the gradient, which all numbers of a slice have a part in, and a term that does not vanish.
STRONG = {
    "recipe": "smart-bregman",
    "smart.update": "projected",
    "smart.step_size": 1e-2,
    "smart.radius": 1e-2,
    "smart.weight": 20.0,
    "smart.tasks": "all",
    "bregman.tasks": "all",
}
RECIPES = {
    "baseline": {"weight_decay": 0.1, "sampler": "annealed"},
    "smart-bregman": STRONG,
    "fusion": {**STRONG, "cosine": "fusion", "smart.level": "sentence", "smart.norm": "2"},
    "own-masks": {"recipe": "smart-bregman", "cosine": "direct", "smart.share_dropout": False},
}
# With a weight that does not blow rounding up.
MILD = {"recipe": "smart-bregman", "smart.tasks": "all", "bregman.tasks": "all", "cosine": "fusion"}
FUSED = {"baseline": RECIPES["baseline"], "smart-bregman": MILD}
# What is made wrong in which training.
WRONG = {
    "local masks": "smart-bregman",
    "averaged twice": "smart-bregman",
    "synchronised ascent": "smart-bregman",
    "ascent into the weights": "smart-bregman",
    "overlapping": "smart-bregman",
    "equal weights": "pretraining",
}
ENDS = {"nan on the last": "smart-bregman", "signal on the last": "smart-bregman"}


def cases(base: dict[str, object]) -> dict[str, Case]:
    """All trainings by name."""
    found = {
        name: Case({**base, **values, "fused": False}, "float64", accumulate=2 if name == "fusion" else 1)
        for name, values in RECIPES.items()
    }
    found["device exact"] = Case({**base, **STRONG, "fused": False}, "float64", device_step=True, accumulate=2)
    found["pretraining"] = Case({**base, "fused": False}, "float64", pretrains=True, accumulate=2)
    if extension_status()[0]:
        found |= {f"fused {name}": Case({**base, **values}, accumulate=2) for name, values in FUSED.items()}
        found["fused pretraining"] = Case(base, pretrains=True)
        found["device"] = Case({**base, **FUSED["smart-bregman"]}, device_step=True, accumulate=2)
    return found | {change: replace(found[name], change=change) for change, name in (WRONG | ENDS).items()}


def base_settings(data: Path, encoder: Path) -> dict[str, object]:
    """What all have in common: six steps, with dropout everywhere."""
    return {
        "data": str(data),
        "model": str(encoder),
        "cycles": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        "encoder_dropout": 0.1,
        "head_dropout": 0.1,
    }


def distance(ours: dict, theirs: dict) -> float:
    """The largest difference of a loss, a norm of the gradients, a weight or an anchor's; infinity for other steps."""
    if [row[-1] for row in ours["figures"]] != [row[-1] for row in theirs["figures"]] or "error" in theirs:
        return math.inf
    losses = [[abs(a[0] - b[0])] for a, b in zip(ours["figures"], theirs["figures"], strict=True)]
    norms = [abs(a / b - 1) for a, b in zip(ours["norms"], theirs["norms"], strict=True)]
    tensors = [(ours["weights"][name], value) for name, value in theirs["weights"].items()]
    tensors += zip(ours.get("anchor", []), theirs.get("anchor", []), strict=True)
    return max(np.max(losses), *norms, *(float((a - b).abs().max()) for a, b in tensors))


def close(name: str) -> float:
    return ROUNDED if name.startswith("fused") or name == "device" else EXACT


TRAINED = [*RECIPES, "device exact", "pretraining", *(f"fused {name}" for name in (*FUSED, "pretraining")), "device"]
