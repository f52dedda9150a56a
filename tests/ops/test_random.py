"""Philox and the dropout masks: known answers, and the same bits in C++ for every thread count and vector width."""

from itertools import product

import pytest
import torch
from op_harness import THREADS, instruction_set, instruction_sets, offsets, threads

from smartcs.ops.random import DropoutKey, dropout, keep_factors, philox_4x32, random_bits

# The Philox 4x32-10 lines of kat_vectors, published with the Random123 library: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
# seed, stream: with bits in the upper halves, which are separate words of key and counter
NAMES = [(0, 0), (1, 2**32), (2**32, 1), (2**63 - 1, 2**63 - 1), (0x299F31D0A4093822, 0x0370734413198A2E)]


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(counter, key, output):
    result = philox_4x32(tuple(torch.tensor([word]) for word in words(counter)), words(key))
    assert tuple(word.item() for word in result) == words(output)


def test_layout():
    """Column 64 b + 16 w + l is word w of the counter (16 b + l, row, stream), for any row and column."""
    seed, stream = 0x299F31D0A4093822, 0x0370734413198A2E
    bits = random_bits(torch.tensor([0, 0x5A308D3, 2**32 - 1]), 200, seed=seed, stream=stream)
    for i, row in enumerate((0, 0x5A308D3, 2**32 - 1)):
        for column in (0, 15, 16, 63, 64, 130, 199):
            counter = (column // 64 * 16 + column % 16, row, 0x13198A2E, 0x03707344)
            word = philox_4x32(tuple(torch.tensor(c) for c in counter), (0xA4093822, 0x299F31D0))[column % 64 // 16]
            assert bits[i, column] == word


def test_independent_of_shape():
    """An element depends on its row and column, not on how many others are asked for, nor in which order."""
    rows = torch.tensor([7, 0, 123456789, 3])
    whole = random_bits(rows, 300, seed=5, stream=6)
    assert torch.equal(whole[:, :65], random_bits(rows, 65, seed=5, stream=6))
    assert torch.equal(whole[2:3, :1], random_bits(rows[2:3], 1, seed=5, stream=6))
    assert torch.equal(whole.flip(0), random_bits(rows.flip(0), 300, seed=5, stream=6))
    assert random_bits(rows, 0, seed=5, stream=6).shape == (4, 0)
    assert random_bits(rows[:0], 7, seed=5, stream=6).shape == (0, 7)


def test_every_coordinate_matters():
    """Changing any bit of seed, stream or row changes the numbers."""
    base = {"seed": 2**40, "stream": 2**40}
    row = torch.tensor([0])
    seen = {tuple(random_bits(row, 8, **base)[0].tolist())}
    for bit in range(63):
        for name in base:
            seen.add(tuple(random_bits(row, 8, **(base | {name: base[name] ^ (1 << bit)}))[0].tolist()))
    for bit in range(32):
        seen.add(tuple(random_bits(torch.tensor([1 << bit]), 8, **base)[0].tolist()))
    assert len(seen) == 1 + 2 * 63 + 32


def test_uniform():
    """Each of the 32 bits is set half of the time and independent of its neighbours' (5 standard errors)."""
    bits = random_bits(torch.arange(200), 320, seed=1, stream=2)
    assert bits.min() >= 0 and bits.max() < 2**32
    planes = (bits[..., None] >> torch.arange(32)) & 1
    count = bits.numel()
    assert (planes.double().mean((0, 1)) - 0.5).abs().max() < 5 * 0.5 / count**0.5
    signs = 2.0 * planes[..., 31] - 1
    for lag in (1, 16, 64):
        assert abs((signs[:, lag:] * signs[:, :-lag]).mean()) < 5 / count**0.5
        assert abs((signs[lag:] * signs[:-lag]).mean()) < 5 / (count - 320 * lag) ** 0.5


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_keep_rate(p):
    factors = keep_factors(torch.arange(200), 300, p, seed=3, stream=4, dtype=torch.float64)
    assert set(factors.unique().tolist()) == {0.0, 1 / (1 - p)}
    assert abs((factors > 0).double().mean() - (1 - p)) < 5 * (p * (1 - p) / factors.numel()) ** 0.5


def test_dropout():
    x = torch.ones(5, 70)
    assert dropout(x, 0.0, seed=1, stream=2) is x
    expected = keep_factors(torch.arange(5), 70, 0.3, seed=1, stream=2, dtype=x.dtype)
    assert torch.equal(dropout(x, 0.3, seed=1, stream=2), expected)
    assert dropout(x.bfloat16(), 0.3, seed=1, stream=2).dtype == torch.bfloat16
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"dropout: p is {p}, expected 0 <= p < 1"):
            dropout(x, p, seed=1, stream=2)


def test_dropout_key():
    streams = {DropoutKey(seed=1, step=step).stream(site) for step in range(20) for site in range(20)}
    assert len(streams) == 400
    largest = DropoutKey(seed=2**63 - 1, step=2**47 - 1).stream(2**16 - 1)
    assert largest == 2**63 - 1
    torch.manual_seed(5)
    first, second = DropoutKey.draw(), DropoutKey.draw()
    torch.manual_seed(5)
    assert first == DropoutKey.draw() != second


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DropoutKey(seed=-1, step=0), r"DropoutKey: seed is -1, expected 0 <= seed < 2\*\*63"),
        (lambda: DropoutKey(seed=2**63, step=0), f"seed is {2**63}"),
        (lambda: DropoutKey(seed=0, step=-1), r"DropoutKey: step is -1, expected 0 <= step < 2\*\*47"),
        (lambda: DropoutKey(seed=0, step=2**47), f"step is {2**47}"),
        (lambda: DropoutKey(seed=0, step=0).stream(-1), r"DropoutKey.stream: site is -1, expected 0 <= site < 2\*\*16"),
        (lambda: DropoutKey(seed=0, step=0).stream(2**16), "site is 65536"),
    ],
)
def test_dropout_key_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def layer_norm_mask(rows: int, columns: int, p: float, seed: int, stream: int, dtype: torch.dtype) -> torch.Tensor:
    """The factors add_layer_norm applies: with x = 1 and residual = 0 they are the h it saves."""
    x, row = torch.ones(rows, columns, dtype=dtype), torch.ones(columns, dtype=dtype)
    _, h, mean, rstd = torch.ops.smartcs.add_layer_norm_fwd(
        x, None, torch.zeros_like(x), row, row, 1.0, p, seed, stream
    )
    settings = row, p, seed, stream, False
    grad_y = torch.arange(x.numel()).sin().to(dtype).reshape(x.shape)
    dx, dresidual, *_ = torch.ops.smartcs.add_layer_norm_bwd(grad_y, h, mean, rstd, *settings)
    assert torch.equal(dx != 0, (h != 0) & (dresidual != 0)), "the backward pass drops other elements"
    return h


def embedding_mask(rows: int, columns: int, p: float, seed: int, stream: int, dtype: torch.dtype) -> torch.Tensor:
    """The factors embedding applies: its result with gain 0 and shift 1; and, in backward, for a single token."""
    ids, table = torch.zeros(rows, dtype=torch.int64), torch.rand(1, columns, dtype=dtype)
    zero, one = torch.zeros(columns, dtype=dtype), torch.ones(columns, dtype=dtype)
    tables = (table, table, table, zero, one)
    y, h, mean, rstd = torch.ops.smartcs.embedding_fwd(ids, ids, ids, *tables, None, 1.0, p, seed, stream)
    first = (ids[:1], ids[:1], ids[:1], h[:1], mean[:1], rstd[:1], one, 1, 1, 1, p, seed, stream, *(True,) * 4, False)
    grad_bias = torch.ops.smartcs.embedding_bwd(torch.ones_like(h[:1]), *first)[4]
    assert torch.equal(grad_bias, y[0]), "the backward pass drops other elements"
    return y


def attention_mask(length: int, heads: int, p: float, seed: int, stream: int, dtype: torch.dtype) -> torch.Tensor:
    """The factors attention applies, (length * heads, length), for one sequence after a token of another.

    Equal keys make every weight 1 / length, and one-hot values copy the weights into the result. The gradient of the
    values is the same matrix transposed.
    """
    qkv = torch.zeros(1 + length, 3, heads, length, dtype=dtype)
    qkv[1:, 2] = torch.eye(length, dtype=dtype)[:, None]
    settings = offsets([1, length]), length, 1.0, p, seed, stream
    out, lse = torch.ops.smartcs.attention_fwd(qkv, *settings)
    eye = torch.zeros_like(out)
    eye[1:] = torch.eye(length, dtype=dtype)[:, None]
    grad_values = torch.ops.smartcs.attention_bwd(eye, qkv, lse, *settings)[1:, 2]
    assert torch.equal(grad_values.permute(2, 1, 0) != 0, out[1:] != 0), "the backward pass drops other elements"
    return (out[1:] * length).reshape(length * heads, length)


def expected_mask(first_row: int, rows: int, columns: int, p: float, seed: int, stream: int, dtype: torch.dtype):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rows = torch.arange(first_row, first_row + rows)
    return keep_factors(rows, columns, p, seed=seed, stream=stream, dtype=compute).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("seed", "stream"), NAMES)
def test_masks_equal(fused, seed, stream, dtype):
    """C++ and Python draw the same masks, factors included, to the last bit."""
    for p, columns in ((0.1, 200), (0.5, 1), (1 / 3, 64), (0.9, 65)):
        name = (p, seed, stream, dtype)
        assert torch.equal(layer_norm_mask(40, columns, *name), expected_mask(0, 40, columns, *name))
        assert torch.equal(embedding_mask(40, columns, *name), expected_mask(0, 40, columns, *name))
    # Lengths that are powers of two: 1 / length is exact, and so is the product with it.
    for length in (1, 16, 128):
        name = (0.3, seed, stream, dtype)
        assert torch.equal(attention_mask(length, 2, *name), expected_mask(2, 2 * length, length, *name))


def test_masks_on_every_machine(fused):
    """Neither the number of threads nor the instruction set changes a mask."""
    name = (0.1, 2**40 + 5, 2**33 + 6, torch.float32)
    rows, attention_rows = expected_mask(0, 301, 387, *name), expected_mask(3, 384, 128, *name)
    for kernels, count in product(instruction_sets(), THREADS):
        with instruction_set(kernels), threads(count):
            assert torch.equal(layer_norm_mask(301, 387, *name), rows)
            assert torch.equal(embedding_mask(301, 387, *name), rows)
            assert torch.equal(attention_mask(128, 3, *name), attention_rows)


def test_known_answers_in_cpp(fused):
    """All 32 bits of the first known answer: an element is dropped just above the probability it stands for."""
    for kernels in instruction_sets():
        for word, bits in enumerate(words(KNOWN_ANSWERS[0][2])):
            with instruction_set(kernels):
                kept, dropped = (layer_norm_mask(1, 64, (bits + i) / 2**32, 0, 0, torch.float32) for i in (0, 1))
            assert kept[0, 16 * word] > 0 and dropped[0, 16 * word] == 0


def test_tiny_probability(fused):
    """A probability below 2**-32 is rounded up to it on both backends: dropout stays on, but for its rarity."""
    name = (1e-30, 1, 2, torch.float32)
    assert torch.equal(layer_norm_mask(10, 100, *name), expected_mask(0, 10, 100, *name))
