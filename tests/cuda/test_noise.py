"""Philox and perturb_noise's CUDA code, emulated: the bits of smartcs.ops.random, and the formula of the noise."""

import evidence
import pytest
import torch
from emulated_cuda import DTYPES, STORAGE, EmulationError, InOut, Out, Patch
from error_budget import NOISE_TOLERANCE, NOISE_ZERO

from smartcs.ops.perturb import perturb_noise_reference
from smartcs.ops.random import random_bits

NAMES = [(0, 0), (2**40 + 1, 2**33 + 2), (0x299F31D0A4093822, 0x0370734413198A2E), (2**63 - 1, 2**63 - 1)]
SHAPES = [(3, 1), (2, 63), (5, 64), (2, 65), (70, 77), (4, 768), (0, 5), (5, 0)]


def draw(library, rows, columns, dtype, std, seed, stream, offset=None):
    """(rows, columns) of noise."""
    name = float(std), seed, stream, None if offset is None else torch.tensor(offset)
    (noise,) = library.call("perturb_noise", STORAGE[dtype], rows, columns, *name, Out((rows, columns), dtype))
    return noise


@pytest.mark.parametrize(("seed", "stream"), NAMES)
def test_philox_bits(emulated, seed, stream):
    """Every word of the generator in the column where smartcs.ops.random has it."""
    rows, counters, library = 5, 48, emulated("perturb")
    (words,) = library.call("philox_words", seed, stream, rows, counters, InOut(torch.zeros(rows, counters, 4).long()))
    expected = random_bits(torch.arange(rows), counters * 4, seed=seed, stream=stream)
    for number in range(counters):
        column = library.code.philox_column(number)
        assert torch.equal(words[:, number], expected[:, column : column + 64 : 16])


def check_noise(library, dtype, shape, seed, stream, std):
    noise = draw(library, *shape, dtype, std, seed, stream)
    # The formula in float64 rounded once, by PyTorch's logarithm, sine and cosine.
    expected = perturb_noise_reference(torch.empty(shape, dtype=dtype), std, seed, stream).double()
    error, allowed = (noise.double() - expected).abs(), NOISE_TOLERANCE * torch.finfo(dtype).eps * expected.abs()
    allowed += NOISE_ZERO * std
    assert (error <= allowed).all(), f"differs by {error.max()} at {int(error.argmax())}"
    if error.numel():
        evidence.note("noise", dtype, float((error / allowed).nan_to_num().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("seed", "stream"), NAMES[1:3])
def test_equals_the_reference(emulated, seed, stream, dtype):
    """Each element to a few roundings; widths that do and do not fill a block of columns."""
    for shape in SHAPES:
        check_noise(emulated("perturb"), dtype, shape, seed, stream, 1e-5 if dtype is not torch.float16 else 0.5)


def test_independent_of_shape(emulated):
    """An element depends on its row and column, not on how many there are."""
    z = draw(emulated("perturb"), 9, 200, torch.float32, 1.0, 3, 4)
    for rows, columns in ((3, 200), (9, 65), (9, 1)):
        assert torch.equal(draw(emulated("perturb"), rows, columns, torch.float32, 1.0, 3, 4), z[:rows, :columns])
    assert not draw(emulated("perturb"), 9, 200, torch.float32, 0.0, 3, 4).any()


OFFSETS = [(5, 0), (5, 7), (5, -5), (0, -1), (2**63 - 1, 2**63 - 1), (2**33, 2**40 + 3)]
ROWS = [0, 1, 2**31, 2**32 - 2]


def check_offset(library, stream, offset):
    moved = draw(library, 3, 70, torch.float32, 1.0, 11, stream, [offset, 0])
    assert torch.equal(moved, draw(library, 3, 70, torch.float32, 1.0, 11, (stream + offset) % 2**64))


def check_part(library, first):
    """From row 2 on, alone; and the reference's numbers."""
    whole = draw(library, 5, 70, torch.float32, 1.0, 11, 7, [0, first])
    assert torch.equal(whole[2:], draw(library, 3, 70, torch.float32, 1.0, 11, 7, [0, (first + 2) % 2**32]))
    expected = perturb_noise_reference(torch.empty(5, 70), 1.0, 11, 7, torch.tensor([0, first]))
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize(("stream", "offset"), OFFSETS)
def test_offset_of_the_stream(emulated, stream, offset):
    """Read from memory and added modulo 2^64."""
    check_offset(emulated("perturb"), stream, offset)


@pytest.mark.parametrize("first", ROWS)
def test_offset_of_the_rows(emulated, first):
    """Read from memory and added modulo 2^32: a part of the rows has the numbers that it has in the whole."""
    check_part(emulated("perturb"), first)


MUTANTS = {
    "nine rounds": Patch("philox.cuh", "round < 10", "round < 9"),
    "shifted row": Patch("perturb.cuh", "from.row + row, number", "from.row + row + 1, number"),
    "words exchanged": Patch("perturb.cuh", "words.at[2], words.at[3]", "words.at[3], words.at[2]"),
    "neighbouring columns": Patch("philox.cuh", "number / 16 * 64 + number % 16", "number * 4"),
    "32 bits of the offset": Patch("philox.cuh", "<uint64_t>(offset[0])", "<uint32_t>(offset[0])"),
    "no offset": Patch("philox.cuh", "stream + static_cast<uint64_t>(offset[0])", "stream"),
    "no offset of rows": Patch("perturb.cuh", "from.row + row, number", "row, number"),
    "the stream's offset of rows": Patch("philox.cuh", "<uint32_t>(offset[1])", "<uint32_t>(offset[0])"),
    "one column too many": Patch("perturb.cuh", "args.columns, z[word]", "args.columns + 1, z[word]"),
}


@pytest.mark.mistake
@pytest.mark.parametrize("mutation", MUTANTS)
def test_rejects(emulated, mutation):
    library = emulated("perturb", MUTANTS[mutation])
    with pytest.raises((AssertionError, EmulationError)):
        for shape in ((4, 64), (3, 77)):
            check_noise(library, torch.float32, shape, *NAMES[1], 1.0)
        for stream, offset in OFFSETS:
            check_offset(library, stream, offset)
        for first in ROWS:
            check_part(library, first)
