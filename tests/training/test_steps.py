"""The step loop: batches made ahead are the batches of the sampler, whose state counts what was trained on alone."""

import copy
import threading

import pytest
import torch

from smartcs.data.masking import MaskedBatch
from smartcs.data.packing import PackedBatch
from smartcs.training import steps as steps_module
from smartcs.training.objective import TaskExamples
from smartcs.training.pretrain_config import PretrainConfig
from smartcs.training.pretraining import Masked, Pretrainer
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.steps import Loss, _numbers
from smartcs.training.trainer import Trainer


@pytest.fixture(params=["fine-tuning", "pretraining"])
def loop(request, config):
    """Makes step loops of 4 cycles an epoch."""

    def make():
        settings = config(cycles=4, batch_sst=6, batch_qqp=10, batch_sts=4)
        model, data = build_model(settings), load_data(settings.data)
        train, dev = (encode_split(model, split, 64) for split in (data.train, data.dev))
        if request.param == "fine-tuning":
            return Trainer(settings, model, train)
        return Pretrainer(
            model.bert, model.tokenizer, train, dev, PretrainConfig(cycles=4), settings.batch_sizes, seed=3
        )

    return make


def tensors(batch) -> list[torch.Tensor]:
    """All of a batch of either loop."""
    if isinstance(batch, MaskedBatch | TaskExamples | Masked):
        return [tensor for part in batch for tensor in tensors(part)]
    if isinstance(batch, PackedBatch):
        return [batch.input_ids, batch.token_type_ids, batch.position_ids, batch.cu_seqlens]
    return [torch.as_tensor(batch)]


def prefetching() -> bool:
    return any(thread.name == "smartcs-prefetch" for thread in threading.enumerate())


def test_batches_are_those_made_on_the_spot(loop, monkeypatch):
    """Over two epochs, bit for bit and in order; what a step was given does not change under it."""
    one, other, seen = loop(), loop(), []
    loss = one._loss

    def watch(task, batch):
        before = copy.deepcopy(tensors(batch))
        terms = loss(task, batch)
        assert all(map(torch.equal, before, tensors(batch)))
        seen.append((task, before))
        return terms

    monkeypatch.setattr(one, "_loss", watch)
    tokens = [step.tokens for _ in range(2) for step in one.epoch()]
    drawn = [pair for _ in range(2) for pair in other.sampler.batches()]
    assert len(seen) == len(drawn) == 24
    for step, ((task, batch), (expected, rows)) in enumerate(zip(seen, drawn, strict=True)):
        assert task == expected
        (wanted,), count = other._load(task, rows, step)
        assert all(map(torch.equal, batch, tensors(wanted.batch))) and tokens[step] == count and wanted.weight == 1


def test_the_sampler_counts_the_batches_of_the_steps_taken(loop):
    """In the middle of an epoch too, and from its state another run goes on with the next one."""
    one, other, fresh = loop(), loop(), loop()
    steps, drawn = one.epoch(), fresh.sampler.batches()
    for _ in range(5):
        next(steps), next(drawn)
        assert one.sampler.state_dict() == fresh.sampler.state_dict()
    steps.close()
    assert one.sampler.state_dict() == fresh.sampler.state_dict()
    other.sampler.load_state_dict(one.sampler.state_dict())
    rest = [step.task for step in other.epoch()]
    assert rest == [task for task, _ in drawn]
    assert other.sampler.state_dict() == fresh.sampler.state_dict()


def test_no_thread_outlives_its_epoch(loop):
    one = loop()
    for step in one.epoch():
        assert prefetching() or step.step > 8, "twelve steps an epoch, the last of them made ahead"
    assert not prefetching()
    steps = one.epoch()
    next(steps)
    assert prefetching()
    steps.close()
    assert not prefetching()
    for _ in one.epoch():
        break
    assert not prefetching()


def test_preparing_is_counted_beside_the_wait(loop, monkeypatch):
    """By the clock of the thread that prepares: two seconds a batch here, none of which the steps wait for."""
    one, spent = loop(), threading.local()
    load = one._load

    def slow(*arguments):
        spent.seconds = getattr(spent, "seconds", 0.0) + 2.0
        return load(*arguments)

    monkeypatch.setattr(one, "_load", slow)
    monkeypatch.setattr(steps_module, "thread_time", lambda: getattr(spent, "seconds", 0.0))
    steps = [*one.epoch()]
    assert one.background_seconds == 2.0 * len(steps) == 24.0
    assert one.seconds_by_part() == {**one.seconds, "data_background": 24.0}
    assert sum(one.seconds.values()) == pytest.approx(sum(step.seconds for step in steps))


def test_what_loading_raises_comes_at_its_step(loop, monkeypatch):
    one = loop()
    load = one._load

    def fail(task, rows, step):
        if step == 4:
            raise OSError("no room")
        return load(task, rows, step)

    monkeypatch.setattr(one, "_load", fail)
    steps = one.epoch()
    assert [next(steps).step for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(OSError, match="no room"):
        next(steps)
    assert not prefetching() and one.step == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_are_read_exactly(dtype):
    values = torch.rand(5, dtype=dtype, generator=torch.Generator().manual_seed(0), requires_grad=True).unbind()
    other = torch.tensor(0.1, dtype=torch.float64)
    terms = Loss(values[0], values[1], None, values[2], other, None)
    assert _numbers(terms) == [values[0].item(), values[1].item(), None, values[2].item(), 0.1, None]
    assert _numbers(Loss(values[3], values[3])) == [values[3].item()] * 2 + [None] * 4
