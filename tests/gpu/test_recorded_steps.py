"""Whole training steps on the device: replayed graphs equal steps launched kernel by kernel, and nothing waits."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest.mock import Mock, patch

import pytest
import torch
from devices import DEVICE, REHEARSAL, fused
from small_models import small_config
from training.recorded import RecordedCalls, nothing_waits

import smartcs
from smartcs import BertModel, HeadConfig, MultitaskBert, kernels
from smartcs.data.encode import encode
from smartcs.data.examples import TASKS
from smartcs.data.sample import sample_folder, sample_tokenizer
from smartcs.smart import adversarial
from smartcs.training import device_step, objective
from smartcs.training.config import TrainConfig
from smartcs.training.device_step import CudaRecorder, DeviceStep
from smartcs.training.trainer import Trainer

# The CPU's adamw writes the CPU's packed weights, which are not those of a GPU's linear.
OPS = (*(op for op in kernels.OPS if op != "linear" or not REHEARSAL), "perturb", "symmetric_kl", "adamw")
CASES = {
    "baseline": {"recipe": "baseline", "max_grad_norm": 1.0},
    "smart-bregman": {"recipe": "smart-bregman"},
    "sentences": {"recipe": "smart", "smart.level": "sentence", "cosine": "fusion", "smart.tasks": "sts"},
}
PRECISIONS = ("fp32",) if REHEARSAL else ("fp32", "bf16")


def trainer(recorded: bool, **values) -> Trainer:
    # One sentence a batch and few of them: few shapes, each of which comes again.
    sizes = {"batch_sst": 1, "batch_qqp": 1, "batch_sts": 1, "cycles": 2 if REHEARSAL else 30}
    settings = TrainConfig.from_dict({"data": "sample", "model": "small", **sizes, **values})
    torch.manual_seed(0)
    encoder = BertModel(replace(small_config(), num_hidden_layers=1 if REHEARSAL else 2))
    model = MultitaskBert(encoder, HeadConfig(cosine=settings.cosine), sample_tokenizer()).train().to(DEVICE)
    train = sample_folder().train
    data = {name: encode(model.tokenizer, train[name], 64) for name in TASKS if name in settings.trained_tasks}
    recorder = RecordedCalls() if REHEARSAL else CudaRecorder(torch.device(DEVICE, 0), required=True)
    made = Trainer(settings, model, data, recorder)
    if not recorded:
        made.device_step.recorder = None
    return made


@contextmanager
def watched():
    """Once a shape has been warmed up, torch refuses to wait for a GPU while a step is launched or recorded."""
    # A CPU has nothing to wait for: a rehearsal's RecordedCalls refuse what would, and so does `nothing_waits`.
    mode = Mock() if REHEARSAL else Mock(wraps=torch.cuda.set_sync_debug_mode)
    run = DeviceStep._run

    def refusing(self, task, shapes, slices):
        mode("error" if min(shape.runs for shape in shapes) >= device_step._WARM_UP else "default")
        try:
            with nothing_waits() if REHEARSAL and self.recorder is None else nullcontext():
                return run(self, task, shapes, slices)
        finally:
            mode("default")

    with patch.object(DeviceStep, "_run", refusing):
        yield
    mode.assert_any_call("error")


def course(made: Trainer) -> tuple[list[tuple[float | None, ...]], list[torch.Tensor]]:
    with watched():
        steps = [(step.loss, *step.terms().values()) for step in made.epoch()]
    models = [made.model] if made.objective.anchor is None else [made.model, made.objective.anchor.anchor]
    return steps, [p.detach().cpu() for model in models for p in model.parameters()]


@pytest.fixture
def fewer(monkeypatch):
    """As on a GPU, and in a rehearsal a case cut down: interpreted steps take their time."""
    for module in (adversarial, objective):
        monkeypatch.setattr(module, "known_to_fail", lambda finite: False)
    if REHEARSAL:
        monkeypatch.setattr(device_step, "_WARM_UP", 1)
    return lambda case: {**CASES[case], **({"tasks": "sst"} if REHEARSAL else {})}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", list(CASES)[1:2] if REHEARSAL else CASES)
def test_replayed_steps_are_those_launched(case, precision, fewer):
    values = fewer(case)
    with fused(*OPS), smartcs.precision(precision):
        launched, recorded = trainer(False, **values), trainer(True, **values)
        first, second = course(launched), course(recorded)
    assert first[0] == second[0] and all(map(torch.equal, first[1], second[1]))
    assert recorded.graphs()["replayed_steps"] > 0


def test_accumulated_steps_wait_for_nothing(fewer):
    with fused(*OPS):
        steps, _ = course(trainer(False, accumulate=2, **fewer("smart-bregman")))
    assert all(loss is not None for loss, *_ in steps)
