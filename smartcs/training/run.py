"""A whole training run: data, model, training, evaluation after each epoch, and the files that stay."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from rich.console import Console

from smartcs import info
from smartcs.data.prefetch import WorkerError
from smartcs.model.files import read_json
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import backend
from smartcs.ops.precision import Arithmetic, arithmetic, precision
from smartcs.report.tensorboard import TensorBoardLog, check_available
from smartcs.training.checkpointing import Checkpointer
from smartcs.training.config import TrainConfig
from smartcs.training.device import choose_device, choose_recorder, describe_device
from smartcs.training.distributed import PeerError, Ranks
from smartcs.training.evaluation import Evaluation, evaluate
from smartcs.training.inputs import Inputs
from smartcs.training.interrupt import Stopped, StopRequest, stop_on_signals
from smartcs.training.launch import launched
from smartcs.training.out_of_memory import OutOfMemory
from smartcs.training.plan import describe_plan
from smartcs.training.pretraining import Pretrainer, pretrain
from smartcs.training.progress import Progress, clock, make_progress, watch
from smartcs.training.recipes import model_name
from smartcs.training.record import Record, RunResult
from smartcs.training.resume import Resumption, conditions_of
from smartcs.training.run_folder import (
    METRICS,
    PRETRAINED,
    LossLog,
    choose_folder,
    refuse_own_model,
    start_folder,
    stored_config,
)
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.tables import closing_lines, figures_line, figures_table
from smartcs.training.trainer import Trainer
from smartcs.training.written import Written


def train(config: TrainConfig, console: Console | None = None, resumed: Resumption | None = None) -> RunResult:
    """Trains as `config` says and writes the run's folder: in each process of torchrun its share, the first one writes.

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
        PeerError: another process of the run has ended.
        NonFiniteLossError: training diverged; the weights of the best epoch so far and metrics.json are in the folder.
        OutOfMemory, WorkerError, OSError: on the way. Files that were written are whole, as is the last checkpoint.
    """
    with backend("fused" if config.fused else "reference"):
        device = choose_device(config.device)
        chosen = arithmetic(config.precision, device.type)
        with precision(chosen.precision), launched(device) as ranks:
            return _Run(config, ranks.console(console), chosen, device, ranks, resumed).execute()


@dataclass
class _Run:
    """The state of one run, in the order of its life."""

    config: TrainConfig
    console: Console
    arithmetic: Arithmetic
    device: torch.device
    ranks: Ranks
    resumed: Resumption | None = None
    record: Record = field(default_factory=Record)
    pretrainer: Pretrainer | None = None  # until its stage is over
    log: LossLog | None = None
    board: TensorBoardLog | None = None

    def execute(self) -> RunResult:
        config, resumed = self.config, self.resumed
        if config.tensorboard:
            check_available()
        self.folder = self.ranks.from_first(
            lambda: choose_folder(config.output, config.overwrite) if resumed is None else resumed.folder
        )
        self.written = Written(self.folder, self.ranks)
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
        self.recorder, self.not_recorded = choose_recorder(
            config.cuda_graphs, self.device, self.model.bert.config, self.ranks.size, config.accumulate
        )
        self.environment = info.collect()
        # Both before anything is written: what does not fit together shows here.
        self.pretrainer = self._make_pretrainer()
        self.trainer = self._make_trainer()
        conditions = conditions_of(self.environment, describe_device(self.device, ""))
        conditions |= {"processes": self.ranks.size, "slices": config.accumulate}
        self.checkpoints = Checkpointer(self.folder, config, self.inputs, conditions, self._say)
        if resumed is not None:
            self._go_on_from(resumed)
        self.ranks.from_first(self._start_folder)
        with stop_on_signals(self.ranks) as stop:
            try:
                self._pretrain(stop)
                self._say(describe_plan(config, self.arithmetic, self.trainer.sampler, self.folder, self.ranks.size))
                self._say(f"device: {describe_device(self.device, self.not_recorded)}")
                self._train(stop)
            except Stopped:
                self._stopped(stop)
            except (NonFiniteLossError, OutOfMemory, PeerError, WorkerError, OSError) as error:
                if isinstance(error, NonFiniteLossError):
                    self.written.metrics(self._metrics(finished=True, diverged=True))
                self._say(self.checkpoints.advice())
                raise
        metrics = self._metrics(finished=True, interrupted=bool(stop))
        self.written.metrics(metrics)
        if config.report:
            self.written.report()
        self._summary(metrics)
        return RunResult(self.folder, metrics, stop.signal)

    def _start_folder(self) -> None:
        """What the first rank does to it, the only one that writes."""
        if self.resumed is not None:
            self.resumed.restore_files(self.config)
            if self.record.best is not None:
                self.written.predictions("dev", self.inputs.encoded["dev"], self.record.best)
        else:
            refuse_own_model(self.folder, model_name(self.config.model))
            start_folder(self.folder, self.config)

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
            ranks=self.ranks,
            accumulate=config.accumulate,
            max_skipped=config.max_skipped_steps,
        )

    def _make_trainer(self) -> Trainer:
        config = self.config if self.resumed is None else self.resumed.as_long(self.config)
        return Trainer(config, self.model, self.inputs.encoded["train"], self.recorder, self.ranks)

    def _pretrain(self, stop: StopRequest) -> None:
        """The stage of masked language modelling, if there is one."""
        pretrainer = self.pretrainer
        if pretrainer is None:
            return
        self._say(f"{pretrainer.describe()}\noutput: {self.folder}")
        folder = self.folder / PRETRAINED
        goes_on = self.resumed is not None
        with self.written.log(folder, len(pretrainer.data), goes_on=goes_on) as self.log:
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
            except (OutOfMemory, PeerError):
                if pretrainer.sampler.position == 0:  # in an evaluation, see `_evaluate`
                    self._save_what_there_is()
                raise
        if stop:
            raise Stopped
        self.written.encoder(folder, self.model.bert, self.inputs.tokenizer)
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
            self.log = stack.enter_context(self.written.log(self.folder, len(trainer.data), goes_on=goes_on))
            if config.tensorboard:
                self.board = stack.enter_context(self.written.board(trainer.step if goes_on else None))
            stack.enter_context(progress)
            while (epoch := len(record.history) + 1) <= config.epochs:
                # Unless its steps were over when the run was stopped.
                for step in trainer.epoch() if trainer.sampler.epoch < epoch else ():
                    if self.log is not None:
                        self.log.add(step)
                    if self.board is not None:
                        self.board.step(step.step, step.task, step.loss, **step.terms())
                    progress.step(step)
                    trainer.losses.add(step)
                    if stop:
                        raise Stopped
                    if not trainer.sampler.epoch_over:
                        self._after_step()
                evaluation = self._evaluate(self.model, "dev", progress, stop)
                self._end_of_epoch(evaluation, progress)
            if test:
                model = self.model if record.best_epoch == config.epochs else self.written.best(self.model)
                record.test = self._evaluate(model, "test", progress, stop)
                self.written.predictions("test", test, record.test)

    def _evaluate(self, model: MultitaskBert, split: str, progress: Progress, stop: StopRequest) -> Evaluation:
        report, batch_size = watch(progress, split, stop), self.config.eval_batch_size
        try:
            return evaluate(model, self.inputs.encoded[split], batch_size, report, self.ranks)
        except (OutOfMemory, PeerError):
            self._save_what_there_is()  # the epoch's steps are over, and may be gone on from with smaller batches
            raise

    def _end_of_epoch(self, evaluation: Evaluation, progress: Progress) -> None:
        record, trainer = self.record, self.trainer
        is_best = record.add_epoch(evaluation, trainer.losses.means(), sum(trainer.seconds.values()))
        trainer.losses.clear()
        if is_best:
            self.written.model(self.model)
            self.written.predictions("dev", self.inputs.encoded["dev"], evaluation)
            record.weights = self.ranks.from_first(lambda: self.checkpoints.best_weights(self._step))
        if self.board is not None:
            self.board.evaluation(len(record.history), trainer.step, evaluation.figures, evaluation.losses)
        # Not only at the end: a run that is killed leaves what it has reached.
        self.written.metrics(self._metrics(finished=False))
        progress.say(
            f"epoch {len(record.history)}/{self.config.epochs}: dev {figures_line(evaluation.figures)}"
            f"{'  (best so far, saved)' if is_best else ''}  after {clock(record.seconds)}"
        )
        # Once a later epoch is the best, these weights are nowhere but in this checkpoint, and later ones need them.
        self._save_checkpoint(final=is_best and len(record.history) < self.config.epochs)

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

    def _save_what_there_is(self) -> None:
        """A checkpoint on the way out of the run, whose reason is the error to show, not this one's."""
        try:
            self._save_checkpoint(final=True)
        except OSError as error:
            self._say(f"warning: {error}")

    def _go_on_from(self, resumed: Resumption) -> None:
        """Brings all to where the checkpoint was written."""
        resumed.check_data(self.inputs)
        for damage in resumed.damaged:
            self._say(f"warning: passed over a damaged checkpoint: {damage}")
        resumed.load(self.record, self.trainer, self.pretrainer)
        self.checkpoints.last = resumed.checkpoint
        self._say(f"resumed at step {self._step} from {resumed.checkpoint.folder}")
        if note := resumed.changed_conditions(self.checkpoints.conditions):
            self._say(note)

    def _stopped(self, stop: StopRequest) -> None:
        record = self.record
        self._save_checkpoint(final=True)
        which = f"of epoch {record.best_epoch}, the best so far,"
        if record.best is None:
            self.written.model(self.model)
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
            f"the weights {which} are in {self.folder}\n{self.checkpoints.advice()}"
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
            "config": stored_config(self.config),
            "model": asdict(self.model.bert.config),
            "environment": self.environment,
        }

    def _summary(self, metrics: dict[str, Any]) -> None:
        if self.record.best is not None:
            self.console.print(figures_table("dev", self.record.best, self.inputs.majority))
        for line in closing_lines(metrics):
            self._say(line)
        self._say(f"results: {self.folder}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
