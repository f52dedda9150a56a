"""Several processes with slices of a batch take the steps of one process with all of it, dropout and noise included."""

import json
import signal
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from op_harness import threads
from training.ranked import TASKS, Case, run
from training.ranked_cases import EXACT, RECIPES, TRAINED, WRONG, base_settings, cases, close, distance
from training.torchrun import TESTS, torchrun

from smartcs._extension import extension_status
from smartcs.data.sampling import RoundRobinSampler
from smartcs.training.config import TrainConfig
from smartcs.training.distributed import Ranks
from smartcs.training.steps import StepLoop


@pytest.fixture(scope="module")
def base(data_folder, encoder_folder) -> dict[str, object]:
    return base_settings(data_folder, encoder_folder)


@pytest.fixture(scope="module")
def together(base, tmp_path_factory):
    """Runs all cases by so many processes, once; returns what each rank of each case has left."""

    @cache
    def runs(size: int) -> dict[str, list[dict]]:
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        found = cases(base)
        (folder / "cases.json").write_text(json.dumps({name: asdict(case) for name, case in found.items()}))
        torchrun(size, str(TESTS / "training" / "ranked.py"), str(folder))
        return {
            name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(size)]
            for name in found
        }

    return runs


@pytest.fixture(scope="module")
def alone(base):
    """The same cases by this process alone, with nothing made wrong in them."""

    @cache
    def one(name: str, accumulate: int = 1) -> dict:
        with threads(1):
            return run(replace(cases(base)[name], accumulate=accumulate, change=None))

    return one


def skip_without_extension(name: str) -> None:
    if name not in (*RECIPES, "pretraining") and not extension_status()[0]:
        pytest.skip("no fused ops")


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_ranks_take_the_steps_of_one(together, alone, name, size):
    skip_without_extension(name)
    one, ranks = alone(name), together(size)[name]
    assert len(one["figures"]) == 6 and distance(one, ranks[0]) < close(name)
    assert one["without_gradient"] == ranks[0]["without_gradient"] != []
    assert one["sampler"]["streams"] == ranks[0]["sampler"]["streams"]
    compare_figures(name, one, ranks[0])


@pytest.mark.parametrize("name", TRAINED)
def test_accumulated_slices_take_the_steps_of_one_batch(alone, name):
    skip_without_extension(name)
    assert distance(alone(name), alone(name, 3)) < close(name)
    compare_figures(name, alone(name), alone(name, 3))


def compare_figures(name: str, one: dict, other: dict) -> None:
    """Of every step."""
    for ours, theirs in zip(one["figures"], other["figures"], strict=True):
        assert [n is None for n in ours] == [n is None for n in theirs]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        # In float32 SMART's other figures are differences of nearly equal numbers.
        assert close(name) > EXACT or all(a == pytest.approx(b, rel=1e-8, abs=1e-12) for a, b in pairs)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_ranks_are_equal_to_the_bit(together, name, size):
    """Weights, moments and anchors; all figures, also of the evaluation; though their first weights differed."""
    skip_without_extension(name)
    first, *others = together(size)[name]
    for other in others:
        assert other["figures"] == first["figures"] and other["norms"] == first["norms"]
        assert other.get("metrics") == first.get("metrics")
        assert all(torch.equal(value, first["weights"][key]) for key, value in other["weights"].items())
        for part in ("moments", "anchor"):
            assert len(other.get(part, [])) == len(first.get(part, []))
            assert all(map(torch.equal, other.get(part, []), first.get(part, [])))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_seen(together, alone, name, size):
    """Masks by local rows, gradients averaged twice, an ascent that is not the rank's own: all far out of tolerance."""
    assert distance(alone(WRONG[name]), together(size)[name][0]) > 1e3 * EXACT


@pytest.mark.parametrize("name", ["smart-bregman", "fusion"])
def test_the_last_slice_is_no_other(together, name):
    """Over the epoch every batch's examples are dealt out once, in their order."""
    for size in (2, 3):
        ranks = together(size)[name]
        whole = [[row for part in parts for row in part] for parts in zip(*(r["examples"] for r in ranks), strict=True)]
        sizes = dict.fromkeys(TASKS, 48)
        sampler = RoundRobinSampler(sizes, dict.fromkeys(TASKS, 12), seed=TrainConfig().seed, cycles=2)
        assert whole == [rows.tolist() for _, rows in sampler.batches()]
        assert whole != [
            [row for part in parts for row in part]
            for parts in zip(*(r["examples"] for r in together(size)["overlapping"]), strict=True)
        ]


@pytest.mark.parametrize("size", [2, 3])
def test_evaluation_is_that_of_one(together, size):
    """The batches are dealt out: predictions, figures and losses are those of one process, to the bit."""
    for name in ("smart-bregman", "fusion"):
        for left in together(size)[name]:
            for task in TASKS:
                np.testing.assert_array_equal(left["dev"][task], left["dev_alone"][task])
    first, *others = together(size)["pretraining"]
    assert first["dev"]["mlm_loss"] > 0 and all(other["dev"] == first["dev"] for other in others)


@pytest.mark.parametrize("size", [2, 3])
def test_a_loss_that_is_not_finite_ends_all(together, alone, size):
    before = alone("smart-bregman")
    for left in together(size)["nan on the last"]:
        assert left["ended"].startswith("the qqp loss is nan at step 5 (epoch 1) on the examples qqp-train-")
        assert len(left["figures"]) == 4 and left["norms"] == pytest.approx(before["norms"][:4], rel=EXACT)


@pytest.mark.parametrize("size", [2, 3])
def test_a_signal_to_one_stops_all_after_the_same_step(together, size):
    for left in together(size)["signal on the last"]:
        assert left["ended"] == f"signal {signal.SIGTERM.value}" and len(left["figures"]) == 3


def test_slices_are_contiguous_and_disjoint():
    class Loop(StepLoop):
        _begin = _load = _loss = None

    for size, accumulate in ((1, 1), (2, 1), (1, 3), (3, 2)):
        found = []
        for rank in range(size):
            loop = Loop({}, None, None, 0.1, averaged=None, ranks=Ranks(rank, size), accumulate=accumulate)
            found += loop.own_slices(5 * size * accumulate)
        assert [(part.start, part.stop) for part in found] == [(5 * i, 5 * i + 5) for i in range(size * accumulate)]


def test_a_process_that_dies_ends_all(base, tmp_path):
    case = Case({**base, "fused": False}, change="death of the last")
    (tmp_path / "cases.json").write_text(json.dumps({"death": asdict(case)}))
    done = torchrun(2, str(TESTS / "training" / "ranked.py"), str(tmp_path), check=False)
    assert done.returncode != 0
    left = torch.load(tmp_path / "death-0.pt", weights_only=False)
    assert left["error"].startswith("another process of the run has ended or does not answer: ")
