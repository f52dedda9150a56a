"""SharedDropout: equal masks for further passes, and generators that go on as if nothing had happened."""

import pytest
import torch
from torch import Tensor, nn

from smartcs.smart import SharedDropout, SmartRegularizer


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 3)).train()


X = torch.linspace(-1, 1, 30).reshape(5, 6)


def test_replays_the_masks(model: nn.Module) -> None:
    masks = SharedDropout()
    with masks:
        first = model(X)
    replayed = masks.replay(model)
    assert torch.equal(replayed(X), first)
    assert torch.equal(replayed(X), first)
    assert not torch.equal(model(X), first)
    with masks:
        second = model(X)
    assert not torch.equal(second, first)
    assert torch.equal(replayed(X), second)  # the last block's


def test_generator_goes_on_as_after_the_first_pass(model: nn.Module) -> None:
    def draws(replays: int) -> list[Tensor]:
        torch.manual_seed(3)
        masks = SharedDropout()
        with masks:
            model(X)
        for _ in range(replays):
            masks.replay(model)(X)
        return [torch.rand(4), model(X)]

    assert all(torch.equal(a, b) for a, b in zip(draws(0), draws(3), strict=True))


def test_generator_survives_a_failure(model: nn.Module) -> None:
    masks = SharedDropout()
    with masks:
        model(X)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        masks.replay(model)(X[:, :2])
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_and_name_pass_through() -> None:
    def f(x: Tensor, *, scale: float) -> Tensor:
        return scale * x

    masks = SharedDropout()
    with masks:
        pass
    assert masks.replay(f)(torch.ones(()), scale=2.0) == 2
    assert masks.replay(f).__name__ == "f"


def test_nothing_to_replay() -> None:
    with pytest.raises(RuntimeError, match="SharedDropout.replay: nothing to replay yet"):
        SharedDropout().replay(abs)(1)


def test_with_smart(model: nn.Module) -> None:
    """With masks of their own the passes differ by dropout: R_s is then orders of magnitude too large."""
    masks = SharedDropout()
    with masks:
        clean = model(X)
    shared, fresh = (SmartRegularizer(update="projected", norm="2") for _ in range(2))
    value = shared(masks.replay(model), X, clean)
    assert 0 < value < 1e-6 * fresh(model, X, clean)
    assert shared.statistics()["adversarial_alignment"] > 0.9
    value.backward()
    assert model[0].weight.grad is not None
