"""What two runs' folders do not share, bit for bit, apart from times and from where they are."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

MODEL = ("model.safetensors", "heads.safetensors", "config.json", "smartcs.json", "tokenizer.json")


def differences(one: Path, other: Path) -> list[str]:
    """Of weights, losses.csv, predictions, metrics.json and the newest checkpoint."""
    found = [name for name in (*MODEL, "losses.csv") if _bytes(one / name) != _bytes(other / name)]
    found += [name for name in _below(one, other, "predictions") if _bytes(one / name) != _bytes(other / name)]
    found += _unequal(
        "metrics.json", *(without_times(json.loads((folder / "metrics.json").read_text())) for folder in (one, other))
    )
    newest = [max((folder / "checkpoints").glob("step-*")) for folder in (one, other)]
    if newest[0].name != newest[1].name:
        return [*found, f"checkpoints {newest[0].name} and {newest[1].name}"]
    states = [without_times(json.loads((folder / "state.json").read_text())) for folder in newest]
    found += _unequal("state.json", *states)
    for file in sorted({path.name for folder in newest for path in folder.glob("*.safetensors")}):
        tensors = [load_file(folder / file) for folder in newest]
        found += [f"{file}: {name}" for name in sorted(tensors[0].keys() ^ tensors[1].keys())]
        common = tensors[0].keys() & tensors[1].keys()
        found += [f"{file}: {name}" for name in sorted(common) if _differ(tensors[0][name], tensors[1][name])]
    return found


def without_times(value: Any) -> Any:
    """Without what is measured by a clock, and without where the run is."""
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if "seconds" not in key and key not in ("tokens_per_second", "output")
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _below(one: Path, other: Path, name: str) -> list[Path]:
    return sorted({path.relative_to(folder) for folder in (one, other) for path in (folder / name).rglob("*.csv")})


def _differ(one, other) -> bool:
    return one.dtype != other.dtype or one.shape != other.shape or one.numpy().tobytes() != other.numpy().tobytes()


def _unequal(where: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        keys = list(dict.fromkeys([*one, *other]))
        return [line for key in keys for line in _unequal(f"{where}: {key}", one.get(key), other.get(key))]
    return [] if one == other or (one != one and other != other) else [f"{where} is {one!r} and {other!r}"]
