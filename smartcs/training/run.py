"""A whole training run: data, model, training, evaluation after each epoch, and the files that stay."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from smartcs import info
from smartcs.model.files import read_json
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import backend
from smartcs.ops.precision import Arithmetic, arithmetic, precision
from smartcs.report.tensorboard import TensorBoardLog, check_available
from smartcs.training.checkpointing import Checkpointer
from smartcs.training.config import TrainConfig
from smartcs.training.device import choose_device, choose_recorder, describe_device
from smartcs.training.evaluation import Evaluation, evaluate
from smartcs.training.inputs import Inputs
from smartcs.training.interrupt import Stopped, StopRequest, stop_on_signals
from smartcs.training.plan import describe_plan
from smartcs.training.predictions import write_predictions
from smartcs.training.pretraining import Pretrainer, pretrain
from smartcs.training.progress import Progress, clock, make_progress, watch
from smartcs.training.recipes import model_name
from smartcs.training.record import Record
from smartcs.training.resume import Resumption, conditions_of
from smartcs.training.run_folder import (
    METRICS,
    PREDICTIONS,
    PRETRAINED,
    LossLog,
    choose_folder,
    refuse_own_model,
    start_folder,
    stored_config,
    write_metrics,
)
from smartcs.training.steps import NonFiniteLossError
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


def train(config: TrainConfig, console: Console | None = None, resumed: Resumption | None = None) -> RunResult:
    """Trains as `config` says and writes the run's folder.

    Ctrl-C or SIGTERM ends the run after the current step with usable weights, the best so far, else the current ones,
    and a checkpoint to go on from. The process's selected backend, precision and random state are as before
    afterwards.

    Args:
        config: from `TrainConfig.from_dict`, which applies recipes, or built value by value.
        console: where progress goes; stdout when left out. `Console(quiet=True)` silences it.
        resumed: goes on with that run instead of beginning one; `config` is the run's, with what may change. On the
            same machine and number of threads the run is, bit for bit, the one that it would have been.

    Raises:
        FileExistsError, PermissionError, UsageError: the output folder cannot be used; nothing has been done then.
        UsageError: there is no such device, or it cannot do what is asked of it; or the resumed run has other settings.
        DataError, ModelSourceError, CheckpointError: nothing has been written then.
        NonFiniteLossError: training diverged; the weights of the best epoch so far and metrics.json are in the folder.
    """
    with backend("fused" if config.fused else "reference"):
        device = choose_device(config.device)
        chosen = arithmetic(config.precision, device.type)
        with precision(chosen.precision):
            return _Run(config, Console() if console is None else console, chosen, device, resumed).execute()


@dataclass
class _Run:
    """The state of one run, in the order of its life."""

    config: TrainConfig
    console: Console
    arithmetic: Arithmetic
    device: torch.device
    resumed: Resumption | None = None
    record: Record = field(default_factory=Record)
    pretrainer: Pretrainer | None = None  # until its stage is over
    log: LossLog | None = None
    board: TensorBoardLog | None = None

    def execute(self) -> RunResult:
        config, resumed = self.config, self.resumed
        if config.tensorboard:
            check_available()
        self.folder = choose_folder(config.output, config.overwrite) if resumed is None else resumed.folder
        if resumed is not None:
            resumed.check(config)
            if resumed.finished(config):
                self._say(f"{self.folder} is finished: there is nothing to resume")
                return RunResult(self.folder, read_json(self.folder / METRICS))
        if self.arithmetic.reason:
            self._say(self.arithmetic.notice)
        start = None if resumed is None else MultitaskBert.from_pretrained(resumed.checkpoint.folder)
        self.inputs = Inputs.read(config, self.device, self._say, start)
        self.model = self.inputs.model
        self.recorder, self.not_recorded = choose_recorder(config.cuda_graphs, self.device, self.model.bert.config)
        self.environment = info.collect()
        # Both before anything is written: what does not fit together shows here.
        self.pretrainer = self._make_pretrainer()
        self.trainer = self._make_trainer()
        conditions = conditions_of(self.environment, describe_device(self.device, ""))
        self.checkpoints = Checkpointer(self.folder, config, self.inputs, conditions, self._say)
        if resumed is None:
            refuse_own_model(self.folder, model_name(config.model))
            start_folder(self.folder, config)
        else:
            self._go_on_from(resumed)
        with stop_on_signals() as stop:
            try:
                self._pretrain(stop)
                self._say(describe_plan(config, self.arithmetic, self.trainer.sampler, self.folder))
                self._say(f"device: {describe_device(self.device, self.not_recorded)}")
                self._train(stop)
            except Stopped:
                self._stopped(stop)
            except NonFiniteLossError:
                write_metrics(self.folder, self._metrics(finished=True, diverged=True))
                raise
        metrics = self._metrics(finished=True, interrupted=bool(stop))
        write_metrics(self.folder, metrics)
        if config.report:
            from smartcs.report import write_run_report  # matplotlib takes a second to load

            write_run_report(self.folder)
        self._summary(metrics)
        return RunResult(self.folder, metrics, stop.signal)

    def _make_pretrainer(self) -> Pretrainer | None:
        config, inputs = self.config, self.inputs
        if not config.pretrain.epochs or (self.resumed is not None and not self.resumed.pretraining):
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
        )

    def _make_trainer(self) -> Trainer:
        return Trainer(self.config, self.model, self.inputs.encoded["train"], self.recorder)

    def _pretrain(self, stop: StopRequest) -> None:
        """The stage of masked language modelling, if there is one."""
        pretrainer = self.pretrainer
        if pretrainer is None:
            return
        self._say(f"{pretrainer.describe()}\noutput: {self.folder}")
        folder = self.folder / PRETRAINED
        folder.mkdir(exist_ok=True)
        with LossLog(folder, len(pretrainer.data), goes_on=self.resumed is not None) as self.log:
            try:
                self.record.pretrained = pretrain(
                    pretrainer,
                    self.console,
                    stop=stop,
                    log=self.log,
                    after_step=self._after_step,
                    after_epoch=lambda metrics: self._save_checkpoint(),
                )
            except NonFiniteLossError:
                self.record.pretrained = pretrainer.metrics(diverged=True)
                raise
        if stop:
            raise Stopped
        self.model.bert.save_pretrained(folder, self.inputs.tokenizer)
        self._say(f"the pretrained encoder is in {folder}")
        self.pretrainer, self.resumed = None, None
        # The optimizer's state and the anchor begin here.
        self.trainer = self._make_trainer()

    def _train(self, stop: StopRequest) -> None:
        """All epochs, then the test split; raises Stopped as soon as a signal has come."""
        config, trainer, record = self.config, self.trainer, self.record
        dev, test = self.inputs.encoded["dev"], self.inputs.encoded["test"]
        eval_tokens = sum(len(task.input_ids) for task in dev.values())
        progress = make_progress(self.console, config.epochs, trainer.sampler, eval_tokens)
        goes_on = self.resumed is not None
        with ExitStack() as stack:
            self.log = stack.enter_context(LossLog(self.folder, len(trainer.data), goes_on=goes_on))
            if config.tensorboard:
                self.board = stack.enter_context(TensorBoardLog(self.folder, trainer.step if goes_on else None))
            stack.enter_context(progress)
            while (epoch := len(record.history) + 1) <= config.epochs:
                # Unless its steps were over when the run was stopped.
                for step in trainer.epoch() if trainer.sampler.epoch < epoch else ():
                    self.log.add(step)
                    if self.board is not None:
                        self.board.step(step.step, step.task, step.loss, **step.terms())
                    progress.step(step)
                    trainer.losses.add(step)
                    if stop:
                        raise Stopped
                    if not trainer.sampler.epoch_over:
                        self._after_step()
                evaluation = evaluate(self.model, dev, config.eval_batch_size, watch(progress, "dev", stop))
                self._end_of_epoch(evaluation, progress)
            if test:
                model = self.model
                if record.best_epoch != config.epochs:
                    model = MultitaskBert.from_pretrained(self.folder).to(self.device)
                record.test = evaluate(model, test, config.eval_batch_size, watch(progress, "test", stop))
                self._write_predictions("test", record.test)

    def _end_of_epoch(self, evaluation: Evaluation, progress: Progress) -> None:
        record, trainer = self.record, self.trainer
        is_best = record.add_epoch(evaluation, trainer.losses.means(), sum(trainer.seconds.values()))
        trainer.losses.clear()
        if is_best:
            self.model.save_pretrained(self.folder)
            self._write_predictions("dev", evaluation)
            record.weights = self.checkpoints.best_weights(self._step)
        if self.board is not None:
            self.board.evaluation(len(record.history), trainer.step, evaluation.figures, evaluation.losses)
        # Not only at the end: a run that is killed leaves what it has reached.
        write_metrics(self.folder, self._metrics(finished=False))
        progress.say(
            f"epoch {len(record.history)}/{self.config.epochs}: dev {figures_line(evaluation.figures)}"
            f"{'  (best so far, saved)' if is_best else ''}  after {clock(record.seconds)}"
        )
        self._save_checkpoint()

    @property
    def _step(self) -> int:
        """Optimizer steps so far, in both stages."""
        if self.pretrainer is not None:
            return self.pretrainer.step
        return self.trainer.step + (0 if self.record.pretrained is None else self.record.pretrained["steps"])

    def _after_step(self) -> None:
        if self.checkpoints.due(self._step):
            self._save_checkpoint()

    def _save_checkpoint(self, final: bool = False) -> None:
        if self.log is not None:
            self.log.flush()
            if self.board is not None:
                self.board.flush()
            loop = self.pretrainer or self.trainer
            self.checkpoints.save(self._step, loop, self.record, self.log.path, final=final)

    def _go_on_from(self, resumed: Resumption) -> None:
        """Brings all to where the checkpoint was written."""
        resumed.check_data(self.inputs)
        for damage in resumed.damaged:
            self._say(f"warning: passed over a damaged checkpoint: {damage}")
        resumed.load(self.record, self.trainer, self.pretrainer)
        resumed.restore_files(self.config)
        self.checkpoints.last = resumed.checkpoint
        if self.record.best is not None:
            self._write_predictions("dev", self.record.best)
        self._say(f"resumed at step {self._step} from {resumed.checkpoint.folder}")
        if note := resumed.changed_conditions(self.checkpoints.conditions):
            self._say(note)

    def _write_predictions(self, split: str, evaluation: Evaluation) -> None:
        ids = {name: task.ids for name, task in self.inputs.encoded[split].items()}
        write_predictions(self.folder / PREDICTIONS, split, ids, evaluation.predictions)

    def _stopped(self, stop: StopRequest) -> None:
        record = self.record
        self._save_checkpoint(final=True)
        which = f"of epoch {record.best_epoch}, the best so far,"
        if record.best is None:
            self.model.save_pretrained(self.folder)
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
            f"the weights {which} are in {self.folder}{self._how_to_go_on()}"
        )

    def _how_to_go_on(self) -> str:
        if self.checkpoints.last is None:
            return ""
        return f"; to go on from step {self.checkpoints.last.step}: python -m smartcs.train --resume {self.folder}"

    def _metrics(self, *, finished: bool, interrupted: bool = False, diverged: bool = False) -> dict[str, Any]:
        return {
            **self.record.metrics(
                self.inputs, self.trainer, finished=finished, interrupted=interrupted, diverged=diverged
            ),
            "precision": self.arithmetic.precision,
            "products": self.arithmetic.products,
            "device": describe_device(self.device, self.not_recorded),
            "config": stored_config(self.config),
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
