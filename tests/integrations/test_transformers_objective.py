"""SmartObjective: SMART and Bregman in a loop of one's own, on every architecture and kind of task."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from smartcs.integrations import objective as objective_module
from smartcs.integrations.transformers import BetaSchedule, SmartArguments, SmartObjective, WeightSchedule

ARCHITECTURES = ["bert", "roberta", "deberta-v2", "distilbert", "modernbert", "electra", "albert"]
# A perturbation large enough for its effect to be seen in the loss.
STRONG = {"smart_weight": 2.0, "update": "projected", "step_size": 1e-2, "radius": 1e-2}


def train(model, batch, steps, **options):
    smart = SmartObjective(model, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        output = smart(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        smart.update()
        history.append(output)
    return smart, history


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_learns(encoder, sentences, architecture):
    model = encoder(architecture, dropout=0.1)
    before = hooks(model)
    smart, history = train(model, sentences(), 20, bregman_weight=1.0, **STRONG)
    assert all(torch.isfinite(output.loss) for output in history)
    assert history[-1].task_loss < 0.8 * history[0].task_loss
    assert all(output.smart > 0 for output in history)
    assert history[-1].bregman > 0
    last = history[-1]
    assert torch.equal(last.loss, last.task_loss + (2.0 * last.smart + 1.0 * last.bregman))
    statistics = smart.statistics()
    assert statistics["smart"]["steps"] == statistics["bregman"]["steps"] == 20
    assert statistics["smart"]["fallbacks"] == 0
    assert statistics["smart"]["perturbation_norm"] == pytest.approx(1e-2, rel=1e-3)
    assert statistics["smart"]["adversarial_alignment"] > 0.9  # the projected step goes where the loss rises
    assert hooks(model) == before


@pytest.mark.parametrize(
    ("labels", "settings", "kind"),
    [
        ("score", {"num_labels": 1}, "regression"),
        ("class", {"num_labels": 2}, "single_label_classification"),
        ("several", {"num_labels": 3, "problem_type": "multi_label_classification"}, "multi_label_classification"),
        ("several", {"num_labels": 3, "problem_type": "regression"}, "regression"),
    ],
)
@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_every_kind_of_label(encoder, sentences, architecture, labels, settings, kind):
    smart, history = train(encoder(architecture, **settings), sentences(labels=labels), 8, bregman_weight=1.0, **STRONG)
    assert smart.problem_type == kind
    assert history[-1].task_loss < 0.9 * history[0].task_loss
    assert all(output.smart > 0 for output in history)


def test_a_label_per_token_counts_labelled_tokens_alone(encoder, sentences):
    model, batch = encoder(task="TokenClassification"), sentences(labels="tokens")
    seen = []
    smart = SmartObjective(model, bregman_weight=1.0, **STRONG)
    real = smart._regularizer.from_offsets
    smart._regularizer.from_offsets = lambda forward, like, clean, **kwargs: (
        seen.append(clean.shape) or real(forward, like, clean, **kwargs)
    )
    assert smart(batch).smart > 0
    assert seen == [(int(batch["attention_mask"].sum()), 2)]


def test_multiple_choice(encoder, sentences):
    pairs = sentences(8)
    batch = {name: pairs[name].reshape(4, 2, -1) for name in ("input_ids", "attention_mask")}
    _, history = train(encoder(task="MultipleChoice"), {**batch, "labels": torch.tensor([0, 1, 0, 1])}, 3, **STRONG)
    assert all(output.smart > 0 for output in history)


def explicit_loss(model, anchor, batch, noise, step_size, norm_eps):
    """Loss of BERT by inputs_embeds and the formulas as they stand in the papers, in float64."""

    def kl(a, b):
        return ((a.softmax(-1) - b.softmax(-1)) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)

    def logits(network, x):
        return network(inputs_embeds=x, attention_mask=batch["attention_mask"]).logits

    x = model.bert.embeddings.word_embeddings(batch["input_ids"])
    clean = logits(model, x)
    v = noise.clone().requires_grad_()
    g = torch.autograd.grad(kl(logits(model, x.detach() + v), clean.detach()).sum(), v)[0]
    w = noise + step_size * g
    v = w / (w.abs().amax(-1, keepdim=True) + norm_eps) * batch["attention_mask"][..., None]
    with torch.no_grad():
        held = logits(anchor, anchor.bert.embeddings.word_embeddings(batch["input_ids"]))
    task = nn.functional.cross_entropy(clean, batch["labels"])
    return task + 2.0 * kl(logits(model, x + v), clean).mean() + 0.5 * kl(clean, held).mean()


def test_equals_an_explicit_computation_in_float64(encoder, sentences):
    model, batch = encoder().double(), sentences()
    smart = SmartObjective(model, smart_weight=2.0, bregman_weight=0.5, beta=0.9, step_size=0.1, norm_eps=1e-3)
    anchor = copy.deepcopy(model)
    noise = 1e-2 * torch.randn(8, 10, 32, dtype=torch.float64) * batch["attention_mask"][..., None]
    smart._regularizer.from_offsets = partial(smart._regularizer.from_offsets, noise=noise)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        expected = explicit_loss(model, anchor, batch, noise, 0.1, 1e-3)
        wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
        optimizer.zero_grad()
        output = smart(batch)
        output.loss.backward()
        torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
        for parameter, gradient in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-12)
        optimizer.step()
        smart.update()
        for held, now in zip(anchor.parameters(), model.parameters(), strict=True):
            held.data.lerp_(now.data, 0.1)
    assert output.bregman > 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_dropout_compares_equal_networks(encoder, sentences, architecture):
    model, batch = encoder(architecture, dropout=0.2), sentences()
    values = {}
    for share in (True, False):
        smart = SmartObjective(model, share_dropout=share)
        like = model.get_input_embeddings()(batch["input_ids"])
        smart._regularizer.from_offsets = partial(smart._regularizer.from_offsets, noise=torch.zeros_like(like))
        values[share] = smart(batch).smart.item()
    assert values[True] == 0
    assert values[False] > 0


def test_shared_dropout_leaves_the_random_numbers_of_training_alone(encoder, sentences):
    model, batch = encoder(dropout=0.2), sentences()
    torch.manual_seed(3)
    plain = model(**batch).loss
    state = torch.get_rng_state()
    torch.manual_seed(3)
    output = SmartObjective(model, bregman_weight=1.0)(batch)
    assert torch.equal(output.task_loss, plain)
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_is_not_perturbed(encoder, sentences, monkeypatch):
    model, batch = encoder(), sentences()
    offsets = []
    real = objective_module.perturbed
    monkeypatch.setattr(objective_module, "perturbed", lambda module, v: offsets.append(v) or real(module, v))
    SmartObjective(model)(batch)
    assert len(offsets) == 2
    word = batch["attention_mask"] == 1
    for offset in offsets:
        assert offset.shape == (8, 10, 32)
        assert (offset[word] != 0).any(dim=-1).all()
        assert not offset[~word].any()


def test_the_inner_loop_computes_no_parameter_gradient(encoder, sentences):
    model = encoder()
    calls = {name: 0 for name, _ in model.named_parameters()}

    def count(name, gradient):
        calls[name] += 1

    for name, parameter in model.named_parameters():
        parameter.register_hook(partial(count, name))
    output = SmartObjective(model, steps=3, bregman_weight=1.0)(sentences())
    assert set(calls.values()) == {0}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    output.loss.backward()
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_hooks_go_whatever_happens(encoder, sentences, monkeypatch, failing):
    model = encoder()
    calls = 0
    real = model.bert.forward

    def fail(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise RuntimeError("out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(model.bert, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        SmartObjective(model)(sentences())
    assert hooks(model) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_evaluation_is_the_models_own(encoder, sentences):
    model, batch = encoder(dropout=0.2), sentences()
    smart = SmartObjective(model)
    with torch.no_grad():
        assert smart(batch).smart is None  # in training mode, but nothing to differentiate
    model.eval()
    output = smart(batch)
    assert output.smart is None and output.bregman is None
    assert torch.equal(output.loss, model(**batch).loss)
    assert smart.statistics()["smart"]["steps"] == 0


def test_weights_follow_their_schedules(encoder, sentences):
    smart_weight = WeightSchedule(2.0, warmup_steps=2)
    smart, history = train(
        encoder(), sentences(), 3, smart_weight=smart_weight, bregman_weight=lambda step: float(step == 2)
    )
    assert [output.bregman is None for output in history] == [True, True, False]
    for step, output in enumerate(history):
        rest = 0.0 if output.bregman is None else output.bregman
        assert torch.equal(output.loss, output.task_loss + (smart_weight(step) * output.smart + rest))
    plain = SmartObjective(encoder(), smart_weight=0)(sentences())
    assert plain.smart is None and torch.equal(plain.loss, plain.task_loss)


def test_metrics_are_those_since_the_last_call(encoder, sentences):
    model, batch = encoder(), sentences()
    smart = SmartObjective(model, bregman_weight=1.0)
    assert smart.metrics() == {}
    first, second = smart(batch), smart(batch)
    metrics = smart.metrics()
    assert metrics["smart_loss"] == pytest.approx((first.smart + second.smart).item() / 2)
    assert metrics["smart_perturbation"] == pytest.approx(smart.statistics()["smart"]["perturbation_norm"])
    assert metrics["smart_fallbacks"] == 0
    assert -1 <= metrics["smart_alignment"] <= 1
    third = smart(batch)
    assert smart.metrics()["smart_loss"] == pytest.approx(third.smart.item())
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    smart(batch)
    assert smart.metrics() == {"smart_fallbacks": 1}  # and no means of nothing


def test_a_state_continues_exactly(encoder, sentences):
    options = {"bregman_weight": 1.0, "beta": BetaSchedule(switch_step=3), **STRONG}
    batch, model = sentences(), encoder()
    other = copy.deepcopy(model)
    train(model, batch, 4, **options)

    optimizer = torch.optim.AdamW(other.parameters(), lr=3e-3)
    smart = SmartObjective(other, **options)
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(smart.state_dict())
            smart = SmartObjective(other, **options)
            smart.load_state_dict(state)
        optimizer.zero_grad()
        smart(batch).loss.backward()
        optimizer.step()
        smart.update()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="the state has an anchor, expected none"):
        SmartObjective(other).load_state_dict(smart.state_dict())
    with pytest.raises(ValueError, match="keys none, expected bregman, smart, updates"):
        smart.load_state_dict({})


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models_are_perturbed_uncompiled(encoder, sentences, in_place):
    model, batch = encoder(), sentences()
    expected = SmartObjective(model, **STRONG)(batch)
    compiled = 0

    def backend(graph, inputs):
        nonlocal compiled
        compiled += 1
        return graph.forward

    if in_place:
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    model(**batch)
    seen = compiled
    assert seen > 0
    smart = SmartObjective(model, **STRONG)
    for _ in range(2):
        output = smart(batch)
        torch.testing.assert_close(output.task_loss, expected.task_loss)
        torch.testing.assert_close(output.smart, expected.smart, rtol=1e-2, atol=0)
    assert compiled == seen


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing(encoder, sentences):
    model, batch = encoder(dropout=0.2), sentences()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(1)
        model.zero_grad()
        SmartObjective(model, **STRONG)(batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_arguments_are_checked():
    with pytest.raises(TypeError, match="SmartArguments: unknown lambda_, expected some of smart_weight, "):
        SmartArguments.of(None, lambda_=2.0)
    with pytest.raises(ValueError, match="smart_weight is -1, expected a finite number >= 0 or a schedule"):
        SmartArguments(smart_weight=-1)
    with pytest.raises(ValueError, match="problem_type is 'squared', expected None or one of single_label_class"):
        SmartArguments(problem_type="squared")
    assert SmartArguments.of(SmartArguments(steps=2), norm="2") == SmartArguments(steps=2, norm="2")
