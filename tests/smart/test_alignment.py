"""How adversarial the perturbation is: the published rule at its published settings against the projected one.

With alpha = 1e-3 and gradients that are tiny because the noise is, v + alpha g is v: the rule only normalises the
noise, and its perturbation is random. adversarial_alignment, the cosine of v and g, says so in every run.
"""

import pytest
import torch
from op_harness import normal
from torch import Tensor, nn

from smartcs.smart import SmartRegularizer

TOKENS, CHANNELS, CLASSES = 40, 128, 5


class Attentive(nn.Module):
    """One attention layer and a classifier on the mean of the tokens: (T, C) to (1, K)."""

    def __init__(self, dtype=torch.float32) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 4, dtype=dtype)
        self.output = nn.Linear(CHANNELS, CLASSES, dtype=dtype)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data.copy_(normal(*parameter.shape, seed=seed) / CHANNELS**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(x + self.attention(x, x, x)[0]).mean(dim=0, keepdim=True))


def alignment(**options) -> float:
    network, x = Attentive(), normal(TOKENS, CHANNELS, seed=50).float()
    reg = SmartRegularizer(**options)
    for _ in range(3):
        reg(network, x, network(x))
    return reg.statistics()["adversarial_alignment"]


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("steps", [1, 3])
def test_published_settings_perturb_at_random(norm: str, steps: int) -> None:
    assert abs(alignment(update="mtdnn", norm=norm, steps=steps)) < 0.2


@pytest.mark.parametrize("norm, least", [("inf", 0.7), ("2", 0.95)])
def test_projected_step_is_adversarial(norm: str, least: float) -> None:
    """With p = inf the best v is a sign, whose cosine with normal numbers is .8."""
    assert alignment(update="projected", norm=norm) > least


def test_enough_alpha_makes_the_published_rule_adversarial() -> None:
    """The rule is sound, its published step is too short."""
    assert alignment(update="mtdnn", norm="2", step_size=1e6) > 0.95


def test_adversarial_direction_finds_more_than_a_random_one() -> None:
    """At equal size: what the maximum in R_s is for."""
    network, x = Attentive(torch.float64), normal(TOKENS, CHANNELS, seed=50)
    noise = 1e-5 * normal(TOKENS, CHANNELS, seed=51)
    values = {}
    for update, radius in (("mtdnn", 1.0), ("projected", 1.0)):
        reg = SmartRegularizer(update=update, norm="2", radius=radius, step_size=1e-3 if update == "mtdnn" else 1.0)
        reg(network, x, network(x), noise=noise)
        assert reg.last is not None
        assert reg.last.perturbation == pytest.approx(1, abs=0.05)
        values[update] = reg.last.value.item()
    assert values["projected"] > 3 * values["mtdnn"]
