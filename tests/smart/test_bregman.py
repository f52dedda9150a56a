"""BregmanAnchor: its momentum, when its term is zero, and that it leaves the model alone."""

import copy
import io
import json

import pytest
import torch
from op_harness import normal
from torch import Tensor, nn

from smartcs import BertConfig, BertModel, PackedBatch
from smartcs.smart import BetaSchedule, BregmanAnchor, smoothness_loss


class Tied(nn.Module):
    """Three layers, the first two of which share their weight, a dropout, and a buffer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.tanh(self.second(torch.tanh(self.first(x)))))) * self.scale


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


X = normal(5, 6, seed=1).float()


def step(model: nn.Module, seed: int) -> None:
    """Stands for an optimizer step."""
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=100 * seed + index).float()


@pytest.mark.parametrize("detach_targets", [False, True])
@pytest.mark.parametrize("loss", ["categorical", "bernoulli", "squared"])
def test_plain_anchor_does_nothing(model: Tied, loss: str, detach_targets: bool) -> None:
    """beta = 0 and one step per anchor, the equation to the letter: value and gradient are 0 to the last bit."""
    anchor = BregmanAnchor(model, beta=0.0, loss=loss, detach_targets=detach_targets)
    for seed in range(3):
        value = anchor.divergence(model(X), X)
        assert value == 0
        for gradient in torch.autograd.grad(value, list(model.parameters())):
            assert torch.equal(gradient, torch.zeros_like(gradient))
        step(model, seed)
        anchor.update()


def test_plain_anchor_does_nothing_to_bert() -> None:
    torch.manual_seed(0)
    bert = BertModel(BertConfig(50, 16, 2, 2, 24, 20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    batch = PackedBatch.from_lists([[2, 5, 7, 3], [2, 9, 3]])
    anchor = BregmanAnchor(bert, beta=0.0, forward=lambda module, batch: module(batch).pooler_output)
    step(bert, 1)
    anchor.update()
    bert.train()
    value = anchor.divergence(bert(batch).pooler_output, batch)
    value.backward()
    assert value == 0
    assert all(p.grad is not None and not p.grad.any() for p in bert.parameters())


def test_momentum_makes_it_work(model: Tied) -> None:
    anchor = BregmanAnchor(model, beta=0.5)
    step(model, 1)
    anchor.update()
    value = anchor.divergence(model(X), X)
    value.backward()
    assert value > 0
    assert model.last.weight.grad is not None and model.last.weight.grad.any()
    assert all(p.grad is None for p in anchor.anchor.parameters())


def test_no_gradient_through_the_anchor(model: Tied) -> None:
    x = X.clone().requires_grad_()
    anchor = BregmanAnchor(model)
    step(model, 1)
    anchor.divergence(model(X), x).backward()
    assert x.grad is None and model.last.weight.grad is not None


def test_dropout_alone_makes_a_difference() -> None:
    """At equal weights: the model drops out, the anchor never does."""
    torch.manual_seed(0)
    model = Tied(dropout=0.5).train()
    anchor = BregmanAnchor(model, beta=0.0)
    output = model(X)
    value = anchor.divergence(output, X)
    assert value > 0
    torch.testing.assert_close(value, smoothness_loss(output, copy.deepcopy(model).eval()(X), "categorical"))


def test_frozen_anchor(model: Tied) -> None:
    """inner_steps = 3 with beta = 0: 0 in the first step of every three, something in the others."""
    anchor = BregmanAnchor(model, beta=0.0, inner_steps=3)
    values = []
    for seed in range(7):
        values.append(anchor.divergence(model(X), X).item())
        step(model, seed)
        anchor.update()
    assert [value == 0 for value in values] == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.99, 1.0, BetaSchedule(early=0.2, late=0.9, switch_step=2)])
@pytest.mark.parametrize("inner_steps", [1, 2])
def test_momentum(model: Tied, beta, inner_steps: int) -> None:
    anchor = BregmanAnchor(model, beta=beta, inner_steps=inner_steps)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    for number in range(1, 6):
        step(model, number)
        model.scale.fill_(number)
        anchor.update()
        if number % inner_steps == 0:
            b = beta if isinstance(beta, float) else (0.2 if number - 1 < 2 else 0.9)
            expected = {n: (1 - b) * p.detach().double() + b * expected[n] for n, p in model.named_parameters()}
        assert anchor.anchor.scale == (number // inner_steps * inner_steps or 1)
        for name, parameter in anchor.anchor.named_parameters():
            torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
            if beta == 0 and number % inner_steps == 0:
                assert torch.equal(parameter, model.get_parameter(name))


def test_the_model_is_left_alone(model: Tied) -> None:
    model.train()
    model.last.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    anchor = BregmanAnchor(model, beta=0.9)
    anchor.divergence(model(X), X).backward()
    anchor.update()
    assert model.training and not anchor.anchor.training
    assert not model.last.weight.requires_grad and model.first.weight.requires_grad
    assert not any(p.requires_grad for p in anchor.anchor.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_tied_parameters_stay_tied_and_cost_once(model: Tied) -> None:
    anchor = BregmanAnchor(model, beta=0.5)
    step(model, 1)
    anchor.update()
    copied = anchor.anchor
    assert copied.first.weight is copied.second.weight
    assert copied.first.weight.data_ptr() != model.first.weight.data_ptr()
    numbers = sum(p.numel() for p in copied.parameters())
    assert numbers == sum(p.numel() for p in model.parameters())


def test_forward_and_loss_of_several_tasks(model: Tied) -> None:
    """One anchor for a model whose call is not the prediction, with a distance per call."""
    anchor = BregmanAnchor(model, beta=0.5, forward=lambda module, x, column: module(x)[:, column])
    step(model, 1)
    output, target = model(X)[:, 1], anchor.anchor(X)[:, 1]
    for loss in ("bernoulli", "squared"):
        assert anchor.divergence(output, X, column=1, loss=loss) == smoothness_loss(output, target, loss)
    largest = anchor.divergence(output, X, column=1, loss=lambda a, b: (a - b).abs().max())
    assert largest == (output - target).abs().max()


def test_statistics(model: Tied) -> None:
    anchor = BregmanAnchor(model, beta=0.5)
    assert anchor.statistics() == {"steps": 0, "anchor_divergence": 0}
    values = []
    for seed in range(3):
        step(model, seed)
        values.append(anchor.divergence(model(X), X).item())
    anchor.divergence(model(X) * torch.nan, X)
    assert anchor.statistics() == {"steps": 4, "anchor_divergence": pytest.approx(sum(values) / 3)}


def test_resuming(model: Tied) -> None:
    options = {"beta": BetaSchedule(early=0.2, late=0.9, switch_step=3), "inner_steps": 2}
    whole = BregmanAnchor(model, **options)
    resumed = None
    for seed in range(8):
        if seed == 3:
            file = io.BytesIO()
            torch.save(whole.state_dict(), file)
            file.seek(0)
            resumed = BregmanAnchor(model, **options)
            resumed.load_state_dict(torch.load(file))
        step(model, seed)
        for anchor in filter(None, (whole, resumed)):
            anchor.divergence(model(X), X)
            anchor.update()
    assert resumed is not None and whole.statistics() == resumed.statistics()
    assert whole.statistics()["steps"] == 8
    for one, other in zip(whole.anchor.state_dict().values(), resumed.anchor.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    json.dumps(whole.state_dict()["means"])


def test_follows_the_model_to_its_device(model: Tied) -> None:
    anchor = BregmanAnchor(model)
    model.to("meta")
    anchor.update()
    assert {p.device.type for p in anchor.anchor.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beta": 1.5}, "beta is 1.5, expected 0 <= beta <= 1"),
        ({"beta": float("nan")}, "beta is nan"),
        ({"inner_steps": 0}, "inner_steps is 0, expected an int >= 1"),
        ({"loss": "kl"}, "loss is 'kl', expected one of categorical, bernoulli, squared"),
    ],
)
def test_options(model: Tied, options, message: str) -> None:
    with pytest.raises(ValueError, match=f"BregmanAnchor: {message}"):
        BregmanAnchor(model, **options)


def test_messages(model: Tied) -> None:
    with pytest.raises(ValueError, match="parameter first.weight has dtype torch.bfloat16, in which momentum"):
        BregmanAnchor(copy.deepcopy(model).bfloat16())
    BregmanAnchor(copy.deepcopy(model).bfloat16(), beta=0)
    anchor = BregmanAnchor(model, beta=lambda step: 2.0)
    with pytest.raises(ValueError, match="beta is 2.0"):
        anchor.update()
    with pytest.raises(ValueError, match="loss is 'kl'"):
        anchor.divergence(model(X), X, loss="kl")
    with pytest.raises(TypeError, match="output is list, expected a torch.Tensor"):
        anchor.divergence([1.0], X)
    with pytest.raises(ValueError, match=r"output has shape \(4, 3\), expected \(5, 3\) to match the anchor's output"):
        anchor.divergence(model(X[:4]), X)
    with pytest.raises(ValueError, match="the state has the keys none, expected means, updates, weights"):
        anchor.load_state_dict({})
    anchor, weights = BregmanAnchor(model), copy.deepcopy(model.state_dict())
    model.last = nn.Linear(6, 3, bias=False)
    with pytest.raises(ValueError, match="the model has 4 parameters and its anchor 5, differing in last.bias"):
        anchor.update()
    assert all(torch.equal(t, weights[name]) for name, t in anchor.anchor.state_dict().items())
    model.seen = 2 * torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="model Tied cannot be copied"):
        BregmanAnchor(model)
