"""The samplers: full coverage, one seed one order, exact resumption, and what they refuse."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest

from smartcs.data.sampling import IndexStream, RoundRobinSampler

SIZES = {"sst": 20, "qqp": 103, "sts": 9}
BATCHES = {"sst": 6, "qqp": 10, "sts": 4}


def _take(sampler: RoundRobinSampler, epochs: int) -> list[tuple[str, list[int]]]:
    return [(task, rows.tolist()) for _ in range(epochs) for task, rows in sampler.batches()]


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (7, 7), (7, 3), (10, 4), (3, 8), (2, 7)])
def test_each_pass_holds_each_index_once(size: int, batch: int) -> None:
    stream = IndexStream("sst", size, batch, seed=3)
    batches = [stream.next_batch() for _ in range(6 * size)]
    assert all(rows.shape == (batch,) and rows.dtype == np.int64 for rows in batches)
    passes = np.concatenate(batches).reshape(-1, size)
    assert (np.sort(passes, axis=1) == np.arange(size)).all()


def test_passes_are_shuffled_anew() -> None:
    stream = IndexStream("sst", 100, 100, seed=0)
    passes = [stream.next_batch().tolist() for _ in range(3)]
    assert len({tuple(order) for order in [*passes, list(range(100))]}) == 4


def test_order_follows_from_seed_and_task() -> None:
    def order(name: str, seed: int) -> list[int]:
        return IndexStream(name, 50, 50, seed).next_batch().tolist()

    assert order("sst", 1) == order("sst", 1)
    assert order("sst", 1) != order("sst", 2)
    assert order("sst", 1) != order("qqp", 1)


def test_order_is_the_same_in_every_process() -> None:
    """A fixed expectation: a salted hash or a dependence on dict order would change it."""
    assert IndexStream("sst", 8, 8, seed=1).next_batch().tolist() == EXPECTED_ORDER


EXPECTED_ORDER = [6, 4, 7, 5, 3, 1, 0, 2]


def test_default_cycles_exhaust_the_smallest_loader() -> None:
    sampler = RoundRobinSampler(SIZES, BATCHES, seed=0)
    assert sampler.cycles == 3  # ceil(9 / 4) for sts, against 4 for sst and 11 for qqp
    assert sampler.steps_per_epoch == 9
    epoch = _take(sampler, 1)
    assert [task for task, _ in epoch] == ["sst", "qqp", "sts"] * 3
    assert {row for task, rows in epoch if task == "sts" for row in rows} == set(range(9))
    assert sampler.epoch == 1


def test_cycles_can_be_set_and_tasks_are_independent() -> None:
    sampler = RoundRobinSampler(SIZES, BATCHES, seed=0, cycles=5)
    assert len(_take(sampler, 1)) == 15
    alone = RoundRobinSampler({"qqp": 103}, {"qqp": 10}, seed=0, cycles=5)
    together = [rows for task, rows in _take(RoundRobinSampler(SIZES, BATCHES, seed=0, cycles=5), 1) if task == "qqp"]
    assert [rows for _, rows in _take(alone, 1)] == together


def test_epochs_go_on_where_the_last_one_stopped() -> None:
    long = _take(RoundRobinSampler(SIZES, BATCHES, seed=4, cycles=6), 1)
    assert _take(RoundRobinSampler(SIZES, BATCHES, seed=4, cycles=3), 2) == long


@pytest.mark.parametrize("stop", [0, 1, 4, 8, 9, 10, 13, 18])
def test_resume_is_exact(stop: int) -> None:
    expected = _take(RoundRobinSampler(SIZES, BATCHES, seed=7), 4)
    first = RoundRobinSampler(SIZES, BATCHES, seed=7)
    seen: list[tuple[str, list[int]]] = []
    while len(seen) < stop:
        seen += [(task, rows.tolist()) for task, rows in islice(first.batches(), stop - len(seen))]
    state = json.loads(json.dumps(first.state_dict()))

    second = RoundRobinSampler(SIZES, BATCHES, seed=7)
    second.load_state_dict(state)
    while second.epoch < 4:
        seen += [(task, rows.tolist()) for task, rows in second.batches()]
    assert seen == expected


def test_state_of_another_run_is_refused() -> None:
    state = RoundRobinSampler(SIZES, BATCHES, seed=7).state_dict()
    with pytest.raises(ValueError, match="sst: the saved state has seed 7, expected 8"):
        RoundRobinSampler(SIZES, BATCHES, seed=8).load_state_dict(state)
    with pytest.raises(ValueError, match="sts: the saved state has size 9, expected 10"):
        RoundRobinSampler({**SIZES, "sts": 10}, BATCHES, seed=7).load_state_dict(state)
    with pytest.raises(ValueError, match="has the tasks sst, qqp, sts, expected sst"):
        RoundRobinSampler({"sst": 20}, {"sst": 6}, seed=7).load_state_dict(state)
    with pytest.raises(ValueError, match="saved state lacks step, expected cycles, epoch, step, streams"):
        RoundRobinSampler(SIZES, BATCHES, seed=7).load_state_dict(
            {key: value for key, value in state.items() if key != "step"}
        )
    state["streams"]["sst"]["position"] = 21
    with pytest.raises(ValueError, match="sst: the saved state has pass 0 and position 21, expected .* 0 to 20"):
        RoundRobinSampler(SIZES, BATCHES, seed=7).load_state_dict(state)


@pytest.mark.parametrize(
    ("sizes", "batches", "options", "message"),
    [
        ({}, {}, {}, "sizes names no task"),
        ({"sst": 0}, {"sst": 6}, {}, "sst: no examples to sample from"),
        ({"sst": 5}, {"sst": 0}, {}, "sst: batch size is 0, expected at least 1"),
        ({"sst": 5}, {"sst": -2}, {}, "sst: batch size is -2"),
        ({"sst": 5}, {}, {}, "batch_sizes lacks sst, expected sst"),
        ({"sst": 5}, {"sst": 1, "qq": 2}, {}, "batch_sizes has the unknown qq, expected sst"),
        ({"sst": 5}, {"sst": 1}, {"cycles": 0}, "cycles is 0, expected at least 1"),
        ({"sst": 5}, {"sst": 1}, {"seed": -1}, "seed is -1, expected a non-negative integer"),
    ],
)
def test_argument_errors(sizes: dict[str, int], batches: dict[str, int], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        RoundRobinSampler(sizes, batches, **{"seed": 0, **options})
    assert message in str(caught.value)
