"""RunningMeans: where the sums are, and what they forget."""

import torch

from smartcs.smart.running_means import RunningMeans


def test_means_stay_where_they_are_added_up():
    """Back on the host, the next step on a device would wait for them. "meta", without numbers, stands for a device."""
    means = RunningMeans("here", ("value",))
    assert means.mark()[1].device.type == "cpu"
    before = means.mark()
    for _ in range(2):
        means.add((torch.ones((), device="meta"),), torch.ones((), dtype=torch.bool, device="meta"))
        means.back_to(before)
        means.add_numbers([1.0], True)
        assert means._sums.device.type == "meta"
        before = means.mark()


def test_means_go_back():
    means = RunningMeans("here", ("value",))
    means.add_numbers([3.0], True)
    before = means.mark()
    means.add_numbers([5.0], True)
    means.back_to(before)
    means.add_numbers([None], False)
    assert means.means() == (1, {"value": 3.0}) and means.steps == 2
