"""Masked language modelling on the tasks' texts: right against a loop in transformers, repeatable, and it learns."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from transformers import BertModel as TransformersBert

import smartcs
from smartcs.data.encode import EncodedTask
from smartcs.data.examples import DataError
from smartcs.training.interrupt import StopRequest
from smartcs.training.pretrain_config import PretrainConfig
from smartcs.training.pretraining import Pretrainer, pretrain
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError

QUIET = Console(quiet=True)


@pytest.fixture
def pretrainer(config):
    """Makes pretrainers on the tiny data and model; values are those of PretrainConfig and TrainConfig."""

    def make(*, change=None, **values) -> Pretrainer:
        own = {name: values.pop(name) for name in list(values) if name in PretrainConfig.__dataclass_fields__}
        settings = PretrainConfig(**{"epochs": 1, "cycles": 4, "learning_rate": 1e-3, **own})
        run = config(batch_sst=6, batch_qqp=10, batch_sts=4, **values)
        model, data = build_model(run), load_data(run.data)
        train, dev = (encode_split(model, split, 64) for split in (data.train, data.dev))
        if change is not None:
            train, dev = change(train, dev)
        sizes = {"seed": run.seed, "eval_batch_size": run.eval_batch_size}
        return Pretrainer(model.bert, model.tokenizer, train, dev, settings, run.batch_sizes, **sizes)

    return make


def losses(one: Pretrainer) -> np.ndarray:
    return np.array([step.loss for step in one.epoch()])


def test_round_robin_and_counters(pretrainer):
    one = pretrainer()
    steps = [*one.epoch(), *one.epoch()]
    assert [step.task for step in steps] == ["sst", "qqp", "sts"] * 8
    assert [step.step for step in steps] == list(range(1, 25))
    assert [(step.epoch, step.cycle) for step in steps[::3]] == [(e, c) for e in (1, 2) for c in (1, 2, 3, 4)]
    assert one.step == 24 and one.tokens == sum(step.tokens for step in steps)
    assert one.hidden == 8 * (6 + 10 + 4), "one token per sequence"
    assert set(one.seconds) == {"data", "forward", "backward", "optimizer"} and min(one.seconds.values()) > 0
    assert pretrainer(cycles=None).sampler.cycles == math.ceil(48 / 10)


def test_tasks(pretrainer):
    assert {step.task for step in pretrainer(tasks="sst").epoch()} == {"sst"}
    one = pretrainer(tasks="sts+sst", cycles=1)
    assert [step.task for step in one.epoch()] == ["sst", "sts"]
    assert set(one.evaluate()["dev_losses"]) == {"sst", "sts"}


def test_follows_a_loop_in_transformers(pretrainer, encoder_folder):
    """Every step's loss equals that of the same model and head trained with transformers and torch."""
    ours = pretrainer(cycles=6)
    bert = TransformersBert.from_pretrained(encoder_folder, attn_implementation="eager").eval()  # no dropout
    head = torch.nn.Linear(32, ours.model.head.out_features)
    head.load_state_dict(ours.model.head.state_dict())
    optimizer = torch.optim.AdamW([*bert.parameters(), *head.parameters()], lr=1e-3, eps=1e-6, weight_decay=0.0)
    theirs = []
    for number, (task, rows) in enumerate(pretrainer(cycles=6).sampler.batches()):
        batch, positions, targets = ours.masker(ours.data[task].batch(rows)[0], number)
        labels = torch.full((batch.num_tokens,), -100)
        labels[positions] = targets
        states = bert(
            input_ids=batch.to_padded(),
            attention_mask=batch.attention_mask(),
            token_type_ids=batch.to_padded(batch.token_type_ids),
        ).last_hidden_state
        loss = F.cross_entropy(head(states).transpose(1, 2), batch.to_padded(labels, pad=-100), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    np.testing.assert_allclose(losses(ours), theirs, rtol=2e-4)


@pytest.mark.parametrize("dropout", [False, True])
def test_fused_and_reference_follow_one_curve(pretrainer, dropout):
    curves = []
    for name in ("fused", "reference"):
        with smartcs.backend(name):
            curves.append(losses(pretrainer(dropout=dropout)))
    np.testing.assert_allclose(*curves, rtol=1e-3)
    other = losses(pretrainer(dropout=not dropout))
    assert np.abs(other / curves[1] - 1).max() > 1e-3, "the bound must tell dropout from none"


def test_seed_decides(pretrainer):
    same = [losses(pretrainer(seed=5, dropout=True)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], losses(pretrainer(seed=6, dropout=True)))


def test_every_step_has_tokens_and_dropout_masks_of_its_own(pretrainer, monkeypatch):
    one, seen, keys, epochs = pretrainer(tasks="sst", cycles=None, seed=3), [], [], []
    loss = one.model.loss

    def watch(masked, key):
        seen.extend(masked.targets.tolist())
        keys.append(key)
        return loss(masked, key)

    monkeypatch.setattr(one.model, "loss", watch)
    for _ in range(2):
        assert len(list(one.epoch())) == 8
        epochs.append(sorted(seen))
        seen.clear()
    assert len(epochs[0]) == len(epochs[1]) == 48 and epochs[0] != epochs[1]
    assert keys == [smartcs.DropoutKey(3, 2**39 + step) for step in range(16)]


@pytest.mark.parametrize(
    "settings", [{}, {"head": "embeddings"}, {"strategy": "mask", "fraction": 0.15}, {"tasks": "sst", "dropout": True}]
)
def test_the_loss_falls(pretrainer, settings):
    one = pretrainer(cycles=15, epochs=2, learning_rate=5e-3, **settings)
    untrained = one.evaluate()
    weights = [parameter.clone() for parameter in one.model.bert.parameters()]
    metrics = pretrain(one, QUIET)
    assert metrics["mlm_loss"] < untrained["mlm_loss"] - 1
    assert metrics["mlm_accuracy"] > untrained["mlm_accuracy"]
    assert metrics["epochs"][1]["mlm_loss"] < metrics["epochs"][0]["mlm_loss"]
    moved = [not torch.equal(*pair) for pair in zip(weights, one.model.bert.parameters(), strict=True)]
    assert sum(moved) == len(moved) - 2, "all weights of the encoder but the pooler's two learn"


def test_evaluation(pretrainer):
    """By the textbook form, an example at a time; the same again, for any batch size, and nothing is trained."""
    one = pretrainer(fraction=0.15, eval_batch_size=64)
    figures = one.evaluate()
    small = pretrainer(fraction=0.15, eval_batch_size=5)
    calls = []
    again = small.evaluate(lambda done, total: calls.append((done, total)))
    assert calls[0] == (5, 72) and calls[-1] == (72, 72) and len(calls) == 15
    for key in ("dev_losses", "dev_accuracies"):
        assert again[key] == pytest.approx(figures[key], rel=1e-5)
    assert one.evaluate() == figures
    for name, task in one.dev.items():
        rows = []
        for index in range(len(task)):
            batch, positions, targets = task.batch([index])
            with torch.inference_mode():
                logits = one.model.head(one.model.bert(batch).last_hidden_state)
            assert logits.shape[0] == task.lengths[index]
            best = logits.argmax(dim=-1)
            for position, target in zip(positions, targets, strict=True):
                rows.append((-logits[position].log_softmax(-1)[target].item(), float(best[position] == target)))
        loss, accuracy = np.mean(rows, axis=0)
        assert figures["dev_losses"][name] == pytest.approx(loss, rel=1e-4)
        assert figures["dev_accuracies"][name] == pytest.approx(accuracy)
    assert figures["mlm_loss"] == pytest.approx(np.mean(list(figures["dev_losses"].values())))
    assert figures["mlm_accuracy"] == pytest.approx(np.mean(list(figures["dev_accuracies"].values())))


def test_what_pretrain_leaves(pretrainer):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one = pretrainer(epochs=2, dropout=True)
    assert one.model.bert.training
    reports = []
    metrics = pretrain(one, QUIET, after_epoch=reports.append)
    assert torch.equal(torch.rand(3), expected), "the caller's random state"
    assert one.model.bert.training and all(parameter.grad is None for parameter in one.model.parameters())
    assert json.loads(json.dumps(metrics)) == metrics
    assert len(reports) == 2 and len(reports[0]["epochs"]) == 1 and reports[1] == metrics
    assert [epoch["epoch"] for epoch in metrics["epochs"]] == [1, 2]
    assert metrics["steps"] == 24 and metrics["cycles_per_epoch"] == 4 and not metrics["interrupted"]
    assert metrics["mlm_loss"] == metrics["epochs"][1]["mlm_loss"]
    assert set(metrics["epochs"][0]["train_losses"]) == {"sst", "qqp", "sts"}
    assert metrics["tokens_per_second"] == pytest.approx(metrics["tokens"] / metrics["seconds"])


@pytest.mark.parametrize("after", [5, 12])
def test_stop(pretrainer, after):
    """In the middle of an epoch, and in the evaluation after it."""
    stop, one = StopRequest(), pretrainer(epochs=3)

    class Log:
        def add(self, step):
            if step.step == after:
                stop.ask(2)

    metrics = pretrain(one, QUIET, stop=stop, log=Log())
    assert metrics["interrupted"] and metrics["steps"] == after and metrics["epochs"] == []
    assert metrics["mlm_loss"] is None and one.model.bert.training


def test_non_finite_loss_names_step_task_and_examples(pretrainer):
    one = pretrainer()
    steps = one.epoch()
    for _ in range(4):
        next(steps)
    with torch.no_grad():
        one.model.head.bias.fill_(math.nan)
    before = one.model.bert.embeddings.word.weight.clone()
    with pytest.raises(
        NonFiniteLossError,
        match=r"in pretraining, the qqp loss is nan at step 5 \(epoch 1\).*( qqp-train-00\d\d,?){5} and 5 more; "
        "the learning rate is 0.001",
    ):
        next(steps)
    assert torch.equal(before, one.model.bert.embeddings.word.weight)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_texts_without_a_word(pretrainer, split):
    def unknown(train, dev):
        tasks = {"train": train, "dev": dev}[split]
        task: EncodedTask = tasks["sts"]
        ids = np.where(task.input_ids > 4, 1, task.input_ids)
        tasks["sts"] = replace(task, input_ids=ids)
        return train, dev

    with pytest.raises(DataError, match=f"sts: no sequence of the {split} split has a word piece to hide"):
        pretrainer(change=unknown)
    assert pretrainer(change=unknown, tasks="sst+qqp").epoch()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("epochs", -1, "an integer of at least 0"),
        ("epochs", True, "an integer of at least 0"),
        ("cycles", 0, "an integer of at least 1"),
        ("learning_rate", 0.0, "a number above 0"),
        ("learning_rate", math.inf, "a number above 0"),
        ("strategy", "half", "one of bert, mask"),
        ("fraction", 0, "a number above 0"),
        ("fraction", 1.5, "a number above 0 and at most 1"),
        ("tasks", "none", "all, or some of sst, qqp, sts joined by +"),
        ("dropout", 0.1, "true or false"),
        ("head", "tied", "one of random, embeddings"),
    ],
)
def test_settings_out_of_range(pretrainer, name, value, wanted):
    message = re.escape(f"TrainConfig: pretrain.{name} is {value!r}, expected {wanted}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        PretrainConfig(**{name: value}).validate("TrainConfig: pretrain.")
    PretrainConfig(epochs=0, cycles=1, strategy="mask", fraction=1.0, tasks="qqp+sst").validate()
