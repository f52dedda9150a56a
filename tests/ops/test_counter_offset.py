"""Random numbers counted from a place on the device: what a recorded step draws anew from, and a part of a batch."""

import pytest
import torch
from op_harness import normal
from ops.counter_cases import FIRST_ROWS, OFFSETS, RUNS, check_offset, check_part

from smartcs import ops
from smartcs.ops.random import DropoutKey, dropout, random_bits


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("op", RUNS)
def test_same_bits(either, op, offset):
    check_offset(RUNS[op], offset)


@pytest.mark.parametrize("first", FIRST_ROWS)
@pytest.mark.parametrize("op", RUNS)
def test_a_part_draws_what_it_does_in_the_whole(either, op, first):
    check_part(op, first)


@pytest.mark.parametrize(("stream", "row", "rows_each"), [(7, 5, 1), (-3, 2**32 - 2, 1), (0, 2**31 + 1, 12)])
def test_bits_of_the_reference(stream, row, rows_each):
    """Those of the rows and the stream that the offset leads to, modulo 2**32 and 2**64."""
    rows = torch.tensor([0, 3, 40, 2**32 - 1])
    there = torch.tensor([stream, row])
    found = random_bits(rows, 70, seed=3, stream=5, counter_offset=there, rows_each=rows_each)
    assert torch.equal(found, random_bits((rows + row * rows_each) % 2**32, 70, seed=3, stream=5 + stream))


def test_dropout_of_a_part():
    x = normal(9, 70)
    for offset in (torch.tensor([2, 4]), torch.tensor([2, -1, 4])[::2]):
        whole = dropout(x, 0.3, seed=1, stream=7)
        assert torch.equal(whole[4:], dropout(x[4:], 0.3, seed=1, stream=5, counter_offset=offset))


def test_read_when_the_op_runs(fused):
    """Not when it is called for the first time: the raw op sees what is in memory then."""
    offset, like = torch.zeros(2, dtype=torch.int64), torch.empty(3, 8)
    drawn = []
    for step in (1, 2):
        offset[0], offset[1] = DropoutKey.offset_of(step)[0], step
        drawn.append(ops.perturb_noise(like, std=1.0, seed=3, stream=7, counter_offset=offset))
        whole = ops.perturb_noise(torch.empty(5, 8), std=1.0, seed=3, stream=DropoutKey(3, step).stream(7))
        assert torch.equal(drawn[-1], whole[step : step + 3])
    assert not torch.equal(*drawn)


def test_key_of_a_step():
    """A key of step 0 with a step's offset names what that step's key does, further passes included."""
    key, plain = DropoutKey(5, 0, torch.tensor(DropoutKey.offset_of(12, 34, 56))), DropoutKey(5, 12)
    for mine, same in ((key, plain), (key.another(3), plain.another(3))):
        for offset, first in ((mine.token_offset, 34), (mine.example_offset, 56)):
            assert mine.stream(9) + int(offset[0]) == same.stream(9) and int(offset[1]) == first
    assert plain.token_offset is None and plain.example_offset is None
    # Views, so that what is written to the one place is seen by all.
    key.counter_offset.copy_(torch.tensor(DropoutKey.offset_of(13, 1, 2)))
    assert key.token_offset.tolist() == [13 << 16, 1] and key.example_offset.tolist() == [13 << 16, 2]


@pytest.mark.parametrize("wrong", [torch.zeros(2, dtype=torch.int64), torch.zeros(3)])
def test_key_messages(wrong):
    with pytest.raises(ValueError, match=r"DropoutKey: counter_offset is .*, expected int64 of shape \(3,\)"):
        DropoutKey(0, 0, wrong)


WRONG = [
    torch.zeros(1, dtype=torch.int64),
    torch.zeros(2),
    torch.zeros(2, 1, dtype=torch.int64),
    torch.zeros(3, dtype=torch.int64)[::2],
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("op", RUNS)
def test_messages(either, op, wrong):
    with pytest.raises(ValueError, match=f"{op}: counter_offset is .* expected two int64 side by side"):
        RUNS[op](seed=0, stream=0, counter_offset=wrong)


def test_type_message(either):
    with pytest.raises(TypeError, match="perturb_noise: counter_offset"):
        ops.perturb_noise(torch.empty(1, 1), std=1.0, seed=0, stream=0, counter_offset=3)
