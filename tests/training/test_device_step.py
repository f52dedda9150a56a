"""Steps as a GPU takes them: filled up, without a wait, recorded and replayed."""

import copy
import math

import pytest
import torch
from op_harness import threads
from training.recorded import RecordedCalls, Waits

from smartcs._extension import extension_status
from smartcs.ops.random import DropoutKey
from smartcs.smart import adversarial
from smartcs.training import objective
from smartcs.training.device_step import DeviceStep, Inputs
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.steps import NonFiniteLossError, Step
from smartcs.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not extension_status()[0], reason="the reference of attention looks at lengths")

CASES = {
    "baseline": {"recipe": "baseline", "warmup": 5, "max_grad_norm": 1.0},
    "smart-bregman": {"recipe": "smart-bregman", "head_dropout": 0.1},
    "smart-all": {"recipe": "smart-all", "cosine": "fusion", "smart.tasks": "all", "bregman.tasks": "all"},
    "adversarial": {"recipe": "smart-adv-bregman", "bregman.inner_steps": 2, "smart.warmup": 4, "weight_decay": 0.1},
    "sentences": {"recipe": "smart", "smart.level": "sentence", "smart.norm": "2", "smart.steps": 2},
    "own masks": {"recipe": "smart", "smart.share_dropout": False, "smart.perturb_at": "embedding_output"},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As in tests/ops."""
    with threads(1):
        yield


@pytest.fixture
def like_a_gpu(monkeypatch):
    """What is only looked at on the CPU is not."""
    for module in (adversarial, objective):
        monkeypatch.setattr(module, "known_to_fail", lambda finite: False)


@pytest.fixture
def trainer(config):
    """Makes trainers of equal weights: "host" as on a CPU, "eager" and "recorded" as on a GPU."""

    def make(kind: str, **values) -> Trainer:
        settings = config(**{"cycles": 12, "batch_sst": 3, "batch_qqp": 3, "batch_sts": 3, **values})
        model = build_model(settings)
        data = encode_split(model, load_data(settings.data).train, 64)
        made = Trainer(settings, model, data, None if kind == "host" else RecordedCalls())
        if kind == "eager":
            made.device_step.recorder = None
        return made

    return make


def course(made: Trainer) -> list[tuple[float | None, ...]]:
    return [(step.loss, *step.terms().values()) for step in made.epoch()]


def weights(made: Trainer) -> list[torch.Tensor]:
    anchor = made.objective.anchor
    return [*made.model.parameters(), *([] if anchor is None else anchor.anchor.parameters())]


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_eager_ones(like_a_gpu, trainer, case):
    """Every number of every step, the weights and the anchor: to the bit."""
    eager, recorded = trainer("eager", **CASES[case]), trainer("recorded", **CASES[case])
    assert course(eager) == course(recorded)
    assert all(map(torch.equal, weights(eager), weights(recorded)))
    assert eager.objective.metrics() == recorded.objective.metrics()
    step = recorded.device_step
    assert step.recorded == len(step.recorder.calls) >= 3 and step.replayed > step.recorded
    if eager.objective.anchor is not None:
        assert eager.objective.anchor._updates == recorded.objective.anchor._updates > 0


@pytest.mark.parametrize("case", CASES)
def test_filled_up_batches_train_as_bare_ones(like_a_gpu, trainer, case):
    """Inert rows change no loss, no gradient and no mean beyond rounding; and the key on the device is the host's."""
    host, device = trainer("host", **CASES[case]), trainer("eager", **CASES[case])
    for ours, theirs in zip(course(device), course(host), strict=True):
        assert [n is None for n in ours] == [n is None for n in theirs]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        assert all(a == pytest.approx(b, rel=2e-3, abs=2e-5) for a, b in pairs), (ours, theirs)


def test_a_number_that_is_not_sent_is_noticed(like_a_gpu, trainer, monkeypatch):
    """Each thing that differs from step to step, left as it was at the first."""
    case = {**CASES["smart-bregman"], "warmup": 30, "smart.warmup": 20}
    right = course(trainer("recorded", **case))
    send = Inputs.send
    for name in ("input_ids", "cu_seqlens", "labels", "offset", "smart_weight", "schedule"):

        def stale(self: Inputs, values: dict[str, torch.Tensor], name: str = name) -> None:
            first = self.__dict__.setdefault("first", {name: values[name].clone()})
            send(self, {**values, name: first[name]})

        monkeypatch.setattr(Inputs, "send", stale)
        assert course(trainer("recorded", **case)) != right, name


def test_waiting_is_refused(trainer):
    """Without `like_a_gpu` the regulariser looks whether its ascent was finite."""
    with pytest.raises(Waits, match="_local_scalar_dense"):
        course(trainer("recorded", **CASES["smart-bregman"]))


@pytest.mark.parametrize("when", [0, 20])
def test_a_loss_that_is_not_finite_changes_nothing(like_a_gpu, trainer, when, monkeypatch):
    made = trainer("recorded", recipe="smart-bregman")
    steps = made.epoch()
    for _ in range(when):
        next(steps)
    monkeypatch.setattr(made.objective, "weight", lambda step: math.nan)
    before = copy.deepcopy([t.detach() for t in weights(made)])
    seen: list[Step] = []
    with pytest.raises(NonFiniteLossError, match="sst loss with its regularisers is nan at step"):
        seen.extend(steps)
    others = [t for step in seen for t in (step.task,)]
    assert "sst" not in others  # the first SST step after that fails
    if not others:
        assert all(map(torch.equal, before, weights(made)))


def test_inputs_lie_where_kernels_can_read_them_at_once():
    like = {
        "a": torch.arange(3),
        "b": torch.tensor(1.5),
        "c": torch.zeros(0),
        "d": torch.tensor([1, 2], dtype=torch.int32),
    }
    inputs = Inputs(like, torch.device("cpu"))
    inputs.send(like)
    for name, value in like.items():
        assert torch.equal(inputs.device[name], value) and inputs.device[name].dtype == value.dtype
        assert inputs.device[name].data_ptr() % 16 == 0 or value.numel() == 0


def test_an_optimizer_that_does_not_measure_is_refused(trainer):
    made = trainer("host")
    with pytest.raises(ValueError, match="DeviceStep: optimizer has max_grad_norm None"):
        DeviceStep(made.objective, made.optimizer, 0, torch.device("cpu"))


def test_offset_of_a_step():
    assert DropoutKey(1, 0).stream(7) + DropoutKey.offset_of(9) == DropoutKey(1, 9).stream(7)
