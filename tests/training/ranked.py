"""Short trainings, by one process or by as many as torchrun has started, and everything that they leave.

    torchrun --nproc-per-node N tests/training/ranked.py FOLDER

runs the cases that FOLDER/cases.json holds, one after the other; what each rank saw goes to FOLDER/<case>-<rank>.pt.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from training.recorded import RecordedCalls

import smartcs
from smartcs.smart import adversarial
from smartcs.training import objective as objective_module
from smartcs.training import pretraining as pretraining_module
from smartcs.training.config import TrainConfig
from smartcs.training.distributed import ALONE, Ranks, noticing
from smartcs.training.evaluation import evaluate
from smartcs.training.interrupt import stop_on_signals
from smartcs.training.launch import launched
from smartcs.training.objective import Objective
from smartcs.training.optim import AdamW
from smartcs.training.pretraining import Pretrainer
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.steps import StepLoop
from smartcs.training.trainer import Trainer

TASKS = ("sst", "qqp", "sts")


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        settings: of its TrainConfig; the batch sizes are those of a step, by all ranks together.
        dtype: of the weights.
        accumulate: slices per rank.
        pretrains: whether it is masked language modelling.
        device_step: whether steps are taken as on a GPU.
        change: names one of `CHANGES`, what is made wrong in it.
        steps: how many.
    """

    settings: dict[str, Any]
    dtype: str = "float32"
    accumulate: int = 1
    pretrains: bool = False
    device_step: bool = False
    change: str | None = None
    steps: int = 6


def run(case: Case, ranks: Ranks = ALONE) -> dict[str, Any]:
    """What is left on this rank: figures of every step, examples, weights, moments, anchor, dev predictions."""
    slices = ranks.size * case.accumulate
    batches = {f"batch_{task}": case.settings.get(f"batch_{task}", 12) // slices for task in TASKS}
    values = {"report": False, "device": "cpu", "max_skipped_steps": 1, **case.settings, **batches}
    config = TrainConfig.from_dict(values)
    config = replace(config, accumulate=case.accumulate)
    with ExitStack() as stack:
        stack.enter_context(smartcs.backend("fused" if config.fused else "reference"))
        stop = stack.enter_context(stop_on_signals(ranks))
        if case.change:
            stack.enter_context(CHANGES[case.change](ranks))
        loop = _loop(case, config, ranks)
        seen: list[list[int]] = []
        norms: list[float] = []
        figures, ended = [], ""
        stack.enter_context(_watching(loop, seen, norms))
        try:
            while loop.step < case.steps and not stop:
                for step in loop.epoch():
                    figures.append([step.loss, *step.terms().values(), step.tokens])
                    if loop.step == case.steps or stop:
                        break
        except NonFiniteLossError as error:
            ended = str(error)
        weights = {name.replace("module.", ""): p for name, p in loop.averaged.named_parameters()}
        left = {
            "figures": figures,
            "norms": norms,
            "examples": seen,
            "ended": ended or (f"signal {stop.signal}" if stop else ""),
            "weights": {name: p.detach() for name, p in weights.items()},
            "without_gradient": [name for name, p in weights.items() if not loop.optimizer.state[p]],
            "moments": [state[name] for state in loop.optimizer.state.values() for name in state],
            "sampler": loop.sampler.state_dict(),
        }
        if isinstance(loop, Trainer):
            anchor = loop.objective.anchor
            left["anchor"] = [] if anchor is None else list(anchor.anchor.parameters())
            left["metrics"] = loop.objective.metrics()
            dev = encode_split(loop.model, load_data(config.data).dev, config.max_length)
            found = evaluate(loop.model, dev, 5, ranks=ranks)
            left["dev"], left["dev_losses"] = found.predictions, found.losses
            left["dev_alone"] = evaluate(loop.model, dev, 5).predictions
        else:
            left["dev"] = loop.evaluate()
    return left


def _loop(case: Case, config: TrainConfig, ranks: Ranks) -> Any:
    data = load_data(config.data)
    model = build_model(config).to(getattr(torch, case.dtype))
    if ranks.rank:
        with torch.no_grad():
            model.bert.pooler.weight.add_(1)  # the first rank's weights must win
    train = encode_split(model, data.train, config.max_length)
    if case.dtype == "float64":  # a loss has the precision of its labels
        exact = {name: task.labels if name == "sst" else task.labels.astype(np.float64) for name, task in train.items()}
        train = {name: replace(task, labels=exact[name]) for name, task in train.items()}
    if case.pretrains:
        dev = encode_split(model, data.dev, config.max_length)
        settings = replace(config.pretrain, epochs=1, dropout=True, fraction=0.15, learning_rate=1e-3)
        return Pretrainer(
            model.bert, model.tokenizer, train, dev, settings, config.batch_sizes,
            seed=config.seed, eval_batch_size=5, ranks=ranks, accumulate=config.accumulate,
        )  # fmt: skip
    loop = Trainer(config, model, train, RecordedCalls() if case.device_step else None, ranks)
    if loop.device_step is not None:
        loop.device_step.recorder = None
    return loop


@contextmanager
def _watching(loop: Any, seen: list[list[int]], norms: list[float]) -> Iterator[None]:
    """Notes the examples of this rank's slices and the norm of the gradients that the optimizer got."""
    load, step = loop._load, loop.optimizer.step

    def loaded(task: str, rows: np.ndarray, number: int) -> Any:
        found = load(task, rows, number)
        seen.append([int(row) for own in loop.own_slices(len(rows)) for row in rows[own]])
        return found

    def stepped(*args: Any, **kwargs: Any) -> None:
        grads = [p.grad for group in loop.optimizer.param_groups for p in group["params"] if p.grad is not None]
        dense = [grad.to_dense() if grad.is_sparse else grad for grad in grads]
        norms.append(torch.stack([grad.double().square().sum() for grad in dense]).sum().sqrt().item())
        step(*args, **kwargs)

    with patch.object(loop, "_load", loaded), patch.object(loop.optimizer, "step", stepped):
        yield


@contextmanager
def _local_masks(ranks: Ranks) -> Iterator[None]:
    """Every slice counts its rows from 0."""
    arguments = Objective.arguments

    def local(self: Objective, task: str, encoded: Any, step: int) -> Any:
        return arguments(self, task, encoded._replace(first_token=0, first_example=0), step)

    with patch.object(objective_module.Objective, "arguments", local):
        yield


@contextmanager
def _averaged_twice(ranks: Ranks) -> Iterator[None]:
    """The gradients that DDP has averaged are divided by the ranks once more."""
    step = AdamW.step

    def twice(self: AdamW, *args: Any, **kwargs: Any) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad / ranks.size
        step(self, *args, **kwargs)

    with patch.object(AdamW, "step", twice):
        yield


@contextmanager
def _synchronised_ascent(ranks: Ranks) -> Iterator[None]:
    """The ranks follow a common gradient in SMART's ascent: the mean of theirs, row by row."""
    inner = adversarial.SmartRegularizer._inner_gradient

    def common(self: Any, forward: Any, v: torch.Tensor, target: torch.Tensor) -> Any:
        g, loss = inner(self, forward, v, target)
        mean = ranks.sum(g.detach().mean(dim=0)) / ranks.size
        return g + mean, loss

    with patch.object(adversarial.SmartRegularizer, "_inner_gradient", common):
        yield


@contextmanager
def _ascent_into_the_weights(ranks: Ranks) -> Iterator[None]:
    """SMART's ascent runs backward into everything, not into the perturbation alone."""

    def backward(loss: torch.Tensor, v: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        loss.backward()
        return (v.grad,)

    @contextmanager
    def nothing(*_: Any) -> Iterator[None]:
        yield

    with (
        patch.object(torch.autograd, "grad", backward),
        patch.object(adversarial, "frozen_leaves", nothing),
        patch.object(adversarial.ops, "input_gradients_only", nothing),
    ):
        yield


@contextmanager
def _overlapping(ranks: Ranks) -> Iterator[None]:
    """The last slice of every rank begins one example early."""
    own = StepLoop.own_slices

    def early(self: Any, examples: int) -> list[slice]:
        *others, last = own(self, examples)
        return [*others, slice(max(0, last.start - 1), max(0, last.start - 1) + last.stop - last.start)]

    with patch.object(StepLoop, "own_slices", early):
        yield


@contextmanager
def _equal_weights(ranks: Ranks) -> Iterator[None]:
    """Slices count alike, whatever they hide."""
    loaded = Pretrainer._load

    def equal(self: Pretrainer, task: str, rows: np.ndarray, step: int) -> Any:
        slices, tokens = loaded(self, task, rows, step)
        return [part._replace(weight=1 / self.accumulate) for part in slices], tokens

    with patch.object(pretraining_module.Pretrainer, "_load", equal):
        yield


@contextmanager
def _nan_on_the_last(ranks: Ranks) -> Iterator[None]:
    """The last rank's loss of the fifth step is NaN."""
    terms = Objective.terms

    def broken(self: Objective, task: str, encoded: Any, labels: Any, key: Any, weight: Any) -> Any:
        loss = terms(self, task, encoded, labels, key, weight)
        fifth = key.step == 4 or key.counter_offset is not None and int(key.counter_offset[0]) >> 16 == 4
        if fifth and ranks.rank == ranks.size - 1:
            loss = loss._replace(total=loss.total * float("nan"), task=loss.task * float("nan"))
        return loss

    with patch.object(Objective, "terms", broken):
        yield


@contextmanager
def _signal_on_the_last(ranks: Ranks) -> Iterator[None]:
    """The last rank gets SIGTERM during its third step."""
    take = StepLoop._take

    def interrupted(self: Any, *args: Any) -> Any:
        if self.step == 2 and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self, *args)

    with patch.object(StepLoop, "_take", interrupted):
        yield


@contextmanager
def _death_of_the_last(ranks: Ranks) -> Iterator[None]:
    """The last rank's process is gone at its third step, without a word."""
    take = StepLoop._take

    def gone(self: Any, *args: Any) -> Any:
        if self.step == 2 and ranks.rank == ranks.size - 1:
            os._exit(3)
        return take(self, *args)

    with patch.object(StepLoop, "_take", gone):
        yield


CHANGES = {
    "local masks": _local_masks,
    "averaged twice": _averaged_twice,
    "synchronised ascent": _synchronised_ascent,
    "ascent into the weights": _ascent_into_the_weights,
    "overlapping": _overlapping,
    "equal weights": _equal_weights,
    "nan on the last": _nan_on_the_last,
    "signal on the last": _signal_on_the_last,
    "death of the last": _death_of_the_last,
}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: None)  # torchrun sends it to all when one has died
    with launched(torch.device("cpu")) as ranks:
        for name, case in json.loads((folder / "cases.json").read_text()).items():
            try:
                with noticing():
                    left = run(Case(**case), ranks)
            except RuntimeError as error:
                left = {"error": str(error)}
            torch.save(left, folder / f"{name}-{ranks.rank}.pt")
            ranks.signal, ranks.asked = None, 0
            dist.barrier()


if __name__ == "__main__":
    main()
