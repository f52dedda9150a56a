"""symmetric_kl's CUDA code, emulated, against the float64 reference; sizes around packs, lanes and blocks."""

import math

import pytest
import torch
from emulated_cuda import DTYPES, STORAGE, EmulationError, Out, Patch, identical
from error_budget import NEAR_EQUAL_TOLERANCE, BudgetExceeded
from op_harness import Problem, check_results, evaluate, normal
from ops.test_symmetric_kl_accuracy import EXTREMES

from smartcs.ops import symmetric_kl
from smartcs.ops.random import compute_dtype

KINDS = {"y": "statistic", "a": "activation gradient", "b": "activation gradient"}
BERNOULLI, DETACHED, NONE = {"distribution": "bernoulli"}, {"detach_targets": True}, {"reduction": "none"}
# rows, classes (None: binary logits), distance of the logits, settings. A pack holds 2, 4 or 8 numbers, a row's lanes
# keep 32 packs in registers, a block has 128 lanes.
CASES = [
    (6, 5, 1.0, {}),
    (33, 2, 0.3, DETACHED),
    (5, 1, 1.0, {}),
    (129, 4, 1e-2, {"reduction": "sum"}),
    (17, 9, 5.0, NONE),
    (9, 31, 1.0, NONE | DETACHED),
    (5, 64, 1e-3, NONE),
    (3, 65, 1.0, {}),
    (3, 127, 1.0, NONE),
    (3, 128, 1.0, NONE),
    (3, 129, 1e-2, NONE),
    (2, 256, 1.0, NONE),
    (2, 257, 1.0, NONE | DETACHED),
    (1, 1000, 1e-3, NONE),
    (0, 5, 1.0, {}),
    (40, None, 1.0, {}),
    (1, None, 0.1, NONE),
    (127, None, 5.0, DETACHED | NONE),
    (1025, None, 1e-3, NONE),
    (0, None, 1.0, NONE),
]


def problem(rows, classes, distance=1.0, settings=None) -> Problem:
    shape = (rows,) if classes is None else (rows, classes)
    settings = (settings or {}) | (BERNOULLI if classes is None else {})
    a = normal(*shape, seed=1)
    grad_y = normal(rows, seed=3) if settings.get("reduction") == "none" else normal(seed=3)
    tensors = {"a": a, "b": a + distance * normal(*shape, seed=2), "grad_y": grad_y}
    return Problem(symmetric_kl, tensors, dict(KINDS), settings)


def run(library, p, values) -> dict[str, torch.Tensor]:
    """Result and gradients as smartcs.ops.symmetric_kl puts them together from the raw ops."""
    a, b = values["a"], values["b"]
    bernoulli, detached = "distribution" in p.settings, p.settings.get("detach_targets", False)
    sizes, storage, compute = (a.shape[0], 1 if bernoulli else a.shape[1]), STORAGE[a.dtype], compute_dtype(a)
    (losses,) = library.call("symmetric_kl_fwd", storage, *sizes, bernoulli, a, b, Out(sizes[:1], compute))
    reduction, rows = p.settings.get("reduction", "mean"), sizes[0]
    share = rows if reduction == "mean" and rows else 1
    grad_losses = (values["grad_y"].to(compute) / share).expand(rows).contiguous()
    arguments = (storage, *sizes, bernoulli, detached, grad_losses, a, b)
    da, db = library.call("symmetric_kl_bwd", *arguments, Out(a.shape, a.dtype), Out(a.shape, a.dtype))
    for only, both in ((0, da), (1, db)):
        wanted = [Out(a.shape, a.dtype) if i == only else None for i in range(2)]
        (alone,) = library.call("symmetric_kl_bwd", *arguments, *wanted)
        assert identical(alone, both)
    return {"y": losses if reduction == "none" else losses.sum() / share, "a": da, "b": db}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(emulated, case, dtype):
    p = problem(*case)
    check_results(p, dtype, run(emulated("symmetric_kl"), p, p.rounded(dtype)))


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("classes", [2, 5, 129, None])
@pytest.mark.parametrize("settings", [NONE, NONE | DETACHED], ids=str)
def test_nearly_equal(emulated, settings, classes, spread):
    """Every row of logits 1e-6 apart in float32, where naive forms have no digit left."""
    p = problem(24, classes, settings=settings)
    a = (spread * p.tensors["a"]).float()
    b = a + 1e-6 * p.tensors["b"].float()
    values = {"a": a, "b": b, "grad_y": torch.ones(24)}
    truth = evaluate(p, {name: t.double() for name, t in values.items()}, "reference")
    for name, got in run(emulated("symmetric_kl"), p, values).items():
        got, expected = (t.double().reshape(24, -1) for t in (got, truth[name]))
        moved = expected.norm(dim=1) > 0
        errors = (got - expected).norm(dim=1)[moved] / expected.norm(dim=1)[moved]
        assert moved.sum() > 12 and errors.max() < NEAR_EQUAL_TOLERANCE, (name, errors.max())


@pytest.mark.parametrize("settings", [NONE, NONE | DETACHED], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extremes(emulated, dtype, settings):
    a, b = (torch.tensor(side, dtype=dtype) for side in zip(*EXTREMES, strict=True))
    a, b = torch.cat([a, b]), torch.cat([b, a])
    p = problem(len(a), 3, settings=settings)
    values = {"a": a, "b": b, "grad_y": torch.ones(len(a), dtype=dtype)}
    truth = evaluate(p, {name: t.double() for name, t in values.items()}, "reference")
    results = run(emulated("symmetric_kl"), p, values)
    for i in range(len(a)):
        for name, got in results.items():
            got, expected = got[i].double(), truth[name][i]
            finite = expected.isfinite()
            error = (got - expected)[finite].norm() / expected[finite].norm().clamp(min=1e-30)
            assert error < NEAR_EQUAL_TOLERANCE, (name, a[i], b[i], got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_masked_and_broken(emulated, dtype):
    """Equal rows: exactly 0. Masked on one side: infinite. NaN: in its own row alone."""
    a = torch.tensor([[1.0, -2.0, 0.3, -math.inf], [1e4, -1e4, 0.0, 5.0], [1.0, 2.0, -1.0, 0.0], [0.0] * 4]).to(dtype)
    b = a.clone()
    b[2, 1], b[3, 2] = -math.inf, math.nan
    for detached in (False, True):
        p = problem(4, 4, settings=NONE | {"detach_targets": detached})
        result = run(emulated("symmetric_kl"), p, {"a": a, "b": b, "grad_y": torch.ones(4)})
        assert not result["y"][:2].any() and not result["a"][:2].any() and not result["b"][:2].any()
        assert result["y"][2] == math.inf and result["y"][3].isnan()
        assert not detached or result["a"][2].isfinite().all()
    p = problem(4, None, settings=NONE | DETACHED)
    a, b = torch.tensor([0.0, 3.0, 1e4, -40.0]).to(dtype), torch.tensor([-math.inf, 3.0, -1e4, -41.0]).to(dtype)
    result = run(emulated("symmetric_kl"), p, {"a": a, "b": b, "grad_y": torch.ones(4)})
    assert result["a"][0] == 0.5 and result["a"][1] == 0 == result["y"][1] and result["y"][2] == (a[2] - b[2]).float()


REDUCED = "loss = over_lanes<Sum>(loss, place.lanes);"
# What each mistake is, and where it must be seen: in float32, on these cases.
MUTANTS = {
    "one direction": Patch("symmetric_kl.cuh", "loss += times(c.gap, c.x);", "loss += times(c.p, c.x);"),
    "no gradient of targets": Patch("symmetric_kl.cuh", "db[i] = -g * (c.gap", "db[i] = 0 * (c.gap"),
    "detached": Patch("symmetric_kl.cuh", "const bool full = !args.detach_targets;", "const bool full = false;"),
    "p - q by plain difference": Patch("symmetric_kl.cuh", "? c.q * expm1(c.x) :", "? c.p - c.q :"),
    "shifted class": Patch("common.cuh", "a[kPack<S>], b[kPack<S>];\n        load(x, first(i),",
                           "a[kPack<S>], b[kPack<S>];\n        load(x, first(i) + 1,"),
    "fewer lanes": Patch("symmetric_kl.cuh", REDUCED, "loss = over_lanes<Sum>(loss, place.lanes / 2);"),
    "shuffle in a branch": Patch("symmetric_kl.cuh", REDUCED, f"if (place.size > 0) {REDUCED}"),
    "reads beyond the row": Patch("common.cuh", "first + i < size ? widen(from[first + i])",
                                  "first + i < size + 1 ? widen(from[first + i])"),
}  # fmt: skip


@pytest.mark.mistake
@pytest.mark.parametrize("mutation", MUTANTS)
def test_rejects(emulated, mutation):
    library = emulated("symmetric_kl", MUTANTS[mutation])
    with pytest.raises((BudgetExceeded, EmulationError, AssertionError)) as found:
        for case in ((9, 31, 1.0, NONE), (2, 1000, 1.0, NONE)):
            p = problem(*case)
            check_results(p, torch.float32, run(library, p, p.rounded(torch.float32)))
        test_nearly_equal(lambda _: library, NONE, 5, 0.5)
    print(f"{mutation}: {found.value}")
