"""The error budget itself: what it lets pass and what it must not."""

import pytest
import torch
from error_budget import MULTIPLIERS, BudgetExceeded, check, observed

EPS = torch.finfo(torch.float32).eps
TRUTH = torch.linspace(-1, 1, 11, dtype=torch.float64)
ROUNDED = TRUTH.float()


@pytest.fixture(autouse=True)
def not_observed():
    """Keeps these made-up results out of the summary of a test run."""
    before = dict(observed)
    yield
    observed.clear()
    observed.update(before)


def test_within():
    assert check(ROUNDED, TRUTH, ROUNDED, "forward") < 1
    assert check(TRUTH, TRUTH, TRUTH, "forward") == 0
    assert check(TRUTH[:0].float(), TRUTH[:0], TRUTH[:0].float(), "forward") == 0


@pytest.mark.parametrize("kind", MULTIPLIERS)
def test_share_and_edge(kind):
    """With an exact fallback the budget is c roundings of the largest value; the share used is reported."""
    c = MULTIPLIERS[kind][1]
    truth = torch.tensor([1.0, 0.25], dtype=torch.float64)
    exact = truth.float()
    assert check(exact + torch.tensor([0, (c - 1) * EPS]), truth, exact, kind) == pytest.approx((c - 1) / c)
    with pytest.raises(BudgetExceeded, match=rf"out: {kind} in torch.float32 uses 1\d\d% of its error budget"):
        check(exact + torch.tensor([0, 1.5 * c * EPS]), truth, exact, kind, "out")


def test_worse_fallback_allows_more():
    off = ROUNDED + 0.25
    assert check(off, TRUTH, off, "forward") == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(BudgetExceeded, match="max error"):
        check(ROUNDED + 0.6, TRUTH, off, "forward")


def test_many_small_errors_count():
    """The 2-norm rejects what stays below the largest error everywhere."""
    truth = torch.ones(1000, dtype=torch.float64)
    fallback = truth.float()
    fallback[0] += 0.1
    with pytest.raises(BudgetExceeded, match="L2 error"):
        check(truth.float() + 0.15, truth, fallback, "forward")


def test_float64_is_held_to_one_part_in_ten_billion():
    assert check(TRUTH * (1 + 5e-11), TRUTH, TRUTH, "activation gradient") == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(BudgetExceeded):
        check(TRUTH * (1 + 2e-10), TRUTH, TRUTH, "activation gradient")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(value):
    broken = ROUNDED.clone()
    broken[3] = value
    with pytest.raises(BudgetExceeded, match="1 elements are not finite, the reference is"):
        check(broken, TRUTH, ROUNDED, "forward")
    truth = TRUTH.clone()
    truth[3] = value
    assert check(broken, truth, broken, "forward") < 1
    with pytest.raises(BudgetExceeded, match="differs from the reference where that is not finite"):
        check(ROUNDED, truth, broken, "forward")


def test_misuse():
    with pytest.raises(BudgetExceeded, match=r"shapes differ .*: \(11, 1\), \(11,\), \(11,\)"):
        check(ROUNDED[:, None], TRUTH, ROUNDED, "forward")
    with pytest.raises(AssertionError, match="the reference is torch.float32, not float64"):
        check(ROUNDED, ROUNDED, ROUNDED, "forward")
    with pytest.raises(AssertionError, match="kernel torch.float32 against fallback torch.float64"):
        check(ROUNDED, TRUTH, TRUTH, "forward")
    with pytest.raises(AssertionError, match="a statistic in torch.bfloat16"):
        check(TRUTH.bfloat16(), TRUTH, TRUTH.bfloat16(), "statistic")
