"""linear in bf16 mode on its Triton kernels, interpreted, around products that stand in for cuBLAS's."""

import pytest
import torch
from error_budget import BudgetExceeded, check
from op_harness import check_budget, check_equal, evaluate, normal, truth_and_fallback
from ops.test_linear_precision import KINDS, in_bf16, problem

from smartcs.ops.linear import linear_rounded_reference

OP = "linear"
LOW = torch.bfloat16
# Rows around a partial sum's 8, columns around a tile's 16 to 512.
CASES = [
    ((7, 5), 15, True),
    ((8, 16), 16, False),
    ((9, 3), 17, True),
    ((2, 8), 513, True),
    ((2, 3, 7), 512, True),
    ((17, 4), 1, True),
    ((6,), 5, True),
    ((0, 16), 4, True),
    ((3, 16), 0, True),
]


@pytest.fixture
def bf16_op(triton_op):
    """The kernels, whatever this CPU multiplies."""
    torch.ops.smartcs.set_bf16_products("portable")
    yield
    torch.ops.smartcs.set_bf16_products("auto")


@pytest.mark.parametrize("stored", [None, LOW])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_the_budget_of_rounded_operands(bf16_op, case, activation, stored):
    check_budget(problem(*case, activation=activation, stored=stored), torch.float32)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_products_of_what_bfloat16_holds_are_float32s(bf16_op, case):
    check_budget(problem(*case, resolution=LOW), torch.float32)


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_bfloat16_input_and_gradient(bf16_op, activation):
    """As the encoder has them between its products."""
    p = problem((9, 16), 24, resolution=LOW, activation=activation, stored=LOW)
    values = p.rounded(torch.float32)
    low = values | {"x": values["x"].to(LOW), "grad_y": values["grad_y"].to(LOW)}
    first, second = evaluate(p, values | {"grad_y": low["grad_y"]}, "fused"), evaluate(p, low, "fused")
    first["x"], second["x"] = first["x"].to(LOW).float(), second["x"].float()
    check_equal(first, second, "storing x in bfloat16, which holds it, changes it")
    truth, fallback = truth_and_fallback(p, torch.float32)
    check(second["x"].to(LOW), truth["x"], fallback["x"].to(LOW), KINDS["x"], "gradient of x")


def test_only_what_is_wanted(bf16_op):
    x, weight, bias = normal(5, 8).float(), normal(3, 8, seed=1).float(), normal(3, seed=2).float()
    for wanted in range(1, 8):
        leaves = [t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate((x, weight, bias))]
        in_bf16(*leaves, activation="gelu").square().sum().backward()
        for leaf, whole in zip(leaves, _gradients(x, weight, bias), strict=True):
            if leaf.requires_grad:
                torch.testing.assert_close(leaf.grad, whole, rtol=2e-2, atol=1e-2)
            else:
                assert leaf.grad is None


def _gradients(x, weight, bias):
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    linear_rounded_reference(*leaves, True, torch.float32).square().sum().backward()
    return [leaf.grad for leaf in leaves]


def test_messages(bf16_op):
    ops, x = torch.ops.smartcs, torch.ones(2, 4)
    packed = ops.pack_weight(torch.ones(3, 4), False)
    with pytest.raises(TypeError, match="linear_bf16_fwd: packed has dtype torch.float32, expected torch.bfloat16"):
        ops.linear_bf16_fwd(x, packed.float(), 3, None, False, False, False, torch.float32)
    with pytest.raises(ValueError, match="linear_bf16_fwd: packed has shape"):
        ops.linear_bf16_fwd(x, packed, 4, None, False, False, False, torch.float32)
    with pytest.raises(ValueError, match="linear_bf16_bwd: z has shape"):
        ops.linear_bf16_bwd(torch.ones(2, 3), None, packed, None, 4, 3, False, False, True, torch.float32)


MUTANTS = {
    "another bias": ("bias_ptr + column, mask=column < columns", "bias_ptr + column // 2, mask=column < columns"),
    "GELU of the rounded": ("        z = _gelu(z)", "        z = _gelu(z.to(tl.bfloat16).to(tl.float32) * 1.01)"),
    "slope at the wrong place": ("_gelu_slope(_biased(", "_gelu_slope(1 + _biased("),
    "sum of the last rows": ("total += tl.sum(grad_x, axis=0)", "total = tl.sum(grad_x, axis=0)"),
    "a row is lost": ("group * GROUP + first + tl.arange(0, ROWS)", "group * GROUP + first + 1 + tl.arange(0, ROWS)"),
}


@pytest.mark.mistake
@pytest.mark.parametrize("mistake", MUTANTS)
def test_mutants_fail(interpreter, mistake):
    from interpreted import mutant

    p = problem((20, 8), 24, resolution=LOW, activation="gelu")
    torch.ops.smartcs.set_bf16_products("portable")
    try:
        with mutant(OP, "bias_gelu", *MUTANTS[mistake]), pytest.raises((BudgetExceeded, AssertionError)):
            results = evaluate(p, p.rounded(torch.float32), "fused")
            truth = evaluate(p, p.tensors, "reference")
            for name, result in results.items():
                check(result, truth[name], truth[name].float(), KINDS[name], name)
    finally:
        torch.ops.smartcs.set_bf16_products("auto")
