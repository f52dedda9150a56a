"""A whole training run: data, model, training, evaluation after each epoch, and the files that stay."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from smartcs import info
from smartcs.data.encode import EncodedTask
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import backend
from smartcs.ops.precision import Arithmetic, arithmetic, precision
from smartcs.report.tensorboard import TensorBoardLog, check_available
from smartcs.training.config import TrainConfig
from smartcs.training.device import choose_device, choose_recorder, describe_device
from smartcs.training.distributed import Ranks
from smartcs.training.evaluation import Evaluation, evaluate
from smartcs.training.inputs import Inputs
from smartcs.training.interrupt import Stopped, StopRequest, stop_on_signals
from smartcs.training.launch import launched
from smartcs.training.plan import describe_plan
from smartcs.training.predictions import write_predictions
from smartcs.training.pretraining import Pretrainer, pretrain
from smartcs.training.progress import Progress, clock, make_progress, watch
from smartcs.training.recipes import model_name
from smartcs.training.record import EpochLosses, Record
from smartcs.training.run_folder import (
    PREDICTIONS,
    PRETRAINED,
    LossLog,
    choose_folder,
    refuse_own_model,
    start_folder,
    write_metrics,
)
from smartcs.training.steps import NonFiniteLossError, StepLoop
from smartcs.training.tables import figures_line, figures_table
from smartcs.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        folder: weights, metrics.json, losses.csv and predictions.
        metrics: the content of metrics.json.
        signal: the signal that ended the run early, or None.
    """

    folder: Path
    metrics: dict[str, Any]
    signal: int | None = None


def train(config: TrainConfig, console: Console | None = None) -> RunResult:
    """Trains as `config` says and writes the run's folder: in each process of torchrun its share, the first one writes.

    Ctrl-C or SIGTERM ends the run after the current step with usable weights: the best so far, else the current
    ones. The process's selected backend, precision and random state are as before
    afterwards.

    Args:
        config: from `TrainConfig.from_dict`, which applies recipes, or built value by value.
        console: where progress goes; stdout when left out. `Console(quiet=True)` silences it.

    Raises:
        FileExistsError, PermissionError, UsageError: the output folder cannot be used; nothing has been done then.
        UsageError: there is no such device, or it cannot do what is asked of it.
        DataError, ModelSourceError, CheckpointError: nothing has been written then.
        PeerError: another process of the run has ended.
        NonFiniteLossError: training diverged; the weights of the best epoch so far and metrics.json are in the folder.
    """
    with backend("fused" if config.fused else "reference"):
        device = choose_device(config.device)
        chosen = arithmetic(config.precision, device.type)
        with precision(chosen.precision), launched(device) as ranks:
            return _Run(config, ranks.console(console), chosen, device, ranks).execute()


@dataclass
class _Run:
    """The state of one run, in the order of its life."""

    config: TrainConfig
    console: Console
    arithmetic: Arithmetic
    device: torch.device
    ranks: Ranks
    record: Record = field(default_factory=Record)
    pretrainer: Pretrainer | None = None

    def execute(self) -> RunResult:
        config = self.config
        if config.tensorboard:
            check_available()
        self.folder = self.ranks.from_first(lambda: choose_folder(config.output, config.overwrite))
        if self.arithmetic.reason:
            self._say(self.arithmetic.notice)
        self.inputs = Inputs.read(config, self.device, self._say)
        self.model = self.inputs.model
        self.recorder, self.not_recorded = choose_recorder(
            config.cuda_graphs, self.device, self.model.bert.config, self.ranks.size, config.accumulate
        )
        self.environment = info.collect()
        # Both before anything is written: what does not fit together shows here.
        self.pretrainer = self._make_pretrainer()
        self.trainer = self._make_trainer()
        self.ranks.from_first(self._start_folder)
        with stop_on_signals(self.ranks) as stop:
            try:
                self._pretrain(stop)
                self._say(describe_plan(config, self.arithmetic, self.trainer.sampler, self.folder, self.ranks.size))
                self._say(f"device: {describe_device(self.device, self.not_recorded)}")
                self._train(stop)
            except Stopped:
                self._stopped(stop)
            except NonFiniteLossError:
                self._write_metrics(self._metrics(finished=True, diverged=True))
                raise
        metrics = self._metrics(finished=True, interrupted=bool(stop))
        self._write_metrics(metrics)
        if config.report and self.ranks.is_first:
            from smartcs.report import write_run_report  # matplotlib takes a second to load

            write_run_report(self.folder)
        self._summary(metrics)
        return RunResult(self.folder, metrics, stop.signal)

    def _start_folder(self) -> None:
        refuse_own_model(self.folder, model_name(self.config.model))
        start_folder(self.folder, self.config)

    def _make_pretrainer(self) -> Pretrainer | None:
        config, inputs = self.config, self.inputs
        if not config.pretrain.epochs:
            return None
        return Pretrainer(
            self.model.bert,
            inputs.tokenizer,
            inputs.encoded["train"],
            inputs.encoded["dev"],
            replace(config.pretrain, tasks="+".join(config.pretrain_tasks)),
            config.batch_sizes,
            seed=config.seed,
            eval_batch_size=config.eval_batch_size,
            ranks=self.ranks,
            accumulate=config.accumulate,
        )

    def _make_trainer(self) -> Trainer:
        return Trainer(self.config, self.model, self.inputs.encoded["train"], self.recorder, self.ranks)

    def _pretrain(self, stop: StopRequest) -> None:
        """The stage of masked language modelling, if there is one."""
        pretrainer, self.pretrainer = self.pretrainer, None
        if pretrainer is None:
            return
        self._say(f"{pretrainer.describe()}\noutput: {self.folder}")
        folder = self.folder / PRETRAINED
        with self._loss_log(folder, pretrainer) as log:
            try:
                self.record.pretrained = pretrain(pretrainer, self.console, stop=stop, log=log)
            except NonFiniteLossError:
                self.record.pretrained = pretrainer.metrics(diverged=True)
                raise
        if stop:
            raise Stopped
        if self.ranks.is_first:
            self.model.bert.save_pretrained(folder, self.inputs.tokenizer)
        self._say(f"the pretrained encoder is in {folder}")
        # The optimizer's state and the anchor begin here.
        self.trainer = self._make_trainer()

    def _train(self, stop: StopRequest) -> None:
        """All epochs, then the test split; raises Stopped as soon as a signal has come."""
        config, trainer, record = self.config, self.trainer, self.record
        dev, test = self.inputs.encoded["dev"], self.inputs.encoded["test"]
        eval_tokens = sum(len(task.input_ids) for task in dev.values())
        progress = make_progress(self.console, config.epochs, trainer.sampler, eval_tokens)
        with ExitStack() as stack:
            log = stack.enter_context(self._loss_log(self.folder, trainer))
            wanted = config.tensorboard and self.ranks.is_first
            board = stack.enter_context(TensorBoardLog(self.folder)) if wanted else None
            stack.enter_context(progress)
            while len(record.history) < config.epochs:
                losses = EpochLosses(trainer.data)
                for step in trainer.epoch():
                    if log is not None:
                        log.add(step)
                    if board is not None:
                        board.step(step.step, step.task, step.loss, **step.terms())
                    progress.step(step)
                    losses.add(step)
                    if stop:
                        raise Stopped
                evaluation = self._evaluate(self.model, dev, watch(progress, "dev", stop))
                self._end_of_epoch(evaluation, losses, progress)
                if board is not None:
                    board.evaluation(len(record.history), trainer.step, evaluation.figures, evaluation.losses)
            if test:
                model = self.model if record.best_epoch == config.epochs else self._best_model()
                record.test = self._evaluate(model, test, watch(progress, "test", stop))
                self._write_predictions("test", record.test)

    def _end_of_epoch(self, evaluation: Evaluation, losses: EpochLosses, progress: Progress) -> None:
        record = self.record
        is_best = record.add_epoch(evaluation, losses, sum(self.trainer.seconds.values()))
        if is_best:
            self._save()
            self._write_predictions("dev", evaluation)
        # Not only at the end: a run that is killed leaves what it has reached.
        self._write_metrics(self._metrics(finished=False))
        progress.say(
            f"epoch {len(record.history)}/{self.config.epochs}: dev {figures_line(evaluation.figures)}"
            f"{'  (best so far, saved)' if is_best else ''}  after {clock(record.seconds)}"
        )

    def _evaluate(
        self, model: MultitaskBert, split: dict[str, EncodedTask], report: Callable[[int, int], None]
    ) -> Evaluation:
        return evaluate(model, split, self.config.eval_batch_size, report, self.ranks)

    def _best_model(self) -> MultitaskBert:
        """The weights in the folder, which may be out of the other ranks' reach."""
        model = MultitaskBert.from_pretrained(self.folder) if self.ranks.is_first else copy.deepcopy(self.model)
        model = model.to(self.device)
        self.ranks.copy_first(model)
        return model

    def _loss_log(self, folder: Path, loop: StepLoop[Any]) -> AbstractContextManager[LossLog | None]:
        """Of the first rank alone, as all that is written."""
        if not self.ranks.is_first:
            return nullcontext()
        folder.mkdir(exist_ok=True)
        return LossLog(folder, len(loop.data))

    def _save(self) -> None:
        if self.ranks.is_first:
            self.model.save_pretrained(self.folder)

    def _write_metrics(self, metrics: dict[str, Any]) -> None:
        if self.ranks.is_first:
            write_metrics(self.folder, metrics)

    def _write_predictions(self, split: str, evaluation: Evaluation) -> None:
        if self.ranks.is_first:
            ids = {name: task.ids for name, task in self.inputs.encoded[split].items()}
            write_predictions(self.folder / PREDICTIONS, split, ids, evaluation.predictions)

    def _stopped(self, stop: StopRequest) -> None:
        record = self.record
        which = f"of epoch {record.best_epoch}, the best so far,"
        if record.best is None:
            self._save()
            which = "of this step, not evaluated,"
        where, step = "", self.trainer.step
        total = self.config.epochs * self.trainer.sampler.steps_per_epoch
        if record.pretrained is not None and record.pretrained["interrupted"]:
            where, step = "in pretraining, ", record.pretrained["steps"]
            total = self.config.pretrain.epochs * record.pretrained["steps_per_epoch"]
            which = "of this step, their heads untrained,"
        assert stop.signal is not None
        self._say(
            f"stopped by {signal.Signals(stop.signal).name} {where}after step {step} of {total}: "
            f"the weights {which} are in {self.folder}"
        )

    def _metrics(self, *, finished: bool, interrupted: bool = False, diverged: bool = False) -> dict[str, Any]:
        return {
            **self.record.metrics(
                self.inputs, self.trainer, finished=finished, interrupted=interrupted, diverged=diverged
            ),
            "precision": self.arithmetic.precision,
            "products": self.arithmetic.products,
            "device": describe_device(self.device, self.not_recorded),
            "ranks": self.ranks.size,
            "config": asdict(self.config),
            "model": asdict(self.model.bert.config),
            "environment": self.environment,
        }

    def _summary(self, metrics: dict[str, Any]) -> None:
        if self.record.best is not None:
            self.console.print(figures_table("dev", self.record.best, self.inputs.majority))
        self._say(
            f"trained {metrics['steps']:,} steps on {metrics['tokens']:,} tokens in "
            f"{clock(metrics['seconds'])} ({metrics['tokens_per_second'] or 0:,.0f} tokens/s), "
            f"{clock(metrics['seconds_total'])} in all"
        )
        for task, figures in (metrics["smart"] or {}).items():
            if figures["fallbacks"]:
                self._say(
                    f"warning: SMART's gradient or value was not finite in {figures['fallbacks']:,} of "
                    f"{figures['steps']:,} {task} steps; those had the plain loss"
                )
        self._say(f"results: {self.folder}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
