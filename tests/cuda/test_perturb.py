"""perturb's CUDA code, emulated: every rule, norm and level within the error budget; numbers that are not finite."""

import math

import pytest
import torch
from emulated_cuda import DTYPES, STORAGE, EmulationError, Out, Patch, identical
from error_budget import BudgetExceeded, Kind, check
from op_harness import normal, offsets

from smartcs.ops import perturb
from smartcs.ops.backend import backend
from smartcs.ops.random import compute_dtype

UPDATES, NORMS = ("mtdnn", "projected", "paper"), ("inf", "2", "1")
RULES = [{"update": update, "norm": norm} for update in UPDATES for norm in NORMS]
OUTPUTS: dict[str, Kind] = {"moved": "forward", "cosine": "statistic", "norm": "statistic", "finite": "statistic"}
LARGE = {"step_size": 0.5, "radius": 2.0, "norm_eps": 0.5}
# rows, columns, lengths of the sentences (None: token level), options, size of v, size of g. A pack holds 2, 4 or 8
# numbers; 1024, 2048 or 4096 of a group stay in registers.
CASES = [
    (7, 5, None, LARGE, 1.0, 1.0),
    (3, 384, None, {}, 1e-5, 1e-7),
    (2, 1023, None, LARGE, 1.0, 1.0),
    (2, 1025, None, LARGE, 1.0, 1e-3),
    (8, 384, [2, 0, 5, 1], LARGE, 1.0, 1.0),
    (9, 513, [8, 1], {}, 1e-5, 1e-3),
    (3, 1, [3], LARGE, 1.0, 1.0),
    (0, 16, None, {}, 1.0, 1.0),
    (0, 16, [0, 0], {}, 1.0, 1.0),
    (0, 16, [], {}, 1.0, 1.0),
]


def tensors(dtype, rows, columns, lengths=None, v=1.0, g=1.0) -> dict[str, torch.Tensor]:
    values = {"v": (v * normal(rows, columns, seed=1)).to(dtype), "g": (g * normal(rows, columns, seed=2)).to(dtype)}
    return values if lengths is None else values | {"cu_seqlens": offsets(lengths)}


def run(library, v, g, cu_seqlens=None, *, update, norm, step_size=1e-3, radius=1e-5, norm_eps=1e-6):
    """v' and the statistics, as smartcs.ops.perturb gives them."""
    groups = len(v) if cu_seqlens is None else len(cu_seqlens) - 1
    outputs = Out(v.shape, v.dtype), Out((groups, 3), compute_dtype(v))
    numbers = float(step_size), float(radius), float(norm_eps)
    rule = UPDATES.index(update), NORMS.index(norm)
    sizes = len(v), groups, v.shape[1]
    return library.call("perturb_step", STORAGE[v.dtype], *sizes, cu_seqlens, *rule, *numbers, v, g, *outputs)


def check_outputs(library, dtype, case, rule) -> None:
    """v' and every statistic within the error budget."""
    rows, columns, lengths, options, *sizes = case
    values = tensors(dtype, rows, columns, lengths, *sizes)
    widened = {name: t.double() if t.is_floating_point() else t for name, t in values.items()}
    with backend("reference"):
        results = [perturb(**inputs, **rule, **options) for inputs in (widened, values)]
    results.insert(0, run(library, **values, **rule, **options))
    for (name, kind), *found in zip(OUTPUTS.items(), *((y, *s.unbind(1)) for y, s in results), strict=True):
        check(*found, kind, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_within_budget(emulated, rule, dtype):
    for case in CASES:
        if dtype is not torch.float16 or case[4] == 1:  # 1e-5 is hardly a float16
            check_outputs(emulated("perturb"), dtype, case, rule)


BROKEN = [("g", math.nan), ("g", -math.inf), ("v", math.nan), ("v", math.inf)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "group"), [(None, slice(2, 3)), ([1, 0, 3, 1], slice(1, 4))], ids=["rows", "sentences"]
)
def test_not_finite(emulated, lengths, group, rule):
    """The group that holds the number is left without a perturbation; the others are as they would have been."""
    index, values = 2, tensors(torch.float32, 5, 21, lengths)
    moved, statistics = run(emulated("perturb"), **values, **LARGE, **rule)
    moved[group], statistics[index] = 0, 0
    for name, value in BROKEN:
        broken = {key: t.clone() for key, t in values.items()}
        broken[name][2, 20] = value
        got, flags = run(emulated("perturb"), **broken, **LARGE, **rule)
        assert identical(got, moved) and identical(flags, statistics), (name, value)


def test_overflow_is_not_finite(emulated):
    """The paper's rule divides by |g|: where that overflows, the group is given up rather than infinite."""
    v, g = torch.ones(2, 3), torch.tensor([[1e-40] * 3, [1.0] * 3])
    moved, statistics = run(emulated("perturb"), v, g, update="paper", norm="inf")
    assert not moved[0].any() and statistics[0].tolist() == [0, 0, 0]
    assert moved[1].isfinite().all() and statistics[1, 2] == 1


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_ties_and_zeros(emulated, norm):
    """Where g is 0: "paper" keeps v to the bit, "projected" v's projection; a threshold that is also an entry."""
    v = torch.tensor([[0.5, -0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    g = torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    library, options = emulated("perturb"), {"step_size": 0.5, "radius": 1.0, "norm": norm}
    for update in UPDATES:
        moved, _ = run(library, v, g, update=update, **options)
        expected, _ = perturb(v.double(), g.double(), update=update, **options)
        check(moved, expected, expected.float(), "forward")
        moved, statistics = run(library, v, 0 * g, update=update, **(options | {"radius": 1e6}))
        assert update == "mtdnn" or torch.equal(moved, v)
        assert not statistics[:, 0].any() and statistics[:, 2].all()


@pytest.mark.parametrize("size", [2.0**-100, 2.0**90])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_whose_squares_are_no_floats(emulated, norm, size):
    """Norms and cosines of gradients far from 1 lose nothing, and "projected" does not depend on their size."""
    v, g = normal(3, 50, seed=1).float(), normal(3, 50, seed=2).float()
    rule = {"update": "projected", "norm": norm, "step_size": 0.5, "radius": 1.0}
    library = emulated("perturb")
    for got, expected in zip(run(library, v, size * g, **rule), run(library, v, g, **rule), strict=True):
        assert torch.equal(got, expected)
    _, got = run(library, 0 * v, size * g, update="paper", norm=norm, step_size=1.0)
    _, expected = perturb(0 * v.double(), g.double(), update="paper", norm=norm, step_size=1.0)
    for i in range(2):
        check(got[:, i], expected[:, i], expected[:, i].float(), "statistic")


@pytest.mark.parametrize("columns", [30, 700])
def test_sentences_are_groups(emulated, columns):
    """One sentence per row is token level, to the bit; so is a sentence that is as long as a row."""
    values = tensors(torch.float32, 5, columns)
    for rule in RULES:
        rows = run(emulated("perturb"), **values, **rule)
        sentences = run(emulated("perturb"), **values, cu_seqlens=offsets([1] * 5), **rule)
        assert all(map(torch.equal, rows, sentences))
        moved, statistics = run(emulated("perturb"), **values, cu_seqlens=offsets([5]), **rule)
        flat = run(emulated("perturb"), *(t.reshape(1, -1) for t in values.values()), **rule)
        assert torch.equal(moved.reshape(1, -1), flat[0]) and torch.equal(statistics, flat[1])


def test_wrong_sentences_stay_within_the_tensors(emulated):
    """The GPU's lengths are not read before the launch: no offset may lead outside."""
    values = tensors(torch.float32, 4, 6)
    right = run(emulated("perturb"), **values, cu_seqlens=offsets([1, 3]), **RULES[0])
    wrong = run(emulated("perturb"), **values, cu_seqlens=torch.tensor([-7, 1, 2**31 - 1, 5, 4]).int(), **RULES[0])
    assert torch.equal(wrong[1][:2], right[1])


PERTURB, COMMON = "perturb.cuh", "common.cuh"
MUTANTS = {
    "no barrier before the parts are read": Patch(COMMON, "  __syncthreads();  // all parts are written\n", ""),
    "no barrier before they are rewritten": Patch(
        COMMON, "  __syncthreads();  // the parts of an earlier call are read\n", ""
    ),
    "one thread skips the barrier": Patch(
        COMMON, "  __syncthreads();  // all parts are written\n", "  if (threadIdx.x != 9) __syncthreads();\n"
    ),
    "another warp's part": Patch(COMMON, "parts[w * kCount + i];", "parts[(w - 1) * kCount + i];"),
    "scaled onto the ball of norm 1": Patch(
        PERTURB,
        "if (args.norm == Norm::two) {\n    move.shape = Move<A>::scale;",
        "if (args.norm != Norm::inf) {\n    move.shape = Move<A>::scale;",
    ),
    "first threshold only": Patch(PERTURB, "if (!(next[1] > 0 && next[1] < above)) return t;", "return t;"),
    "not projected": Patch(PERTURB, "move.shape = Move<A>::clamp;", ""),
    "gradient not normalised": Patch(PERTURB, "v + g / divisor * step", "v + g * step"),
    "normalised by w": Patch(PERTURB, "length<A>(args.norm, share, gradient);", "length<A>(args.norm, share, ascent);"),
    "norm_eps missing": Patch(PERTURB, " + args.norm_eps);", ");"),
    "rows of sentences as groups": Patch(PERTURB, "args.cu_seqlens[group + 1],", "args.cu_seqlens[group] + 1,"),
    "pack too far": Patch(
        PERTURB, "size <= kStepHold * kStepThreads * kPack<S>", "size <= 2 * kStepHold * kStepThreads * kPack<S>"
    ),
}


@pytest.mark.mistake
@pytest.mark.parametrize("mutation", MUTANTS)
def test_rejects(emulated, mutation):
    library, large = emulated("perturb", MUTANTS[mutation]), LARGE | {"radius": 0.5}
    with pytest.raises((BudgetExceeded, EmulationError)) as found:
        for rule in RULES:
            for case in ((5, 11, [2, 3], large), (3, 700, [3], large)):
                check_outputs(library, torch.float32, case, rule)
    print(f"{mutation}: {found.value}")
