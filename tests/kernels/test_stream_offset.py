"""Triton kernels that read a part of their stream's number on the device, interpreted."""

import pytest
from ops.stream_cases import OFFSETS, RUNS, check_offset

TRITON = [op for op in RUNS if op != "perturb_noise"]


@pytest.mark.parametrize("op", TRITON)
def test_same_bits(interpreter, op):
    from interpreted import on_triton

    with on_triton(op):
        for offset in OFFSETS:
            check_offset(RUNS[op], offset)


def test_a_lost_offset_is_noticed(interpreter):
    from interpreted import mutant

    right, wrong = "stream + tl.load(offset_ptr)", "stream"
    with mutant("add_layer_norm", "philox", right, wrong), pytest.raises(AssertionError, match="offset 1"):
        check_offset(RUNS["add_layer_norm"], 1)
