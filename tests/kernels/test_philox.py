"""The Triton kernels' random bits: those of smartcs.ops.random, and of the authors' test vectors."""

import pytest
import torch

from smartcs import kernels
from smartcs.ops.random import random_bits

triton = pytest.importorskip("triton", reason="Triton is not installed")
if not kernels.interpreted():
    pytest.skip("TRITON_INTERPRET is not 1", allow_module_level=True)

import triton.language as tl  # noqa: E402
from smartcs.kernels.philox import bits_in_order, column_at, philox_4x32  # noqa: E402

ROWS = torch.tensor([0, 1, 2, 77, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
NAMES = [(0, 0), (1, 2), (2**31, 2**31 - 1), (2**32 - 1, 2**32), (2**40 + 3, 2**33 + 5), (2**63 - 1, 2**63 - 1)]


@triton.jit
def _words(counters, out, k0, k1, N: tl.constexpr):
    row = counters + tl.arange(0, N) * 4
    c = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    k0, k1 = tl.load(counters) * 0 + k0, tl.load(counters) * 0 + k1
    words = philox_4x32(
        c[0].to(tl.uint32),
        c[1].to(tl.uint32),
        c[2].to(tl.uint32),
        c[3].to(tl.uint32),
        k0.to(tl.uint32),
        k1.to(tl.uint32),
    )
    row = out + tl.arange(0, N) * 4
    for word in tl.static_range(4):
        tl.store(row + word, words[word].to(tl.int64))


@triton.jit
def _in_order(rows, out, first, seed, stream, columns, N: tl.constexpr, COUNT: tl.constexpr):
    n = tl.arange(0, N)
    bits = bits_in_order(tl.load(rows + n), first, seed, stream, COUNT)
    column = column_at(first + tl.arange(0, COUNT))
    tl.store(out + n[:, None] * columns + column[None, :], bits.to(tl.int64), mask=(column < columns)[None, :])


def test_published_vectors():
    """Random123's kat_vectors for philox 4x32 10, by the generator alone: zeros, ones, digits of pi."""
    digits = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    published = [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, (2**32 - 1,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (digits, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]
    for counter, key, expected in published:
        out = torch.full((1, 4), -1)
        _words[(1,)](torch.tensor([counter]), out, *key, N=1)
        assert out[0].tolist() == expected


@pytest.mark.parametrize(("seed", "stream"), NAMES)
@pytest.mark.parametrize("count", [4, 32, 64, 128])
def test_bits_in_the_generators_order(seed, stream, count):
    """Tile by tile of positions: every column is drawn once, with the specified bits."""
    columns = 130
    out = torch.full((len(ROWS), columns), -1)
    for first in range(0, 192, count):
        _in_order[(1,)](ROWS, out, first, seed, stream, columns, N=len(ROWS), COUNT=count)
    assert torch.equal(out, random_bits(ROWS, columns, seed=seed, stream=stream))
