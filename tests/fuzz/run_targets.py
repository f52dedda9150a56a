"""Readers of a training run's files; see targets.py."""

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from inputs import Reader, safetensors_bytes
from target import FOLDER, json_of, place, target

from smartcs.model.files import CheckpointError, read_json
from smartcs.report.run_data import RunData
from smartcs.training.checkpoint import MANIFEST, Checkpoint, _own_digest, write_checkpoint
from smartcs.training.commandline import UsageError
from smartcs.training.predictions import read_predictions
from smartcs.training.resume import Resumption


@cache
def _checkpoint() -> dict[str, Any]:
    """The manifest of a checkpoint, which is there."""
    return read_json(write_checkpoint(FOLDER / "run", 3, _fill, ["step-00000002"]).folder / MANIFEST)


def _fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_bytes(b"1234")
    (folder / "b").write_bytes(b"")


@target(CheckpointError)
def checkpoint_manifest(data: bytes) -> None:
    valid = _checkpoint()
    folder = FOLDER / "run" / "step-00000003"
    content = json_of(data, {key: value for key, value in valid.items() if key != "sha256"})
    if data and data[0] % 2 and isinstance(manifest := json.loads(content), dict):
        # Signed by whoever changed it: its hash guards against accidents.
        content = json.dumps({**manifest, "sha256": _own_digest(manifest)}).encode("utf-8", "surrogatepass")
    (folder / MANIFEST).write_bytes(content)
    found = Checkpoint.read(folder)
    assert isinstance(found.step, int) and all("/" not in name and name.startswith("step-") for name in found.needs)
    assert set(json.loads(content)["files"]) == {"sub/a", "b"}


_STATE = {
    "format": 1,
    "stage": "fine-tuning",
    "seconds": {"number": "inf"},
    "data": {"train": {"sst": "0"}},
    "conditions": {"threads": 1},
    "record": {"best": None, "weights": {"checkpoint": "step-00000004", "files": {}}, "pretrained": None},
    "loop": {"sampler": {"epoch": 1, "step": 2, "cycles": 3}},
    "optimizer": {"steps": [1, 2]},
}


@target(CheckpointError, UsageError)
def checkpoint_state(data: bytes) -> None:
    """A run's only checkpoint, signed by whoever changed it."""
    place("resumed/checkpoints/outside.safetensors", safetensors_bytes({"outside": torch.ones(2)}, Reader(b"")))

    def fill(folder: Path) -> None:
        (folder / "train_config.json").write_text("{}")
        (folder / "state.json").write_bytes(json_of(data, _STATE))
        (folder / "optimizer.safetensors").write_bytes(safetensors_bytes({"exp_avg/w": torch.ones(2)}, Reader(b"")))

    write_checkpoint(FOLDER / "resumed" / "checkpoints", 8, fill)
    place("resumed/metrics.json", json_of(data, {"finished": True, "interrupted": False, "epochs": [1] * 10}))
    found = Resumption.find(FOLDER / "resumed")
    assert all(name.isidentifier() for name in found.state) and "outside" not in str(found.state)
    found.check(replace(found.config, epochs=found.config.epochs + 1))
    assert found.as_long(found.config).cycles > 0 or found.pretraining
    assert isinstance(found.changed_conditions({"threads": 2}), str) and found.finished(found.config) in (True, False)


METRICS = {
    "finished": True,
    "diverged": False,
    "epochs": [{"epoch": 1, "dev": {"sst": {"accuracy": 0.5}}}],
    "config": {"recipe": "baseline", "tasks": "all", "epochs": 1, "bregman": {"tasks": "all"}},
    "bregman": {"anchor_divergence": 0.25},
    "environment": {"versions": {"torch": "2"}},
}


@target(CheckpointError)
def metrics_json(data: bytes) -> None:
    (FOLDER / "metrics").mkdir(exist_ok=True)
    place("metrics/metrics.json", json_of(data, METRICS))
    run = RunData.read(FOLDER / "metrics")
    assert isinstance(run.config, dict) and isinstance(run.epochs, list) and isinstance(run.recipe, str)
    assert isinstance(run.section("environment", "versions"), dict)


@target(CheckpointError)
def losses_csv(data: bytes) -> None:
    place("losses/metrics.json", b"{}")
    place("losses/losses.csv", data)
    run = RunData.read(FOLDER / "losses")
    for curves in run.curves.values():
        for curve in curves.values():
            assert len(curve.steps) == len(curve.values) and all(map(math.isfinite, curve.values))
    # What draws them works in 64 bits.
    assert all(abs(number) < 2**53 for number in (run.last_step, *run.epoch_ends, *run.epoch_ends.values()))


@target(CheckpointError)
def predictions(data: bytes) -> None:
    place("predictions/sst-dev-output.csv", data)
    found = read_predictions(FOLDER / "predictions", "dev", ["sst"])["sst"]
    assert found.ndim == 1 and (found.size == 0 or math.isfinite(found.sum()))
