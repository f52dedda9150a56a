"""A run of pretraining alone: data, model, masked language modelling, and a checkpoint to fine-tune from."""

from __future__ import annotations

import shlex
import signal
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from smartcs import info
from smartcs.data.encode import EncodedTask
from smartcs.data.examples import DataFolder
from smartcs.ops.backend import backend
from smartcs.ops.precision import Arithmetic, arithmetic, precision
from smartcs.training.config import TrainConfig, flat
from smartcs.training.device import choose_device
from smartcs.training.distributed import Ranks
from smartcs.training.interrupt import StopRequest, stop_on_signals
from smartcs.training.launch import launched
from smartcs.training.plan import SMALL_MODEL_NOTICE
from smartcs.training.pretraining import Pretrainer, pretrain
from smartcs.training.progress import clock
from smartcs.training.recipes import AUTO_MODEL, SAMPLE_DATA, SMALL_MODEL, model_name
from smartcs.training.record import RunResult
from smartcs.training.run_folder import choose_folder, clear_folder, refuse_own_model
from smartcs.training.setup import build_model, describe_model, encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.written import Written

# The settings that such a run has; all others are those of fine-tuning.
SETTINGS = (
    *("fused", "data", "model", "output", "overwrite", "seed", "batch_sst", "batch_qqp", "batch_sts", "accumulate"),
    *("eval_batch_size", "precision", "device", "pooling", "max_length", "max_skipped_steps", "strict_data", "report"),
)


def pretrain_run(config: TrainConfig, console: Console | None = None) -> RunResult:
    """Pretrains the encoder as `config.pretrain` says and writes it, with its tokenizer, as a checkpoint.

    The folder holds what `smartcs.BertModel.from_pretrained`, `transformers` and ``smartcs.train --model`` read,
    metrics.json and losses.csv. The checkpoint is written after every epoch; Ctrl-C or SIGTERM ends the run after the
    current step with the weights of that step. The process's backend, precision and random state are as before
    afterwards.

    Args:
        config: of its other settings those in `SETTINGS` count. Dropout is the checkpoint's, where
            `config.pretrain.dropout` asks for any.
        console: where progress goes; stdout when left out. `Console(quiet=True)` silences it.

    Raises:
        FileExistsError, PermissionError, UsageError: the output folder cannot be used; nothing has been done then.
        DataError, ModelSourceError, CheckpointError: nothing has been written then.
        NonFiniteLossError: training diverged; the weights of the last whole epoch, if any, and metrics.json are in the
            folder.
    """
    with backend("fused" if config.fused else "reference"):
        device = choose_device(config.device)
        chosen = arithmetic(config.precision, device.type)
        with precision(chosen.precision), launched(device) as ranks:
            return _PretrainRun(config, ranks.console(console), chosen, device, ranks).execute()


@dataclass
class _PretrainRun:
    """The state of one run, in the order of its life."""

    config: TrainConfig
    console: Console
    arithmetic: Arithmetic
    device: torch.device
    ranks: Ranks
    begin: float = field(default_factory=perf_counter)

    def execute(self) -> RunResult:
        config = self.config
        self.folder = self.ranks.from_first(lambda: choose_folder(config.output, config.overwrite, "runs/pretrain"))
        self.written = Written(self.folder, self.ranks)
        if self.arithmetic.reason:
            self._say(self.arithmetic.notice)
        self.data = load_data(config.data, strict=config.strict_data, holdout=config.holdout)
        self._say(self.data.describe())
        self.model = build_model(config).to(self.device)
        self._say(f"model: {describe_model(self.model, model_name(config.model))}")
        if config.model == AUTO_MODEL and model_name(config.model) == SMALL_MODEL:
            self._say(SMALL_MODEL_NOTICE)
        assert self.model.tokenizer is not None
        self.encoded = {"train": self._encode(self.data, "train"), "dev": self._encode(self.data, "dev")}
        self.trainer = Pretrainer(
            self.model.bert,
            self.model.tokenizer,
            self.encoded["train"],
            self.encoded["dev"],
            config.pretrain,
            config.batch_sizes,
            seed=config.seed,
            eval_batch_size=config.eval_batch_size,
            ranks=self.ranks,
            accumulate=config.accumulate,
            max_skipped=config.max_skipped_steps,
        )
        self.environment = info.collect()
        self.ranks.from_first(self._start_folder)
        ops = "fused" if config.fused else "reference"
        self._say(f"{self.trainer.describe()}, {ops} ops, seed {config.seed}, {self.arithmetic}, on {self.device.type}")
        self._say(f"output: {self.folder}")
        with stop_on_signals(self.ranks) as stop:
            reached = self._pretrain(stop)
        metrics = self._metrics(reached, finished=True)
        self.written.metrics(metrics)
        if config.report:
            self.written.report()
        self._summary(reached, stop)
        return RunResult(self.folder, metrics, stop.signal)

    def _start_folder(self) -> None:
        refuse_own_model(self.folder, model_name(self.config.model))
        clear_folder(self.folder)

    def _encode(self, data: DataFolder, split: str) -> dict[str, EncodedTask]:
        config = self.config
        tasks = encode_split(self.model, getattr(data, split), config.max_length, strict=config.strict_data)
        for task in tasks.values():
            if split == "train" or task.truncated:
                self._say(f"  {split} {task.describe()}")
        return tasks

    def _pretrain(self, stop: StopRequest) -> dict[str, Any]:
        with self.written.log(self.folder, len(self.trainer.data), goes_on=False) as log:
            try:
                metrics = pretrain(self.trainer, self.console, stop=stop, log=log, after_epoch=self._save)
            except NonFiniteLossError:
                self.written.metrics(self._metrics(self.trainer.metrics(diverged=True), finished=True))
                raise
        if metrics["interrupted"]:
            self._write_weights()
        return metrics

    def _save(self, metrics: dict[str, Any]) -> None:
        self._write_weights()
        self.written.metrics(self._metrics(metrics, finished=False))

    def _write_weights(self) -> None:
        assert self.model.tokenizer is not None  # build_model gives it one
        self.written.encoder(self.folder, self.model.bert, self.model.tokenizer)

    def _metrics(self, metrics: dict[str, Any], *, finished: bool) -> dict[str, Any]:
        settings = {name: value for name, value in flat(self.config).items() if name in SETTINGS}
        return {
            **metrics,
            "finished": finished,
            "seconds_total": perf_counter() - self.begin,
            "precision": self.arithmetic.precision,
            "products": self.arithmetic.products,
            "device": self.device.type,
            "ranks": self.ranks.size,
            "data": {
                "source": self.data.source,
                "examples": {
                    split: {name: len(task) for name, task in tasks.items()} for split, tasks in self.encoded.items()
                },
                "skipped": len(self.data.skipped),
                "truncated": {
                    split: {name: len(task.truncated) for name, task in tasks.items()}
                    for split, tasks in self.encoded.items()
                },
            },
            "config": {**settings, "pretrain": asdict(self.config.pretrain)},
            "model": asdict(self.model.bert.config),
            "environment": self.environment,
        }

    def _summary(self, metrics: dict[str, Any], stop: StopRequest) -> None:
        if stop.signal is not None:
            total = self.config.pretrain.epochs * self.trainer.sampler.steps_per_epoch
            self._say(
                f"stopped by {signal.Signals(stop.signal).name} after step {metrics['steps']} of {total}: "
                f"the weights of this step are in {self.folder}"
            )
        self._say(
            f"pretrained {metrics['steps']:,} steps on {metrics['hidden_tokens']:,} hidden of {metrics['tokens']:,} "
            f"tokens in {clock(metrics['seconds'])} ({metrics['tokens_per_second'] or 0:,.0f} tokens/s), "
            f"{clock(perf_counter() - self.begin)} in all\n"
            f"fine-tune it: {self._fine_tuning()}"
        )

    def _fine_tuning(self) -> str:
        """The command that goes on from here."""
        config = self.config
        words = ["python", "-m", "smartcs.train", "--model", str(self.folder)]
        words += [] if config.data == SAMPLE_DATA else ["--data", config.data]
        # A folder gets the settings of a trained encoder; one that began from random weights still needs its own.
        own, theirs = (
            flat(TrainConfig.from_dict({"data": config.data, "model": name})) for name in (config.model, self.folder)
        )
        for name in ("epochs", "cycles", "learning_rate", "batch_sst", "batch_qqp", "batch_sts"):
            if own[name] != theirs[name]:
                words += [f"--{name.replace('_', '-')}", str(own[name])]
        return shlex.join(words)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
