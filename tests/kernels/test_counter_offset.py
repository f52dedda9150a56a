"""Triton kernels whose random numbers are counted from a place on the device, interpreted."""

import pytest
from ops.counter_cases import FIRST_ROWS, OFFSETS, RUNS, check_offset, check_part

TRITON = [op for op in RUNS if op != "perturb_noise"]


@pytest.mark.parametrize("op", TRITON)
def test_same_bits(interpreter, op):
    from interpreted import on_triton

    with on_triton(op):
        for offset in OFFSETS:
            check_offset(RUNS[op], offset)


@pytest.mark.parametrize("op", TRITON)
def test_a_part_draws_what_it_does_in_the_whole(interpreter, op):
    from interpreted import on_triton

    with on_triton(op):
        for first in FIRST_ROWS:
            check_part(op, first)


@pytest.mark.mistake
def test_a_lost_offset_is_noticed(interpreter):
    from interpreted import mutant

    right, wrong = "stream += tl.load(offset_ptr)", "stream += 0 * tl.load(offset_ptr)"
    with mutant("add_layer_norm", "philox", right, wrong), pytest.raises(AssertionError, match="offset 1"):
        check_offset(RUNS["add_layer_norm"], 1)


LOST = [
    ("add_layer_norm", "add_layer_norm", "keep_factors(first_row + row", "keep_factors(row", 1),
    ("add_layer_norm", "layer_norm_row", "dx *= keep_factors(first_row + row", "dx *= keep_factors(row", 1),
    ("embedding", "embedding", "keep_factors(first_row + row", "keep_factors(row", 1),
    ("embedding", "layer_norm_row", "dy *= keep_factors(first_row + row", "dy *= keep_factors(row", 1),
    ("attention", "attention", "drawn = first_row + row", "drawn = row", 3),
    ("attention", "attention", "counted(stream, counter_offset, heads)", "counted(stream, counter_offset, 1)", 3),
    ("attention", "philox", ".to(tl.uint32) * rows_each", ".to(tl.uint32)", 1),
]


@pytest.mark.mistake
@pytest.mark.parametrize("lost", LOST, ids=str)
def test_a_lost_row_is_noticed(interpreter, lost):
    from interpreted import mutant

    op, *change, count = lost
    with mutant(op, *change, count=count), pytest.raises(AssertionError, match="a part from row 0"):
        check_part(op, 0)


@pytest.mark.mistake
def test_rows_beyond_32_bits_are_noticed(interpreter):
    """Were they clamped instead of taken modulo 2**32."""
    from interpreted import mutant

    right = "tl.load(offset_ptr + 1).to(tl.uint32) * rows_each"
    wrong = "tl.minimum(tl.load(offset_ptr + 1) * rows_each, 2**32 - 1).to(tl.uint32)"
    with mutant("attention", "philox", right, wrong), pytest.raises(AssertionError, match="from"):
        check_part("attention", FIRST_ROWS[2])
