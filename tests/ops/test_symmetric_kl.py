"""symmetric_kl: against torch's distributions, within the error budget. test_symmetric_kl_accuracy.py has the rest."""

import pytest
import torch
import torch.nn.functional as F
from error_budget import check
from op_harness import (
    DTYPES,
    Calls,
    Problem,
    check_budget,
    check_compiled,
    check_gradients,
    check_instruction_sets,
    check_mutant,
    check_raw,
    check_strided,
    check_threads,
    evaluate,
    normal,
)
from torch.distributions import Bernoulli, Categorical, kl_divergence

from smartcs.ops import symmetric_kl

KINDS = {"y": "statistic", "a": "activation gradient", "b": "activation gradient"}
BERNOULLI, DETACHED, NONE = {"distribution": "bernoulli"}, {"detach_targets": True}, {"reduction": "none"}
# shape of the logits, their distance, settings
CASES = [
    ((8, 5), 1.0, {}),
    ((33, 2), 0.3, DETACHED),
    ((5, 1), 1.0, {}),
    ((3, 4, 7), 5.0, NONE),
    ((100, 5), 1e-2, {"reduction": "sum"}),
    ((9, 77), 1.0, NONE | DETACHED),
    ((5,), 1.0, {}),
    ((40,), 1.0, BERNOULLI),
    ((6, 7), 5.0, BERNOULLI | DETACHED | NONE),
    ((), 0.1, BERNOULLI | NONE),
    ((0, 5), 1.0, {}),
    ((0,), 1.0, BERNOULLI | NONE),
]


def problem(shape, distance=1.0, settings=None, *, spread=1.0) -> Problem:
    """Logits a, and b at a normal distance from them."""
    settings = settings or {}
    a = spread * normal(*shape, seed=1)
    one_each = settings.get("distribution") == "bernoulli"
    losses = shape if one_each else shape[:-1]
    tensors = {"a": a, "b": a + distance * normal(*shape, seed=2)}
    tensors["grad_y"] = normal(*losses, seed=3) if settings.get("reduction") == "none" else normal(seed=3)
    return Problem(symmetric_kl, tensors, dict(KINDS), settings)


def formula(a, b, grad_y, distribution="categorical", reduction="mean", detach_targets=False, mutation=""):
    """The module's formulas on (N, K) or (N,) logits, by plain differences; ``mutation`` names the mistake to make."""
    bernoulli = distribution == "bernoulli"
    a, b = (t[:, None] if bernoulli else t for t in (a, b))
    log_p, log_q = (F.logsigmoid(t) if bernoulli else F.log_softmax(t, dim=-1) for t in (a, b))
    p, q = log_p.exp(), log_q.exp()
    x = a - b if bernoulli else log_p - log_q
    p_weight, q_weight = (1 - p, 1 - q) if bernoulli else (1, 1)
    mean_p, mean_q = (0, 0) if bernoulli else ((p * x).sum(-1, keepdim=True), (q * x).sum(-1, keepdim=True))
    losses = ((p - q) * x).sum(-1)
    if mutation == "one direction":
        other_outcome = (1 - p) * (F.logsigmoid(-a) - F.logsigmoid(-b)) if bernoulli else 0
        losses = (p * (log_p - log_q) + other_outcome).sum(-1)
    da, db = p - q, q - p
    if detach_targets == (mutation == "detached and full swapped"):
        da = da + p * p_weight * (x - mean_p)
        db = db - q * q_weight * (x - mean_q)
    if mutation == "no gradient of targets":
        db = torch.zeros_like(db)
    if mutation == "gradients exchanged":
        da, db = db, da
    if reduction == "mean":
        grad_y = grad_y / (a.numel() if mutation == "mean over classes" else len(a))
    if reduction != "none":
        losses = losses.sum() / (1 if reduction == "sum" else a.numel() if mutation == "mean over classes" else len(a))
    else:
        grad_y = grad_y[:, None]
    return {"y": losses, "a": grad_y * da, "b": grad_y * db}


MUTATIONS = ["one direction", "detached and full swapped", "no gradient of targets", "gradients exchanged"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(fused, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("settings", [{}, BERNOULLI], ids=["categorical", "bernoulli"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_budget_rejects(dtype, mutation, settings):
    shape = (6,) if settings else (6, 4)
    check_mutant(problem(shape, 1.0, settings), dtype, formula, mutation)
    if mutation == "detached and full swapped":
        check_mutant(problem(shape, 1.0, settings | DETACHED | NONE), dtype, formula, mutation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_budget_rejects_mean_over_classes(dtype):
    check_mutant(problem((6, 4)), dtype, formula, "mean over classes")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reference_equals_torch(reference, reduction):
    """torch.distributions, and F.kl_div in both directions, with their gradients, in float64."""
    for settings, shape in (({}, (9, 5)), (BERNOULLI, (9,))):
        p = problem(shape, 2.0, settings | {"reduction": reduction})
        a, b = (p.tensors[name].clone().requires_grad_() for name in ("a", "b"))
        one, other = (Bernoulli(logits=t) if settings else Categorical(logits=t) for t in (a, b))
        losses = [kl_divergence(one, other) + kl_divergence(other, one)]
        if not settings:
            log_p, log_q = a.log_softmax(-1), b.log_softmax(-1)
            both = (F.kl_div(x, y, reduction="none", log_target=True) for x, y in ((log_q, log_p), (log_p, log_q)))
            losses.append(sum(both).sum(-1))
        for loss in losses:
            y = loss if reduction == "none" else getattr(loss, reduction)()
            grads = torch.autograd.grad(y, (a, b), p.tensors["grad_y"], retain_graph=True)
            result = evaluate(p, p.tensors, "reference")
            for name, expected in zip(("y", "a", "b"), (y, *grads), strict=True):
                check(result[name], expected, result[name], KINDS[name], name=name)


def test_result_dtype_and_shape(either):
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2):
        logits = torch.zeros(3, 4, 5, dtype=dtype)
        assert symmetric_kl(logits, logits).dtype == expected
        assert symmetric_kl(logits, logits, **NONE).shape == (3, 4)
        assert symmetric_kl(logits, logits, **NONE, **BERNOULLI).shape == (3, 4, 5)


@pytest.mark.parametrize("settings", [{}, NONE, BERNOULLI | {"reduction": "sum"}], ids=str)
def test_gradcheck(fused, settings):
    check_gradients(problem((4,) if "distribution" in settings else (4, 3), 1.0, settings))


def test_threads(fused):
    check_threads(problem((3000, 5), 0.1, NONE))
    check_threads(problem((20000,), 0.1, BERNOULLI))


def test_instruction_sets(fused):
    check_instruction_sets(problem((37, 11), 0.5))
    check_instruction_sets(problem((37,), 0.5, BERNOULLI))


@pytest.mark.parametrize("settings", [NONE, BERNOULLI | NONE], ids=str)
def test_strided(fused, settings):
    check_strided(problem((6, 5), 0.5, settings))


@pytest.mark.parametrize("wanted", [("a",), ("b",), ("a", "b")], ids=str)
def test_only_what_is_asked_for(fused, wanted):
    p = problem((9, 5))
    with Calls() as calls:
        check_budget(Problem(p.op, p.tensors, {name: KINDS[name] for name in ("y", *wanted)}), torch.float32)
    assert calls.arguments("symmetric_kl_bwd")[-2:] == ("a" in wanted, "b" in wanted)


@pytest.mark.parametrize("settings", [{}, BERNOULLI | DETACHED], ids=str)
def test_compiled(fused, settings):
    shapes = [(5 + 3 * i,) if settings else (5 + 3 * i, 4) for i in range(6)]
    check_compiled([problem(shape, 1.0, settings) for shape in shapes])


A = torch.zeros(4, 3)
BAD = [
    ({"a": [0.0]}, TypeError, "symmetric_kl: a is list, expected a torch.Tensor"),
    ({"a": A.long()}, TypeError, "a has dtype torch.int64, expected a floating-point dtype"),
    ({"b": 0.0}, TypeError, "b is float"),
    ({"b": A[:, :2]}, ValueError, r"b has shape \(4, 2\), expected \(4, 3\) to match a"),
    ({"b": A.double()}, TypeError, "b has dtype torch.float64, expected torch.float32 like a"),
    ({"b": A.to("meta")}, ValueError, "b is on meta, expected cpu like a"),
    ({"a": A[0, 0], "b": A[0, 0]}, ValueError, r"a has shape \(\), expected \(..., K\) with K > 0"),
    ({"a": A[:, :0], "b": A[:, :0]}, ValueError, r"a has shape \(4, 0\), expected \(..., K\) with K > 0"),
    ({"distribution": "normal"}, ValueError, "distribution is 'normal', expected one of categorical, bernoulli"),
    ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean', expected one of mean, sum, none"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        symmetric_kl(**({"a": A, "b": A} | change))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "bernoulli", "detached", "need_a", "need_b"),
    [(5, False, True, True, False), (3, True, False, False, True), (0, False, False, True, True)],
)
def test_raw_ops(fused, rows, bernoulli, detached, need_a, need_b, dtype):
    a, b = (normal(rows, 1 if bernoulli else 4, seed=seed).to(dtype) for seed in (1, 2))
    loss = check_raw("symmetric_kl_fwd", a, b, bernoulli)
    check_raw("symmetric_kl_bwd", torch.ones_like(loss), a, b, bernoulli, detached, need_a, need_b)


RAW_BAD = [
    ({"a": torch.zeros(3, 4).T}, "a must be contiguous"),
    ({"a": A[0]}, r"a has shape \[3\], expected \(N, K\) with K > 0"),
    ({"a": A[:, :0].contiguous()}, r"a has shape \[4, 0\], expected \(N, K\) with K > 0"),
    ({"a": A.half(), "b": A.half()}, "dtype Half has no CPU kernel"),
    ({"b": A[:3]}, r"b has shape \[3, 3\], expected \[4, 3\]"),
    ({"b": A.double()}, "b has dtype Double, expected Float"),
    ({"bernoulli": True}, r"a has shape \[4, 3\], expected \(N, 1\) for binary logits"),
    ({"grad_loss": torch.zeros(3)}, r"grad_loss has shape \[3\], expected \[4\]"),
    ({"grad_loss": torch.zeros(4).bfloat16()}, "grad_loss has dtype BFloat16, expected Float"),
]


@pytest.mark.parametrize(("change", "message"), RAW_BAD, ids=[row[1] for row in RAW_BAD])
def test_raw_op_errors(fused, change, message):
    arguments = {"grad_loss": torch.zeros(4), "a": A, "b": A, "bernoulli": False} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.smartcs.symmetric_kl_bwd(**arguments, detach_targets=False, need_a=True, need_b=True)
    if "grad_loss" not in change:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.smartcs.symmetric_kl_fwd(arguments["a"], arguments["b"], arguments["bernoulli"])
