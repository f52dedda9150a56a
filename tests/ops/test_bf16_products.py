"""The bf16 products behind linear, every path of them: against float64 products of the same rounded operands.

Paths of other instructions than this CPU's are left out, but AMX's blocking runs everywhere, on emulated tiles.
"""

from contextlib import contextmanager
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from error_budget import BudgetExceeded, check
from op_harness import THREADS, check_raw, instruction_set, instruction_sets, integers, normal, threads

ops = torch.ops.smartcs
F32, BF16 = torch.float32, torch.bfloat16
KINDS = {
    "y": "forward",
    "z": "forward",
    "x": "activation gradient",
    "weight": "summed gradient",
    "bias": "summed gradient",
}


@contextmanager
def products(name):
    ops.set_bf16_products(name)
    try:
        yield
    finally:
        ops.set_bf16_products("auto")


def runs(name):
    try:
        with products(name):
            return True
    except RuntimeError:
        return False


# (path, instruction set); the widest set comes last
PATHS = [(path, isa) for isa in instruction_sets() for path in ("portable", "amx_emulated")]
PATHS += [(path, "avx512") for path in ("avx512_bf16", "amx") if instruction_sets() and runs(path)]


@pytest.fixture(params=PATHS, ids="-".join)
def path(request, fused):
    name, isa = request.param
    with instruction_set(isa), products(name):
        yield name


@pytest.fixture(params=sorted({path for path, _ in PATHS}))
def widest_path(request, fused):
    with products(request.param):
        yield request.param


def problem(rows, outputs, inputs, x_dtype=F32, y_dtype=F32, *, bias=True, gelu=False):
    """The arguments of one case, as the kernels get them; the gradient has the result's dtype."""
    return {
        "x": normal(rows, inputs, seed=1).to(x_dtype),
        "weight": normal(outputs, inputs, seed=2).float(),
        "bias": normal(outputs, seed=3).float() if bias else None,
        "grad_y": normal(rows, outputs, seed=4).to(y_dtype),
        "gelu": gelu,
    }


def run(x, weight, bias, grad_y, gelu):
    """All results of both raw ops; the gradients' z is the one the forward pass kept."""
    outputs, inputs = weight.shape
    y, x_low, z = ops.linear_bf16_fwd(x, ops.pack_weight(weight, False), outputs, bias, gelu, True, True, grad_y.dtype)
    grad_x, grad_weight, grad_bias = ops.linear_bf16_bwd(
        grad_y,
        x if x.dtype == BF16 else x_low,
        z if gelu else None,
        ops.pack_weight(weight, True),
        inputs,
        outputs,
        True,
        True,
        True,
        x.dtype,
    )
    return {"y": y, "x": grad_x, "weight": grad_weight, "bias": grad_bias} | ({"z": z} if gelu else {})


def formula(x, weight, bias, grad_y, gelu, *, z=None, dtype=torch.float64, mutation=""):
    """The same written out in ``dtype``. float64 takes dY GELU'(z) as it is, float32 rounds it as the kernels do."""
    grad_dtype = grad_y.dtype
    low, weight = x.bfloat16().to(dtype), weight.bfloat16().to(dtype)
    if mutation == "last input missing":
        low = low * (torch.arange(low.shape[1]) + 1 < low.shape[1])
    result = low @ weight.t()
    if bias is not None and mutation != "bias missing":
        result = result + bias.to(dtype)
    d = grad_y.to(dtype)
    if gelu:
        at = z.to(dtype)
        bell = torch.exp(-at * at / 2) / (2 * torch.pi) ** 0.5
        d = d * ((1 + torch.erf(at / 2**0.5)) / 2 + (0 if mutation == "slope is the cdf" else at * bell))
    exact = gelu and dtype == torch.float64
    d_low = d if exact else d.bfloat16().to(dtype)
    rows = slice(None, -1) if mutation == "gradients miss a row" else slice(None)
    results = {
        "y": F.gelu(result) if gelu else result,
        "x": d_low @ (weight.roll(1, 0) if mutation == "dx of other rows" else weight),
        "weight": d_low[rows].t() @ low[rows],
        "bias": d[rows].sum(0),
    } | ({"z": result} if gelu else {})
    if dtype == torch.float64:
        return results
    stored = {"y": grad_dtype, "x": x.dtype, "z": BF16}
    return {name: value.to(stored.get(name, F32)) for name, value in results.items()}


def check_results(results, arguments):
    z = results.get("z")
    truth, fallback = formula(**arguments, z=z), formula(**arguments, z=z, dtype=F32)
    for name, result in results.items():
        check(result, truth[name], fallback[name], KINDS[name], name=name)


CASES = [
    (problem, (150, 96, 64), {}),
    (problem, (150, 96, 64, BF16, BF16), {"gelu": True}),
    (problem, (77, 130, 100, F32, BF16), {"gelu": True}),
    (problem, (33, 65, 31, BF16, F32), {"bias": False}),
    (problem, (5, 7, 3), {"gelu": True}),
    (problem, (1, 1, 1, F32, BF16), {}),
    (problem, (260, 64, 384, BF16, BF16), {}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[1])))
def test_within_budget(path, case):
    make, sizes, settings = case
    arguments = make(*sizes, **settings)
    check_results(run(**arguments), arguments)


@pytest.mark.parametrize(
    "mutation",
    ["last input missing", "bias missing", "slope is the cdf", "gradients miss a row", "dx of other rows"],
)
def test_budget_rejects(mutation):
    arguments = problem(40, 33, 70, F32, BF16, gelu=True)
    z = formula(**(arguments | {"gelu": False}))["y"].bfloat16()
    check_results(formula(**arguments, z=z, dtype=F32) | {"z": z}, arguments)
    with pytest.raises(BudgetExceeded):
        check_results(formula(**arguments, z=z, dtype=F32, mutation=mutation) | {"z": z}, arguments)


EDGES = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 97, 129]


def test_every_edge_is_exact(widest_path):
    """Small integers add up without rounding: whatever a block, a tile or a panel loses or adds would show."""
    for turn, (rows, outputs) in enumerate(product(EDGES, EDGES)):
        inputs = EDGES[(turn + turn // len(EDGES)) % len(EDGES)]
        x, weight = (integers(7, *shape, seed=turn) - 3.0 for shape in ((rows, inputs), (outputs, inputs)))
        bias, grad_y = integers(7, outputs, seed=turn) - 3.0, integers(7, rows, outputs, seed=turn + 1) - 3.0
        results = run(x, weight, bias, grad_y, False)
        expected = formula(x, weight, bias, grad_y, False)
        for name, result in results.items():
            assert torch.equal(result.double(), expected[name]), (name, rows, outputs, inputs)


@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (3, 5), (130, 70), (65, 1), (1, 33), (0, 4), (4, 0)])
def test_layout(path, outputs, inputs):
    """Element (k, n) of the packed matrix, as csrc/cpu/bf16_layout.h places it."""
    weight = normal(outputs, inputs).float()
    for transposed, matrix in ((False, weight.t()), (True, weight)):
        depth, columns = matrix.shape
        panels, padded = -(-columns // 64), -(-depth // 32) * 32
        wide = F.pad(matrix.bfloat16(), (0, panels * 64 - columns, 0, padded - depth))
        expected = wide.reshape(padded // 2, 2, panels, 64).permute(2, 0, 3, 1)
        packed = ops.pack_weight(weight, transposed)
        assert packed.dtype == BF16 and torch.equal(packed, expected.reshape(-1))


@pytest.mark.parametrize("inputs", [64, 70])
def test_what_is_kept(path, inputs):
    arguments = problem(40, 65, inputs, gelu=True)
    x, packed = arguments["x"], ops.pack_weight(arguments["weight"], False)
    y, x_low, z = ops.linear_bf16_fwd(x, packed, 65, arguments["bias"], True, True, True, F32)
    assert torch.equal(x_low, x.bfloat16())
    bare = ops.linear_bf16_fwd(x, packed, 65, arguments["bias"], True, False, False, F32)
    assert torch.equal(bare[0], y) and bare[1].shape == bare[2].shape == (0,)
    plain = ops.linear_bf16_fwd(x, packed, 65, arguments["bias"], False, False, True, F32)
    assert torch.equal(plain[0].bfloat16(), z) and plain[2].shape == (0,)
    assert ops.linear_bf16_fwd(x.bfloat16(), packed, 65, None, False, True, False, F32)[1].shape == (0,)
    # A bfloat16 x is the rounded float32 one.
    low = ops.linear_bf16_fwd(x.bfloat16(), packed, 65, arguments["bias"], True, False, False, F32)
    assert torch.equal(low[0], y)


@pytest.mark.parametrize("needed", [c for c in product([False, True], repeat=3) if any(c)], ids=str)
@pytest.mark.parametrize("gelu", [False, True])
def test_only_what_is_asked_for(path, gelu, needed):
    """Each gradient has the bits it has when all are asked for, and needs no operand of another."""
    a = problem(50, 33, 70, F32, BF16, gelu=gelu)
    every = run(**a)
    z = every.get("z")
    grads = ops.linear_bf16_bwd(
        a["grad_y"],
        a["x"].bfloat16() if needed[1] else None,
        z,
        ops.pack_weight(a["weight"], True) if needed[0] else None,
        70,
        33,
        *needed,
        F32,
    )
    for name, grad, need in zip(("x", "weight", "bias"), grads, needed, strict=True):
        assert torch.equal(grad, every[name]) if need else grad.shape == (0,)


@pytest.mark.parametrize("sizes", [(0, 5, 4), (3, 0, 5), (3, 5, 0)], ids=str)
def test_empty(path, sizes):
    arguments = problem(*sizes)
    results, expected = run(**arguments), formula(**arguments, dtype=F32)
    for name, result in results.items():
        assert torch.equal(result, expected[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_not_finite(path, bad):
    """What is not a number stays so, in its own rows and columns alone."""
    arguments = problem(40, 70, 40)
    arguments["x"][33, 39] = arguments["grad_y"][33, 65] = bad
    spoilt = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in run(**arguments).items()}
    for name, where in (("y", 33), ("x", 33), ("weight", 65), ("weight", (slice(None), 39)), ("bias", 65)):
        spoilt[name][where] = True
    for name, result in run(**arguments).items():
        assert torch.equal(~result.isfinite(), spoilt[name]), name
    packed = ops.pack_weight(arguments["weight"], False)
    y, _, z = ops.linear_bf16_fwd(arguments["x"], packed, 70, arguments["bias"], True, False, True, F32)
    assert torch.equal(~z.isfinite(), spoilt["y"])
    # GELU(-inf) = 0
    expected = torch.where(z[33] == -torch.inf, 0.0, z[33].float())
    assert y[33].isnan().all() if bad != bad else torch.equal(y[33], expected)


def test_threads(widest_path):
    for sizes in ((300, 130, 96), (7, 64, 64)):
        arguments, results = problem(*sizes, BF16, BF16, gelu=True), {}
        for count in THREADS:
            with threads(count):
                results[count] = run(**arguments)
        for count in THREADS[1:]:
            for name, value in results[1].items():
                assert torch.equal(value, results[count][name]), (name, count)


@pytest.mark.parametrize(("x_dtype", "gelu"), [(F32, True), (BF16, False)])
def test_raw_ops(fused, x_dtype, gelu):
    a = problem(9, 7, 12, x_dtype, BF16, gelu=gelu)
    packed = check_raw("pack_weight", a["weight"], False)
    turned = check_raw("pack_weight", a["weight"], True)
    _, _, z = check_raw("linear_bf16_fwd", a["x"], packed, 7, a["bias"], gelu, gelu, gelu, BF16)
    x_low, z = a["x"].bfloat16(), z if gelu else None
    check_raw("linear_bf16_bwd", a["grad_y"], x_low, z, turned, 12, 7, True, True, True, x_dtype)
    check_raw("linear_bf16_bwd", a["grad_y"], None, z, turned, 12, 7, True, False, False, x_dtype)


def test_choice(fused):
    assert ops.bf16_products().split(":")[0] in ("amx", "avx512_bf16", "none")
    for path, isa in PATHS:
        with instruction_set(isa), products(path):
            assert ops.bf16_products() == path
    for isa in instruction_sets():
        if isa != "avx512":
            with instruction_set(isa):
                assert ops.bf16_products().startswith("none: ")
    with pytest.raises(
        RuntimeError, match="set_bf16_products: 'vnni': unknown .known: auto, portable, avx512_bf16, amx"
    ):
        ops.set_bf16_products("vnni")
    for name in ("amx", "avx512_bf16"):
        if not runs(name):
            with pytest.raises(RuntimeError, match=f"set_bf16_products: '{name}': "):
                ops.set_bf16_products(name)


GOOD = {
    "x": torch.zeros(4, 6), "packed": torch.zeros(64 * 32, dtype=BF16), "outputs": 3, "bias": torch.zeros(3),
    "gelu": False, "keep_x": True, "keep_z": True, "out_dtype": F32,
}  # fmt: skip
BAD = [
    ({"x": torch.zeros(4, 6).double()}, "linear_bf16_fwd: x has dtype Double, expected float32 or bfloat16"),
    ({"x": torch.zeros(6)}, r"x has shape \[6\], expected two dimensions"),
    ({"x": torch.zeros(6, 4).t()}, "x must be contiguous"),
    ({"outputs": -1}, "outputs is -1, expected outputs >= 0"),
    ({"packed": torch.zeros(64, 32, dtype=BF16)}, r"packed is BFloat16 of shape \[64, 32\], .* of shape \[2048\]"),
    ({"packed": torch.zeros(64 * 32)}, "packed is Float of shape"),
    ({"outputs": 65}, r"expected bfloat16 of shape \[4096\], as pack_weight makes it for 6 inputs and 65 outputs"),
    ({"bias": torch.zeros(2)}, r"bias has shape \[2\], expected \[3\]"),
    ({"out_dtype": torch.float64}, "out_dtype is Double, expected float32 or bfloat16"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[row[1] for row in BAD])
def test_errors(fused, change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.linear_bf16_fwd(*(GOOD | change).values())


GOOD_GRADIENT = {
    "grad_y": torch.zeros(4, 3), "x_low": torch.zeros(4, 6, dtype=BF16), "z": torch.zeros(4, 3, dtype=BF16),
    "packed_t": torch.zeros(64 * 32, dtype=BF16), "inputs": 6, "outputs": 3,
    "need_x": True, "need_weight": True, "need_bias": True, "dtype": F32,
}  # fmt: skip
BAD_GRADIENT = [
    ({"x_low": None}, "linear_bf16_bwd: x_low is None, expected a tensor for the gradient of weight"),
    ({"packed_t": None}, "packed_t is None, expected a tensor for the gradient of x"),
    ({"grad_y": torch.zeros(4, 2)}, r"grad_y has shape \[4, 2\], expected \[4, 3\]"),
    ({"grad_y": torch.zeros(4, 3).half()}, "grad_y has dtype Half, expected float32 or bfloat16"),
    ({"z": torch.zeros(4, 3)}, "z has dtype Float, expected BFloat16"),
    ({"x_low": torch.zeros(5, 6, dtype=BF16)}, r"x_low has shape \[5, 6\], expected \[4, 6\]"),
    ({"packed_t": torch.zeros(32, dtype=BF16)}, r"packed_t is BFloat16 of shape \[32\], .* of shape \[2048\]"),
    ({"inputs": -6}, "inputs is -6 and outputs 3, expected both >= 0"),
    ({"dtype": torch.float16}, "grad_x_dtype is Half, expected float32 or bfloat16"),
]


@pytest.mark.parametrize(("change", "message"), BAD_GRADIENT, ids=[row[1] for row in BAD_GRADIENT])
def test_gradient_errors(fused, change, message):
    with pytest.raises(RuntimeError, match=message):
        ops.linear_bf16_bwd(*(GOOD_GRADIENT | change).values())


@pytest.mark.parametrize("weight", [torch.zeros(3), torch.zeros(3, 4).double()], ids=str)
def test_pack_errors(fused, weight):
    with pytest.raises(RuntimeError, match=r"pack_weight: weight is .*, expected float32 of shape \(C_out, C_in\)"):
        ops.pack_weight(weight, False)
