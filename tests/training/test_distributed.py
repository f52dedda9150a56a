"""Several processes with slices of a batch take the steps of one process with all of it, dropout and noise included."""

import json
import math
import signal
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
import torch
from op_harness import threads
from training.ranked import TASKS, Case, run
from training.torchrun import TESTS, torchrun

from smartcs._extension import extension_status
from smartcs.data.sampling import RoundRobinSampler
from smartcs.training.config import TrainConfig
from smartcs.training.distributed import Ranks
from smartcs.training.steps import StepLoop

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
    found["pretraining"] = Case({**base, "fused": False}, "float64", pretrains=True, accumulate=2)
    if extension_status()[0]:
        found |= {f"fused {name}": Case({**base, **values}, accumulate=2) for name, values in FUSED.items()}
        found["fused pretraining"] = Case(base, pretrains=True)
        found["device"] = Case({**base, **FUSED["smart-bregman"]}, device_step=True, accumulate=2)
    return found | {change: replace(found[name], change=change) for change, name in (WRONG | ENDS).items()}


@pytest.fixture(scope="module")
def base(data_folder, encoder_folder) -> dict[str, object]:
    return {
        "data": str(data_folder),
        "model": str(encoder_folder),
        "cycles": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        "encoder_dropout": 0.1,
        "head_dropout": 0.1,
    }


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


TRAINED = [*RECIPES, "pretraining", *(f"fused {name}" for name in (*FUSED, "pretraining")), "device"]


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
    for ours, theirs in zip(one["figures"], ranks[0]["figures"], strict=True):
        assert [n is None for n in ours] == [n is None for n in theirs]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        # In float32 SMART's other figures are differences of nearly equal numbers.
        assert close(name) > EXACT or all(a == pytest.approx(b, rel=1e-8, abs=1e-12) for a, b in pairs)


@pytest.mark.parametrize("name", TRAINED)
def test_accumulated_slices_take_the_steps_of_one_batch(alone, name):
    skip_without_extension(name)
    assert distance(alone(name), alone(name, 3)) < close(name)


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
