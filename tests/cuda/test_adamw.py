"""adamw's CUDA code, emulated: steps against torch's own in float64, the norm, and what it must not touch."""

import math

import pytest
import torch
from emulated_adamw import STATE, TWO_SUMS, Table, emulated_step
from emulated_cuda import EmulationError, Memory, Patch
from error_budget import BudgetExceeded, check
from op_harness import normal

from smartcs.ops import AdamWSettings, AdamWTensors
from smartcs.ops.adamw import adamw_reference

# A pack holds 4 numbers, a chunk 16384.
SHAPES = [(70, 33), (5,), (), (130, 127), (0, 4), (3, 4)]
SETTINGS = [AdamWSettings(1e-2, 0.9, 0.999, 1e-6, 0.1), AdamWSettings(3e-3, 0.8, 0.95, 1e-3, 0.0)]
WEIGHT, MAX_NORM = 0.3, 40.0


def entries(dtype=torch.float32, step_dtype=torch.float32) -> list[AdamWTensors]:
    """Parameters of two groups with zero state, and anchors elsewhere than they."""
    found = []
    for i, shape in enumerate(SHAPES):
        p, a = normal(*shape, seed=i).to(dtype), normal(*shape, seed=50 + i).to(dtype)
        step = torch.zeros((), dtype=step_dtype)
        found.append(AdamWTensors(p, None, torch.zeros_like(p), torch.zeros_like(p), step, SETTINGS[i % 2], a))
    return found


def gradient(i: int, step: int) -> torch.Tensor | None:
    """The second parameter has one every third step only."""
    return None if i == 1 and step % 3 else normal(*SHAPES[i], seed=1000 * step + i).float() * (1 + step % 4)


def reference(tensors, *, max_grad_norm, anchor_weight):
    return adamw_reference(tensors, max_grad_norm, anchor_weight)


def run(op, dtype=torch.float32, step_dtype=torch.float32, steps=8, max_grad_norm: float | None = MAX_NORM):
    """All tensors after some steps, joined by kind: float64 sees the gradients that float32 sees."""
    found = entries(dtype, step_dtype)
    for step in range(steps):
        grads = [gradient(i, step) for i in range(len(found))]
        now = [e._replace(grad=None if g is None else g.to(dtype)) for e, g in zip(found, grads, strict=True)]
        op(now, max_grad_norm=max_grad_norm, anchor_weight=WEIGHT if step != 2 else 0.0)
    joined = {name: torch.cat([getattr(e, name).flatten() for e in found]) for name in STATE[:4]}
    return joined, [e.step.item() for e in found]


@pytest.fixture(scope="module")
def truths():
    """torch's AdamW in float64 and in float32, with and without a bound on the norm."""
    from smartcs.ops.backend import backend

    with backend("reference"):
        return {
            (dtype, bound): run(reference, dtype, max_grad_norm=bound)
            for dtype in (torch.float64, torch.float32)
            for bound in (MAX_NORM, None)
        }


def compare(op, truths, dtype=torch.float32, step_dtype=torch.float32, bound=MAX_NORM):
    (results, counts), expected = run(op, dtype, step_dtype, max_grad_norm=bound), truths[torch.float64, bound]
    for name, value in results.items():
        check(value, expected[0][name], truths[dtype, bound][0][name], "forward", name=name)
    assert counts == expected[1] == [3 if i == 1 else 8 for i in range(len(SHAPES))]


@pytest.mark.parametrize("bound", [MAX_NORM, None])
@pytest.mark.parametrize(
    ("dtype", "step_dtype"), [(torch.float32,) * 2, (torch.float64,) * 2, (torch.float32, torch.float64)]
)
def test_steps(emulated, truths, dtype, step_dtype, bound):
    compare(emulated_step(emulated("adamw")), truths, dtype, step_dtype, bound)


def compare_norm(library, table):
    """As if summed in float64."""
    found = [e._replace(grad=normal(*e.parameter.shape, seed=9).float()) for e in entries()]
    truth = torch.cat([e.grad.double().flatten() for e in found]).norm()
    norm = emulated_step(library, table)(found, max_grad_norm=math.inf)
    torch.testing.assert_close(norm, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("table", [0, TWO_SUMS])
def test_norm(emulated, table):
    compare_norm(emulated("adamw"), table)


def compare_not_finite(library, bad, table):
    """Nothing changes."""
    found = [e._replace(grad=torch.ones_like(e.parameter), packed=e.parameter.bfloat16() + 1) for e in entries()]
    found[3].grad[7, 7] = bad
    kept = (*STATE, "packed")
    before = [getattr(e, name).clone() for e in found for name in kept]
    norm = emulated_step(library, table)(found, max_grad_norm=1.0, anchor_weight=0.5)
    assert not norm.isfinite()
    assert all(map(torch.equal, before, (getattr(e, name) for e in found for name in kept)))


@pytest.mark.parametrize("table", [0, TWO_SUMS, 11])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_changes_where_the_norm_is_not_finite(emulated, bad, table):
    compare_not_finite(emulated("adamw"), bad, table)


@pytest.mark.parametrize("weight", [0.0, 0.01, 0.7, 1.0])
def test_anchor_weights(emulated, weight):
    found = entries()
    expected = [e.anchor + weight * (e.parameter - e.anchor) for e in found]
    emulated_step(emulated("adamw"))(found, anchor_weight=weight)
    for e, value in zip(found, expected, strict=True):
        torch.testing.assert_close(e.anchor, value)
        assert weight < 1 or torch.equal(e.anchor, e.parameter)
    at_rest = [e._replace(anchor=e.parameter.clone()) for e in found]
    emulated_step(emulated("adamw"))(at_rest, anchor_weight=weight)
    assert all(torch.equal(e.anchor, e.parameter) for e in at_rest)


def test_float32_and_float64_in_one_call(emulated):
    """A table may hold both: each gets the bits it would get alone, but for the norm, which is of all."""

    def updated(dtype):
        return [e._replace(grad=normal(*e.parameter.shape, seed=9).to(dtype)) for e in entries(dtype)[:4]]

    step, alone, mixed = emulated_step(emulated("adamw")), [updated(torch.float64), updated(torch.float32)], []
    for found in alone:
        step(found, anchor_weight=0.5)
    mixed = [*updated(torch.float64), *updated(torch.float32)]
    step(mixed, anchor_weight=0.5)
    for one, other in zip(sum(alone, []), mixed, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in STATE)


def copied(found):
    return [e._replace(**{name: getattr(e, name).clone() for name in STATE}) for e in found]


def test_launches_can_be_replayed(emulated):
    """What a captured graph does: the same launches with the same arguments, while device memory changes."""
    grads = [[normal(*shape, seed=10 * step + i).float() for i, shape in enumerate(SHAPES)] for step in range(4)]
    found = [e._replace(grad=g) for e, g in zip(entries(), grads[0], strict=True)]
    expected, library = copied(found), emulated("adamw")
    with Memory(library, True) as memory:
        table = Table(library, memory, found, 2.0, 0.25, torch.zeros(2).double(), 32)
        for step, now in enumerate(grads):
            factor, weight = 1 / (1 + step), (0.1, 0.0, 0.6, 1.0)[step]
            table.schedule.copy_(torch.tensor([factor, weight], dtype=torch.float64))
            by_host = [
                e._replace(grad=g, settings=e.settings._replace(lr=e.settings.lr * factor))
                for e, g in zip(expected, now, strict=True)
            ]
            assert table.step(now) == emulated_step(library)(by_host, max_grad_norm=2.0, anchor_weight=weight)
        equal_state(expected, table.read())


def equal_state(found, expected):
    for e, other in zip(found, expected, strict=True):
        assert all(torch.equal(getattr(e, name), getattr(other, name)) for name in STATE)


def given(sizes, groups):
    """Parameters of these sizes, with gradients and settings in turn; every seventh has an anchor alone."""
    found = []
    for i, size in enumerate(sizes):
        p, grad, a, m = normal(4, size, seed=i).float()
        settings = AdamWSettings(1e-2 / (1 + i % groups), 0.9, 0.999, 1e-6, 0.1)
        step = torch.tensor(float(i % 5))
        found.append(AdamWTensors(p, None if i % 7 == 6 else grad, m, grad.square(), step, settings, a))
    return found


# Table of the emulation -> what it takes: more tensors or more groups than a launch holds, or neither.
TABLES = {11: "one tensor", 41: "one group", 32: "three tensors, two groups"}
EDGES = (0, 0, 16383, 5, 16384, 0, 16385, 32769, 0)
"""No numbers at the beginning, in the middle and at the end; one number less, as many and one more than in a chunk."""


def compare_tables(library, sizes, groups, tables):
    """One step within the budget, and the same bits however the tensors are split into launches."""
    options = {"max_grad_norm": 3.0, "anchor_weight": WEIGHT}
    results = []
    for dtype in (torch.float64, torch.float32):
        found = [
            e._replace(**{n: getattr(e, n).to(dtype) for n in ("grad", *STATE[:4]) if getattr(e, n) is not None})
            for e in copied(given(sizes, groups))
        ]
        reference(found, **options)
        results.append(found)
    whole = copied(given(sizes, groups))
    norm = emulated_step(library)(whole, **options)
    for name in STATE:
        value, truth, fallback = (torch.cat([getattr(e, name).flatten() for e in found]) for found in (whole, *results))
        check(value, truth.double(), fallback, "forward", name=name)
    for table in tables:
        found = copied(given(sizes, groups))
        assert torch.equal(norm, emulated_step(library, table)(found, **options)), TABLES[table]
        equal_state(found, whole)


def test_chunks_and_tables(emulated):
    compare_tables(emulated("adamw"), EDGES, 2, TABLES)


@pytest.mark.parametrize(("count", "groups"), [(432, 32), (433, 3), (40, 33), (1000, 70)])
def test_as_many_as_a_launch_holds_and_more(emulated, count, groups):
    compare_tables(emulated("adamw"), [(3, 0, 6)[i % 3] for i in range(count)], groups, [])


def compare_schedule(library, table):
    """The bits of the same numbers given by the host; the host's weight is not asked for."""
    sizes, (factor, weight) = (5, 40, 7, 3, 4, 9, 2), (0.3, 0.7)
    scheduled, expected = copied(given(sizes, 3)), copied(given(sizes, 3))
    schedule = torch.tensor([factor, weight], dtype=torch.float64)
    emulated_step(library, table)(scheduled, anchor_weight=0.25, schedule=schedule)
    by_host = [e._replace(settings=e.settings._replace(lr=e.settings.lr * factor)) for e in expected]
    emulated_step(library)(by_host, anchor_weight=weight)
    equal_state(scheduled, expected)


@pytest.mark.parametrize("table", [0, *TABLES])
def test_schedule(emulated, table):
    compare_schedule(emulated("adamw"), table)


def compare_copies(library):
    """The copies are the new values rounded by torch, those of an anchor alone or beyond a tensor's end untouched."""
    sizes = (5, 40, 7, 3, 4, 9, 2, 16385)
    found = [
        e._replace(packed=torch.full_like(e.parameter, math.nan, dtype=torch.bfloat16)) if i % 3 != 1 else e
        for i, e in enumerate(given(sizes, 3))
    ]
    plain = copied(given(sizes, 3))
    options = {"max_grad_norm": 3.0, "anchor_weight": WEIGHT}
    emulated_step(library)(found, **options)
    emulated_step(library)(plain, **options)
    equal_state(found, plain)
    for e in found:
        if e.packed is not None:
            if e.grad is None:
                assert e.packed.isnan().all()
                continue
            assert torch.equal(e.packed, e.parameter.bfloat16())
            check(e.packed, e.parameter.double(), e.parameter.bfloat16(), "forward", name="packed")


def test_copies(emulated):
    compare_copies(emulated("adamw"))


FILE = "adamw.cuh"
MUTANTS = {
    "no clip scale": Patch(FILE, "const A scaled = g[i] * grad_scale;", "const A scaled = g[i] + 0 * grad_scale;"),
    "chunk shifted": Patch(FILE, "tensor.first_chunk) * kAdamWChunk;", "tensor.first_chunk) * kAdamWChunk + 1;"),
    "norm of the first sums": Patch(FILE, "i < sum_count; i +=", "i < 2; i +="),
    "squares of a block's first chunk": Patch(FILE, "chunk += gridDim.x", "chunk += args.chunk_count"),
    "steps not counted": Patch(FILE, "static_cast<float>(more)", "0 * static_cast<float>(more)"),
    "steps not taken back": Patch(FILE, "count_step(span, -1)", "count_step(span, 0)"),
    "steps counted by every chunk": Patch(FILE, "span.begin != 0 ||", "false ||"),
    "no decay": Patch(FILE, "t[i] = t[i] * decay", "t[i] = t[i]"),
    "anchor keeps what it should lose": Patch(FILE, "followed(a[i], t[i], weight)", "followed(t[i], a[i], weight)"),
    "numbers of another group": Patch(FILE, "tensor.group]", "tensor.group * 0]"),
    "beyond the tensor": Patch(FILE, "kAdamWChunk < tensor.size ? begin", "kAdamWChunk < tensor.size + 15000 ? begin"),
    "the tensor before": Patch(FILE, "first_chunk <= chunk ?", "first_chunk < chunk ?"),
    "every launch's sums in one place": Patch(FILE, "[args.first_sum + blockIdx.x]", "[blockIdx.x]"),
    "scalars read while they are written": Patch(FILE, "__syncthreads();  // the scalars", "// the scalars"),
    "one group too many": Patch(FILE, "return group < kGroups;", "return group <= kGroups;"),
    "no factor": Patch(FILE, "lr = numbers.lr * factor;", "lr = numbers.lr + 0 * factor;"),
    "no copies": Patch(FILE, "tensor.low != nullptr) store", "false) store"),
    "copies of the moments": Patch(FILE, "store(tensor.low, j, span.end, t)", "store(tensor.low, j, span.end, m)"),
    "copies beyond the tensor": Patch(FILE, "store(tensor.low, j, span.end, t)", "store(tensor.low, j, j + 4, t)"),
    "the host's weight": Patch(FILE, ": step.schedule[1]", ": step.anchor_weight"),
}  # fmt: skip


@pytest.mark.mistake
@pytest.mark.parametrize("mutation", MUTANTS)
def test_rejects(emulated, truths, mutation):
    library = emulated("adamw", MUTANTS[mutation])
    with pytest.raises((BudgetExceeded, EmulationError, AssertionError)) as found:
        compare_schedule(library, 32)
        compare_norm(library, TWO_SUMS)
        compare_not_finite(library, math.nan, 0)
        compare_copies(library)
        compare_tables(library, EDGES, 2, TABLES)
        compare(emulated_step(library), truths)
    print(f"{mutation}: {found.value}")
