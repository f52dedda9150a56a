"""Reading a weight file of any of the usual forms, from anyone, without running code that is in it."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from smartcs.model.files import CheckpointError, first_line, read_json


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a weight file, or of all the shards that an index file lists.

    Args:
        path: one of `sources.WEIGHT_FILES` in some folder.

    Returns:
        Name -> CPU tensor of the stored dtype; it may be a view of the file.

    Raises:
        CheckpointError: damaged, cut short, or holding anything but tensors.
    """
    if not path.name.endswith(".index.json"):
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{path}: weight_map must map each tensor to a file name")
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(weight_map.values())):
        shard = path.parent / name
        # Only files beside the index: an index from elsewhere must not name files of this machine.
        if Path(name).name != name or not shard.is_file():
            raise CheckpointError(f"{path}: lists {name!r}, which is no file in that folder")
        read = _read_safetensors(shard) if shard.suffix == ".safetensors" else _read_bin(shard)
        tensors.update(read)
    absent = set(weight_map) - set(tensors)
    if absent:
        raise CheckpointError(f"{path}: lists {min(absent)!r}, which its files do not hold")
    return tensors


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({_hint(path, error)})") from None


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it is damaged or holds more than tensors ({_hint(path, error)})"
        ) from None
    # A truncated archive surfaces as any of several errors, by where the cut falls.
    except Exception as error:
        raise CheckpointError(f"{path}: not a whole PyTorch file ({_hint(path, error)})") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: expected a dict of tensors, got {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: entry {name!r} is {type(value).__name__}, expected names of tensors")
    return loaded


def _hint(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git"):
            return "it is a git-lfs pointer: run git lfs pull"
    return f"{first_line(error)}; if the download was cut short, fetch it again"
