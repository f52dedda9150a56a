"""Random numbers whose stream is numbered on the device: what a recorded step needs to draw anew at every replay."""

import pytest
import torch
from ops.stream_cases import OFFSETS, RUNS, check_offset

from smartcs import ops
from smartcs.ops.random import DropoutKey


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("op", RUNS)
def test_same_bits(either, op, offset):
    check_offset(RUNS[op], offset)


def test_read_when_the_op_runs(fused):
    """Not when it is called for the first time: the raw op sees what is in memory then."""
    offset, like = torch.zeros((), dtype=torch.int64), torch.empty(3, 8)
    drawn = []
    for step in (1, 2):
        offset.fill_(DropoutKey.offset_of(step))
        drawn.append(ops.perturb_noise(like, std=1.0, seed=3, stream=7, stream_offset=offset))
        assert torch.equal(drawn[-1], ops.perturb_noise(like, std=1.0, seed=3, stream=DropoutKey(3, step).stream(7)))
    assert not torch.equal(*drawn)


def test_key_of_a_step():
    """A key of step 0 with a step's offset names what that step's key does, further passes included."""
    offset = torch.tensor(DropoutKey.offset_of(12))
    key, plain = DropoutKey(5, 0, offset), DropoutKey(5, 12)
    for mine, same in ((key, plain), (key.another(3), plain.another(3))):
        assert mine.stream(9) + int(mine.stream_offset) == same.stream(9)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, dtype=torch.int64), torch.zeros(1), torch.zeros(0, dtype=torch.int64)]
)
@pytest.mark.parametrize("op", RUNS)
def test_messages(either, op, wrong):
    with pytest.raises(ValueError, match=f"{op}: stream_offset is .* expected one int64"):
        RUNS[op](seed=0, stream=0, stream_offset=wrong)


def test_type_message(either):
    with pytest.raises(TypeError, match="perturb_noise: stream_offset"):
        ops.perturb_noise(torch.empty(1, 1), std=1.0, seed=0, stream=0, stream_offset=3)
