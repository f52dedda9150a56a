"""The loss of a step: which terms it has, what they add up to, and what they do to the weights."""

import math

import pytest
import torch

import smartcs
from smartcs import ops
from smartcs.smart import smoothness_loss
from smartcs.training.metrics import task_loss
from smartcs.training.objective import SMOOTHNESS, Objective
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.trainer import Trainer

TASKS = ("sst", "qqp", "sts")


@pytest.fixture
def setup(config):
    def make(**values):
        settings = config(**values)
        model = build_model(settings)
        data = encode_split(model, load_data(settings.data).train, 64)
        return settings, model, data

    return make


def test_the_baseline_has_the_task_loss_alone(setup):
    settings, model, data = setup()
    objective = Objective(settings, model, 10)
    batch, labels = data["sst"].batch(range(6))
    terms = objective("sst", batch, labels, 0)
    assert terms.total is terms.task and terms.smart is None and terms.bregman is None and objective.anchor is None
    torch.testing.assert_close(terms.task, task_loss("sst", model("sst", batch, smartcs.DropoutKey(11711, 0)), labels))
    assert objective.metrics() == {"smart": None, "bregman": None}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cosine", ["none", "fusion"])
def test_terms_are_what_the_paper_says(setup, task, cosine):
    """Equations 1 to 4, written out with the same noise, masks and anchor."""
    settings, model, data = setup(
        recipe="smart-bregman",
        cosine=cosine,
        **{"smart.tasks": "all", "bregman.tasks": "all", "smart.weight": 3.0, "bregman.weight": 0.5},
    )
    model.double()
    objective, step = Objective(settings, model, 10), 4
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    batch, labels = data[task].batch(range(5))
    labels = labels if task == "sst" else labels.double()
    terms = objective(task, batch, labels, step)

    key = smartcs.DropoutKey(settings.seed, step)
    output = model(task, batch, key)
    shape = (model.encoder_input(task, batch).num_tokens, 32)
    like = torch.empty(shape, dtype=torch.float64)
    v = ops.perturb_noise(like, std=1e-5, seed=settings.seed, stream=key.stream(2**16 - 1)).requires_grad_()
    kind = SMOOTHNESS[task]
    inner = smoothness_loss(model(task, batch, key, perturbation=v), output.detach(), kind, reduction="sum")
    (g,) = torch.autograd.grad(inner, v)
    w = v.detach() + 1e-3 * g
    v = w / (w.abs().amax(dim=1, keepdim=True) + 1e-6)
    smart = smoothness_loss(model(task, batch, key, perturbation=v), output, kind)
    anchored = objective.anchor.anchor(task, batch)
    torch.testing.assert_close(terms.smart, smart.detach())
    assert terms.perturbation.item() == pytest.approx(v.abs().amax(dim=1).mean().item())
    alignment = ((v * g).sum(dim=1) / (v.norm(dim=1) * g.norm(dim=1))).mean()
    assert terms.alignment.item() == pytest.approx(alignment.item(), abs=1e-6)
    assert terms.bregman > 0
    torch.testing.assert_close(terms.bregman, smoothness_loss(output, anchored, kind).detach())
    torch.testing.assert_close(terms.total.detach(), terms.task.detach() + 3.0 * terms.smart + 0.5 * terms.bregman)

    parameters = list(model.parameters())
    got = torch.autograd.grad(terms.total, parameters, allow_unused=True)
    total = task_loss(task, output, labels) + 3.0 * smart
    total = total + 0.5 * smoothness_loss(output, anchored, kind)
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_only_the_named_tasks_have_terms(setup):
    settings, model, data = setup(recipe="smart-bregman")
    objective = Objective(settings, model, 10)
    for task in TASKS:
        terms = objective(task, *data[task].batch(range(4)), 0)
        assert (terms.smart is not None) == (terms.bregman is not None) == (task == "sst")


def test_shared_masks_make_a_still_input_smooth_and_fresh_ones_do_not(setup):
    """With all but no perturbation the regulariser is what dropout adds: nothing, or mt-dnn's noise."""
    tiny = {"smart.update": "projected", "smart.radius": 1e-12, "smart.noise_std": 1e-12, "encoder_dropout": 0.1}
    values = {}
    for share in (True, False):
        settings, model, data = setup(recipe="smart", **{**tiny, "smart.share_dropout": share})
        terms = Objective(settings, model, 10)("sst", *data["sst"].batch(range(6)), 0)
        values[share] = terms.smart.item()
    assert values[True] < 1e-10 < 1e-6 < values[False]


def test_the_weight_follows_its_schedule(setup):
    settings, model, data = setup(recipe="smart", **{"smart.warmup": 4, "smart.decay": "linear"})
    objective = Objective(settings, model, 12)
    batch = data["sst"].batch(range(4))

    def share(step: int) -> float:
        terms = objective("sst", *batch, step)
        return ((terms.total - terms.task) / terms.smart).item()

    assert [round(share(step), 3) for step in (0, 3, 8, 12)] == [0.5, 2.0, 1.0, 0.0]


def test_the_anchor_follows_the_optimizer(config, setup):
    settings, model, data = setup(recipe="smart-bregman", **{"bregman.beta": 0.5, "bregman.early": 1.0})
    trainer = Trainer(settings, model, data)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    steps = trainer.epoch()
    next(steps)
    anchor = trainer.objective.anchor.anchor.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(anchor[name], (start[name] + value) / 2)
    list(steps)
    assert trainer.objective.metrics()["bregman"]["steps"] == 8


def test_metrics_and_steps_report_the_terms(setup):
    settings, model, data = setup(recipe="smart-bregman")
    trainer = Trainer(settings, model, data)
    steps = list(trainer.epoch())
    sst = [step for step in steps if step.task == "sst"]
    assert all(step.smart is None for step in steps if step.task != "sst")
    assert all(math.isfinite(value) for step in sst for value in step.terms().values())
    metrics = trainer.objective.metrics()
    figures = metrics["smart"]["sst"]
    assert figures["steps"] == 8 and figures["fallbacks"] == 0
    assert figures["regulariser"] == pytest.approx(sum(step.smart for step in sst) / 8, rel=1e-5)
    assert figures["adversarial_alignment"] == pytest.approx(sum(step.alignment for step in sst) / 8, abs=1e-6)


@pytest.mark.parametrize("recipe", ["baseline", "smart-bregman", "smart-adv+cosine", "stickland+smart-all"])
def test_both_backends_take_the_same_steps(setup, recipe):
    losses = {}
    for name in ("fused", "reference"):
        with smartcs.backend(name):
            settings, model, data = setup(recipe=recipe, cycles=3)
            losses[name] = [step.loss for step in Trainer(settings, model, data).epoch()]
    assert losses["fused"] == pytest.approx(losses["reference"], rel=2e-3)
