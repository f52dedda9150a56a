"""bias_gelu on its Triton kernels, interpreted: the C++ kernels' error budget, to the tails, and their own edges."""

import math

import pytest
import torch
from op_harness import Problem, check_budget, check_equal, check_gradients, check_raw, evaluate
from ops.test_bias_gelu import KINDS, problem

from smartcs.ops import bias_gelu

OP = "bias_gelu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows around a partial sum's 8 and a tile's 2, columns around a tile's 16 to 512.
CASES = [
    ((7, 15), True),
    ((8, 16), True),
    ((9, 17), False),
    ((3, 511), True),
    ((2, 512), True),
    ((2, 3, 513), True),
    ((17, 1), True),
    ((77,), True),
    ((1,), False),
    ((0, 16), True),
    ((2, 0, 16), False),
    ((3, 0), True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_budget(triton_op, case, dtype):
    check_budget(problem(*case), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centre", [-4.0, -0.75, 4.0, 12.0])
def test_tails_within_budget(triton_op, centre, dtype):
    """Small parts of the axis by themselves, so that small results count as much as large ones."""
    check_budget(problem((9, 50), True, centre=centre, spread=0.2), dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_small_results_keep_their_digits(triton_op, dtype):
    """Far to the left the result is exp(-z^2 / 2) small and still accurate: 1 + erf would have cancelled."""
    x = torch.linspace(-13, -1, 500).to(dtype)
    exact = x.double() * torch.special.erfc(x.double() * -math.sqrt(0.5)) / 2
    # The exponent -z^2 / 2 is rounded in float32, which moves exp by up to z^2 / 2 roundings.
    allowed = torch.finfo(dtype).eps / 2 + (4 + x.double().square() / 2) * torch.finfo(torch.float32).eps
    assert ((bias_gelu(x).double() - exact).abs() <= allowed * exact.abs()).all()


@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES[:2]))
def test_extremes(triton_op, dtype):
    """Infinities have their limits, NaN stays NaN, and no gradient is NaN."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([-math.inf, -largest, -40.0, -0.0, 0.0, 40.0, largest, math.inf, math.nan], dtype=dtype)
    leaf = x.clone().requires_grad_()
    y = bias_gelu(leaf)
    y[:-1].sum().backward()
    assert torch.equal(y[:-1].detach(), torch.tensor([0, 0, 0, 0, 0, 40, largest, math.inf], dtype=dtype))
    assert y[-1].isnan()
    assert torch.equal(leaf.grad[:-1], torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1], dtype=dtype))


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(triton_op, bias):
    check_gradients(problem((2, 4), bias))
    check_budget(problem((2, 4), bias), torch.float64)


MUTANTS = [
    (OP, "cdf + z * bell * 0.39894228040143267794", "cdf"),
    (OP, "p = p * t + 0.101343777", "p = p * t + 0.1014"),
    (OP, "total += tl.sum(grad_x, axis=0)", "total = tl.sum(grad_x, axis=0)"),
    ("rows", "(group < groups)", "(group < groups - 1)"),
    (OP, "n * 2.12194440e-4", "n * 2.0e-4"),
]


@pytest.mark.mistake
@pytest.mark.parametrize("mistake", MUTANTS, ids=[wrong for *_, wrong in MUTANTS])
def test_budget_rejects(interpreter, mistake):
    from interpreted import mutant

    with mutant(OP, *mistake), pytest.raises(AssertionError, match="error budget"):
        for centre in (0, -4.0):
            # Wide enough that a group of rows takes several tiles.
            check_budget(problem((9, 500), centre=centre), torch.float32)


def test_deterministic(triton_op):
    p = problem((17, 70))
    values = p.rounded(torch.float32)
    check_equal(evaluate(p, values, "fused"), evaluate(p, values, "fused"), "a second run differs")


@pytest.mark.parametrize("wanted", ["x", "bias"])
def test_only_what_is_asked_for(triton_op, wanted):
    p = problem((9, 12))
    check_budget(Problem(p.op, p.tensors, {name: KINDS[name] for name in ("y", wanted)}), torch.float32)


@pytest.mark.parametrize(("rows", "bias", "bias_grad"), [(3, True, False), (0, False, True)])
def test_raw_ops(triton_op, rows, bias, bias_grad):
    values = problem((rows, 12)).rounded(torch.float32)
    arguments = values["x"], values["bias"] if bias else None
    check_raw("bias_gelu_fwd", *arguments)
    check_raw("bias_gelu_bwd", values["grad_y"], *arguments, bias_grad)


X, ROW = torch.zeros(4, 6), torch.zeros(6)
BAD = [
    ({"x": X.T}, "x has strides"),
    ({"x": X[0]}, r"x has shape \(6,\), expected \(N, C\)"),
    ({"bias": ROW[:5]}, r"bias has shape \(5,\), expected \(6,\) to match x"),
    ({"bias": ROW.double()}, "bias has dtype torch.float64, expected torch.float32 like x"),
    ({"grad_y": X[:3]}, r"grad_y has shape \(3, 6\), expected \(4, 6\) to match x"),
    ({"grad_y": X.bfloat16()}, "grad_y has dtype torch.bfloat16, expected torch.float32 like x"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[row[1] for row in BAD])
def test_raw_op_errors(triton_op, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.smartcs.bias_gelu_bwd(**({"grad_y": X, "x": X, "bias": ROW} | change), bias_grad=True)
