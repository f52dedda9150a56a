"""SmartRegularizer against its formulas written out in float64, and its behaviour around them."""

import json

import pytest
import torch
from op_harness import normal, offsets
from smart_formulas import (
    CHANNELS,
    CLASSES,
    LENGTHS,
    LEVELS,
    LOSSES,
    NORMS,
    SETTINGS,
    UPDATES,
    plain_losses,
    problem,
    written_out,
)
from torch import Tensor, nn

from smartcs import BertConfig, BertModel, DropoutKey, PackedBatch
from smartcs.smart import SmartRegularizer


def compare(network, x, v, **options) -> None:
    """Value, gradients of parameters and embeddings, and diagnostics of one step."""
    value, cosine, size = written_out(network, x, v, **options)
    leaves = [x, *network.parameters()]
    expected = torch.autograd.grad(value, leaves)
    reg = SmartRegularizer(**SETTINGS, **options)
    cu_seqlens = offsets(LENGTHS) if options["level"] == "sentence" else None
    found = reg(network, x, network(x), noise=v, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(found, value, rtol=1e-8, atol=0)
    scale = max(gradient.abs().max().item() for gradient in expected)
    for got, want in zip(torch.autograd.grad(found, leaves), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9 * scale)
    assert reg.last is not None and reg.last.finite
    torch.testing.assert_close(reg.last.value, value.detach())
    torch.testing.assert_close(reg.last.alignment.float(), cosine.float())
    torch.testing.assert_close(reg.last.perturbation.float(), size.float())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("update", UPDATES)
def test_formula(update: str, norm: str, level: str, loss: str) -> None:
    compare(*problem(loss), update=update, norm=norm, level=level, loss=loss)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("update", UPDATES)
def test_steps(update: str, steps: int) -> None:
    compare(*problem("categorical"), update=update, norm="2", level="token", loss="categorical", steps=steps)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_steps_is_noise(loss: str) -> None:
    network, x, v = problem(loss)
    reg = SmartRegularizer(steps=0, loss=loss)
    found = reg(network, x, network(x), noise=v)
    torch.testing.assert_close(found, plain_losses(network(x + v), network(x), loss).mean(), rtol=1e-8, atol=0)
    assert reg.last is not None and reg.last.alignment == 0
    torch.testing.assert_close(reg.last.perturbation, v.abs().amax(dim=1).mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("detach", [{"detach_targets": True}, {"detach_clean": True}])
def test_detaching(loss: str, detach: dict[str, bool]) -> None:
    compare(*problem(loss), update="mtdnn", norm="inf", level="token", loss=loss, **detach)


def test_detached_forms_have_other_gradients() -> None:
    network, x, v = problem("categorical")
    forms = [{}, {"detach_targets": True}, {"detach_clean": True}]
    values, gradients = [], []
    for form in forms:
        value = SmartRegularizer(update="paper", step_size=0.0, **form)(network, x, network(x), noise=v)
        values.append(value.item())
        gradients.append(torch.autograd.grad(value, network.last.weight)[0])
    assert values[0] != 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (gradients[i] - gradients[j]).norm() > 0.05 * gradients[i].norm()


def test_inner_reduction() -> None:
    network, x, v = problem("categorical")
    summed, averaged = SmartRegularizer(**SETTINGS), SmartRegularizer(**SETTINGS, inner_reduction="mean")
    shrunk = SmartRegularizer(**SETTINGS | {"step_size": SETTINGS["step_size"] / len(LENGTHS)})
    values = [reg(network, x, network(x), noise=v) for reg in (summed, averaged, shrunk)]
    torch.testing.assert_close(values[1], values[2], rtol=1e-10, atol=0)
    assert abs(values[0] - values[1]) > 1e-3 * values[0]


def test_callable_losses() -> None:
    network, x, v = problem("categorical")
    named = SmartRegularizer(**SETTINGS)
    written = SmartRegularizer(
        **SETTINGS,
        loss=lambda a, b: plain_losses(a, b, "categorical").mean(),
        inner_loss=lambda a, b: plain_losses(a, b, "categorical").sum().reshape(1),
    )
    torch.testing.assert_close(
        written(network, x, network(x), noise=v), named(network, x, network(x), noise=v), rtol=1e-8, atol=0
    )


def test_offsets_equal_embeddings() -> None:
    network, x, _ = problem("categorical")
    plain, offset = SmartRegularizer(**SETTINGS, noise_std=0.02), SmartRegularizer(**SETTINGS, noise_std=0.02)
    like = torch.empty((), dtype=torch.float64).expand(x.shape)
    first, second = plain(network, x, network(x)), offset.from_offsets(lambda v: network(x + v), like, network(x))
    assert first == second != 0
    for one, other in zip(*(torch.autograd.grad(t, [x, network.last.weight]) for t in (first, second)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("perturb_at", ["word_embeddings", "embedding_output"])
@pytest.mark.parametrize("training", [False, True])
def test_bert(training: bool, perturb_at: str) -> None:
    """An encoder of smartcs ops that adds v itself, with shared dropout: float32 near float64."""
    torch.manual_seed(1)
    bert = BertModel(BertConfig(50, 16, 2, 2, 24, 20, pooling="mean")).train(training)
    head = nn.Linear(16, CLASSES)
    batch = PackedBatch.from_lists([[2, 5, 7, 3], [2, 9, 3]])
    noise = 1e-3 * normal(7, 16, seed=5)

    def encode(v: Tensor | None) -> Tensor:
        return head(bert(batch, DropoutKey(1, 2), perturbation=v, perturb_at=perturb_at).pooled)

    parameters = [p for name, p in [*bert.named_parameters(), *head.named_parameters()] if "pooler" not in name]
    results = []
    for dtype in (torch.float64, torch.float32):
        bert.to(dtype)
        head.to(dtype)
        reg = SmartRegularizer(update="projected", norm="2", radius=0.1, step_size=0.2, level="sentence")
        v = noise.to(dtype)
        value = reg.from_offsets(encode, v, encode(None), noise=v, cu_seqlens=batch.cu_seqlens)
        results.append((value, torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])))
        assert reg.last is not None and reg.last.alignment > 0.9
    (value64, gradient64), (value32, gradient32) = results
    assert value32.dtype == torch.float32 and value32 > 0
    torch.testing.assert_close(value32.double(), value64, rtol=1e-3, atol=0)
    assert (gradient32 - gradient64).norm() < 1e-3 * gradient64.norm()


def test_fresh_noise_every_step_and_named_noise() -> None:
    network, x, _ = problem("categorical")
    reg = SmartRegularizer(steps=0, noise_std=0.1, seed=4)

    def step(stream: int | None = None) -> float:
        return reg(network, x, network(x), stream=stream).item()

    first, second, named, again = step(), step(), step(stream=0), step(stream=0)
    assert first != second
    assert first == named == again
    assert SmartRegularizer(steps=0, noise_std=0.1, seed=5)(network, x, network(x)) != first


def test_noise_has_its_standard_deviation() -> None:
    seen = []

    def forward(v: Tensor) -> Tensor:
        seen.append(v)
        return v.sum(1, keepdim=True) * torch.ones(3, dtype=v.dtype)

    like = torch.zeros(400, 50)
    SmartRegularizer(steps=0, noise_std=0.25).from_offsets(forward, like, torch.zeros(400, 3))
    (v,) = seen
    assert abs(v.std().item() - 0.25) < 0.01
    assert abs(v.mean().item()) < 0.01


def test_statistics_and_resuming() -> None:
    network, x, _ = problem("categorical")
    settings = SETTINGS | {"noise_std": 0.1, "seed": 1}
    whole, first = SmartRegularizer(**settings), SmartRegularizer(**settings)
    assert whole.statistics() == {
        "steps": 0,
        "fallbacks": 0,
        "adversarial_alignment": 0,
        "perturbation_norm": 0,
        "regulariser": 0,
    }
    steps = []
    for _ in range(5):
        whole(network, x, network(x))
        assert whole.last is not None
        steps.append(whole.last)
    for _ in range(3):
        first(network, x, network(x))
    resumed = SmartRegularizer(**settings)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(2):
        resumed(network, x, network(x))
    assert resumed.statistics() == pytest.approx(whole.statistics(), rel=1e-12)
    assert resumed.last is not None and resumed.last.value == steps[-1].value
    statistics = whole.statistics()
    assert (statistics["steps"], statistics["fallbacks"]) == (5, 0)
    for name, field in (
        ("regulariser", "value"),
        ("adversarial_alignment", "alignment"),
        ("perturbation_norm", "perturbation"),
    ):
        assert statistics[name] == pytest.approx(sum(getattr(step, field).item() for step in steps) / 5)
    assert all(not t.requires_grad for step in steps for t in step)


def test_without_gradients() -> None:
    """Evaluation: the inner loop differentiates, the result does not."""
    network, x, v = problem("categorical")
    with torch.no_grad():
        value = SmartRegularizer(**SETTINGS)(network, x, network(x), noise=v)
    assert not value.requires_grad
    assert value == SmartRegularizer(**SETTINGS)(network, x, network(x), noise=v)


@pytest.mark.parametrize("shape", [(0, CHANNELS), (0, 4, CHANNELS), (2, 0, CHANNELS)])
@pytest.mark.parametrize("level", LEVELS)
def test_empty_batches(shape: tuple[int, ...], level: str) -> None:
    x = torch.zeros(shape, requires_grad=True)
    cu_seqlens = torch.zeros(1, dtype=torch.int32) if len(shape) == 2 and level == "sentence" else None
    reg = SmartRegularizer(level=level)
    value = reg(lambda e: e.flatten(0, -2), x, x.flatten(0, -2), cu_seqlens=cu_seqlens)
    value.backward()
    assert value == 0
    assert reg.statistics() == {
        "steps": 1,
        "fallbacks": 0,
        "adversarial_alignment": 0,
        "perturbation_norm": 0,
        "regulariser": 0,
    }
