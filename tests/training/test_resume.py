"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import io
import json
import os
import signal

import pytest
import torch
from op_harness import threads
from rich.console import Console
from run_comparison import differences
from training.resuming import go_on

import smartcs
from smartcs.training import checkpointing
from smartcs.training import pretraining as pretraining_module
from smartcs.training import run as run_module
from smartcs.training.pretraining import Pretrainer
from smartcs.training.recipes import RECIPES
from smartcs.training.resume import Resumption

# Those that keep what others do not; benchmarks/resume_equality.py has all on both backends, at 1 and 2 threads.
ON_THE_REFERENCE = ("baseline", "stickland", "pretrain-smart-bregman-cosine", "smart-adv-bregman")


@pytest.mark.parametrize(
    ("recipe", "fused"),
    [*((recipe, True) for recipe in RECIPES), *((recipe, False) for recipe in ON_THE_REFERENCE)],
)
def test_resumed_is_uninterrupted(short, quiet_train, stop_at, recipe, fused):
    """In the first epoch, or else in the second one of pretraining, and again in the middle of the second."""
    whole = quiet_train(short("whole", recipe=recipe, fused=fused)).folder
    stop_at(5, Pretrainer) if "pretrain" in recipe else stop_at(4, number=signal.SIGTERM)
    parts = quiet_train(short("parts", recipe=recipe, fused=fused))
    assert parts.signal is not None
    stop_at(8)
    assert go_on(parts.folder).metrics["steps"] == 8
    assert go_on(parts.folder).signal is None
    assert differences(whole, parts.folder) == []


SETTINGS = {
    "annealed": {"sampler": "annealed"},
    "schedules": {
        "recipe": "smart-bregman",
        "smart.decay": "cosine",
        "smart.warmup": 3,
        "bregman.early": 0.7,
        "warmup": 9,
    },
    "inner-steps": {"recipe": "smart-bregman", "bregman.inner_steps": 3, "bregman.tasks": "sst+qqp"},
    "clipped": {"recipe": "smart-all", "max_grad_norm": 0.5, "weight_decay": 0.1},
    "one-task": {"tasks": "qqp", "holdout": 0.3, "cycles": 6},
    "bf16": {"recipe": "smart-bregman", "precision": "bf16"},
}


@pytest.mark.parametrize("count", [1, 2], ids=["1-thread", "2-threads"])
@pytest.mark.parametrize("name", SETTINGS)
def test_whatever_the_settings(short, quiet_train, stop_at, fused_products, name, count):
    with threads(count):
        whole = quiet_train(short("whole", **SETTINGS[name])).folder
        stop_at(8)
        parts = quiet_train(short("parts", **SETTINGS[name])).folder
        go_on(parts)
    assert differences(whole, parts) == []


@pytest.mark.parametrize(
    "moment", ["first step", "an epoch's last", "dev", "second dev", "test", "writing", "pretrain dev"]
)
def test_whenever_the_signal_comes(short, quiet_train, stop_at, monkeypatch, moment):
    def interrupting(module, name, call):
        original, calls = getattr(module, name), []

        def interrupted(*arguments, **options):
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGINT)
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, interrupted)

    settings = {"recipe": "pretrain" if moment == "pretrain dev" else "smart-bregman"}
    whole = quiet_train(short("whole", **settings)).folder
    with monkeypatch.context() as monkeypatch:
        if moment == "writing":
            interrupting(checkpointing, "write_state", 1)
        elif moment == "pretrain dev":
            interrupting(pretraining_module, "masked_loss", 5)
        elif moment in ("first step", "an epoch's last"):
            stop_at(1 if moment == "first step" else 6)
        else:
            interrupting(run_module, "evaluate", {"dev": 1, "second dev": 2, "test": 3}[moment])
        parts = quiet_train(short("parts", **settings))
        assert parts.signal == signal.SIGINT and parts.metrics["interrupted"]
    assert go_on(parts.folder).metrics["interrupted"] is False
    assert differences(whole, parts.folder) == []


def test_a_second_interrupt_leaves_the_checkpoint_before(short, quiet_train, stop_at, monkeypatch):
    """While that of the first is being written."""
    whole = quiet_train(short("whole")).folder
    stop_at(8)
    with monkeypatch.context() as patch:
        write = checkpointing.write_state

        def interrupted(folder, state):
            if state["loop"]["step"] == 8:
                os.kill(os.getpid(), signal.SIGINT)
            write(folder, state)

        patch.setattr(checkpointing, "write_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            quiet_train(short("parts"))
    parts = whole.parent / "parts"
    assert {path.name for path in (parts / "checkpoints").iterdir()} == {"step-00000005", "step-00000006"}
    assert go_on(parts).signal is None
    assert differences(whole, parts) == []


def test_more_epochs_are_the_run_of_more(short, quiet_train):
    whole = quiet_train(short("whole", recipe="smart")).folder
    parts = quiet_train(short("parts", recipe="smart", epochs=1)).folder
    assert go_on(parts, epochs=2).metrics["best_epoch"] in (1, 2)
    assert differences(whole, parts) == []


def test_the_best_weights_come_back(short, quiet_train, stop_at, best_is):
    """Epoch 1 is the best. Its weights are replaced by later ones, as by a run that was killed in a later epoch."""
    best_is("first")
    whole = quiet_train(short("whole", keep=1))
    assert whole.metrics["best_epoch"] == 1
    assert {path.name for path in (whole.folder / "checkpoints").iterdir()} == {"step-00000006", "step-00000012"}
    stop_at(8)
    parts = quiet_train(short("parts", keep=1)).folder
    newest = parts / "checkpoints" / "step-00000008"
    smartcs.MultitaskBert.from_pretrained(newest).save_pretrained(parts)
    for path in (parts / "predictions").iterdir():
        path.unlink()
    go_on(parts)
    assert differences(whole.folder, parts) == []


def test_without_the_interval_only_ends_of_epochs_are_kept(short, quiet_train):
    folder = quiet_train(short(checkpoint_every=0, keep=5)).folder
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-00000006", "step-00000012"}
    folder = quiet_train(short("others", checkpoint_every=4, keep=5)).folder
    names = {"step-00000004", "step-00000006", "step-00000008", "step-00000012"}
    assert {path.name for path in (folder / "checkpoints").iterdir()} == names
    assert not (quiet_train(short("none", keep=0)).folder / "checkpoints").exists()


def test_a_checkpoint_is_a_model(short, quiet_train, command):
    """For transformers, for smartcs, for evaluate and for --model."""
    transformers = pytest.importorskip("transformers")
    done = quiet_train(short(recipe="smart-bregman"))
    checkpoint = done.folder / "checkpoints" / "step-00000012"
    theirs = transformers.BertModel.from_pretrained(checkpoint).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(checkpoint)(["a fine film"], return_tensors="pt")
    ours = smartcs.MultitaskBert.from_pretrained(checkpoint)
    with torch.no_grad():
        expected = theirs(**tokens).last_hidden_state[0]
        found = ours.bert(smartcs.PackedBatch.from_padded(tokens["input_ids"], tokens["attention_mask"]))
    torch.testing.assert_close(found.last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    code, out, _ = command("evaluate", checkpoint, "--json")
    assert code == 0
    assert json.loads(out)["score"] == pytest.approx(done.metrics["epochs"][1]["score"], abs=1e-6)
    assert quiet_train(short("next", model=str(checkpoint), epochs=1)).signal is None


def test_events_go_on(short, quiet_train, stop_at):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stop_at(8)
    folder = quiet_train(short(tensorboard=True, recipe="smart")).folder
    # What a killed run has written after its last checkpoint.
    with run_module.TensorBoardLog(folder, 8) as board:
        board.step(9, "sts", 77.0)
    go_on(folder)
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    steps = [event.step for task in ("sst", "qqp", "sts") for event in events.Scalars(f"train/loss/{task}")]
    assert sorted(steps) == list(range(1, 13))
    assert 77.0 not in [event.value for event in events.Scalars("train/loss/sts")]


def test_the_progress_line_counts_what_is_left(short, quiet_train, stop_at, monkeypatch):
    monkeypatch.setattr("smartcs.training.progress._LOG_SECONDS", 0.0)
    stop_at(8)
    folder = quiet_train(short()).folder
    out = io.StringIO()
    go_on(folder, Console(file=out))
    text = out.getvalue()
    assert f"resumed at step 8 from {folder}" in text.replace("\n", "")
    assert "epoch 2/2  cycle 1/2" in text and "epoch 2/2  cycle 2/2" in text and "epoch 1/2  cycle" not in text


def test_other_conditions_are_said(short, quiet_train, stop_at):
    stop_at(8)
    with threads(1):
        folder = quiet_train(short()).folder
    out = io.StringIO()
    with threads(2):
        go_on(folder, Console(file=out, width=500))
    assert "note: not bit for bit what the run would have been: threads 2, was 1" in out.getvalue()
    assert Resumption.find(folder).changed_conditions(Resumption.find(folder).state["conditions"]) == ""
