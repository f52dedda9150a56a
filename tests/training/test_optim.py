"""smartcs.AdamW is torch's AdamW with other defaults."""

import copy

import pytest
import torch

import smartcs


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 33), (5,), (3,))]


def steps(optimizer, params, count=4, begin=0):
    for step in range(begin, begin + count):
        generator = torch.Generator().manual_seed(step)
        for index, parameter in enumerate(params):
            # The last parameter has a gradient only sometimes, like the head of another task.
            has = index < 2 or step % 2
            parameter.grad = torch.randn(parameter.shape, generator=generator) if has else None
        optimizer.step()


def assert_close(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torch(backend, weight_decay):
    ours, theirs = parameters(), parameters()
    with smartcs.backend(backend):
        optimizer = smartcs.AdamW(ours, lr=1e-2, weight_decay=weight_decay)
    expected = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, weight_decay=weight_decay)
    steps(optimizer, ours)
    steps(expected, theirs)
    assert not torch.equal(ours[0], parameters()[0])
    assert_close(ours, theirs)


def test_defaults_are_berts():
    defaults = smartcs.AdamW(parameters(), lr=1e-3).defaults
    assert (defaults["betas"], defaults["eps"], defaults["weight_decay"]) == ((0.9, 0.999), 1e-6, 0.0)
    with pytest.raises(TypeError, match="lr"):
        smartcs.AdamW(parameters())
    with pytest.raises(ValueError, match="learning rate"):
        smartcs.AdamW(parameters(), lr=-1.0)


def test_a_parameter_without_gradient_stays():
    params = parameters()
    optimizer = smartcs.AdamW(params, lr=1e-2, weight_decay=0.5)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert torch.equal(params[2], parameters()[2]) and not torch.equal(params[0], parameters()[0])


@pytest.mark.parametrize("saved_by", ["torch", "fused", "reference"])
@pytest.mark.parametrize("loaded_by", ["fused", "reference"])
def test_state_dict_is_torchs(saved_by, loaded_by):
    first = parameters()
    if saved_by == "torch":
        optimizer = torch.optim.AdamW(first, lr=1e-2, eps=1e-6, weight_decay=0.0)
    else:
        with smartcs.backend(saved_by):
            optimizer = smartcs.AdamW(first, lr=1e-2)
    steps(optimizer, first)
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    with smartcs.backend(loaded_by):
        resumed = smartcs.AdamW(second, lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert bool(resumed.param_groups[0]["fused"]) == (loaded_by == "fused")
    assert resumed.param_groups[0]["lr"] == 1e-2
    steps(optimizer, first, begin=4)
    steps(resumed, second, begin=4)
    assert_close(first, second)
