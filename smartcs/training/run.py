"""A whole training run: data, model, training, evaluation after each epoch, and the files that stay."""

from __future__ import annotations

import math
import signal
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer

from smartcs import info
from smartcs.data.encode import EncodedTask, data_digest
from smartcs.data.examples import DataFolder
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import backend
from smartcs.ops.precision import Arithmetic, arithmetic, precision
from smartcs.report.tensorboard import TensorBoardLog, check_available
from smartcs.training.analysis import analyse
from smartcs.training.config import TrainConfig
from smartcs.training.device import choose_device, choose_recorder, describe_device
from smartcs.training.evaluation import Evaluation, evaluate
from smartcs.training.interrupt import Stopped, StopRequest, stop_on_signals
from smartcs.training.metrics import METRICS, best_by, majority_figures
from smartcs.training.plan import SMALL_MODEL_NOTICE, describe_plan
from smartcs.training.predictions import write_predictions
from smartcs.training.pretraining import Pretrainer, pretrain
from smartcs.training.progress import Progress, clock, make_progress, watch
from smartcs.training.recipes import AUTO_MODEL, SMALL_MODEL, model_name
from smartcs.training.run_folder import (
    PREDICTIONS,
    PRETRAINED,
    LossLog,
    choose_folder,
    refuse_own_model,
    start_folder,
    write_metrics,
)
from smartcs.training.setup import build_model, describe_model, encode_split, load_data
from smartcs.training.steps import NonFiniteLossError
from smartcs.training.tables import figures_line, figures_table
from smartcs.training.trainer import Trainer

_LISTED_ROWS = 100  # skipped rows that metrics.json names; it counts all of them


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
    """Trains as `config` says and writes the run's folder.

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
        NonFiniteLossError: training diverged; the weights of the best epoch so far and metrics.json are in the folder.
    """
    with backend("fused" if config.fused else "reference"):
        device = choose_device(config.device)
        chosen = arithmetic(config.precision, device.type)
        with precision(chosen.precision):
            return _Run(config, Console() if console is None else console, chosen, device).execute()


@dataclass
class _Run:
    """The state of one run, in the order of its life."""

    config: TrainConfig
    console: Console
    arithmetic: Arithmetic
    device: torch.device
    begin: float = field(default_factory=perf_counter)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Evaluation | None = None
    best_epoch: int | None = None
    test: Evaluation | None = None
    pretrainer: Pretrainer | None = None
    pretrained: dict[str, Any] | None = None

    def execute(self) -> RunResult:
        config = self.config
        if config.tensorboard:
            check_available()
        self.folder = choose_folder(config.output, config.overwrite)
        if self.arithmetic.reason:
            self._say(self.arithmetic.notice)
        self.data = load_data(
            config.data, strict=config.strict_data, tasks=config.trained_tasks, holdout=config.holdout
        )
        self._say(self.data.describe())
        self.model = build_model(config).to(self.device)
        self.recorder, self.not_recorded = choose_recorder(config.cuda_graphs, self.device, self.model.bert.config)
        self._say(f"model: {describe_model(self.model, model_name(config.model))}")
        if config.model == AUTO_MODEL and model_name(config.model) == SMALL_MODEL:
            self._say(SMALL_MODEL_NOTICE)
        self.encoded = self._encode(self.data)
        self.environment = info.collect()
        self.majority = majority_figures(self.data.train, self.data.dev)
        # Both before anything is written: what does not fit together shows here.
        self.pretrainer = self._make_pretrainer()
        self.trainer = Trainer(config, self.model, self.encoded["train"], self.recorder)
        refuse_own_model(self.folder, model_name(config.model))
        start_folder(self.folder, config)
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

    def _encode(self, data: DataFolder) -> dict[str, dict[str, EncodedTask]]:
        encoded = {}
        for split, examples in (("train", data.train), ("dev", data.dev), ("test", data.test)):
            tasks = encode_split(self.model, examples, self.config.max_length, strict=self.config.strict_data)
            encoded[split] = tasks
            for task in tasks.values():
                if split == "train" or task.truncated:
                    self._say(f"  {split} {task.describe()}")
        return encoded

    def _make_pretrainer(self) -> Pretrainer | None:
        config = self.config
        if not config.pretrain.epochs:
            return None
        return Pretrainer(
            self.model.bert,
            self._tokenizer,
            self.encoded["train"],
            self.encoded["dev"],
            replace(config.pretrain, tasks="+".join(config.pretrain_tasks)),
            config.batch_sizes,
            seed=config.seed,
            eval_batch_size=config.eval_batch_size,
        )

    def _pretrain(self, stop: StopRequest) -> None:
        """The stage of masked language modelling, if there is one."""
        pretrainer, self.pretrainer = self.pretrainer, None
        if pretrainer is None:
            return
        self._say(f"{pretrainer.describe()}\noutput: {self.folder}")
        folder = self.folder / PRETRAINED
        folder.mkdir(exist_ok=True)
        with LossLog(folder, len(pretrainer.data)) as log:
            try:
                self.pretrained = pretrain(pretrainer, self.console, stop=stop, log=log)
            except NonFiniteLossError:
                self.pretrained = pretrainer.metrics(diverged=True)
                raise
        if stop:
            raise Stopped
        self.model.bert.save_pretrained(folder, self._tokenizer)
        self._say(f"the pretrained encoder is in {folder}")
        # The optimizer's state and the anchor begin here.
        self.trainer = Trainer(self.config, self.model, self.encoded["train"], self.recorder)

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self.model.tokenizer is not None  # build_model gives it one
        return self.model.tokenizer

    def _train(self, stop: StopRequest) -> None:
        """All epochs, then the test split; raises Stopped as soon as a signal has come."""
        config, trainer, dev = self.config, self.trainer, self.encoded["dev"]
        eval_tokens = sum(len(task.input_ids) for task in dev.values())
        progress = make_progress(self.console, config.epochs, trainer.sampler, eval_tokens)
        with ExitStack() as stack:
            log = stack.enter_context(LossLog(self.folder, len(trainer.data)))
            board = stack.enter_context(TensorBoardLog(self.folder)) if config.tensorboard else None
            stack.enter_context(progress)
            for epoch in range(1, config.epochs + 1):
                losses: dict[str, list[float]] = {name: [] for name in trainer.data}
                for step in trainer.epoch():
                    log.add(step)
                    if board is not None:
                        board.step(step.step, step.task, step.loss, **step.terms())
                    progress.step(step)
                    losses[step.task].append(step.loss)
                    if stop:
                        raise Stopped
                evaluation = evaluate(self.model, dev, config.eval_batch_size, watch(progress, "dev", stop))
                self._end_of_epoch(epoch, evaluation, losses, progress)
                if board is not None:
                    board.evaluation(epoch, trainer.step, evaluation.figures, evaluation.losses)
            if self.encoded["test"]:
                model = self.model
                if self.best_epoch != config.epochs:
                    model = MultitaskBert.from_pretrained(self.folder).to(self.device)
                self.test = evaluate(model, self.encoded["test"], config.eval_batch_size, watch(progress, "test", stop))
                self._write_predictions("test", self.test)

    def _end_of_epoch(
        self, epoch: int, evaluation: Evaluation, losses: dict[str, list[float]], progress: Progress
    ) -> None:
        so_far = math.nan if self.best is None else best_by(self.best.figures)
        is_best = math.isnan(so_far) or best_by(evaluation.figures) > so_far
        if is_best:
            self.model.save_pretrained(self.folder)
            self.best, self.best_epoch = evaluation, epoch
            self._write_predictions("dev", evaluation)
        self.history.append(
            {
                "epoch": epoch,
                **evaluation.figures,
                "dev_losses": evaluation.losses,
                "train_losses": {
                    name: sum(values) / len(values) if values else None for name, values in losses.items()
                },
                "seconds": sum(self.trainer.seconds.values()),
                "seconds_total": perf_counter() - self.begin,
            }
        )
        # Not only at the end: a run that is killed leaves what it has reached.
        write_metrics(self.folder, self._metrics(finished=False))
        progress.say(
            f"epoch {epoch}/{self.config.epochs}: dev {figures_line(evaluation.figures)}"
            f"{'  (best so far, saved)' if is_best else ''}  after {clock(perf_counter() - self.begin)}"
        )

    def _write_predictions(self, split: str, evaluation: Evaluation) -> None:
        ids = {name: task.ids for name, task in self.encoded[split].items()}
        write_predictions(self.folder / PREDICTIONS, split, ids, evaluation.predictions)

    def _stopped(self, stop: StopRequest) -> None:
        which = f"of epoch {self.best_epoch}, the best so far,"
        if self.best is None:
            self.model.save_pretrained(self.folder)
            which = "of this step, not evaluated,"
        where, step = "", self.trainer.step
        total = self.config.epochs * self.trainer.sampler.steps_per_epoch
        if self.pretrained is not None and self.pretrained["interrupted"]:
            where, step = "in pretraining, ", self.pretrained["steps"]
            total = self.config.pretrain.epochs * self.pretrained["steps_per_epoch"]
            which = "of this step, their heads untrained,"
        assert stop.signal is not None
        self._say(
            f"stopped by {signal.Signals(stop.signal).name} {where}after step {step} of {total}: "
            f"the weights {which} are in {self.folder}"
        )

    def _metrics(self, *, finished: bool, interrupted: bool = False, diverged: bool = False) -> dict[str, Any]:
        trainer, skipped = self.trainer, self.data.skipped
        seconds = sum(trainer.seconds.values())
        figures = {**dict.fromkeys((*METRICS.values(), "score")), **(self.best.figures if self.best else {})}
        return {
            **figures,
            "seconds": seconds,
            "tokens_per_second": trainer.tokens / seconds if seconds else None,
            "finished": finished,
            "interrupted": interrupted,
            "diverged": diverged,
            "best_epoch": self.best_epoch,
            "dev": {**(self.best.as_dict() if self.best else figures), "majority": self.majority},
            "test": self.test.as_dict() if self.test else None,
            "epochs": self.history,
            "seconds_per_epoch": self.history[-1]["seconds"] / len(self.history) if self.history else None,
            **trainer.objective.metrics(),
            "pretrain": self.pretrained,
            "analysis": self._analysis(),
            "steps": trainer.step,
            "cycles_per_epoch": trainer.sampler.cycles,
            "tokens": trainer.tokens,
            "seconds_by_part": trainer.seconds_by_part(),
            "seconds_total": perf_counter() - self.begin,
            "precision": self.arithmetic.precision,
            "products": self.arithmetic.products,
            "device": describe_device(self.device, self.not_recorded),
            "graphs": trainer.graphs(),
            "data": {
                "source": self.data.source,
                "sha256": data_digest(self.encoded),
                "examples": {
                    split: {name: len(task) for name, task in tasks.items()} for split, tasks in self.encoded.items()
                },
                "skipped": len(skipped),
                "skipped_rows": [str(row) for row in skipped[:_LISTED_ROWS]],
                "truncated": {
                    split: {name: len(task.truncated) for name, task in tasks.items()}
                    for split, tasks in self.encoded.items()
                },
            },
            "config": asdict(self.config),
            "model": asdict(self.model.bert.config),
            "environment": self.environment,
        }

    def _analysis(self) -> dict[str, Any] | None:
        """Confusion, recall and histograms of the best epoch's dev predictions."""
        if self.best is None:
            return None
        return analyse(self.best.predictions, {name: task.labels for name, task in self.encoded["dev"].items()})

    def _summary(self, metrics: dict[str, Any]) -> None:
        if self.best is not None:
            self.console.print(figures_table("dev", self.best, self.majority))
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
