"""Every setting of SmartArguments reaches what it sets."""

import dataclasses

import pytest

from smartcs.integrations.transformers import SmartArguments, SmartObjective

REGULARIZER = {
    "noise_std": 2e-5,
    "step_size": 2e-3,
    "radius": 3e-5,
    "steps": 2,
    "update": "paper",
    "norm": "2",
    "level": "sentence",
    "norm_eps": 1e-5,
    "detach_targets": True,
    "detach_clean": True,
    "seed": 7,
}
ANCHOR = {"beta": 0.5, "inner_steps": 3, "detach_targets": True}
LOSSES = {
    "single_label_classification": "categorical",
    "multi_label_classification": "bernoulli",
    "regression": "squared",
}
# Read by SmartObjective itself: test_transformers_objective.py shows their effect.
ITS_OWN = {"smart_weight", "bregman_weight", "problem_type", "share_dropout"}


def settings_of(part, names):
    return {name: getattr(part, name) for name in names}


@pytest.mark.parametrize("setting", sorted(REGULARIZER.items() | ANCHOR.items()), ids=lambda setting: setting[0])
def test_a_setting_reaches_the_regularizer_and_the_anchor(encoder, setting):
    name, value = setting
    default = SmartArguments()
    assert value != getattr(default, name)
    smart = SmartObjective(encoder(), bregman_weight=1.0, **{name: value})
    for part, names in ((smart._regularizer, REGULARIZER), (smart._anchor, ANCHOR)):
        expected = settings_of(default, names) | ({name: value} if name in names else {})
        assert settings_of(part, names) == expected


@pytest.mark.parametrize("problem_type", LOSSES)
def test_the_problem_type_reaches_both_losses(encoder, problem_type):
    smart = SmartObjective(encoder(), bregman_weight=1.0, problem_type=problem_type)
    assert smart._regularizer.loss == smart._regularizer.inner_loss == smart._anchor.loss == LOSSES[problem_type]


def test_no_setting_is_forgotten_here():
    assert {field.name for field in dataclasses.fields(SmartArguments)} == {*REGULARIZER, *ANCHOR, *ITS_OWN}
