"""The samplers beside round robin: the paper's deterministic annealing, and Stickland & Murray's."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from smartcs.data.sampling import AnnealedDeterministicSampler, AnnealedSampler, RoundRobinSampler

SIZES = {"sst": 20, "qqp": 103, "sts": 9}
BATCHES = {"sst": 6, "qqp": 10, "sts": 4}


def tasks(sampler) -> list[str]:
    return [task for task, _ in sampler.batches()]


def test_the_largest_set_goes_first_in_every_epoch():
    sampler = AnnealedDeterministicSampler(SIZES, BATCHES, seed=1, cycles=2, solo_steps=3)
    assert sampler.steps_per_epoch == 9 and sampler.solo_steps == 3
    for _ in range(2):
        assert tasks(sampler) == ["qqp"] * 3 + ["sst", "qqp", "sts"] * 2


def test_as_many_lone_batches_as_cycles_by_default():
    sampler = AnnealedDeterministicSampler(SIZES, BATCHES, seed=1)
    assert sampler.cycles == 3 and sampler.solo_steps == 3 and sampler.steps_per_epoch == 12
    none = AnnealedDeterministicSampler(SIZES, BATCHES, seed=1, solo_steps=0)
    plain = RoundRobinSampler(SIZES, BATCHES, seed=1)
    assert [(t, r.tolist()) for t, r in none.batches()] == [(t, r.tolist()) for t, r in plain.batches()]


def test_probabilities_go_from_proportional_to_nearly_even():
    sampler = AnnealedSampler(SIZES, BATCHES, seed=1, cycles=400, epochs=3)
    sizes = np.array(list(SIZES.values()))
    for power in (1.0, 0.6, 0.2, 0.2):
        expected = sizes**power / (sizes**power).sum()
        np.testing.assert_allclose(sampler.probabilities, expected)
        counts = Counter(tasks(sampler))
        assert sum(counts.values()) == 1200
        # Four standard deviations of a binomial count.
        for name, p in zip(SIZES, expected, strict=True):
            assert abs(counts[name] - 1200 * p) < 4 * np.sqrt(1200 * p * (1 - p))


def test_one_epoch_is_in_proportion_to_the_sizes():
    np.testing.assert_allclose(
        AnnealedSampler({"a": 1, "b": 3}, {"a": 1, "b": 1}, seed=0, epochs=1).probabilities, [0.25, 0.75]
    )


def test_seeds_and_epochs_give_other_orders():
    first = AnnealedSampler(SIZES, BATCHES, seed=1, cycles=20, epochs=5)
    again = AnnealedSampler(SIZES, BATCHES, seed=1, cycles=20, epochs=5)
    other = AnnealedSampler(SIZES, BATCHES, seed=2, cycles=20, epochs=5)
    one, two = tasks(first), tasks(first)
    assert one == tasks(again) and one != two and one != tasks(other)


@pytest.mark.parametrize("stop", [0, 1, 11, 12, 13, 30])
@pytest.mark.parametrize(
    "make",
    [
        lambda: AnnealedSampler(SIZES, BATCHES, seed=7, cycles=4, epochs=3),
        lambda: AnnealedDeterministicSampler(SIZES, BATCHES, seed=7, cycles=3, solo_steps=3),
    ],
)
def test_resume_is_exact(make, stop):
    def take(sampler, epochs):
        return [(t, r.tolist()) for _ in range(epochs) for t, r in sampler.batches()]

    expected = take(make(), 3)
    first, seen = make(), []
    while len(seen) < stop:
        seen += [(t, r.tolist()) for t, r in islice(first.batches(), stop - len(seen))]
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    while second.epoch < 3:
        seen += [(t, r.tolist()) for t, r in second.batches()]
    assert seen == expected


def test_argument_errors():
    with pytest.raises(ValueError, match="AnnealedSampler: epochs is 0, expected at least 1"):
        AnnealedSampler(SIZES, BATCHES, seed=0, epochs=0)
    with pytest.raises(ValueError, match="solo_steps is -1, expected at least 0"):
        AnnealedDeterministicSampler(SIZES, BATCHES, seed=0, solo_steps=-1)
    with pytest.raises(ValueError, match="AnnealedSampler: sizes names no task"):
        AnnealedSampler({}, {}, seed=0, epochs=1)
