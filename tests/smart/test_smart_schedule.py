"""WeightSchedule and BetaSchedule, step by step."""

import pytest

from smartcs.smart import BetaSchedule, WeightSchedule


def test_constant() -> None:
    assert [WeightSchedule(2.0)(step) for step in (0, 1, 10**6)] == [2.0, 2.0, 2.0]


def test_warm_up() -> None:
    assert [WeightSchedule(2.0, warmup_steps=4)(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "decay, expected",
    [
        ("linear", [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0]),
        ("cosine", [1.0, 2.0, 2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5, 0.0, 0.0]),
    ],
)
def test_decay(decay, expected) -> None:
    schedule = WeightSchedule(2.0, warmup_steps=2, decay=decay, total_steps=6)
    assert [schedule(step) for step in range(8)] == pytest.approx(expected, abs=1e-12)


def test_beta() -> None:
    schedule = BetaSchedule(switch_step=2)
    assert [schedule(step) for step in range(4)] == [0.99, 0.99, 0.999, 0.999]
    assert BetaSchedule(switch_step=0, late=0.5)(0) == 0.5


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: WeightSchedule(-1.0), "weight is -1.0, expected a finite number >= 0"),
        (lambda: WeightSchedule(float("inf")), "weight is inf"),
        (lambda: WeightSchedule(1.0, warmup_steps=-1), "warmup_steps is -1, expected >= 0"),
        (lambda: WeightSchedule(1.0, decay="step"), "decay is 'step', expected one of constant, linear, cosine"),
        (lambda: WeightSchedule(1.0, 5, "linear", 5), "total_steps is 5, expected more than warmup_steps = 5"),
        (lambda: BetaSchedule(switch_step=1, early=1.1), "early is 1.1, expected 0 <= early <= 1"),
        (lambda: BetaSchedule(switch_step=1, late=-0.1), "late is -0.1"),
        (lambda: BetaSchedule(switch_step=-1), "switch_step is -1, expected >= 0"),
    ],
)
def test_messages(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
