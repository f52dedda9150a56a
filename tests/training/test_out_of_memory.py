"""Out of memory: the message names the settings that need less, and what was saved can be gone on from."""

import io
import re

import pytest
import torch
from rich.console import Console
from training.resuming import go_on

from smartcs.training import checkpointing
from smartcs.training import evaluation as evaluation_module
from smartcs.training import pretraining as pretraining_module
from smartcs.training.objective import Objective
from smartcs.training.out_of_memory import OutOfMemory, is_out_of_memory, telling_what_needs_less
from smartcs.training.resume import Resumption
from smartcs.training.run import train

HUGE = 2**46  # bytes; no machine has them


def test_what_torch_says_here_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(HUGE, dtype=torch.uint8).fill_(1)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), False),
        (OutOfMemory("out of memory at step 3"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_which_errors_say_so(error, expected):
    assert is_out_of_memory(error) is expected
    with pytest.raises(OutOfMemory if expected else type(error)) as caught, telling_what_needs_less(lambda: "here"):
        raise error
    assert not expected or str(caught.value).startswith("out of memory here")


def exhausted(*_, **__):
    return torch.empty(HUGE, dtype=torch.uint8).fill_(1)


@pytest.fixture
def memory_for(monkeypatch):
    """Lets memory run out in a step, from 1."""

    def steps(number):
        original = Objective.terms

        def terms(self, task, encoded, labels, key, weight):
            return exhausted() if key.step + 1 == number else original(self, task, encoded, labels, key, weight)

        monkeypatch.setattr(Objective, "terms", terms)

    return steps


def test_a_step_names_its_batch_and_its_settings(command, short, memory_for, monkeypatch):
    memory_for(8)
    settings = short(recipe="smart")
    typed = [
        f"--{name}={getattr(settings, name.replace('-', '_'))}"
        for name in ("data", "model", "output", "epochs", "cycles")
    ]
    code, out, err = command("train", *typed, "--checkpoint-every=5", "--batch-qqp=8", "--no-report")
    assert code == 1 and err.count("\n") == 1
    assert re.match(
        r"error: out of memory at step 8, a batch of 8 qqp examples of up to \d\d word pieces: lower --batch-qqp", err
    )
    assert "--accumulate" in err and "--max-length" in err and "memory" in err.split("(")[-1]
    assert "to go on from step 6: python -m smartcs.train --resume" in out
    monkeypatch.undo()
    resumed = go_on(settings.output, batch_qqp=4, accumulate=2, batch_sst=3, batch_sts=2)
    assert resumed.metrics["steps"] == 12


def exhausted_in(monkeypatch, number):
    """Evaluation's forward passes run out of memory at that one."""
    original, calls = evaluation_module.MultitaskBert.forward, []

    def forward(self, *arguments, **options):
        if not self.training:
            calls.append(1)
            if len(calls) == number:
                exhausted()
        return original(self, *arguments, **options)

    monkeypatch.setattr(evaluation_module.MultitaskBert, "forward", forward)


def test_evaluation_names_its_own(short, monkeypatch):
    """The steps of the epoch before it are not lost."""
    exhausted_in(monkeypatch, 4)  # of the second dev evaluation
    out = io.StringIO()
    with pytest.raises(
        OutOfMemory, match=r"evaluating 24 sst examples of up to \d\d word pieces: lower --eval-batch-size"
    ):
        train(short(), Console(file=out, width=500))
    assert "to go on from step 12" in out.getvalue()
    assert Resumption.find(short().output).state["loop"]["sampler"]["epoch"] == 2
    monkeypatch.undo()
    assert go_on(short().output, eval_batch_size=8).metrics["steps"] == 12


def test_memory_is_named_though_the_disk_is_full_too(short, monkeypatch):
    exhausted_in(monkeypatch, 4)
    write = checkpointing.write_checkpoint

    def full(folder, step, *arguments):
        if step >= 10:
            raise OSError(28, "No space left on device")
        return write(folder, step, *arguments)

    monkeypatch.setattr(checkpointing, "write_checkpoint", full)
    out = io.StringIO()
    with pytest.raises(OutOfMemory, match="lower --eval-batch-size"):
        train(short(), Console(file=out, width=500))
    (line,) = (line for line in out.getvalue().splitlines() if "checkpoint of step 12" in line)
    assert line.startswith("warning: the checkpoint of step 12 could not be written") and "going on" not in line
    assert "to go on from step 6" in out.getvalue()


def test_pretraining_too(short, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_module.MaskedLanguageModel, "loss", exhausted)
        with pytest.raises(OutOfMemory, match="in pretraining, at step 1, a batch of 6 sst examples"):
            train(short(recipe="pretrain"), Console(quiet=True))
    monkeypatch.setattr(pretraining_module, "masked_loss", exhausted)
    with pytest.raises(OutOfMemory, match=r"evaluating 24 sst examples .* lower --eval-batch-size"):
        train(short(recipe="pretrain", overwrite=True), Console(quiet=True))


def test_elsewhere_it_is_one_line(command, monkeypatch, tmp_path):
    monkeypatch.setattr("smartcs.training.inputs.build_model", exhausted)
    code, _, err = command("train", "--output", tmp_path / "run", "--model", "small")
    assert code == 1 and err.startswith("error: out of memory (") and err.count("\n") == 1
