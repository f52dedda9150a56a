"""linear in bf16 mode and with its GELU epilogue: against float64 within the error budget, whatever multiplies."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from error_budget import BudgetExceeded, check
from op_harness import (
    Calls,
    Problem,
    bf16_products,
    check_budget,
    check_compiled,
    check_equal,
    check_gradients,
    check_raw,
    check_results,
    check_strided,
    check_threads,
    evaluate,
    normal,
)
from torch.autograd.graph import saved_tensors_hooks

from smartcs.ops import bias_gelu, input_gradients_only, linear
from smartcs.ops.precision import precision

KINDS = {"y": "forward", "x": "activation gradient", "weight": "summed gradient", "bias": "summed gradient"}
# shape of x, output channels, whether there is a bias
CASES = [((5, 7), 3, True), ((3, 4, 100), 77, False), ((384,), 8, True), ((150, 96), 200, True), ((33, 64), 1, True)]
EMPTY = [((0, 16), 4, True), ((2, 0, 16), 4, False), ((3, 16), 0, True)]
LOW = torch.bfloat16


@pytest.fixture(params=[*bf16_products(), "reference"])
def multiplied(request):
    """The backend, with each kind of products in turn."""
    if request.param == "reference":
        request.getfixturevalue("reference")
        yield "reference"
        return
    request.getfixturevalue("fused")
    torch.ops.smartcs.set_bf16_products(request.param)
    yield "fused"
    torch.ops.smartcs.set_bf16_products("auto")


def in_bf16(x, weight, bias=None, *, stored=None, **options):
    """linear in bf16 mode; float64 arguments are left alone by it, and so is their result."""
    with precision("bf16"):
        return linear(x, weight, bias, out_dtype=stored if x.dtype != torch.float64 else None, **options)


def problem(shape, columns, bias=True, *, resolution=None, **settings) -> Problem:
    """Inputs that `resolution` holds exactly."""
    tensors = {
        "x": normal(*shape, seed=1),
        "weight": normal(columns, shape[-1], seed=2) / shape[-1] ** 0.5,
        "bias": normal(columns, seed=3),
        "grad_y": normal(*shape[:-1], columns, seed=4),
    }
    if resolution is not None:
        tensors = {name: t.to(resolution).double() for name, t in tensors.items()}
    kinds = dict(KINDS)
    if not bias:
        del tensors["bias"], kinds["bias"]
    return Problem(partial(in_bf16, **settings), tensors, kinds)


@pytest.mark.parametrize("case", CASES + EMPTY, ids=str)
def test_products_of_what_bfloat16_holds_are_float32s(multiplied, case):
    """Nothing is rounded then, so the budget is float32's."""
    check_budget(problem(*case, resolution=LOW), torch.float32, multiplied)


@pytest.mark.parametrize("stored", [None, LOW])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("case", CASES + EMPTY, ids=str)
def test_within_the_budget_of_rounded_operands(multiplied, case, activation, stored):
    """The truth is float64 without any rounding, the budget what the reference loses by it."""
    check_budget(problem(*case, activation=activation, stored=stored), torch.float32, multiplied)


def test_bfloat16_input_and_its_gradient(multiplied):
    p = problem((40, 96), 130, resolution=LOW)
    values = p.rounded(torch.float32)
    low = values | {"x": values["x"].to(LOW)}
    first, second = (evaluate(p, v, multiplied) for v in (values, low))
    assert second["x"].dtype == LOW
    second["x"], first["x"] = second["x"].float(), first["x"].to(LOW).float()
    check_equal(first, second, "storing x in bfloat16, which holds it, changes it")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gelu_in_fp32_mode_is_the_two_ops(either, dtype):
    p = problem((9, 12), 20)
    together = replace(p, op=partial(linear, activation="gelu"))
    apart = replace(p, op=lambda x, weight, bias: bias_gelu(linear(x, weight), bias))
    values = p.rounded(dtype)
    check_equal(evaluate(apart, values, either), evaluate(together, values, either), "one call and two differ")


def gelu_of_tanh(x, weight, bias):
    return torch.nn.functional.gelu(linear(x, weight, bias), approximate="tanh")


def coarse_bias(x, weight, bias):
    return in_bf16(x, weight, bias if x.dtype == torch.float64 else bias.to(LOW).float() * 1.001, activation="gelu")


@pytest.mark.parametrize("mistake", [in_bf16, gelu_of_tanh, coarse_bias])
def test_budget_rejects(reference, mistake):
    p = problem((60, 96), 40, resolution=LOW, activation="gelu")
    with pytest.raises(BudgetExceeded):
        check_results(p, torch.float32, evaluate(replace(p, op=mistake), p.rounded(torch.float32), "reference"))


@pytest.mark.parametrize("forgotten", ["", "x", "weight", "z", "dz"])
def test_reference_rounds_what_the_docstring_says(reference, forgotten):
    """z = x~ W~^T + b; dz = dy GELU'(z~); dx = dz~ W~; dW = dz~^T x~; dbias = sum dz; every ~ matters."""
    p = problem((30, 24), 10, activation="gelu")
    values = p.rounded(torch.float32)

    def low(name, t):
        return t if name == forgotten else t.to(LOW).float()

    x, weight = low("x", values["x"]), low("weight", values["weight"])
    z = x @ weight.T + values["bias"]
    at = low("z", z)
    density = torch.exp(-0.5 * at * at) * (1 / math.sqrt(2 * math.pi))
    dz = values["grad_y"] * (0.5 * (1 + torch.erf(at * (1 / math.sqrt(2)))) + at * density)
    rounded = low("dz", dz)
    expected = {"y": torch.nn.functional.gelu(z), "x": rounded @ weight, "weight": rounded.T @ x, "bias": dz.sum(0)}

    def compare():
        for name, result in evaluate(p, values, "reference").items():
            check(result, expected[name].double(), expected[name], KINDS[name], name)

    if forgotten:
        with pytest.raises(BudgetExceeded):
            compare()
    else:
        compare()


def test_float64_is_left_alone(either):
    p = problem((9, 12), 20, activation="gelu")
    check_equal(
        evaluate(replace(p, op=partial(linear, activation="gelu")), p.tensors, either),
        evaluate(p, p.tensors, either),
        "bf16 mode changes float64",
    )
    check_gradients(problem((3, 5), 2, activation="gelu"), either)


def test_reference_can_be_differentiated_twice(reference):
    x, weight = normal(4, 6, seed=1).float().requires_grad_(), normal(3, 6, seed=2).float().requires_grad_()
    (dx,) = torch.autograd.grad(in_bf16(x, weight, activation="gelu").sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(dx.square().sum(), weight)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    (dx,) = torch.autograd.grad(linear(*wide, activation="gelu").sum(), wide[0], create_graph=True)
    (truth,) = torch.autograd.grad(dx.square().sum(), wide[1])
    assert torch.nn.functional.cosine_similarity(second.double().flatten(), truth.flatten(), dim=0) > 0.999


def test_fused_cannot(fused, fused_products):
    x = normal(4, 6).float().requires_grad_()
    with pytest.raises(RuntimeError, match="fused ops are differentiable once"):
        torch.autograd.grad(in_bf16(x, normal(3, 6).float()).sum(), x, create_graph=True)


def test_threads(fused, fused_products):
    check_threads(problem((300, 96), 128, activation="gelu", stored=LOW))


def test_strided(fused, fused_products):
    check_strided(problem((9, 12), 5, activation="gelu"))
    check_strided(problem((3, 4, 5), 6))


def test_compiled(multiplied):
    check_compiled([problem((5 + 3 * i, 12), 7, activation="gelu", stored=LOW) for i in range(4)], multiplied)


def saved(run) -> dict[str, int]:
    """Elements that autograd keeps, by dtype."""
    kept: dict[str, int] = {}

    def pack(t):
        name = str(t.dtype).removeprefix("torch.")
        kept[name] = kept.get(name, 0) + t.numel()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        run()
    return kept


def test_keeps_bfloat16_alone(fused, fused_products):
    """x and z, and the weight, which is there anyway; without weight gradients no x, with nothing wanted nothing."""
    x, weight = normal(50, 64).float().requires_grad_(), normal(30, 64).float().requires_grad_()
    run = partial(in_bf16, x, weight, activation="gelu")
    assert saved(run) == {"bfloat16": 50 * 64 + 50 * 30, "float32": 30 * 64}
    with input_gradients_only():
        assert saved(run) == {"bfloat16": 50 * 30, "float32": 30 * 64}
    with torch.no_grad():
        assert saved(run) == {}
    assert saved(partial(in_bf16, x.detach(), weight)) == {"bfloat16": 50 * 64}


def test_a_weight_that_changed_before_the_backward_pass_is_noticed(fused, fused_products):
    x, weight = normal(5, 8).float().requires_grad_(), torch.nn.Parameter(normal(3, 8).float())
    y = in_bf16(x, weight)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast_changes_nothing(either):
    """Its bfloat16 products would hand half precision to what expects float32."""
    p = problem((9, 12), 5)
    plain = replace(p, op=linear)

    def under_autocast(*args, **kwargs):
        with torch.autocast("cpu", dtype=LOW):
            return linear(*args, **kwargs)

    values = p.rounded(torch.float32)
    check_equal(evaluate(plain, values, either), evaluate(replace(p, op=under_autocast), values, either), "differs")


X, WEIGHT, BIAS = torch.zeros(4, 6), torch.zeros(3, 6), torch.zeros(3)
BAD = [
    ({"activation": "relu"}, ValueError, "linear: activation is 'relu', expected None or gelu"),
    ({"out_dtype": torch.float64}, TypeError, "out_dtype is torch.float64, expected None or torch.float32 or torch.bf"),
    ({"x": X.half()}, TypeError, "weight has dtype torch.float32, expected torch.float16 like x"),
    ({"x": X.double()}, TypeError, "weight has dtype torch.float32, expected torch.float64 like x"),
    ({"x": X.to(LOW), "bias": BIAS.to(LOW)}, TypeError, "bias has dtype torch.bfloat16, expected torch.float32 like"),
    ({"weight": WEIGHT.to(LOW)}, TypeError, "weight has dtype torch.bfloat16, expected torch.float32 like x"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message), precision("bf16"):
        linear(**({"x": X, "weight": WEIGHT, "bias": BIAS} | change))


def test_fp32_mode_mixes_no_dtypes(either):
    with pytest.raises(TypeError, match="weight has dtype torch.float32, expected torch.bfloat16 like x"):
        linear(X.to(LOW), WEIGHT)
    with pytest.raises(TypeError, match="out_dtype is torch.bfloat16, expected None or torch.float32"):
        linear(X, WEIGHT, out_dtype=LOW)


@pytest.mark.parametrize("keep", [True, False])
def test_raw_ops(fused, keep):
    values = problem((5, 40), 70).rounded(torch.float32)
    forward, transposed = (check_raw("pack_weight", values["weight"], turned) for turned in (False, True))
    for x in (values["x"], values["x"].to(LOW)):
        check_raw("linear_bf16_fwd", x, forward, 70, values["bias"], keep, keep, keep, LOW)
    low, z = values["x"].to(LOW), values["grad_y"].to(LOW)
    for wanted in ((True, True, True), (True, False, False), (False, True, True)):
        arguments = (low, z if keep else None, transposed, 40, 70, *wanted, torch.float32)
        check_raw("linear_bf16_bwd", values["grad_y"], *arguments)


def test_only_what_is_asked_for(fused, fused_products):
    p = problem((9, 12), 5)
    for wanted in (("x",), ("weight",), ("bias",), ("x", "bias")):
        with Calls() as calls:
            evaluate(
                replace(p, kinds={name: KINDS[name] for name in ("y", *wanted)}), p.rounded(torch.float32), "fused"
            )
        assert calls.arguments("linear_bf16_bwd")[6:9] == tuple(name in wanted for name in ("x", "weight", "bias"))
