"""SmartRegularizer against the formulas of mt-dnn and against the package smart-pytorch, with the same noise.

With the options named here both are reproduced, loss and parameter gradients. What differs by default, and why:

| | mt-dnn | smart-pytorch | here |
|---|---|---|---|
| inner loss | difference of log-odds, logarithms constant, epsilon 1e-6 inside | KL(q || p) | l_s itself: what the \
maximum is over; any callable as ``inner_loss``. Nearly the same direction |
| its reduction | sum | mean with ``kl_loss``, sum with ``sym_kl_loss`` | sum: each example has its own maximum; \
``inner_reduction="mean"`` |
| value | mean over the batch | sum with ``sym_kl_loss``: its weight grows with the batch | mean |
| gradient | targets constant | targets constant | the true one; ``detach_targets=True`` |
| "l1" norm of the update | sign | none | sign for "mtdnn", as there; the l1 norm for the others |
| size of v | norm 1 whatever the settings | the same | the same for "mtdnn"; ``radius`` for "projected" |
| padding | perturbed | perturbed | left alone |
| float32 | two KL terms of logarithms, which cancel | the same | one sum of products, exact for near-equal logits |
"""

import pytest
import torch
import torch.nn.functional as F
from op_harness import normal
from smart_pytorch import SMARTLoss, kl_loss, sym_kl_loss
from torch import Tensor, nn

from smartcs.smart import SmartRegularizer, smoothness_loss

BATCH, WIDTH, CHANNELS, CLASSES = 6, 7, 16, 5


class Network(nn.Module):
    """(B, S, C) to (B, K), or to (B,) for one output."""

    def __init__(self, outputs: int, dtype=torch.float64) -> None:
        super().__init__()
        self.first = nn.Linear(CHANNELS, 24, dtype=dtype)
        self.last = nn.Linear(24, outputs, dtype=dtype)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data.copy_(normal(*parameter.shape, seed=seed) / parameter.shape[-1] ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(torch.tanh(self.first(x)).mean(dim=1))
        return y if y.shape[1] > 1 else y[:, 0]


def embeddings(dtype=torch.float64) -> Tensor:
    return normal(BATCH, WIDTH, CHANNELS, seed=7).to(dtype)


def first_noise(std: float) -> Tensor:
    return std * normal(BATCH, WIDTH, CHANNELS, seed=8)


def gradients(value: Tensor, network: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(network.parameters()))])


# mt-dnn


def mtdnn_log_odds(logit: Tensor, target: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Its inner loss: p times twice the difference of log-odds, the logarithms being constants."""
    p, q = logit.softmax(-1), target.softmax(-1)
    of_p, of_q = (-(1 / (t + epsilon) - 1 + epsilon).detach().log() for t in (p, q))
    return (2 * p * (of_p - of_q)).sum()


def mtdnn_loss(a: Tensor, b: Tensor) -> Tensor:
    """Its symmetric KL criterion."""
    first = F.kl_div(a.log_softmax(-1), b.detach().softmax(-1), reduction="batchmean")
    return first + F.kl_div(b.log_softmax(-1), a.detach().softmax(-1), reduction="batchmean")


def mtdnn(network, x, v, *, norm: str, level: str, regression: bool, steps: int, step_size: float) -> Tensor:
    clean = network(x)
    for _ in range(steps):
        v = v.detach().requires_grad_()
        output = network(x + v)
        inner = F.mse_loss(output, clean.detach(), reduction="sum") if regression else None
        (g,) = torch.autograd.grad(mtdnn_log_odds(output, clean.detach()) if inner is None else inner, v)
        w = v + step_size * g
        axes = -1 if level == "token" else (-2, -1)
        if norm == "1":
            v = w.sign()
        elif norm == "inf":
            v = w / (w.abs().amax(axes, keepdim=True) + 1e-6)
        else:
            v = w / (w.square().sum(axes, keepdim=True).sqrt() + 1e-6)
    output = network(x + v.detach())
    return F.mse_loss(output, clean) if regression else mtdnn_loss(output, clean)


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("level", ["token", "sentence"])
@pytest.mark.parametrize("norm", ["inf", "2", "1"])
@pytest.mark.parametrize("steps, step_size", [(1, 1e-3), (2, 10.0)])
def test_mtdnn(regression: bool, level: str, norm: str, steps: int, step_size: float) -> None:
    network, x, v = Network(1 if regression else CLASSES), embeddings(), first_noise(1e-2)
    loss = "squared" if regression else "categorical"
    theirs = mtdnn(network, x, v, norm=norm, level=level, regression=regression, steps=steps, step_size=step_size)
    reg = SmartRegularizer(
        loss=loss,
        inner_loss=None if regression else mtdnn_log_odds,
        detach_targets=True,
        norm=norm,
        level=level,
        steps=steps,
        step_size=step_size,
    )
    ours = reg(network, x, network(x), noise=v)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients(ours, network), gradients(theirs, network), rtol=1e-8, atol=1e-14)


def inner_gradient(loss, network, x, v) -> Tensor:
    v = v.clone().requires_grad_()
    return torch.autograd.grad(loss(network(x + v), network(x).detach()), v)[0].flatten().double()


def divergence(a: Tensor, b: Tensor) -> Tensor:
    return smoothness_loss(a, b, "categorical", reduction="sum")


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a, b, dim=0).item()


def test_mtdnn_inner_loss_against_the_divergence() -> None:
    """The deliberate difference: the log-odds loss climbs l_s up to twice as fast, by another factor per example."""
    network, x, v = Network(CLASSES), embeddings(), first_noise(1e-5)
    network.last.weight.data *= 10  # predictions between .4 and .9
    theirs = inner_gradient(mtdnn_log_odds, network, x, v).view(BATCH, -1)
    true = inner_gradient(divergence, network, x, v).view(BATCH, -1)
    assert F.cosine_similarity(theirs, true).min() > 0.95
    longer = theirs.norm(dim=1) / true.norm(dim=1)
    assert longer.min() > 1.1 and longer.max() < 2.1
    assert longer.max() / longer.min() > 1.2


# smart-pytorch


def smart_pytorch(monkeypatch, network, x, v, *, inner, steps=1, step_size=1e-3) -> Tensor:
    """SMARTLoss as its README calls it, its random numbers replaced."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like, **kwargs: v.detach().clone().requires_grad_())
        module = SMARTLoss(network, inner, sym_kl_loss, num_steps=steps, step_size=step_size, noise_var=1.0)
        return module(x, network(x))


@pytest.mark.parametrize("inner, reduction", [(kl_loss, "mean"), (sym_kl_loss, "sum")])
@pytest.mark.parametrize("steps, step_size", [(0, 1e-3), (1, 1e-3), (2, 10.0)])
def test_smart_pytorch(monkeypatch, inner, reduction: str, steps: int, step_size: float) -> None:
    """The gradient of KL(q || p) to p's logits is that of the symmetric form with constant targets: p - q."""
    network, x, v = Network(CLASSES), embeddings(), first_noise(1e-2)
    theirs = smart_pytorch(monkeypatch, network, x, v, inner=inner, steps=steps, step_size=step_size) / BATCH
    reg = SmartRegularizer(inner_reduction=reduction, detach_targets=True, steps=steps, step_size=step_size)
    ours = reg(network, x, network(x), noise=v)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradients(ours, network), gradients(theirs, network), rtol=1e-8, atol=1e-14)


def test_defaults_differ_from_smart_pytorch(monkeypatch) -> None:
    network, x, v = Network(CLASSES), embeddings(), first_noise(1e-2)
    theirs = smart_pytorch(monkeypatch, network, x, v, inner=kl_loss) / BATCH
    ours = SmartRegularizer()(network, x, network(x), noise=v)
    # At alpha = 1e-3 the inner loop changes next to nothing: values agree, the gradients do not.
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=0)
    theirs = gradients(theirs, network)
    assert (gradients(ours, network) - theirs).norm() > 0.1 * theirs.norm()


# float32


def test_value_in_float32(monkeypatch) -> None:
    """At the papers' sigma, what the noise itself does to the prediction: theirs is all rounding, ours is not."""
    v = first_noise(1e-5)
    ours, theirs = {}, {}
    for dtype in (torch.float64, torch.float32):
        network, x = Network(CLASSES, dtype), embeddings(dtype)
        clean = network(x)
        ours[dtype] = SmartRegularizer(steps=0)(network, x, clean, noise=v.to(dtype)).item()
        theirs[dtype] = smart_pytorch(monkeypatch, network, x, v.to(dtype), inner=kl_loss, steps=0).item() / BATCH
    truth = ours[torch.float64]
    assert theirs[torch.float64] == pytest.approx(truth, rel=1e-3)
    assert ours[torch.float32] == pytest.approx(truth, rel=0.05)
    assert abs(theirs[torch.float32] - truth) > 10 * truth


def test_inner_gradient_in_low_precision() -> None:
    """The ascent direction survives float32; in bfloat16 x + v is x, and SmartRegularizer refuses."""
    found = {
        dtype: inner_gradient(divergence, Network(CLASSES, dtype), embeddings(dtype), first_noise(1e-5).to(dtype))
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
    }
    assert cosine(found[torch.float32], found[torch.float64]) > 0.999
    assert abs(cosine(found[torch.bfloat16], found[torch.float64])) < 0.2
