"""Random numbers on the device: dropout's masks are the CPU's to the bit, SMART's noise is within its roundings."""

import pytest
import torch
from devices import DEVICE, FLOATS, REHEARSAL, fused
from error_budget import NOISE_TOLERANCE, NOISE_ZERO
from ops.counter_cases import FIRST_ROWS, OFFSETS, RUNS, check_offset, check_part
from ops.test_perturb_noise import draw
from ops.test_random import NAMES, attention_mask, embedding_mask, expected_mask, layer_norm_mask

import smartcs

COLUMNS = (1, 70) if REHEARSAL else (1, 64, 65, 200, 768)
LENGTHS = (16,) if REHEARSAL else (1, 16, 128)
NAMED = NAMES[-1:] if REHEARSAL else NAMES
MASKS = {"add_layer_norm": layer_norm_mask, "embedding": embedding_mask}


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize(("seed", "stream"), NAMED)
@pytest.mark.parametrize("p", [0.1, 1 / 3])
@pytest.mark.parametrize("op", MASKS)
def test_masks_of_rows(op, p, seed, stream, dtype):
    """Their factors, too; dropped in backward is what was dropped in forward."""
    for columns in COLUMNS:
        name = p, seed, stream, dtype
        with fused(op), torch.device(DEVICE):
            factors = MASKS[op](5, columns, *name)
        assert torch.equal(factors.cpu(), expected_mask(0, 5, columns, *name))


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
@pytest.mark.parametrize(("seed", "stream"), NAMED)
@pytest.mark.parametrize("p", [0.1, 1 / 3])
def test_attention_masks(p, seed, stream, dtype):
    for length in LENGTHS:
        name = p, seed, stream, dtype
        with fused("attention"), torch.device(DEVICE):
            weights = attention_mask(length, 2, *name)
        assert torch.equal(weights.cpu() != 0, expected_mask(2, 2 * length, length, *name) != 0)


@pytest.mark.parametrize("dtype", (*FLOATS[:2], torch.float64), ids=str)
@pytest.mark.parametrize("columns", [1, 64, 77, 768])
def test_noise(columns, dtype):
    with fused("perturb"), torch.device(DEVICE):
        noise = draw(100, columns, dtype, std=1e-5)
    with smartcs.backend("reference"):
        expected = draw(100, columns, dtype, std=1e-5).double()
    allowed = NOISE_TOLERANCE * torch.finfo(dtype).eps * expected.abs() + NOISE_ZERO * 1e-5
    assert ((noise.double().cpu() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("offset", OFFSETS[2:3] if REHEARSAL else OFFSETS)
@pytest.mark.parametrize("op", RUNS)
def test_a_stream_numbered_on_the_device(op, offset):
    """What a CUDA graph's replays draw anew from."""
    with fused("perturb" if op == "perturb_noise" else op):
        check_offset(RUNS[op], offset, DEVICE)


@pytest.mark.parametrize("first", FIRST_ROWS[2:3] if REHEARSAL else FIRST_ROWS)
@pytest.mark.parametrize("op", RUNS)
def test_a_part_draws_what_it_does_in_the_whole(op, first):
    with fused("perturb" if op == "perturb_noise" else op):
        check_part(op, first, DEVICE)
