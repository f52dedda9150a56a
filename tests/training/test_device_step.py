"""Steps as a GPU takes them: filled up, without a wait, recorded and replayed."""

import copy
import math

import pytest
import torch
from op_harness import threads
from training.recorded import RecordedCalls, Waits, nothing_waits

import smartcs
from smartcs._extension import extension_status
from smartcs.data.packing import PackedBatch
from smartcs.ops import packed_weights
from smartcs.smart import adversarial
from smartcs.training import device_step, objective
from smartcs.training.device_step import DeviceStep, Inputs
from smartcs.training.objective import TaskExamples
from smartcs.training.optim import AdamW
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.steps import Slice
from smartcs.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not extension_status()[0], reason="the reference of attention looks at lengths")

CASES = {
    "baseline": {"recipe": "baseline", "warmup": 5, "max_grad_norm": 1.0},
    "smart-bregman": {"recipe": "smart-bregman", "head_dropout": 0.1},
    "smart-all": {"recipe": "smart-all", "cosine": "fusion", "smart.tasks": "all", "bregman.tasks": "all"},
    "adversarial": {"recipe": "smart-adv-bregman", "bregman.inner_steps": 2, "smart.warmup": 4, "weight_decay": 0.1},
    "sentences": {"recipe": "smart", "smart.level": "sentence", "smart.norm": "2", "smart.steps": 2},
    "mean pooling": {"recipe": "smart", "pooling": "mean"},
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


def close_courses(first, second):
    for ours, theirs in zip(first, second, strict=True):
        assert [n is None for n in ours] == [n is None for n in theirs]
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
        assert all(a == pytest.approx(b, rel=2e-3, abs=2e-5) for a, b in pairs), (ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_filled_up_batches_train_as_bare_ones(like_a_gpu, trainer, case):
    """Inert rows change no loss, no gradient and no mean beyond rounding; and the key on the device is the host's."""
    host, device = trainer("host", **CASES[case]), trainer("eager", **CASES[case])
    close_courses(course(device), course(host))


@pytest.mark.parametrize("kind", ["host", "eager"])
def test_a_slice_whose_search_is_not_finite_counts_for_nothing(request, trainer, monkeypatch, kind):
    """The second of three in every step of SMART: its means are those of the other two."""
    ascend, found = adversarial.SmartRegularizer._ascend, []

    def spoiled(self, *arguments):
        v, *statistics, finite = ascend(self, *arguments)
        found.append(statistics)
        good = torch.full_like(finite, len(found) % 3 != 2)
        return v, *(value * good for value in statistics), finite & good

    monkeypatch.setattr(adversarial.SmartRegularizer, "_ascend", spoiled)
    if kind == "eager":
        request.getfixturevalue("like_a_gpu")
    made = trainer(kind, recipe="smart", accumulate=3, batch_sst=1, cycles=4)
    taken = [step for step in made.epoch() if step.task == "sst"]
    for number, step in enumerate(taken):
        first, _, third = found[3 * number : 3 * number + 3]
        for name, one, other in zip(("alignment", "perturbation"), first, third, strict=True):
            assert min(one, other) - 1e-6 <= step.terms()[name] <= max(one, other) + 1e-6, name
    assert made.objective.metrics()["smart"]["sst"]["fallbacks"] == len(taken) == 4


def test_a_number_that_is_not_sent_is_noticed(like_a_gpu, trainer, monkeypatch):
    """Each thing that differs from step to step, left as it was at the first."""
    case = {**CASES["smart-bregman"], "warmup": 30, "smart.warmup": 20}
    right = course(trainer("recorded", **case))
    send = Inputs.send
    for name in ("input_ids", "cu_seqlens", "labels", "counter_offset", "smart_weight", "schedule"):

        def stale(self: Inputs, values: dict[str, torch.Tensor], name: str = name) -> None:
            first = self.__dict__.setdefault("first", {name: values[name].clone()})
            send(self, {**values, name: first[name]})

        monkeypatch.setattr(Inputs, "send", stale)
        assert course(trainer("recorded", **case)) != right, name


def test_waiting_is_refused(trainer):
    """Without `like_a_gpu` the regulariser looks whether its ascent was finite."""
    with pytest.raises(Waits, match="_local_scalar_dense"):
        course(trainer("recorded", **CASES["smart-bregman"]))


@pytest.mark.parametrize("case", ["smart-all", "sentences"])
def test_steps_of_slices_wait_for_nothing(like_a_gpu, trainer, case, monkeypatch):
    launch, watched = DeviceStep._step_of_slices, []

    def within(*arguments):
        with nothing_waits() as recording:
            output = launch(*arguments)
        watched.append(len(recording.calls))
        return output

    monkeypatch.setattr(DeviceStep, "_step_of_slices", within)
    steps = course(trainer("recorded", accumulate=3, cycles=3, **CASES[case]))
    assert len(watched) == len(steps) and min(watched) > 100


@pytest.mark.parametrize("when", [0, 21])
def test_a_loss_that_is_not_finite_changes_nothing(like_a_gpu, trainer, when, monkeypatch):
    made = trainer("recorded", recipe="smart-bregman", max_skipped_steps=1)
    steps = made.epoch()
    for _ in range(when):
        next(steps)
    monkeypatch.setattr(made.objective, "weight", lambda step: math.nan)
    before = copy.deepcopy([t.detach() for t in weights(made)])
    replayed = made.device_step.replayed
    with pytest.raises(NonFiniteLossError, match="sst loss with its regularisers is nan at step"):
        next(steps)
    assert made.device_step.replayed == replayed + (when > 0)
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
    made.optimizer.max_grad_norm = None
    with pytest.raises(ValueError, match="DeviceStep: optimizer has max_grad_norm None"):
        DeviceStep(made.objective, made.optimizer, 0, torch.device("cpu"))


@pytest.fixture
def rounded(like_a_gpu, monkeypatch):
    """bf16 mode, the packed weights kept in their places as on a GPU."""

    def written_in_place(form: torch.Tensor, weight: torch.Tensor, transposed: bool) -> bool:
        form.copy_(torch.ops.smartcs.pack_weight(weight.detach(), transposed))
        return True

    monkeypatch.setattr(packed_weights, "_written_in_place", written_in_place)
    torch.ops.smartcs.set_bf16_products("portable")
    with smartcs.precision("bf16"):
        yield
    torch.ops.smartcs.set_bf16_products("auto")


def evaluated(made: Trainer) -> torch.Tensor:
    return made.model.eval().sentiment_logits(made.data["sst"].batch(range(5))[0]).detach()


def equal_courses(first: Trainer, second: Trainer) -> None:
    assert course(first) == course(second) and all(map(torch.equal, weights(first), weights(second)))
    assert torch.equal(evaluated(first), evaluated(second))


@pytest.mark.parametrize("case", ["baseline", "smart-bregman", "smart-all"])
def test_rounded_weights_are_those_of_the_step(rounded, trainer, case):
    """Products read rounded copies: AdamW's where it has written them, in a recorded step and after it."""
    eager, recorded = trainer("eager", **CASES[case]), trainer("recorded", **CASES[case])
    for _ in range(2):
        equal_courses(eager, recorded)
        for made in (eager, recorded):  # by somebody else, between two steps
            with torch.no_grad():
                for parameter in made.model.parameters():
                    parameter.mul_(1.01)
    assert recorded.device_step.replayed > 0


def test_a_recorded_step_rounds_no_weight_but_the_anchors(rounded, trainer):
    made = trainer("recorded", **CASES["smart-bregman"])
    course(made)
    counts = [names.count("smartcs::pack_weight") for names in made.device_step.recorder.calls]
    anchors = [packed_weights.buffers(p) for p in made.objective.anchor.anchor.parameters()]
    assert set(counts) == {0, len(anchors) - anchors.count(None)} and max(counts) > 0


def test_copies_that_are_not_written_are_noticed(rounded, trainer, monkeypatch):
    """The mutant: an optimizer that says it wrote them."""
    right = course(trainer("recorded"))
    with_copies = AdamW._with_copies

    def claims(self, entry, fused):
        own = with_copies(self, entry, fused)
        return own if own.packed is None else own._replace(packed=own.packed.clone(), packed_t=own.packed_t.clone())

    monkeypatch.setattr(AdamW, "_with_copies", claims)
    assert course(trainer("recorded")) != right


class Failing(RecordedCalls):
    """Runs out of something in the middle of a recording."""

    def __init__(self, required):
        super().__init__()
        self.required = required

    def __call__(self, function):
        super().__call__(function)
        raise RuntimeError("out of memory")


def test_a_failed_recording(like_a_gpu, trainer):
    """The run goes on kernel by kernel, as if none had been tried; or ends, where graphs were asked for."""
    eager, failing = trainer("eager", recipe="smart-bregman"), trainer("recorded", recipe="smart-bregman")
    failing.device_step.recorder = Failing(required=False)
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs any more: out of memory"):
        found = course(failing)
    assert found == course(eager) and failing.objective.metrics() == eager.objective.metrics()
    assert all(map(torch.equal, weights(eager), weights(failing))) and failing.graphs()["recorded"] == 0
    failing = trainer("recorded", recipe="smart-bregman")
    failing.device_step.recorder = Failing(required=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        course(failing)


def test_no_more_graphs_than_a_number(like_a_gpu, trainer, monkeypatch):
    monkeypatch.setattr(device_step, "_MOST_GRAPHS", 1)
    eager, recorded = trainer("eager"), trainer("recorded")
    assert course(eager) == course(recorded)
    assert recorded.graphs()["recorded"] == 1 and recorded.graphs()["replayed_steps"] >= 1


def test_a_sentence_that_is_too_long(trainer):
    made = trainer("eager")
    batch, labels = made.data["sst"].batch([0, 1])
    long = PackedBatch.from_lists([[5] * 65, [5]])
    with pytest.raises(ValueError, match="a sentence of up to 65 tokens, this model has 64 positions"):
        made.device_step("sst", [Slice(TaskExamples(long, labels), 1.0, 66)], 0, 1.0)
    assert batch.filled().max_seqlen == 64
