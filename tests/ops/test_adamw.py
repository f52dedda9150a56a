"""adamw: 50 steps against the formulas in float64, sparse against dense, packed copies, and what it must not touch."""

import math

import pytest
import torch
from error_budget import BudgetExceeded, check
from op_harness import check_raw, instruction_set, instruction_sets, integers, normal, threads

from smartcs.ops import AdamWSettings, AdamWTensors, adamw
from smartcs.ops.adamw import adamw_reference

SHAPES = [(70, 33), (5,), (), (300, 64), (0, 4), (20011,)]
SETTINGS = [AdamWSettings(1e-2, 0.9, 0.999, 1e-6, 0.1), AdamWSettings(3e-3, 0.8, 0.95, 1e-3, 0.0)]
WEIGHT, MAX_NORM = 0.3, 40.0


def entries(dtype=torch.float32) -> list[AdamWTensors]:
    """Parameters of two groups with zero state, and anchors elsewhere than they."""
    found = []
    for i, shape in enumerate(SHAPES):
        p, a = normal(*shape, seed=i).to(dtype), normal(*shape, seed=50 + i).to(dtype)
        step = torch.zeros((), dtype=torch.float32)
        found.append(AdamWTensors(p, None, torch.zeros_like(p), torch.zeros_like(p), step, SETTINGS[i % 2], a))
    return found


def gradient(i: int, step: int) -> torch.Tensor | None:
    """The second parameter has one every third step only."""
    return None if i == 1 and step % 3 else normal(*SHAPES[i], seed=1000 * step + i).float() * (1 + step % 4)


def run(op, dtype=torch.float32, steps=50, max_grad_norm: float | None = MAX_NORM) -> dict[str, torch.Tensor]:
    found = entries(dtype)
    for step in range(steps):
        grads = [gradient(i, step) for i in range(len(found))]
        now = [e._replace(grad=None if g is None else g.to(dtype)) for e, g in zip(found, grads, strict=True)]
        op(now, max_grad_norm=max_grad_norm, anchor_weight=WEIGHT)
    # All tensors as one: the budget of a single number is a matter of how the fallback's last bit happens to fall.
    names = ("parameter", "exp_avg", "exp_avg_sq", "anchor")
    joined = {name: torch.cat([getattr(e, name).flatten() for e in found]) for name in names}
    return joined | {f"step {i}": e.step for i, e in enumerate(found)}


def formula(tensors, *, max_grad_norm, anchor_weight, mutation=""):
    """The module's formulas; ``mutation`` names the mistake to make."""
    grads = [None if e.grad is None else e.grad.clone() for e in tensors]
    present = [g for g in grads if g is not None]
    norms = [g.norm() for g in present]
    total = torch.stack(norms).norm()
    for g, own in zip(present, norms, strict=True):
        norm = own if mutation == "norm of each tensor" else total
        g *= (max_grad_norm / (norm + 1e-6)).clamp(max=1) if mutation != "no clip" else 1
    for e, g in zip(tensors, grads, strict=True):
        if mutation == "anchor first":
            e.anchor.lerp_(e.parameter, anchor_weight)
        if g is not None:
            lr, beta1, beta2, eps, decay = e.settings
            if mutation == "decay on the gradient":
                g = g + decay * e.parameter
                decay = 0
            e.step.add_(1)
            e.exp_avg.mul_(beta1).add_(g * (1 - beta1))
            e.exp_avg_sq.mul_(beta2).add_(g * g * (1 - beta2))
            t = math.inf if mutation == "no bias correction" else int(e.step)
            denominator = (e.exp_avg_sq / (1 - beta2**t)).sqrt() + eps
            e.parameter.mul_(1 - lr * decay).sub_(lr / (1 - beta1**t) * e.exp_avg / denominator)
        if mutation != "anchor first":
            e.anchor.lerp_(e.parameter, anchor_weight)


def compare(results, truth, fallback):
    for name, value in results.items():
        check(value, truth[name].double(), fallback[name], "forward", name=name)


MUTATIONS = ["no bias correction", "decay on the gradient", "anchor first", "norm of each tensor", "no clip"]


def reference(tensors, *, max_grad_norm, anchor_weight):
    return adamw_reference(tensors, max_grad_norm, anchor_weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fifty_steps(either, dtype):
    truth, fallback = run(formula, torch.float64), run(reference, dtype)
    results = run(adamw, dtype)
    compare(results, truth, fallback)
    assert all(results[f"step {i}"] == (17 if i == 1 else 50) for i in range(len(SHAPES)))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_budget_rejects(mutation):
    truth, fallback = run(formula, torch.float64), run(reference)
    compare(run(formula), truth, fallback)
    with pytest.raises(BudgetExceeded):
        compare(run(lambda *a, **k: formula(*a, **k, mutation=mutation)), truth, fallback)


def test_threads(fused):
    results = {}
    for count in (1, 2, 5):
        with threads(count):
            results[count] = run(adamw, steps=5)
    for count in (2, 5):
        assert all(torch.equal(value, results[count][name]) for name, value in results[1].items())


@pytest.mark.parametrize("name", instruction_sets())
def test_instruction_sets(fused, name):
    with instruction_set(name):
        compare(run(adamw), run(formula, torch.float64), run(reference))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_norm(either, count):
    found = [e._replace(grad=normal(*e.parameter.shape, seed=9).float()) for e in entries()]
    truth = torch.cat([e.grad.double().flatten() for e in found]).norm()
    with threads(count):
        norm = adamw(found, max_grad_norm=math.inf)
    assert norm.dtype == torch.float64 and norm.shape == ()
    torch.testing.assert_close(norm, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_changes_where_the_norm_is_not_finite(either, bad):
    found = [e._replace(grad=torch.ones_like(e.parameter)) for e in entries()]
    found[3].grad[7, 7] = bad
    before = [[t.clone() for t in e if isinstance(t, torch.Tensor)] for e in found]
    norm = adamw(found, max_grad_norm=1.0, anchor_weight=0.5)
    assert not norm.isfinite()
    after = [[t for t in e if isinstance(t, torch.Tensor)] for e in found]
    for x, y in zip(sum(before, []), sum(after, []), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.7, 1.0])
def test_anchor_weights(either, weight):
    found = entries()
    expected = [e.anchor + weight * (e.parameter - e.anchor) for e in found]
    adamw(found, anchor_weight=weight)
    for e, value in zip(found, expected, strict=True):
        torch.testing.assert_close(e.anchor, value)
        assert weight < 1 or torch.equal(e.anchor, e.parameter)


@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (130, 70), (65, 33), (31, 200)], ids=str)
@pytest.mark.parametrize("has_grad", [True, False])
def test_packed_copies(fused, shape, has_grad):
    """The bits that pack_weight gives for the new values."""
    pack = torch.ops.smartcs.pack_weight
    p, a = normal(*shape, seed=1).float(), normal(*shape, seed=2).float()
    forms = pack(p, False), pack(p, True)
    grad = normal(*shape, seed=3).float() if has_grad else None
    e = AdamWTensors(p, grad, torch.zeros_like(p), torch.zeros_like(p), torch.zeros(()), SETTINGS[0], a, *forms)
    old = p.clone()
    adamw([e], anchor_weight=0.3)
    assert torch.equal(p, old) != has_grad
    for form, expected in zip(forms, (pack(p, False), pack(p, True)), strict=True):
        assert torch.equal(form.view(torch.int16), expected.view(torch.int16))


def test_schedule_equals_the_numbers_by_host(either):
    """To the last bit, over steps; the host's weight is not asked for."""
    scheduled, expected, schedule = entries(), entries(), torch.empty(2, dtype=torch.float64)
    for step, (factor, weight) in enumerate([(1.0, 0.3), (0.37, 0.0), (1e-3, 1.0), (0.0, 0.011)]):
        schedule.copy_(torch.tensor([factor, weight], dtype=torch.float64))
        grads = [gradient(i, step) for i in range(len(SHAPES))]
        now = [e._replace(grad=g) for e, g in zip(scheduled, grads, strict=True)]
        norm = adamw(now, max_grad_norm=MAX_NORM, anchor_weight=0.9, schedule=schedule)
        now = [
            e._replace(grad=g, settings=e.settings._replace(lr=e.settings.lr * factor))
            for e, g in zip(expected, grads, strict=True)
        ]
        assert torch.equal(norm, adamw(now, max_grad_norm=MAX_NORM, anchor_weight=weight))
    for e, other in zip(scheduled, expected, strict=True):
        for name in ("parameter", "exp_avg", "exp_avg_sq", "anchor", "step"):
            assert torch.equal(getattr(e, name), getattr(other, name)), name


BAD_SCHEDULES = [
    ([1.0, 0.5], TypeError, "schedule is list, expected a torch.Tensor"),
    (torch.ones(2), ValueError, r"schedule is torch.float32 of shape \(2,\), expected torch.float64"),
    (torch.ones(3).double(), ValueError, r"schedule is torch.float64 of shape \(3,\), expected torch.float64 of shape"),
    (torch.ones(2, device="meta").double(), ValueError, "schedule is on meta, expected cpu like the parameters"),
    (torch.tensor([1.0, 1.5]).double(), ValueError, "anchor_weight is 1.5, expected 0 <= anchor_weight <= 1"),
    (torch.tensor([1.0, math.nan]).double(), ValueError, "anchor_weight is nan"),
]


@pytest.mark.parametrize(("schedule", "error", "message"), BAD_SCHEDULES, ids=[row[2] for row in BAD_SCHEDULES])
def test_schedule_errors(either, schedule, error, message):
    with pytest.raises(error, match=f"adamw: {message}"):
        adamw([GOOD._replace(row_flags=None)], schedule=schedule)
    assert torch.equal(ONES, torch.ones(4, 3))


def sparse_of(dense: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(rows[None], dense[rows], dense.shape, is_coalesced=False, check_invariants=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("count", [1, 5])
def test_sparse_equals_dense(fused, settings, count, dtype):
    """To the last bit, over steps that use some rows, none, and rows in any order and twice."""
    table = normal(600, 37, seed=1).to(dtype)
    dense, sparse = (
        AdamWTensors(
            table.clone(), None, *torch.zeros(2, 600, 37, dtype=dtype), torch.zeros(()), settings, table.clone()
        )
        for _ in range(2)
    )
    flags = torch.zeros(600, dtype=torch.uint8)
    used = torch.zeros(600, dtype=torch.bool)
    for step in range(8):
        rows = integers(600, 0 if step == 3 else 90, seed=step)
        values = normal(len(rows), 37, seed=100 + step).to(dtype)
        grad = torch.zeros_like(table).index_add_(0, rows, values)
        weight = 0.0 if step == 2 else 0.25  # moves the table and not the anchor
        wanted = adamw([dense._replace(grad=grad)], max_grad_norm=math.inf, anchor_weight=weight)
        given = torch.sparse_coo_tensor(rows[None], values, table.shape, check_invariants=True)
        with threads(count):
            norm = adamw([sparse._replace(grad=given, row_flags=flags)], max_grad_norm=math.inf, anchor_weight=weight)
        torch.testing.assert_close(norm, wanted, rtol=1e-12, atol=0)
        used[rows] = True
        for name in ("parameter", "exp_avg", "exp_avg_sq", "anchor", "step"):
            assert torch.equal(getattr(sparse, name), getattr(dense, name)), name
        assert torch.equal((flags & 1).bool(), used)


def test_rows_that_never_had_a_gradient_are_not_read(fused):
    """Neither moments nor anchor: NaN there stays unnoticed, which is what the flags promise."""
    table = torch.ones(4, 3)
    e = AdamWTensors(
        table, None, torch.full((4, 3), math.nan), torch.zeros(4, 3), torch.zeros(()), SETTINGS[1], torch.ones(4, 3),
        row_flags=torch.zeros(4, dtype=torch.uint8),
    )  # fmt: skip
    e.exp_avg[2] = 0
    adamw([e._replace(grad=sparse_of(torch.ones(4, 3), torch.tensor([2])))], anchor_weight=0.5)
    assert torch.equal(table[[0, 1, 3]], torch.ones(3, 3)) and (table[2] < 1).all() and (e.anchor[2] < 1).all()
    assert e.row_flags.tolist() == [0, 0, 3, 0]


ONES = torch.ones(4, 3)
GOOD = AdamWTensors(
    ONES, ONES, ONES, ONES, torch.zeros(()), SETTINGS[0], row_flags=torch.zeros(4, dtype=torch.uint8)
)  # fmt: skip
ROWS = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 3), (4, 3), check_invariants=True)
BAD = [
    ({"parameter": ONES.int()}, TypeError, r"adamw: tensors\[0\].parameter has dtype torch.int32"),
    ({"grad": torch.ones(4, 2)}, ValueError, r"tensors\[0\].grad has shape \(4, 2\), expected \(4, 3\)"),
    ({"grad": ONES.double()}, TypeError, r"grad has dtype torch.float64, expected torch.float32 like its parameter"),
    ({"exp_avg": torch.ones(3)}, ValueError, r"exp_avg has shape \(3,\)"),
    ({"exp_avg_sq": None}, ValueError, "expected exp_avg, exp_avg_sq and step"),
    ({"anchor": ONES.half()}, TypeError, "anchor has dtype torch.float16"),
    ({"grad": ROWS, "row_flags": None}, ValueError, "row_flags is None, expected one number per row"),
    ({"grad": ROWS, "row_flags": torch.zeros(3)}, ValueError, r"row_flags is torch.float32 of shape \(3,\)"),
    ({"grad": ONES.to_sparse()}, ValueError, "grad is sparse in 2 of 2 dimensions, expected rows of a matrix"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        adamw([GOOD._replace(row_flags=None)._replace(**change)])
    with pytest.raises(ValueError, match=r"anchor_weight is 1.5"):
        adamw([], anchor_weight=1.5)
    with pytest.raises(ValueError, match="max_grad_norm is 0, expected a positive number or None"):
        adamw([], max_grad_norm=0)
    assert torch.equal(ONES, torch.ones(4, 3))


def arguments(**change):
    p = normal(6, 4, seed=1).float()
    given = {
        "params": [p], "grads": [torch.ones(2, 4)], "grad_rows": [torch.tensor([1, 3])], "exp_avgs": [p.clone()],
        "exp_avg_sqs": [p.abs()], "steps": [torch.zeros(())], "anchors": [p.clone()], "packed": [], "packed_t": [],
        "row_flags": [torch.zeros(6, dtype=torch.uint8)], "lr": [0.1], "beta1": [0.9],
        "beta2": [0.99], "eps": [1e-6], "weight_decay": [0.1], "max_grad_norm": 1.0, "anchor_weight": 0.5,
    }  # fmt: skip
    return list((given | change).values())


@pytest.mark.parametrize("norm", [None, 1.0])
def test_raw_op(fused, norm):
    check_raw("adamw_step", *arguments(max_grad_norm=norm))
    dense = {"grads": [torch.ones(6, 4)], "grad_rows": [], "row_flags": []}
    check_raw("adamw_step", *arguments(**dense, max_grad_norm=norm))
    check_raw("adamw_step", *arguments(**dense, max_grad_norm=norm), torch.tensor([0.5, 0.25], dtype=torch.float64))


RAW_BAD = [
    ({"grads": []}, "grads has 0 elements, expected 1 like params"),
    ({"lr": [0.1, 0.2]}, "lr has 2 elements"),
    ({"grad_rows": [torch.tensor([1, 6])]}, r"grad_rows\[0\]\[1\] is 6, but its table has 6 rows"),
    ({"grad_rows": [torch.tensor([1, -1])]}, r"grad_rows\[0\]\[1\] is -1"),
    ({"grad_rows": [torch.tensor([1])]}, r"grads\[0\] has shape \[2, 4\], expected \[1, 4\]"),
    ({"row_flags": []}, r"row_flags\[0\] is missing"),
    ({"exp_avgs": [torch.ones(4, 6).t()]}, r"exp_avgs\[0\] must be contiguous"),
    ({"params": [torch.ones(6, 4).int()]}, r"params\[0\] has dtype Int, expected float32 or float64"),
    ({"steps": [torch.zeros(1)]}, r"steps\[0\] is Float of shape \[1\]"),
    ({"packed": [torch.zeros(7).bfloat16()]}, r"packed\[0\] has shape \[7\]"),
    ({"anchor_weight": -0.5}, "anchor_weight is -0.5"),
    ({"max_grad_norm": 0.0}, "max_grad_norm is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), RAW_BAD, ids=[row[1] for row in RAW_BAD])
def test_raw_errors(fused, change, message):
    given = arguments(**change)
    before = [t.clone() for t in (*given[0], *given[3], *given[4], *given[6])]
    with pytest.raises((RuntimeError, ValueError, TypeError, IndexError), match=message):
        torch.ops.smartcs.adamw_step(*given)
    assert all(torch.equal(x, y) for x, y in zip(before, (*given[0], *given[3], *given[4], *given[6]), strict=True))


def test_sparse_gradients_are_clipped(fused):
    values, rows = 100 * normal(6, 5, seed=1).float(), torch.tensor([3, 1, 3, 0, 1, 7])
    grad = torch.sparse_coo_tensor(rows[None], values, (9, 5), check_invariants=True)
    results = []
    for given in (grad, grad.to_dense()):
        table, m, v = torch.ones(9, 5), torch.zeros(9, 5), torch.zeros(9, 5)
        flags = torch.zeros(9, dtype=torch.uint8) if given.is_sparse else None
        e = AdamWTensors(table, given, m, v, torch.zeros(()), SETTINGS[0], row_flags=flags)
        results.append((adamw([e], max_grad_norm=2.0), m))
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    torch.testing.assert_close(results[0][1].norm(), torch.tensor(0.2))
