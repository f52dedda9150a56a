"""What a run goes on from: its newest whole checkpoint, under the settings and on the data that it began with."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smartcs.data.examples import SPLITS, DataError
from smartcs.model.files import CheckpointError, copy_writer, damaged, first_line, read_json, write_files
from smartcs.training.checkpoint import MANIFEST, Checkpoint, clean, digest_of, is_name, listed, put_back
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig, flat
from smartcs.training.inputs import Inputs
from smartcs.training.out_of_memory import is_out_of_memory
from smartcs.training.pretraining import Pretrainer
from smartcs.training.record import Record
from smartcs.training.run_folder import (
    CHECKPOINTS,
    LOSSES,
    METRICS,
    MODEL_FILES,
    PRETRAINED,
    read_config,
    write_config,
)
from smartcs.training.state import load_pretrainer_state, load_trainer_state
from smartcs.training.state_files import STATE, read_state
from smartcs.training.trainer import Trainer

# What a run may go on with otherwise than it began. Data may have moved: whether it is the same shows when it is read.
_MAY_CHANGE = frozenset(
    {
        *("data", "device", "cuda_graphs", "eval_batch_size", "checkpoint_every", "keep", "max_skipped_steps"),
        *("epochs", "output", "overwrite", "report", "strict_data", "tensorboard"),
        # The position in the data is counted in examples, whatever processes and slices read them.
        *("batch_sst", "batch_qqp", "batch_sts", "accumulate"),
    }
)
FORMAT = 1
FINE_TUNING, PRETRAINING = "fine-tuning", "pretraining"


@dataclass(frozen=True, eq=False)
class Resumption:
    """Where and from what a run goes on.

    Attributes:
        folder: the run's.
        checkpoint: the newest whole one, or the one that was asked for.
        config: the run's settings.
        state: what `state_files.read_state` found.
        damaged: what was wrong with the newer ones.
    """

    folder: Path
    checkpoint: Checkpoint
    config: TrainConfig
    state: dict[str, Any]
    damaged: tuple[str, ...] = ()

    @classmethod
    def find(cls, folder: str | Path) -> Resumption:
        """Of a run's folder the newest whole checkpoint, or the one that `folder` itself is.

        Raises:
            UsageError: there is no such folder, or no checkpoint in it.
            CheckpointError: all that there are, or the one that was asked for, are damaged.
        """
        path = Path(folder).expanduser()
        if (path / MANIFEST).is_file():
            path = path.resolve()
            if path.parent.name != CHECKPOINTS:
                raise UsageError(f"--resume {folder}: a checkpoint outside of its run, expected it in {CHECKPOINTS}/")
            run, found = path.parent.parent, [path]
        else:
            put_back(path / CHECKPOINTS)
            run, found = path, listed(path / CHECKPOINTS)
        if not found:
            what = "holds no checkpoint" if path.is_dir() else "is no folder"
            raise UsageError(f"--resume {folder}: {what}, expected the output folder of a run that has written some")
        broken: list[str] = []
        for place in found:
            try:
                checkpoint = Checkpoint.read(place)
                config, state = read_config(place), read_state(place)
                if config is None or state.get("format") != FORMAT:
                    raise CheckpointError(f"{place}: holds no state that this version goes on from")
                with damaged(place / STATE, "the state of a run"):
                    _check_state(state)
                    _check_best(run, place.parent, state)
            except (CheckpointError, OSError) as error:
                broken.append(str(error))
            else:
                return cls(run, checkpoint, config, state, tuple(broken))
        raise CheckpointError(f"--resume {folder}: no checkpoint is whole: {'; '.join(broken)}")

    @property
    def pretraining(self) -> bool:
        """Whether the run was in its first stage."""
        return self.state["stage"] == PRETRAINING

    def as_long(self, config: TrainConfig) -> TrainConfig:
        """The settings with the cycles per epoch that the run began with, whatever its batches are now: the schedules
        follow from the run's length.
        """
        if self.pretraining:
            return config
        return replace(config, cycles=self.state["loop"]["sampler"]["cycles"])

    def check(self, config: TrainConfig) -> None:
        """Raises UsageError where the run cannot go on with these settings; names them."""
        began, now = flat(self.config), flat(config)
        problems = [
            f"--{name.replace('_', '-')} is {now[name]}, but the run began with {began[name]}"
            for name in began
            if now[name] != began[name] and name not in _MAY_CHANGE
        ]
        output = config.output
        if output != self.config.output and (output is None or Path(output).absolute() != self.folder.absolute()):
            problems.append(f"--output is {output}, but a run goes on where it is")
        if config.epochs != self.config.epochs:
            sampler = self.state["loop"]["sampler"]
            begun = 0 if self.pretraining else sampler["epoch"] + (sampler["step"] > 0)
            if config.epochs < begun:
                problems.append(f"--epochs is {config.epochs}, but epoch {begun} has begun")
            elif reason := length_matters(config):
                problems.append(
                    f"--epochs is {config.epochs}, but the run began with {self.config.epochs} and {reason}"
                )
        if problems:
            raise UsageError(f"--resume {self.folder}: {'; '.join(problems)}")

    def check_data(self, inputs: Inputs) -> None:
        """Raises DataError naming the first file that is not what the run was trained on."""
        known, found = self.state["data"], inputs.digests
        names = {(split, task) for some in (known, found) for split, tasks in some.items() for task in tasks}
        for split, task in sorted(names):
            if known.get(split, {}).get(task) != found.get(split, {}).get(task):
                examples = getattr(inputs.data, split).get(task)
                where = f"{inputs.data.source}, {split} split of {task}" if examples is None else examples.source
                raise DataError(f"{where}: not what the run was trained on, it has changed since the checkpoint")

    def load(self, record: Record, trainer: Trainer, pretrainer: Pretrainer | None) -> None:
        """Brings them to where the checkpoint was written; the model is the checkpoint's already.

        Raises:
            CheckpointError: the state is not one of this run.
        """
        try:
            record.load_state_dict(self.state["record"], self.state["seconds"])
            if pretrainer is not None:
                load_pretrainer_state(pretrainer, self.state)
            else:
                load_trainer_state(trainer, self.state)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(f"{self.checkpoint.folder}: not a state of this run ({first_line(error)})") from None

    def restore_files(self, config: TrainConfig) -> None:
        """Brings the run's folder to where it was: losses.csv, the weights of the best epoch, the settings as they are
        from now on. What is later and gets written anew stays until then.
        """
        clean(self.folder / CHECKPOINTS)
        write_config(self.folder, config)
        stage = self.folder / PRETRAINED if self.pretraining else self.folder
        write_files(stage, {LOSSES: copy_writer(self.checkpoint.folder / LOSSES)})
        best = self.state["record"]["weights"]
        if best is None or _has(self.folder, best["files"]):
            return
        source = self.folder / CHECKPOINTS / best["checkpoint"]
        write_files(self.folder, {name: copy_writer(source / name) for name in best["files"]})

    def finished(self, config: TrainConfig) -> bool:
        """Whether there is nothing left to do."""
        path = self.folder / METRICS
        metrics = read_json(path) if path.is_file() else {}
        with damaged(path, "the metrics of a run"):
            ended = metrics.get("finished") and not metrics.get("interrupted") and not metrics.get("diverged")
            return bool(ended) and len(metrics.get("epochs") or ()) >= config.epochs

    def changed_conditions(self, conditions: Mapping[str, Any]) -> str:
        """A note where the last bits of a step may be others here than in the run so far; else empty."""
        before = self.state["conditions"]
        other = [
            f"{name} {value}, was {before.get(name)}" for name, value in conditions.items() if before.get(name) != value
        ]
        return f"note: not bit for bit what the run would have been: {'; '.join(other)}" if other else ""


def length_matters(config: TrainConfig) -> str:
    """Why the steps taken so far depend on the number of epochs; empty where they do not."""
    if config.sampler == "annealed":
        return "annealed sampling follows from that number"
    if config.smart_tasks and config.smart.decay != "constant":
        return "SMART's weight falls towards the last of them"
    if config.bregman_tasks and config.bregman.beta != config.bregman.late_beta:
        return "the anchor's momentum changes after a share of them"
    return ""


def conditions_of(environment: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What, beside settings and data, decides the last bits of a step."""
    return {
        "torch": environment["versions"]["torch"],
        "CPU": environment["machine"]["cpu"],
        "threads": torch.get_num_threads(),
        "instruction set": environment["instruction_sets"]["active"],
        "device": device,
    }


def _check_state(state: Mapping[str, Any]) -> None:
    """Raises ValueError, or what values of other types raise, where it is not of the form that is relied upon before
    `Resumption.load`. Names of files and folders are those of a run alone.
    """
    sampler, best = state["loop"]["sampler"], state["record"]["weights"]
    if state["stage"] not in (FINE_TUNING, PRETRAINING):
        raise ValueError(f"stage is {reprlib.repr(state['stage'])}, expected {FINE_TUNING} or {PRETRAINING}")
    for name, least in (("epoch", 0), ("step", 0), ("cycles", 1)):
        if type(sampler[name]) is not int or sampler[name] < least:
            raise ValueError(f"the sampler's {name} is {reprlib.repr(sampler[name])}, expected at least {least}")
    for part in (state["conditions"], state["data"], *state["data"].values()):
        if not isinstance(part, dict):
            raise TypeError(f"expected an object, got {reprlib.repr(part)}")
    if not set(state["data"]) <= set(SPLITS):
        raise ValueError(
            f"the splits of the data are {reprlib.repr(list(state['data']))}, expected {', '.join(SPLITS)}"
        )
    pretrained = state["record"]["pretrained"]
    for name, kind in (("steps", int), ("steps_per_epoch", int), ("interrupted", bool)):
        if pretrained is not None and type(pretrained[name]) is not kind:
            raise ValueError(f"pretrained is {reprlib.repr(pretrained)}, expected the figures of that stage")
    if best is not None and not (is_name(best["checkpoint"]) and set(best["files"]) <= set(MODEL_FILES)):
        raise ValueError(f"the best epoch's weights are {reprlib.repr(best)}, expected a checkpoint's")


def _check_best(run: Path, checkpoints: Path, state: Mapping[str, Any]) -> None:
    best = state["record"]["weights"]
    if best is None or _has(run, best["files"]) or _has(checkpoints / best["checkpoint"], best["files"]):
        return
    raise CheckpointError(f"{run}: the weights of the best epoch are whole neither there nor in {best['checkpoint']}")


def _has(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether the folder holds files of these names and digests."""
    return all((folder / name).is_file() and digest_of(folder / name) == digest for name, digest in files.items())
