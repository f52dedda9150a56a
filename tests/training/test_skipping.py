"""Steps that are not finite: nothing is changed, it is counted and said, and too many in a row end the run."""

import copy
import csv
import io
import json
import math

import pytest
import torch
from rich.console import Console
from run_comparison import differences
from training.recorded import RecordedCalls
from training.resuming import go_on

from smartcs._extension import extension_status
from smartcs.smart import adversarial
from smartcs.training import objective
from smartcs.training.objective import Objective
from smartcs.training.pretrain_config import PretrainConfig
from smartcs.training.pretraining import Pretrainer
from smartcs.training.run import train
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError, Skips
from smartcs.training.state import pretrainer_state, trainer_state
from smartcs.training.steps import StepLoop
from smartcs.training.trainer import Trainer

LOOPS = ("host", "slices", "eager", "eager slices", "recorded", "pretraining")
# (The hook that spoils a gradient is Python's, which runs while a step is recorded and not when it is replayed.)
FAULTS = [
    (kind, fault) for kind in LOOPS for fault in ("loss", "gradient") if (kind, fault) != ("recorded", "gradient")
]


@pytest.fixture
def loop(config, monkeypatch):
    """Makes loops of one epoch, of every kind there is, with SMART and an anchor."""

    def make(kind: str) -> StepLoop:
        on_device = kind in ("eager", "eager slices", "recorded")
        if on_device:
            if not extension_status()[0]:
                pytest.skip("the reference of attention looks at lengths")
            for module in (adversarial, objective):
                monkeypatch.setattr(module, "known_to_fail", lambda finite: False)
        values = {
            "cycles": 8,
            "batch_sst": 3,
            "batch_qqp": 3,
            "batch_sts": 3,
            "bregman.tasks": "all",
            "smart.tasks": "all",
        }
        values |= {"accumulate": 3, "batch_sst": 1, "batch_qqp": 1, "batch_sts": 1} if "slices" in kind else {}
        settings = config(**values)
        model, data = build_model(settings), load_data(settings.data)
        texts, dev = (encode_split(model, split, 64) for split in (data.train, data.dev))
        if kind == "pretraining":
            options = {"seed": 3, "max_skipped": 5}
            return Pretrainer(
                model.bert, model.tokenizer, texts, dev, PretrainConfig(cycles=8), settings.batch_sizes, **options
            )
        made = Trainer(settings, model, texts, RecordedCalls() if on_device else None)
        if kind.startswith("eager"):
            made.device_step.recorder = None
        return made

    return make


def spoil(made: StepLoop, fault: str, task: str) -> list:
    """Makes the loss, or one gradient, of the steps of a task not finite; returns what undoes that."""
    weight = made.model.head.weight if isinstance(made, Pretrainer) else made.model.heads[f"{task}_output"].weight
    if fault == "gradient":
        hook = weight.register_hook(lambda grad: grad.clone().fill_(math.inf))
        return [hook.remove]
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(math.nan)

    def undo():
        with torch.no_grad():
            weight.copy_(kept)

    return [undo]


def everything(made: StepLoop) -> list[torch.Tensor]:
    """Weights, moments, counts of steps, and the anchor with its count."""
    state = pretrainer_state(made) if isinstance(made, Pretrainer) else trainer_state(made)
    tensors = [t for kind in state["optimizer"].values() for t in kind.values()]
    if isinstance(made, Trainer):
        anchor = made.objective.anchor.state_dict()
        tensors += [*anchor["weights"].values(), torch.tensor(anchor["updates"])]
    return copy.deepcopy([*(p.detach() for p in made.model.parameters()), *tensors])


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_a_skipped_step_changes_nothing(loop, kind, fault):
    made = loop(kind)
    steps = made.epoch()
    while next(steps).step < 15:  # every shape of a batch has been seen, where steps are recorded
        pass
    undo = spoil(made, fault, "sst")
    before = everything(made)
    skipped = next(steps)
    assert skipped.task == "sst" and skipped.step == 16 and made.skips.counts == {"sst": 1, "qqp": 0, "sts": 0}
    assert ("loss is nan" if fault == "loss" else "gradient's norm is inf") in skipped.skipped
    assert "at step 16 (epoch 1) on the examples sst-train-" in skipped.skipped
    assert math.isfinite(skipped.loss) == (fault == "gradient")
    assert all(map(same, before, everything(made)))
    for function in undo:
        function()
    before = everything(made)
    following = [next(steps) for _ in range(3)]
    assert [step.skipped for step in following] == ["", "", ""] and not all(map(same, before, everything(made)))
    assert all(torch.isfinite(tensor).all() for tensor in everything(made))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(7.5), other.nan_to_num(7.5))


def test_rows_are_of_one_task():
    skips = Skips(["sst", "qqp"], 3)
    assert [skips.skipped("sst"), skips.skipped("sst")] == [False, False]
    skips.taken("qqp")
    assert skips.skipped("sst") is True, "what is wrong with sst's head the others do not show"
    skips.taken("sst")
    assert skips.skipped("sst") is False and skips.counts == {"sst": 4, "qqp": 0}
    again = Skips(["sst", "qqp"], 3)
    again.load_state_dict(json.loads(json.dumps(skips.state_dict())))
    assert again.state_dict() == skips.state_dict()
    assert [again.skipped("sst"), again.skipped("sst")] == [False, True]


@pytest.fixture
def not_finite(monkeypatch):
    """Makes the loss of steps infinite, by their numbers from 1."""

    def choose(*numbers):
        original = Objective.terms

        def terms(self, task, encoded, labels, key, weight):
            found = original(self, task, encoded, labels, key, weight)
            return found._replace(total=found.total * math.inf) if key.step + 1 in numbers else found

        monkeypatch.setattr(Objective, "terms", terms)

    return choose


def test_a_run_says_and_counts_them(config, not_finite):
    not_finite(4, 7, 11)
    out = io.StringIO()
    result = train(config(recipe="smart-bregman"), Console(file=out, width=500))
    assert result.metrics["skipped_steps"] == {"sst": 2, "qqp": 1, "sts": 0} and result.metrics["steps"] == 24
    with open(result.folder / "losses.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["skipped"] == "1"] == [4, 7, 11]
    assert {row["skipped"] for row in rows} == {"", "1"}
    counted = [float(row["loss"]) for row in rows if row["task"] == "sst" and not row["skipped"]]
    assert result.metrics["epochs"][0]["train_losses"]["sst"] == pytest.approx(sum(counted) / 6)
    text = out.getvalue()
    assert text.count("warning: a step was skipped: the sst loss with its regularisers is inf at step") == 2
    assert "warning: 2 sst steps were skipped" in text and "sts steps were skipped" not in text


def test_too_many_in_a_row_end_the_run_with_the_last_checkpoint(config, not_finite, tmp_path):
    not_finite(*range(11, 25))
    out = io.StringIO()
    settings = config(keep=2, checkpoint_every=4, max_skipped_steps=2)
    message = (
        r"the qqp loss with its regularisers is inf at step 14 \(epoch 1\) on the examples qqp-train.* the last of 2"
    )
    with pytest.raises(NonFiniteLossError, match=message):
        train(settings, Console(file=out, width=500))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["diverged"] and metrics["skipped_steps"] == {"sst": 1, "qqp": 2, "sts": 1}
    assert "to go on from step 12: python -m smartcs.train --resume" in out.getvalue()
    assert f"--model {tmp_path / 'run' / 'checkpoints' / 'step-00000012'}" in out.getvalue()
    with pytest.raises(NonFiniteLossError, match="at step 14"):
        go_on(tmp_path / "run")
    with pytest.raises(NonFiniteLossError, match="at step 17 .* the last of 3 in a row"):
        go_on(tmp_path / "run", max_skipped_steps=3)


def test_a_row_goes_on_where_it_is_resumed(short, quiet_train, stop_at, not_finite):
    """What is counted is part of the state: two skipped before the interruption, the third ends the run."""
    not_finite(4, 7, 10)
    whole = quiet_train(short("whole", max_skipped_steps=4)).folder
    stop_at(8)
    parts = quiet_train(short("parts", max_skipped_steps=4)).folder
    assert go_on(parts).metrics["skipped_steps"] == {"sst": 3, "qqp": 0, "sts": 0}
    assert differences(whole, parts) == []
    stop_at(8)
    third = quiet_train(short("third", max_skipped_steps=3)).folder
    with pytest.raises(NonFiniteLossError, match="at step 10 .* the last of 3 in a row"):
        go_on(third)
