"""bias_gelu: against torch's GELU, within the error budget, down to the tails."""

import math

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

from smartcs.ops import bias_gelu

KINDS = {"y": "forward", "x": "activation gradient", "bias": "summed gradient"}
# shape of x, whether there is a bias
CASES = [
    ((5, 7), True),
    ((33, 77), True),
    ((70, 100), False),
    ((3, 4, 384), True),
    ((40, 1536), True),
    ((768,), True),
    ((1,), False),
    ((64, 1), True),
    ((0, 16), True),
    ((2, 0, 16), False),
    ((3, 0), True),
]


def problem(shape, bias=True, *, centre=0.0, spread=2.0) -> Problem:
    tensors = {
        "x": spread * normal(*shape, seed=1) + centre,
        "bias": 0.1 * normal(shape[-1], seed=2),
        "grad_y": normal(*shape, seed=3),
    }
    kinds = dict(KINDS)
    if not bias:
        del tensors["bias"], kinds["bias"]
    return Problem(bias_gelu, tensors, kinds)


def formula(x, grad_y, bias=None, mutation=""):
    """The module's formulas; ``mutation`` names the mistake to make."""
    z = x if bias is None or mutation == "bias missing" else x + bias
    if mutation == "tanh approximation":
        leaf = z.clone().requires_grad_()
        y = F.gelu(leaf, approximate="tanh")
        (dx,) = torch.autograd.grad(y, leaf, grad_y)
        return {"y": y.detach(), "x": dx, "bias": dx.sum(0)}
    cdf, bell = torch.special.ndtr(z), torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    dx = grad_y * (cdf if mutation == "bell missing" else cdf + z * bell)
    return {"y": z * cdf, "x": dx, "bias": (dx[:-1] if mutation == "dbias misses a row" else dx).sum(0)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(fused, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centre", [-4.0, -0.75, 0.0, 4.0, 12.0])
def test_tails_within_budget(fused, centre, dtype):
    """Small parts of the axis by themselves, so that small results count as much as large ones."""
    check_budget(problem((20, 50), True, centre=centre, spread=0.2), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_results_keep_their_digits(fused, dtype):
    """Far to the left the result is exp(-z^2 / 2) small and still accurate: 1 + erf would have cancelled."""
    x = torch.linspace(-13, -1, 500).to(dtype)
    exact = x.double() * torch.special.erfc(x.double() * -math.sqrt(0.5)) / 2
    rounding = torch.finfo(dtype).eps / 2
    # The exponent -z^2 / 2 is rounded in float32, which moves exp by up to z^2 / 2 roundings.
    allowed = rounding + (4 + x.double().square() / 2) * torch.finfo(torch.float32).eps
    assert ((bias_gelu(x).double() - exact).abs() <= allowed * exact.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mutation", ["bias missing", "bell missing", "dbias misses a row"])
def test_budget_rejects(dtype, mutation):
    check_mutant(problem((9, 7)), dtype, formula, mutation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_budget_rejects_tanh(dtype):
    """The two forms differ by at most 5e-4 in all, but by a tenth around -3: there even bfloat16 sees it."""
    check_mutant(problem((9, 7), centre=-3.2, spread=0.1), dtype, formula, "tanh approximation")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_equals_torch(reference, case):
    p = problem(*case)
    leaves = {name: p.tensors[name].clone().requires_grad_() for name in p.kinds if name != "y"}
    y = F.gelu(leaves["x"] + leaves.get("bias", 0))
    expected = {
        "y": y,
        **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), p.tensors["grad_y"]), strict=True)),
    }
    result = evaluate(p, p.tensors, "reference")
    for name, kind in p.kinds.items():
        check(result[name], expected[name], result[name], kind, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(fused, dtype):
    """Infinities have their limits, NaN stays NaN, and no gradient is NaN."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([-math.inf, -largest, -40.0, -0.0, 0.0, 40.0, largest, math.inf, math.nan], dtype=dtype)
    leaf = x.clone().requires_grad_()
    y = bias_gelu(leaf)
    y[:-1].sum().backward()
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 40.0, largest, math.inf], dtype=dtype)
    assert torch.equal(y[:-1].detach(), expected) and y[-1].isnan()
    assert torch.equal(leaf.grad[:-1], torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1], dtype=dtype))


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(fused, bias):
    check_gradients(problem((3, 5), bias))


def test_threads(fused):
    check_threads(problem((300, 384)))


def test_instruction_sets(fused):
    check_instruction_sets(problem((37, 101)))


@pytest.mark.parametrize("shape", [(9, 12), (3, 4, 5)], ids=str)
def test_strided(fused, shape):
    check_strided(problem(shape))


@pytest.mark.parametrize(("wanted", "bias_grad"), [(("x",), False), (("bias",), True), (("x", "bias"), True)], ids=str)
def test_only_what_is_asked_for(fused, wanted, bias_grad):
    p = problem((9, 12))
    with Calls() as calls:
        check_budget(Problem(p.op, p.tensors, {name: KINDS[name] for name in ("y", *wanted)}), torch.float32)
    assert calls.arguments("bias_gelu_bwd")[-1] is bias_grad


def test_compiled(fused):
    check_compiled([problem((5 + 3 * i, 12)) for i in range(6)])


X, ROW = torch.zeros(4, 6), torch.zeros(6)
BAD = [
    ({"x": 1.0}, TypeError, "bias_gelu: x is float, expected a torch.Tensor"),
    ({"x": X.bool()}, TypeError, "x has dtype torch.bool, expected a floating-point dtype"),
    ({"x": torch.tensor(1.0)}, ValueError, r"x is a scalar, expected shape \(..., C\)"),
    ({"bias": [0.0] * 6}, TypeError, "bias is list"),
    ({"bias": X}, ValueError, r"bias has shape \(4, 6\), expected \(6,\) to match x"),
    ({"bias": ROW[:1]}, ValueError, r"bias has shape \(1,\), expected \(6,\) to match x"),
    ({"bias": ROW.double()}, TypeError, "bias has dtype torch.float64, expected torch.float32 like x"),
    ({"bias": ROW.to("meta")}, ValueError, "bias is on meta, expected cpu like x"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        bias_gelu(**({"x": X, "bias": ROW} | change))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "bias", "bias_grad"), [(5, True, False), (3, False, True), (0, True, True)])
def test_raw_ops(fused, rows, bias, bias_grad, dtype):
    values = problem((rows, 12)).rounded(dtype)
    arguments = values["x"], values["bias"] if bias else None
    check_raw("bias_gelu_fwd", *arguments)
    check_raw("bias_gelu_bwd", values["grad_y"], *arguments, bias_grad)


RAW_BAD = [
    ({"x": X.T}, "x must be contiguous"),
    ({"x": X[0]}, r"x has shape \[6\], expected \(N, C\)"),
    ({"x": X.half(), "bias": None}, "dtype Half has no CPU kernel"),
    ({"bias": ROW[:5]}, r"bias has shape \[5\], expected \[6\]"),
    ({"bias": ROW.double()}, "bias has dtype Double, expected Float"),
    ({"grad_y": X[:3]}, r"grad_y has shape \[3, 6\], expected \[4, 6\]"),
    ({"grad_y": X.bfloat16()}, "grad_y has dtype BFloat16, expected Float"),
]


@pytest.mark.parametrize(("change", "message"), RAW_BAD, ids=[row[1] for row in RAW_BAD])
def test_raw_op_errors(fused, change, message):
    arguments = {"grad_y": X, "x": X, "bias": ROW} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.smartcs.bias_gelu_bwd(**arguments, bias_grad=True)
    if "grad_y" not in change:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.smartcs.bias_gelu_fwd(arguments["x"], arguments["bias"])
