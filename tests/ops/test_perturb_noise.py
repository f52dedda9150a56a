"""perturb_noise: a normal distribution, the same numbers on every machine; and the messages of both perturb ops."""

import math
from itertools import product

import pytest
import torch
from error_budget import NOISE_TOLERANCE, NOISE_ZERO
from op_harness import DTYPES, THREADS, check_raw, instruction_set, instruction_sets, offsets, threads

from smartcs.ops import perturb, perturb_noise
from smartcs.ops.backend import backend
from smartcs.ops.random import philox_4x32

NAME = {"seed": 2**40 + 1, "stream": 2**33 + 2}


def draw(rows, columns, dtype=torch.float32, std=1.0, **name) -> torch.Tensor:
    return perturb_noise(torch.empty(rows, columns, dtype=dtype), std=std, **(name or NAME))


def test_formula(reference):
    """Box and Muller's formula written out with Python's floats for single elements."""
    noise = draw(3, 200, torch.float64, seed=0x299F31D0A4093822, stream=0x0370734413198A2E)
    for row, column in product(range(3), (0, 15, 16, 31, 32, 63, 64, 100, 120, 199)):
        counter = (column // 64 * 16 + column % 16, row, 0x13198A2E, 0x03707344)
        words = philox_4x32(tuple(torch.tensor(c) for c in counter), (0xA4093822, 0x299F31D0))
        word = column % 64 // 16
        even, odd = (int(words[word // 2 * 2 + i]) for i in (0, 1))
        r = math.sqrt(-2 * math.log(((even >> 8) + 1) / 2**24))
        expected = r * (math.sin if word % 2 else math.cos)(2 * math.pi * (odd >> 8) / 2**24)
        assert noise[row, column].item() == pytest.approx(expected, rel=1e-12)


def test_distribution(either):
    """A million draws: four moments within 5 standard errors, and the Kolmogorov-Smirnov distance to the normal one."""
    z = draw(1000, 1000).double().flatten()
    n = z.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean() - mean) < 5 * math.sqrt(variance / n), f"moment {power}"
    cumulated = torch.special.ndtr(z.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((cumulated - steps[:-1]).abs(), (cumulated - steps[1:]).abs()).max()
    assert distance * math.sqrt(n) < 2.23  # exceeded by one sample in 10^4


def test_independence(either):
    """Neither values nor squares correlate: of the two columns of a pair, of neighbours, rows, streams and seeds."""
    z = draw(500, 640).double()
    blocks = z.reshape(500, 10, 2, 2, 16)
    pairs = {
        "a pair": (blocks[:, :, :, 0], blocks[:, :, :, 1]),
        "two pairs": (blocks[:, :, 0], blocks[:, :, 1]),
        "streams": (z, draw(500, 640, seed=NAME["seed"], stream=NAME["stream"] + 1).double()),
        "seeds": (z, draw(500, 640, seed=NAME["seed"] + 1, stream=NAME["stream"]).double()),
        "rows": (z[1:], z[:-1]),
    }
    pairs |= {f"columns {lag} apart": (z[:, lag:], z[:, :-lag]) for lag in (1, 15, 16, 32, 48, 64)}
    for name, (a, b) in pairs.items():
        limit = 5 / math.sqrt(a.numel())
        assert abs((a * b).mean()) < limit, name
        assert abs(((a.square() - 1) * (b.square() - 1)).mean()) < 2 * limit, f"squares of {name}"


def test_scale(either):
    z = draw(20, 100, torch.float64)
    torch.testing.assert_close(draw(20, 100, torch.float64, std=1e-5), 1e-5 * z, rtol=1e-14, atol=0)
    assert not draw(20, 100, std=0.0).any()
    assert z.abs().max() < math.sqrt(-2 * math.log(2**-24))


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_reference(fused, dtype):
    """Every instruction set, each element to a few roundings; widths that do and do not fill a block."""
    for columns in (1, 64, 77, 768):
        with backend("reference"):
            expected = draw(300, columns, dtype, std=1e-5).double()
        for name in instruction_sets():
            with instruction_set(name):
                error = (draw(300, columns, dtype, std=1e-5).double() - expected).abs()
            allowed = NOISE_TOLERANCE * torch.finfo(dtype).eps * expected.abs() + NOISE_ZERO * 1e-5
            assert (error <= allowed).all(), name


def test_threads(fused):
    """The number of threads changes no bit."""
    for name in instruction_sets():
        with instruction_set(name):
            noise = {}
            for count in THREADS:
                with threads(count):
                    noise[count] = draw(301, 387)
        assert all(torch.equal(noise[1], noise[count]) for count in THREADS[1:])


def test_independent_of_shape(either):
    """An element depends on its row and column, not on how many there are, nor on memory layout."""
    z = draw(300, 200)
    assert torch.equal(draw(10, 200), z[:10])
    assert torch.equal(draw(300, 65), z[:, :65])
    assert torch.equal(draw(300, 1), z[:, :1])
    assert torch.equal(perturb_noise(torch.empty(200, 300).T, std=1.0, **NAME), z)
    assert draw(0, 5).shape == (0, 5) and draw(5, 0).shape == (5, 0)


def test_no_gradient(either):
    noise = perturb_noise(torch.ones(3, 4, requires_grad=True), std=1.0, **NAME)
    assert not noise.requires_grad and noise.any()


def test_compiled(fused):
    """The same bits, and new seeds, streams and lengths soon stop recompiling."""
    torch._dynamo.reset()
    compiled = torch.compile(perturb_noise, fullgraph=True, backend="aot_eager")
    for i in range(4):
        name = {"seed": 2**40 + i, "stream": i << 16}
        assert torch.equal(compiled(torch.empty(5 + i, 70), std=0.5, **name), draw(5 + i, 70, std=0.5, **name))


LIKE = torch.zeros(4, 6)
NOISE_BAD = [
    ({"like": [1.0]}, TypeError, "perturb_noise: like is list, expected a torch.Tensor"),
    ({"like": LIKE.int()}, TypeError, "like has dtype torch.int32, expected a floating-point dtype"),
    ({"like": LIKE[0]}, ValueError, r"like has shape \(6,\), expected \(N, C\)"),
    ({"std": "1"}, TypeError, "std is '1', expected a number"),
    ({"std": -1.0}, ValueError, "std is -1.0, expected a finite number >= 0"),
    ({"std": math.inf}, ValueError, "std is inf, expected a finite number >= 0"),
    ({"std": math.nan}, ValueError, "std is nan, expected a finite number >= 0"),
    ({"seed": -1}, ValueError, r"seed is -1 and stream 0, expected both in \[0, 2\*\*63\)"),
    ({"stream": 2**63}, ValueError, f"stream {2**63}"),
    ({"stream": 1.0}, TypeError, "stream is 1.0, expected an int"),
]


@pytest.mark.parametrize(("change", "error", "message"), NOISE_BAD, ids=[row[2] for row in NOISE_BAD])
def test_noise_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        perturb_noise(**({"like": LIKE, "std": 1.0, "seed": 0, "stream": 0} | change))


CU = offsets([3, 1])
BAD = [
    ({"v": None}, TypeError, "perturb: v is NoneType, expected a torch.Tensor"),
    ({"v": LIKE.int()}, TypeError, "v has dtype torch.int32, expected a floating-point dtype"),
    ({"v": LIKE[0]}, ValueError, r"v has shape \(6,\), expected \(N, C\) with C > 0"),
    ({"v": LIKE[:, :0]}, ValueError, r"v has shape \(4, 0\), expected \(N, C\) with C > 0"),
    ({"g": [1.0]}, TypeError, "g is list, expected a torch.Tensor"),
    ({"g": LIKE[:3]}, ValueError, r"g has shape \(3, 6\), expected \(4, 6\) to match v"),
    ({"g": LIKE.double()}, TypeError, "g has dtype torch.float64, expected torch.float32 like v"),
    ({"g": LIKE.to("meta")}, ValueError, "g is on meta, expected cpu like v"),
    ({"update": "adam"}, ValueError, "update is 'adam', expected one of mtdnn, projected, paper"),
    ({"norm": 2}, ValueError, "norm is 2, expected one of inf, 2, 1"),
    ({"cu_seqlens": [0, 4]}, TypeError, "cu_seqlens is list, expected a torch.Tensor"),
    ({"cu_seqlens": CU.long()}, TypeError, "cu_seqlens has dtype torch.int64, expected torch.int32"),
    ({"cu_seqlens": CU[None]}, ValueError, r"cu_seqlens has shape \(1, 3\), expected \(B \+ 1,\)"),
    ({"cu_seqlens": CU[:0]}, ValueError, r"cu_seqlens has shape \(0,\), expected \(B \+ 1,\)"),
    ({"cu_seqlens": CU.to("meta")}, ValueError, "cu_seqlens is on meta, expected cpu like v"),
    ({"cu_seqlens": CU + 1}, ValueError, "perturb: cu_seqlens starts at 1, expected 0"),
    ({"cu_seqlens": CU[[0, 2, 1]]}, ValueError, "perturb: cu_seqlens decreases at index 2"),
    ({"cu_seqlens": CU[:2]}, ValueError, "perturb: cu_seqlens ends at 3, but v has 4 tokens"),
    ({"step_size": -1.0}, ValueError, "step_size is -1.0, expected a finite number >= 0"),
    ({"step_size": math.nan}, ValueError, "step_size is nan, expected a finite number >= 0"),
    ({"step_size": "1"}, TypeError, "step_size is '1', expected a number"),
    ({"radius": 0.0}, ValueError, "radius is 0.0, expected a finite number > 0"),
    ({"radius": math.inf}, ValueError, "radius is inf, expected a finite number > 0"),
    ({"norm_eps": 0}, ValueError, "norm_eps is 0, expected a finite number > 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[row[2] for row in BAD])
def test_errors(either, change, error, message):
    with pytest.raises(error, match=message):
        perturb(**({"v": LIKE, "g": LIKE} | change))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 4])
def test_raw_ops(fused, rows, dtype):
    v = check_raw("perturb_noise", torch.empty(rows, 70, dtype=dtype), 1.0, 2**40, 2**40)
    for cu_seqlens in (None, offsets([rows, 0])):
        check_raw("perturb_step", v, v.flip(1), cu_seqlens, "projected", "1", 1e-3, 1e-5, 1e-6)


@pytest.mark.parametrize(("stream", "offset"), [(5, 7), (5, -5), (2**63 - 1, -(2**63) + 1)])
def test_raw_counter_offset(fused, stream, offset):
    given = torch.tensor([offset, 2**32 - 1])
    noise = check_raw("perturb_noise", LIKE, 1.0, 3, stream, given)
    # Rows wrap: from the second on they are those from 0.
    assert torch.equal(noise[1:], torch.ops.smartcs.perturb_noise(LIKE, 1.0, 3, stream + offset)[:-1])
    for wrong, what in (
        (given.int(), "has dtype Int"),
        (given[:1], r"has shape \[1\]"),
        (given.repeat(2)[::2], "must be contiguous"),
    ):
        for like in (LIKE, LIKE[:0]):
            with pytest.raises(RuntimeError, match=f"perturb_noise: counter_offset {what}"):
                torch.ops.smartcs.perturb_noise(like, 1.0, 3, stream, wrong)


RAW_BAD = [
    ({"v": LIKE.T}, "v must be contiguous"),
    ({"v": LIKE.half(), "g": LIKE.half()}, "dtype Half has no CPU kernel"),
    ({"v": LIKE[0]}, r"v has shape \[6\], expected \(N, C\) with C > 0"),
    ({"g": LIKE[:3]}, r"g has shape \[3, 6\], expected \[4, 6\]"),
    ({"g": LIKE.double()}, "g has dtype Double, expected Float"),
    ({"cu_seqlens": CU.long()}, r"cu_seqlens is Long of shape \[3\], expected int32"),
    ({"cu_seqlens": CU - 1}, "perturb: cu_seqlens starts at -1, expected 0"),
    ({"cu_seqlens": offsets([9, -5])}, "perturb: cu_seqlens decreases at index 2"),
    ({"cu_seqlens": CU * 2}, "perturb: cu_seqlens ends at 8, but v has 4 tokens"),
    ({"update": "adam"}, "perturb: update is 'adam', expected one of mtdnn, projected, paper"),
    ({"norm": "3"}, "perturb: norm is '3', expected one of inf, 2, 1"),
]


@pytest.mark.parametrize(("change", "message"), RAW_BAD, ids=[row[1] for row in RAW_BAD])
def test_raw_errors(fused, change, message):
    good = {"v": LIKE, "g": LIKE, "cu_seqlens": CU, "update": "mtdnn", "norm": "inf"}
    good |= {"step_size": 1e-3, "radius": 1e-5, "norm_eps": 1e-6}
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.smartcs.perturb_step(**(good | change))


def test_raw_noise_errors(fused):
    with pytest.raises(RuntimeError, match=r"perturb_noise: like has shape \[6\], expected \(N, C\)"):
        torch.ops.smartcs.perturb_noise(LIKE[0], 1.0, 0, 0)
    with pytest.raises(RuntimeError, match="perturb_noise: dtype Half has no CPU kernel"):
        torch.ops.smartcs.perturb_noise(LIKE.half(), 1.0, 0, 0)
