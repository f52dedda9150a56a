"""SmartRegularizer where something is not finite: the step contributes nothing, is counted, and nothing breaks."""

import math

import pytest
import torch
import torch.nn.functional as F
from smart_formulas import SETTINGS, problem
from torch import Tensor

from smartcs.smart import SmartRegularizer, adversarial


class _BadGradient(torch.autograd.Function):
    """The identity with a gradient of this value."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.full_like(grad, ctx.value), None


@pytest.fixture(params=["known", "not waited for"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to go on after a failure: the CPU's, and that of devices whose answer nobody waits for."""
    if request.param != "known":
        monkeypatch.setattr(adversarial, "known_to_fail", lambda finite: False)
    return request.param


@pytest.mark.parametrize("rows", [slice(None), slice(2, 3)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_inner_gradient(bad: float, rows: slice, device: str) -> None:
    """Of all tokens or of one: one broken token breaks the step."""
    network, x, v = problem("categorical")
    broken = []

    def forward(embeddings: Tensor) -> Tensor:
        broken.append(embeddings.detach() - x.detach())
        if len(broken) == 1:
            parts = embeddings[: rows.start or 0], embeddings[rows], embeddings[rows.stop or len(embeddings) :]
            embeddings = torch.cat([parts[0], _BadGradient.apply(parts[1], bad), parts[2]])
        return network(embeddings)

    reg = SmartRegularizer(steps=2, **SETTINGS)
    check_fallback(reg, forward, network, x, v)
    if device == "known":
        assert len(broken) == 1
    else:  # the last pass runs without perturbation
        assert len(broken) == 3 and broken[-1].abs().max() == 0


@pytest.mark.parametrize("failing", [1, 2])
def test_bad_value(failing: int, device: str) -> None:
    """The inner loss or the regulariser itself is infinite."""
    network, x, v = problem("categorical")
    calls = []

    def forward(embeddings: Tensor) -> Tensor:
        calls.append(1)
        return network(embeddings) + (math.inf if len(calls) == failing else 0.0) * torch.tensor([1.0, 0, 0]).double()

    with torch.no_grad():
        forward(x)
    calls.clear()
    check_fallback(SmartRegularizer(**SETTINGS), forward, network, x, v)


def test_bad_inner_loss_with_a_good_gradient(device: str) -> None:
    network, x, v = problem("categorical")
    good = SmartRegularizer(**SETTINGS, inner_loss=lambda a, b: a.square().sum())
    bad = SmartRegularizer(**SETTINGS, inner_loss=lambda a, b: a.square().sum() + math.inf)
    assert good(network, x, network(x), noise=v) > 0
    assert bad(network, x, network(x), noise=v) == 0
    assert bad.statistics()["fallbacks"] == 1


def check_fallback(reg, forward, network, x, v) -> None:
    task = network(x).square().mean()
    clean = torch.autograd.grad(task, [x, *network.parameters()])
    output = network(x)
    value = reg(forward, x, output, noise=v)
    assert value == 0
    (output.square().mean() + 2.0 * value).backward()
    for leaf, gradient in zip([x, *network.parameters()], clean, strict=True):
        assert torch.equal(leaf.grad, gradient)
        leaf.grad = None
    assert reg.last is not None
    assert [t.item() for t in reg.last] == [0, 0, 0, False]
    statistics = reg.statistics()
    assert (statistics["steps"], statistics["fallbacks"], statistics["regulariser"]) == (1, 1, 0)
    # A later step counts, and the broken one has no part in the means.
    good = reg(network, x, network(x), noise=v).item()
    assert good > 0
    statistics = reg.statistics()
    assert (statistics["steps"], statistics["fallbacks"]) == (2, 1)
    assert statistics["regulariser"] == pytest.approx(good)


def test_training_survives_bad_steps() -> None:
    """Every third inner gradient is NaN: the weights stay finite and the loss falls."""
    network, x, _ = problem("categorical")
    reg = SmartRegularizer(update="projected", noise_std=1e-3, radius=0.1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    labels, losses = torch.tensor([0, 1, 2, 0]), []
    for step in range(12):
        output = network(x)

        def forward(e: Tensor, bad: bool = step % 3 == 0) -> Tensor:
            return network(_BadGradient.apply(e, math.nan) if bad else e)

        loss = F.cross_entropy(output, labels)
        optimizer.zero_grad()
        (loss + reg(forward, x, output)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.isfinite().all() for p in network.parameters())
    assert losses[-1] < 0.7 * losses[0]
    assert reg.statistics()["fallbacks"] == 4
