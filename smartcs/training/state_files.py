"""A run's state in files: numbers in state.json, tensors in a safetensors file for each part of the state.

A state is a nested dict with string keys. Its values are what JSON holds, numbers that are not finite among them, and
tensors: that at {"optimizer": {"exp_avg": {"bert.pooler.bias": ...}}} is "exp_avg/bert.pooler.bias" in
optimizer.safetensors. No file can hold code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from smartcs.model.files import CheckpointError, Writer, read_json, tensor_writer, text_writer, write_files
from smartcs.model.tensor_files import read_tensors

STATE = "state.json"
_NUMBER = "number"  # {"number": "nan"}: what JSON cannot hold


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes the state into a folder; tensors are on any device."""
    # In the order given: that of a cycle's tasks is part of the state.
    text = json.dumps(_without_tensors(state), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    writers: dict[str, Writer] = {STATE: text_writer(text)}
    for part, content in state.items():
        tensors = dict(_tensors(content)) if isinstance(content, Mapping) else {}
        if tensors:
            writers[f"{part}.safetensors"] = tensor_writer(tensors)
    write_files(folder, writers)


def read_state(folder: Path) -> dict[str, Any]:
    """What `write_state` wrote, the tensors on the CPU.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, expected a run's state")
    state: dict[str, Any] = _with_numbers(read_json(path))
    for part, content in state.items():
        # The name of a file: one from elsewhere must not name files of this machine.
        if not part.isidentifier():
            raise CheckpointError(f"{path}: {part[:80]!r} is no part of a run's state")
        file = folder / f"{part}.safetensors"
        for name, tensor in read_tensors(file).items() if file.is_file() else ():
            *outer, last = name.split("/")
            place = content
            for key in outer:
                place = place.setdefault(key, {}) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise CheckpointError(f"{file}: {name} has no place in {STATE}")
            place[last] = tensor
    return state


def _tensors(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        below = [("", value)] if isinstance(value, Tensor) else []
        if isinstance(value, Mapping):
            below = [(f"/{name}", tensor) for name, tensor in _tensors(value)]
        if below and "/" in key:
            raise ValueError(f"write_state: {key!r} has a slash, expected names without")
        yield from ((key + name, tensor) for name, tensor in below)


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_tensors(item) for key, item in value.items() if not isinstance(item, Tensor)}
    if isinstance(value, list | tuple):
        return [_without_tensors(item) for item in value]
    return {_NUMBER: repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_NUMBER} and value[_NUMBER] in ("nan", "inf", "-inf"):
            return float(value[_NUMBER])
        return {key: _with_numbers(item) for key, item in value.items()}
    return [_with_numbers(item) for item in value] if isinstance(value, list) else value
