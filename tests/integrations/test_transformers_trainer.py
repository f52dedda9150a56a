"""SmartTrainer: the Trainer's training with SMART and Bregman in its loss, and nothing else of it changed."""

import copy
import dataclasses
import logging

import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from smartcs.integrations.trainer import STATE_FILE
from smartcs.integrations.transformers import SmartArguments, SmartObjective, SmartTrainer

STRONG = SmartArguments(smart_weight=2.0, bregman_weight=1.0, update="projected", step_size=1e-2, radius=1e-2)


class Rows(Dataset):
    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["labels"])

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.batch.items()}


@pytest.fixture
def trainer(encoder, sentences, tmp_path):
    """Makes a SmartTrainer (or another class) on 16 training and 6 other sentences."""

    def make(model=None, trainer_class=SmartTrainer, labels="class", count=16, **settings):
        own = {name: settings.pop(name) for name in ("smart", "compute_loss_func") if name in settings}
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "max_steps": 6,
            "learning_rate": 3e-3,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return trainer_class(
            encoder() if model is None else model,
            TrainingArguments(**{**defaults, **settings}),
            train_dataset=Rows(sentences(count, labels=labels)),
            eval_dataset=Rows(sentences(6, seed=1, labels=labels)),
            **own,
        )

    return make


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def close(one, two, **tolerance):
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(
    ("architecture", "labels", "settings"),
    [("roberta", "class", {}), ("modernbert", "score", {"num_labels": 1}), ("deberta-v2", "score", {"num_labels": 1})],
)
def test_trains_logs_and_evaluates(encoder, trainer, architecture, labels, settings):
    model = encoder(architecture, dropout=0.1, **settings)
    run = trainer(model, labels=labels, max_steps=16, eval_strategy="steps", eval_steps=8, smart=STRONG)
    run.train()
    logs = [log for log in run.state.log_history if "loss" in log]
    assert len(logs) == 8
    assert logs[-1]["loss"] < logs[0]["loss"]
    for log in logs:
        assert log["smart_loss"] > 0
        assert log["smart_alignment"] > 0.9
        assert log["smart_perturbation"] == pytest.approx(1e-2, rel=1e-3)
        assert log["smart_fallbacks"] == 0
        assert log["bregman_loss"] > 0
    evaluated = [log for log in run.state.log_history if "eval_loss" in log]
    assert len(evaluated) == 2 and not any(name.startswith("smart") for log in evaluated for name in log)
    assert run.objective.arguments == STRONG
    assert run.objective.statistics()["smart"]["steps"] == 16  # none in evaluation
    plain = trainer(model, Trainer, labels=labels)
    assert run.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_weights_it_is_the_trainer(encoder, trainer, smoothing):
    one = encoder(dropout=0.1)
    two = copy.deepcopy(one)
    trainer(one, Trainer, label_smoothing_factor=smoothing).train()
    trainer(two, smart=SmartArguments(smart_weight=0), label_smoothing_factor=smoothing).train()
    close(one, two, rtol=1e-5, atol=1e-7)


def test_is_the_plain_loop(encoder, trainer):
    """The anchor moves after every step of the optimizer, and the Trainer adds nothing of its own."""
    one = encoder(dropout=0.1)
    two = copy.deepcopy(one)
    run = trainer(one, smart=STRONG, lr_scheduler_type="constant", max_grad_norm=0, optim="sgd")
    batches = []
    training_step = run.training_step

    def recorded(model, inputs, *rest):
        batches.append((torch.get_rng_state(), copy.deepcopy(dict(inputs))))
        return training_step(model, inputs, *rest)

    run.training_step = recorded
    run.train()
    smart = SmartObjective(two, STRONG)
    optimizer = torch.optim.SGD(two.parameters(), lr=3e-3)
    for state, batch in batches:
        torch.set_rng_state(state)
        optimizer.zero_grad()
        smart(batch).loss.backward()
        optimizer.step()
        smart.update()
    close(one, two)
    close(run.objective._anchor.anchor, smart._anchor.anchor)


@pytest.fixture
def constant_noise(monkeypatch):
    """Every sentence gets the same noise, so that a batch's loss is the mean of its sentences'."""
    init = SmartObjective.__init__

    def with_noise(self, *args, **kwargs):
        init(self, *args, **kwargs)
        real = self._regularizer.from_offsets

        def from_offsets(forward, like, clean, **rest):
            noise = torch.linspace(-1e-2, 1e-2, like[0].numel()).to(like).view_as(like[0]).expand_as(like)
            return real(forward, like, clean, noise=noise, **rest)

        self._regularizer.from_offsets = from_offsets

    monkeypatch.setattr(SmartObjective, "__init__", with_noise)


def mean_loss(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


SEVERAL = {"num_labels": 3, "problem_type": "multi_label_classification"}


@pytest.mark.parametrize(
    ("architecture", "labels", "task", "settings", "given"),
    [
        ("bert", "class", "SequenceClassification", {}, None),
        ("bert", "class", "SequenceClassification", {}, mean_loss),
        ("deberta-v2", "several", "SequenceClassification", SEVERAL, None),
        ("distilbert", "score", "SequenceClassification", {"num_labels": 1}, None),
        ("bert", "tokens", "TokenClassification", {}, None),
    ],
)
@pytest.mark.usefixtures("constant_noise")
def test_accumulated_batches_count_as_one(encoder, trainer, architecture, labels, task, settings, given):
    """7 sentences as batches of 4 and 3 take the step that they take as one."""
    one = encoder(architecture, task, **settings).double()
    two, before = copy.deepcopy(one), copy.deepcopy(one)
    smart = dataclasses.replace(STRONG, smart_weight=50.0)
    common = {"count": 7, "labels": labels, "smart": smart, "optim": "sgd", "max_grad_norm": 0, "max_steps": 2}
    common |= {"learning_rate": 0.02, "lr_scheduler_type": "constant", "compute_loss_func": given}
    runs = [
        trainer(one, per_device_train_batch_size=7, **common),
        trainer(two, gradient_accumulation_steps=2, **common),
    ]
    losses = [run.train().training_loss for run in runs]
    assert not equal(one, before)
    close(one, two, rtol=1e-5, atol=1e-7)
    assert losses[0] == pytest.approx(losses[1])
    assert [run.objective.statistics()["smart"]["steps"] for run in runs] == [2, 4]
    assert [run.objective._updates for run in runs] == [2, 2]


@pytest.mark.parametrize(("across", "expected"), [(False, 3 / 8), (True, 6 / 8)])
def test_a_batchs_share_in_the_loss_of_two_processes(trainer, monkeypatch, across, expected):
    """DistributedDataParallel divides by the processes: where the labels of all are counted, that is undone."""
    run = trainer(smart=STRONG)
    monkeypatch.setattr(type(run.accelerator), "num_processes", property(lambda self: 2))
    run.args.average_tokens_across_devices = across
    labels = torch.tensor([0, 1, 1, -100])
    assert float(run._share(labels, torch.tensor(8))) == pytest.approx(expected)
    assert run._share(labels, None) == 1


def test_resuming_continues_exactly(encoder, trainer, tmp_path):
    start = encoder(dropout=0.1)
    settings = {"smart": STRONG, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(copy.deepcopy(start), **settings)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    assert (checkpoint / STATE_FILE).is_file()

    resumed = trainer(copy.deepcopy(start), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert equal(whole.model, resumed.model)
    assert equal(whole.objective._anchor.anchor, resumed.objective._anchor.anchor)
    assert whole.objective.statistics() == resumed.objective.statistics()
    assert whole.state.log_history[-2]["smart_loss"] == resumed.state.log_history[-2]["smart_loss"]


def test_a_checkpoint_without_the_anchor_is_reported(encoder, trainer, tmp_path, caplog):
    trainer(trainer_class=Trainer, save_strategy="steps", save_steps=3, max_steps=3).train()
    run = trainer(smart=STRONG)
    with caplog.at_level(logging.WARNING):
        run.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert f"has no {STATE_FILE}: SMART starts anew" in caplog.text
    assert run.objective.statistics()["smart"]["steps"] == 3


def test_a_skipped_step_leaves_the_anchor(encoder, trainer, monkeypatch):
    run = trainer(smart=STRONG)
    monkeypatch.setattr(type(run.accelerator), "optimizer_step_was_skipped", property(lambda self: True))
    run.train()
    assert run.objective._updates == 0


def test_steps_left_out_are_reported(trainer, caplog):
    run = trainer(smart=SmartArguments(), max_steps=2)
    init = SmartObjective.__init__

    def broken(self, *args, **kwargs):
        init(self, *args, **kwargs)
        real = self._regularizer.from_offsets
        self._regularizer.from_offsets = lambda forward, like, clean, **rest: real(
            forward, like, clean, noise=torch.full_like(like, torch.nan), **rest
        )

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(SmartObjective, "__init__", broken)
        run.train()
    assert "SMART was left out of 2 of 2 batches" in caplog.text
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_what_is_not_supported_is_refused(encoder, trainer, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="set up for DataParallel over 2 GPUs, expected the whole model on one device"):
        trainer()


@pytest.mark.parametrize(
    ("smart", "error", "message"),
    [
        ({"steps": 2}, TypeError, "the settings of SMART are a dict, expected SmartArguments or None"),
        (SmartArguments(steps=-1), ValueError, "steps is -1, expected an int >= 0"),
        (SmartArguments(bregman_weight=1.0, beta=2.0), ValueError, "beta is 2.0, expected 0 <= beta <= 1"),
    ],
)
def test_bad_settings_fail_before_training(trainer, smart, error, message):
    with pytest.raises(error, match=message):
        trainer(smart=smart)


def test_a_model_that_does_not_fit_fails_before_training(trainer):
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is a decoder or a model for generation"):
        trainer(gpt2)
