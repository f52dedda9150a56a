"""perturb: every rule, norm and level against a plain loop, within the error budget; and with numbers not finite."""

import math

import pytest
import torch
from error_budget import check
from op_harness import (
    DTYPES,
    Calls,
    Problem,
    check_budget,
    check_compiled,
    check_instruction_sets,
    check_mutant,
    check_strided,
    check_threads,
    evaluate,
    normal,
    offsets,
)

from smartcs.ops import perturb

UPDATES, NORMS = ("mtdnn", "projected", "paper"), ("inf", "2", "1")
RULES = [{"update": update, "norm": norm} for update in UPDATES for norm in NORMS]
OUTPUTS = {
    "moved": (lambda **arguments: perturb(**arguments)[0], "forward"),
    "cosine": (lambda **arguments: perturb(**arguments)[1][:, 0], "statistic"),
    "size": (lambda **arguments: perturb(**arguments)[1][:, 1], "statistic"),
    "finite": (lambda **arguments: perturb(**arguments)[1][:, 2], "statistic"),
}
LARGE = {"step_size": 0.5, "radius": 2.0, "norm_eps": 0.5}
# rows, columns, lengths of the sentences (None: token level), options, size of v, size of g
CASES = [
    (7, 5, None, LARGE, 1.0, 1.0),
    (33, 101, None, {}, 1e-5, 1e-7),
    (12, 384, [3, 0, 8, 1], LARGE, 1.0, 1.0),
    (40, 77, [25, 15], {}, 1e-5, 1e-3),
    (3, 1, [3], LARGE, 1.0, 1.0),
    (0, 16, None, {}, 1.0, 1.0),
    (0, 16, [0, 0], {}, 1.0, 1.0),
    (0, 16, [], {}, 1.0, 1.0),
]


def problem(rows, columns, lengths=None, options=None, v=1.0, g=1.0, output="moved", **rule) -> Problem:
    tensors = {"v": v * normal(rows, columns, seed=1), "g": g * normal(rows, columns, seed=2)}
    if lengths is not None:
        tensors["cu_seqlens"] = offsets(lengths)
    op, kind = OUTPUTS[output]
    return Problem(op, tensors, {"y": kind}, (options or {}) | rule)


def length(x, norm):
    if norm == "inf":
        return max(map(abs, x), default=0.0)
    return math.fsum(map(abs, x)) if norm == "1" else math.sqrt(math.fsum(a * a for a in x))


def project(w, norm, radius, mutation):
    """Onto the ball; on the 1-norm's by bisection for the threshold, which neither implementation does."""
    if norm == "inf":
        return [min(max(a, -radius), radius) for a in w]
    size = length(w, norm)
    if size <= radius:
        return w
    if norm == "2" or mutation == "scaled onto the ball":
        return [a * radius / size for a in w]
    low, high = 0.0, length(w, "inf")
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(abs(a) - middle, 0) for a in w) > radius else (low, middle)
    return [math.copysign(max(abs(a) - high, 0), a) for a in w]


def move(v, g, update, norm, step_size, radius, norm_eps, mutation):
    """One group, as lists of floats."""
    ascent = [-a for a in g] if mutation == "descends" else g
    if update == "projected" and mutation != "gradient not normalised":
        peak = length(g, norm if mutation == "normalised by p" else "inf")
        ascent = [a / peak if peak else 0.0 for a in ascent]
    w = [a + step_size * b for a, b in zip(v, ascent, strict=True)]
    if update == "projected":
        return project(w, norm, radius, mutation)
    if update == "paper":
        size = length(w if mutation == "normalised by w" else g, norm)
        return [a / size for a in w] if size else v
    if norm == "1" and mutation != "no sign":
        return [math.copysign(1, a) if a else 0.0 for a in w]
    size = length(w, norm) + (0 if mutation == "norm_eps missing" else norm_eps)
    return [a / size for a in w]


def formula(
    v, g, cu_seqlens=None, *, update, norm, step_size=1e-3, radius=1e-5, norm_eps=1e-6, output="moved", mutation=""
):
    """The module's rules as loops over Python's floats; ``mutation`` names the mistake to make."""
    rows, columns = v.shape
    bounds = range(rows + 1) if cu_seqlens is None or mutation == "rows as groups" else cu_seqlens.tolist()
    bounds = [0, rows] if mutation == "all rows as one group" else list(bounds)
    moved, statistics = [], []
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        x, d = (t[begin:end].double().reshape(-1).tolist() for t in (v, g))
        y = move(x, d, update, norm, step_size, radius, norm_eps, mutation)
        lengths = length(y, "2") * length(d, "2")
        product = math.fsum(a * b for a, b in zip(y, d, strict=True))
        moved += y
        statistics.append((product / lengths if lengths else 0.0, length(y, norm), 1.0))
    if output == "moved":
        return {"y": torch.tensor(moved, dtype=torch.float64).reshape(rows, columns)}
    column = list(OUTPUTS).index(output) - 1
    return {"y": torch.tensor([row[column] for row in statistics], dtype=torch.float64)}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_reference_equals_loop(reference, rule, case):
    for output in OUTPUTS:
        p = problem(*case, output=output, **rule)
        result, expected = evaluate(p, p.tensors, "reference"), formula(**p.tensors, **p.settings, output=output)
        check(result["y"], expected["y"], result["y"], p.kinds["y"], name=output)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_within_budget(fused, rule, case, dtype):
    for output in OUTPUTS:
        check_budget(problem(*case, output=output, **rule), dtype)


MUTATIONS = [
    ("descends", "mtdnn", "inf"),
    ("descends", "projected", "1"),
    ("all rows as one group", "mtdnn", "2"),
    ("rows as groups", "projected", "2"),
    ("rows as groups", "paper", "inf"),
    ("norm_eps missing", "mtdnn", "inf"),
    ("no sign", "mtdnn", "1"),
    ("gradient not normalised", "projected", "inf"),
    ("normalised by p", "projected", "2"),
    ("scaled onto the ball", "projected", "1"),
    ("normalised by w", "paper", "2"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mutation", "update", "norm"), MUTATIONS)
def test_budget_rejects(dtype, mutation, update, norm):
    p = problem(9, 11, [4, 5], LARGE | {"radius": 0.5}, update=update, norm=norm)
    check_mutant(p, dtype, formula, mutation)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_threads(fused, rule):
    for lengths in (None, [60, 0, 140, 100]):
        for output in ("moved", "cosine", "size"):
            check_threads(problem(300, 384, lengths, output=output, **rule))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_instruction_sets(fused, rule):
    for lengths in (None, [20, 17]):
        for output in OUTPUTS:
            check_instruction_sets(problem(37, 101, lengths, LARGE, output=output, **rule))


def test_strided(fused):
    check_strided(problem(9, 12, [4, 5]))


def test_leaves_its_arguments_alone(either):
    """No gradient flows, and v is not moved in place."""
    v, g = (normal(4, 6, seed=i).float().requires_grad_() for i in (1, 2))
    before = v.detach().clone(), g.detach().clone()
    moved, statistics = perturb(v, g)
    assert not moved.requires_grad and not statistics.requires_grad
    assert torch.equal(v, before[0]) and torch.equal(g, before[1]) and moved.data_ptr() != v.data_ptr()


BROKEN = [("g", math.nan), ("g", math.inf), ("g", -math.inf), ("v", math.nan), ("v", math.inf)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(("name", "value"), BROKEN)
@pytest.mark.parametrize(
    ("lengths", "group"), [(None, slice(4, 5)), ([3, 0, 4, 2], slice(3, 7))], ids=["rows", "sentences"]
)
def test_not_finite(either, lengths, group, name, value, rule):
    """The group that holds the number is left without a perturbation; the others are as they would have been."""
    index = 4 if lengths is None else 2
    p = problem(9, 21, lengths, LARGE, **rule)
    values = p.rounded(torch.float32)
    moved, statistics = perturb(**values, **p.settings)
    values[name][4, 20] = value
    broken, flags = perturb(**values, **p.settings)
    assert not broken[group].any() and not flags[index].any()
    moved[group], statistics[index] = 0, 0
    assert torch.equal(broken, moved) and torch.equal(flags, statistics)
    assert flags[:, 2].tolist() == [float(i != index) for i in range(len(flags))]


def test_overflow_is_not_finite(either):
    """The paper's rule divides by |g|: where that overflows, the group is given up rather than infinite."""
    v, g = torch.ones(2, 3), torch.tensor([[1e-40] * 3, [1.0] * 3])
    moved, statistics = perturb(v, g, update="paper")
    assert not moved[0].any() and statistics[0].tolist() == [0, 0, 0]
    assert moved[1].isfinite().all() and statistics[1, 2] == 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("lengths", [None, [2, 0, 4]])
def test_no_gradient(either, lengths, norm):
    """Where g is 0: "paper" keeps v to the bit, "projected" v's projection, "mtdnn" normalises v; the cosine is 0."""
    p = problem(6, 40, lengths, {"radius": 1e6, "norm_eps": 0.5})
    values = p.rounded(torch.float32) | {"g": torch.zeros(6, 40)}
    for update in UPDATES:
        moved, statistics = perturb(**values, **p.settings, update=update, norm=norm)
        if update != "mtdnn":
            assert torch.equal(moved, values["v"])
        expected = formula(**values, **p.settings, update=update, norm=norm)["y"]
        check(moved, expected, expected.float(), "forward")
        assert not statistics[:, 0].any() and statistics[:, 2].all()


@pytest.mark.parametrize("size", [2.0**-100, 2.0**90])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_whose_squares_are_no_floats(either, norm, size):
    """Norms and cosines of gradients far from 1 lose nothing, and "projected" does not depend on their size."""
    v, g = normal(4, 50, seed=1).float(), normal(4, 50, seed=2).float()
    rule = {"update": "projected", "norm": norm, "step_size": 0.5, "radius": 1.0}
    for got, expected in zip(perturb(v, size * g, **rule), perturb(v, g, **rule), strict=True):
        assert torch.equal(got, expected)
    # The same numbers in float64, whose range holds all squares.
    zero = torch.zeros_like(v)
    _, got = perturb(zero, size * g, update="paper", norm=norm, step_size=1.0)
    _, expected = perturb(zero.double(), g.double(), update="paper", norm=norm, step_size=1.0)
    check(got[:, 0], expected[:, 0], expected[:, 0].float(), "statistic")
    check(got[:, 1], expected[:, 1], expected[:, 1].float(), "statistic")


@pytest.mark.parametrize("radius", [1e-5, 0.3, 1e3])
@pytest.mark.parametrize("norm", NORMS)
def test_projection(either, norm, radius):
    """Inside the ball, reached where the ascent leaves it, and unchanged by being projected again; ties included."""
    v, g = normal(6, 200, seed=1).float(), normal(6, 200, seed=2).float()
    v[1], v[2, ::2], v[3, 1:] = 0.25, -0.5, 0.0
    p = {"update": "projected", "norm": norm, "radius": radius}
    moved, statistics = perturb(v, g, **p, step_size=0.1)
    ascended = v + 0.1 * g / g.abs().amax(1)[:, None]
    sizes, before = (torch.linalg.vector_norm(x.double(), float(norm), dim=1) for x in (moved, ascended))
    check(statistics[:, 1], sizes, sizes.float(), "statistic")
    check(sizes.float(), before.clamp(max=radius), before.clamp(max=radius).float(), "statistic")
    again, _ = perturb(moved, torch.zeros_like(v), **p)
    check(again, moved.double(), moved, "forward")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_ties_and_zeros(either, rule):
    """Equal numbers, zeros and single entries, where a threshold is also an entry."""
    v = torch.tensor([[0.5, -0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    g = torch.tensor([[1.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    options = rule | {"step_size": 0.5, "radius": 1.0}
    moved, _ = perturb(v, g, **options)
    expected = formula(v, g, **options)["y"]
    check(moved, expected, expected.float(), "forward")


def test_sentences_are_groups(either):
    """One sentence per row is token level; one sentence in all has one norm."""
    p = problem(5, 30)
    values = p.rounded(torch.float32)
    for rule in RULES:
        rows, sentences = perturb(**values, **rule), perturb(**values, cu_seqlens=offsets([1] * 5), **rule)
        assert all(map(torch.equal, rows, sentences))
        moved, statistics = perturb(**values, cu_seqlens=offsets([5]), **rule)
        flat = perturb(*(t.reshape(1, -1) for t in values.values()), **rule)
        assert torch.equal(moved.reshape(1, -1), flat[0]) and torch.equal(statistics, flat[1])


def test_one_kernel_per_step(fused):
    with Calls() as calls:
        perturb(torch.ones(3, 4), torch.ones(3, 4))
    assert [name for name, _ in calls.made] == ["perturb_step"]


def test_compiled(fused):
    check_compiled([problem(5 + 3 * i, 12, [2, 3 + 3 * i]) for i in range(5)])
    check_compiled([problem(5 + 3 * i, 12) for i in range(5)], "reference")
