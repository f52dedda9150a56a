"""The training loop: right against a loop in plain transformers, the same on both backends, repeatable."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertModel as TransformersBert

import smartcs
from smartcs.training.metrics import task_loss
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.trainer import Trainer


def trainer(config) -> Trainer:
    with smartcs.backend("fused" if config.fused else "reference"):
        model = build_model(config)
        return Trainer(config, model, encode_split(model, load_data(config.data).train, config.max_length))


def losses(one: Trainer) -> np.ndarray:
    with smartcs.backend("fused" if one.config.fused else "reference"):
        return np.array([step.loss for step in one.epoch()])


def test_round_robin_and_counters(config):
    one = trainer(config(cycles=3))
    steps = [*one.epoch(), *one.epoch()]
    assert [step.task for step in steps] == ["sst", "qqp", "sts"] * 6
    assert [step.step for step in steps] == list(range(1, 19))
    assert [(step.epoch, step.cycle) for step in steps[::3]] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert one.step == 18 and one.tokens == sum(step.tokens for step in steps) > 0
    assert set(one.seconds) == {"data", "forward", "backward", "optimizer"} and min(one.seconds.values()) > 0
    assert sum(one.seconds.values()) == pytest.approx(sum(step.seconds for step in steps), rel=1e-6)


def test_follows_a_loop_in_transformers(config, encoder_folder):
    """Without dropout, every step's loss equals that of the same model trained with transformers and torch."""
    settings = config(encoder_dropout=0.0, cycles=6, seed=3)
    ours = trainer(settings)
    bert = TransformersBert.from_pretrained(encoder_folder, attn_implementation="eager").train()
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    heads = nn.ModuleDict({k: nn.Linear(v.in_features, v.out_features) for k, v in ours.model.heads.items()})
    heads.load_state_dict(ours.model.heads.state_dict())
    optimizer = torch.optim.AdamW(
        [*bert.parameters(), *heads.parameters()], lr=settings.learning_rate, eps=1e-6, weight_decay=0.0
    )
    theirs, batches = [], trainer(settings).sampler.batches()
    for task, rows in batches:
        batch, labels = ours.data[task].batch(rows)
        mask = batch.attention_mask()
        states = bert(
            input_ids=batch.to_padded(),
            attention_mask=mask,
            token_type_ids=batch.to_padded(batch.token_type_ids),
        ).last_hidden_state
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        hidden = torch.relu(heads["sst_hidden" if task == "sst" else "pair_shared"](pooled))
        output = heads[f"{task}_output"](hidden)
        loss = task_loss(task, output if task == "sst" else output.squeeze(-1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    np.testing.assert_allclose(losses(ours), theirs, rtol=2e-4)


def test_fused_and_reference_follow_one_curve(config):
    """With dropout: the masks are the same, so only rounding differs, and it stays small over 24 steps."""
    fused = losses(trainer(config(fused=True)))
    reference = losses(trainer(config(fused=False)))
    np.testing.assert_allclose(fused, reference, rtol=1e-3)
    other_masks = losses(trainer(config(fused=True, encoder_dropout=0.11)))
    assert np.abs(other_masks / reference - 1).max() > 1e-2, "the bound must tell other masks apart"


def test_one_batch_can_be_learnt(config):
    """A gradient that is wrong anywhere would show: every task's loss on one batch falls to a fraction."""
    settings = config(encoder_dropout=0.0, cycles=60, batch_sst=48, batch_qqp=48, batch_sts=48)
    curve = losses(trainer(settings)).reshape(-1, 3)
    assert (curve[-1] < 0.5 * curve[0]).all(), curve[[0, -1]]


def test_seed_decides(config):
    same = [losses(trainer(config(seed=5))) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], losses(trainer(config(seed=6))))


def test_processes_agree_bit_for_bit(config, quiet_train, tmp_path):
    """Losses and weights of a command and of a call in this process, on two threads."""
    settings = config(cycles=2, output=tmp_path / "here")
    flags = {"data": settings.data, "model": settings.model, "output": tmp_path / "command", "cycles": 2}
    flags |= {"epochs": 1, "batch-qqp": 8, "learning-rate": "1e-3"}
    command = [sys.executable, "-m", "smartcs.train", *(f"--{key}={value}" for key, value in flags.items())]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        quiet_train(settings)
    finally:
        torch.set_num_threads(threads)
    for file in ("losses.csv", "model.safetensors", "heads.safetensors"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "command" / file).read_bytes(), file


def test_non_finite_loss_names_step_task_and_examples(config):
    one = trainer(config(max_skipped_steps=1))
    steps = one.epoch()
    for _ in range(4):
        next(steps)
    with torch.no_grad():
        one.model.heads["qqp_output"].bias.fill_(math.nan)
    before = one.model.heads["sst_output"].weight.clone()
    with pytest.raises(
        NonFiniteLossError, match=r"the qqp loss is nan at step 5 \(epoch 1\).*( qqp-train-00\d\d,?){5} and 3 more;"
    ):
        next(steps)
    assert torch.equal(before, one.model.heads["sst_output"].weight)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_non_finite_gradients_end_the_run(config, max_grad_norm):
    """Finite losses, an infinite gradient: AdamW skips the step, which would go on unseen for ever."""
    one = trainer(config(max_grad_norm=max_grad_norm, max_skipped_steps=1))
    steps = one.epoch()
    next(steps)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.model.heads["pair_shared"].weight.register_hook(lambda grad: torch.full_like(grad, math.inf))
    with pytest.raises(
        NonFiniteLossError, match=r"the qqp gradient's norm is inf at step 2 \(epoch 1\).*( qqp-train-00\d\d,?){5} and"
    ):
        next(steps)
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items()) and one.step == 1


def test_heads_of_other_tasks_stay(config):
    """AdamW's momentum must not move a head on the steps of another task."""
    one = trainer(config())
    steps = one.epoch()
    next(steps)  # sst
    head = one.model.heads["sst_output"].weight
    after = head.clone()
    next(steps), next(steps)  # qqp, sts
    assert torch.equal(head, after)
    next(steps)
    assert not torch.equal(head, after)


def test_sparse_word_gradients_train_as_dense_ones_and_only_while_training(config, monkeypatch):
    def run(sparse: bool) -> tuple[np.ndarray, torch.Tensor]:
        if not sparse:
            monkeypatch.setattr("smartcs.training.trainer.get_backend", lambda: "reference")
        one = trainer(config(recipe="smart-bregman", cycles=3, fused=True))
        word, seen = one.model.bert.embeddings.word, []
        word.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.is_sparse))
        found = losses(one)
        assert seen and set(seen) == {sparse} and not word.sparse
        return found, word.weight.detach().clone()

    sparse, dense = run(True), run(False)
    np.testing.assert_array_equal(sparse[0], dense[0])
    assert torch.equal(sparse[1], dense[1])
