"""The files of a training run and the folder that holds them."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

from smartcs.data.examples import SPLITS, TASKS
from smartcs.model.files import damaged, json_writer, read_json, text_writer, write_files
from smartcs.model.multitask import HEADS_CONFIG, HEADS_WEIGHTS
from smartcs.model.tokenizer import TOKENIZER_FILES
from smartcs.training.checkpoint import remove_all
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.predictions import file_name
from smartcs.training.recipes import SAMPLE_DATA
from smartcs.training.steps import Step

CONFIG = "train_config.json"
METRICS = "metrics.json"
LOSSES = "losses.csv"
REPORT = "report.html"
PRETRAINED = "pretrained"
PREDICTIONS = "predictions"
CHECKPOINTS = "checkpoints"
# Every picture that the report of a run can have.
PICTURES = (
    "headline",
    *(f"loss-{task}" for task in TASKS),
    "dev-figures",
    "sst-confusion",
    "sst-recall",
    "sst-precision",
    "sst-adjacent",
    "qqp-confusion",
    "sts-histogram",
    "time-parts",
    "time-epochs",
    *(f"smart-{column}" for column in ("alignment", "perturbation", "smart", "bregman")),
    "pretrain-loss",
)
# What `save_pretrained` writes of an encoder and of a `MultitaskBert`, some of it only for some models.
_ENCODER_FILES = ("config.json", "model.safetensors", "1_Pooling/config.json", *sorted(TOKENIZER_FILES))
MODEL_FILES = (*_ENCODER_FILES, HEADS_CONFIG, HEADS_WEIGHTS)
# Everything a run writes. A folder with one of the first group holds a run.
_MARKS = (CONFIG, METRICS, LOSSES, HEADS_CONFIG)
_RUN_FILES = (
    *_MARKS,
    *MODEL_FILES,
    REPORT,
    *(f"figures/{name}.png" for name in PICTURES),
    *(f"{PRETRAINED}/{name}" for name in (LOSSES, *_ENCODER_FILES)),
    *(f"{PREDICTIONS}/{file_name(task, split)}" for task in TASKS for split in SPLITS),
)

_COLUMNS = ("step", "epoch", "task", "loss", "tokens", "smart", "alignment", "perturbation", "bregman", "skipped")


def choose_folder(output: str | None, overwrite: bool, default: str = "runs/train") -> Path:
    """The folder of a new run, tried out; nothing is left there or changed yet.

    Without `output` the first of runs/train, runs/train-2, ... that does not exist, or of another `default`.

    Raises:
        FileExistsError: it holds a run and `overwrite` is not set, or is a file.
        PermissionError: no permission to write it.
        UsageError: it cannot be made or written for another reason.
    """
    if output is None:
        folder, number = Path(default), 1
        while folder.exists():
            number += 1
            folder = Path(f"{default}-{number}")
    else:
        folder = Path(output).expanduser()
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not existing.is_dir():
        raise FileExistsError(f"output {folder}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"output {folder}: no permission to write in {existing}")
    _try_folder(folder)
    found = [name for name in _MARKS if (folder / name).exists()]
    if found and not overwrite:
        raise FileExistsError(
            f"output {folder} already holds a run ({', '.join(found)}): pass --overwrite to replace it, "
            "or another --output"
        )
    return folder


def _try_folder(folder: Path) -> None:
    """Makes the folder and a file in it, and takes away again what was not there."""
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"output {folder}: cannot be written ({error.strerror})") from None
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def refuse_own_model(folder: Path, model: str) -> None:
    """Raises UsageError where the output folder is the one the model was read from, or that one is the encoder or a
    checkpoint of the run in it: starting would delete it.
    """
    source, own = Path(model).expanduser().resolve(), folder.resolve()
    if source.is_dir() and (source in (own, own / PRETRAINED) or own / CHECKPOINTS in source.parents):
        raise UsageError(f"output {folder} is, or holds, the folder that --model starts from: pass another --output")


def clear_folder(folder: Path) -> None:
    """Makes the folder and removes the files of an earlier run and the folders that leaves empty, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    remove_all(folder / CHECKPOINTS)
    for events in folder.glob("tensorboard/events.out.tfevents.*"):
        events.unlink()
    for name in ("1_Pooling", f"{PRETRAINED}/1_Pooling", PRETRAINED, PREDICTIONS, "figures", "tensorboard"):
        with suppress(OSError):  # not there, or not empty
            (folder / name).rmdir()


def start_folder(folder: Path, config: TrainConfig) -> None:
    """Makes the folder, removes the files of an earlier run (and nothing else), writes the configuration."""
    clear_folder(folder)
    write_config(folder, config)


def write_config(folder: Path, config: TrainConfig) -> None:
    """Writes the configuration."""
    write_files(folder, {CONFIG: json_writer(stored_config(config))})


def stored_config(config: TrainConfig) -> dict[str, Any]:
    """The configuration as files hold it: `evaluate` finds the data from anywhere."""
    values = asdict(config)
    if config.data != SAMPLE_DATA:
        values["data"] = os.path.abspath(os.path.expanduser(config.data))
    return values


def read_config(folder: Path) -> TrainConfig | None:
    """The configuration of the run in `folder`; None where there is none.

    Raises:
        CheckpointError: the file is damaged or no configuration.
    """
    path = folder / CONFIG
    if not path.is_file():
        return None
    values = read_json(path)
    with damaged(path, "the configuration of a run"):
        return TrainConfig.from_dict(values)


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """metrics.json in the order given; numbers that are not finite, which JSON cannot hold, become null."""
    text = json.dumps(_finite(metrics), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_files(folder, {METRICS: text_writer(text)})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LossLog:
    """losses.csv: one line per step, on disk after every cycle, so that a run that is killed leaves its curve.

    Args:
        folder: where.
        tasks: steps in a cycle.
        goes_on: whether to add to the file that is there.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path, tasks: int, *, goes_on: bool = False) -> None:
        self.path, self._tasks = folder / LOSSES, tasks
        self._file = open(self.path, "a" if goes_on else "w", encoding="utf-8", newline="\n")  # noqa: SIM115 (__exit__ closes)
        if not goes_on:
            self._file.write(f"{','.join(_COLUMNS)}\n")

    def add(self, step: Step) -> None:
        """Adds a line; nine digits name a float32 exactly. A term that the step did not have stays empty, and the last
        column is 1 where it was skipped.
        """
        others = ",".join("" if term is None else f"{term:.9g}" for term in step.terms().values())
        skipped = 1 if step.skipped else ""
        self._file.write(f"{step.step},{step.epoch},{step.task},{step.loss:.9g},{step.tokens},{others},{skipped}\n")
        if step.step % self._tasks == 0:
            self.flush()

    def flush(self) -> None:
        """Hands all lines to the system."""
        if not self._file.closed:
            self._file.flush()

    def __enter__(self) -> LossLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
