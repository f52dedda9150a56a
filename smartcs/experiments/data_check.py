"""Whether a run has seen the data that lies there now; and one cycle ahead of all runs, so that none starts cold."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from smartcs.data.encode import EncodedTask, data_digest
from smartcs.model.multitask import MultitaskBert
from smartcs.ops.backend import backend
from smartcs.ops.precision import arithmetic, precision
from smartcs.training.config import TrainConfig
from smartcs.training.device import choose_device, choose_recorder
from smartcs.training.interrupt import stop_on_signals
from smartcs.training.setup import build_model, encode_split, load_data
from smartcs.training.skipping import NonFiniteLossError
from smartcs.training.trainer import Trainer


@dataclass(frozen=True)
class Content:
    """What data holds, as one model reads it.

    Attributes:
        sha256: see `data_digest`.
        examples: split -> task -> number.
    """

    sha256: str
    examples: Mapping[str, Mapping[str, int]]


Contents = dict[Hashable, Content]
"""By data, model and whatever else of a configuration decides on what is read."""


def data_differences(config: TrainConfig, recorded: Mapping[str, Any], contents: Contents) -> list[str]:
    """How the data of `config` differs from what a run has recorded in the section "data" of its metrics.json.

    A run of an earlier version, without a digest, is compared by its numbers of examples.

    Raises:
        DataError, ModelSourceError, CheckpointError: the data or the model cannot be read.
    """
    content = contents.get(_key(config))
    if content is None:
        content = _remember(config, _encode(config, build_model(config)), contents)
    if "sha256" in recorded:
        same = recorded["sha256"] == content.sha256
        return [] if same else [f"data of SHA-256 {recorded['sha256'][:12]}, now {content.sha256[:12]}"]
    return [
        f"{number} {split} examples of {task}, now {content.examples.get(split, {}).get(task, 0)}"
        for split, tasks in recorded.get("examples", {}).items()
        for task, number in tasks.items()
        if content.examples.get(split, {}).get(task, 0) != number
    ]


def warm_up(config: TrainConfig, contents: Contents) -> int | None:
    """One cycle of training that leaves nothing, so that the process's cold start is in no run's seconds.

    Returns:
        The signal that came meanwhile, or None.

    Raises:
        DataError, ModelSourceError, CheckpointError: as the run itself would.
    """
    device = choose_device(config.device)
    chosen = arithmetic(config.precision, device.type).precision
    with backend("fused" if config.fused else "reference"), precision(chosen), stop_on_signals() as stop:
        model = build_model(config).to(device)
        encoded = _encode(config, model)
        _remember(config, encoded, contents)
        recorder, _ = choose_recorder(config.cuda_graphs, device, model.bert.config)
        trainer = Trainer(config, model, encoded["train"], recorder)
        # What diverges here is recorded where it does so in the run.
        with suppress(NonFiniteLossError):
            for step in trainer.epoch():
                if stop or step.step >= len(encoded["train"]):
                    break
    return stop.signal


def _encode(config: TrainConfig, model: MultitaskBert) -> dict[str, dict[str, EncodedTask]]:
    data = load_data(config.data, tasks=config.trained_tasks, holdout=config.holdout)
    splits = {"train": data.train, "dev": data.dev, "test": data.test}
    return {name: encode_split(model, split, config.max_length) for name, split in splits.items()}


def _remember(config: TrainConfig, encoded: Mapping[str, Mapping[str, EncodedTask]], contents: Contents) -> Content:
    examples = {split: {name: len(task) for name, task in tasks.items()} for split, tasks in encoded.items()}
    contents[_key(config)] = Content(data_digest(encoded), examples)
    return contents[_key(config)]


def _key(config: TrainConfig) -> Hashable:
    return config.data, config.model, config.max_length, config.trained_tasks, config.holdout
