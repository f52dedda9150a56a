"""Reading a weight file of any of the usual forms, from anyone, without running code that is in it.

What a file makes this process allocate is bounded by its own size: tensors are views of the mapped file, an archive
may not be compressed, and tensors that share their memory (a .bin can say so) count as often as they are named.
"""

import os
import pickle
import reprlib
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open

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
        if Path(name).name != name or not os.path.isfile(shard) or _leads_out(shard):
            raise CheckpointError(f"{path}: lists {reprlib.repr(name)}, which is no file in that folder")
        read = _read_safetensors(shard) if shard.suffix == ".safetensors" else _read_bin(shard)
        tensors.update(read)
    absent = set(weight_map) - set(tensors)
    if absent:
        raise CheckpointError(f"{path}: lists {reprlib.repr(min(absent))}, which its files do not hold")
    return tensors


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    # Sizes that overflow and types that torch lacks surface as RuntimeError, AttributeError and others.
    except Exception as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({_hint(path, error)})") from None


def _leads_out(path: Path) -> bool:
    """Whether a name in a folder is a link to a file elsewhere; the hub's cache keeps a model's files in its blobs."""
    folder, target = path.parent.resolve(), path.resolve()
    inside = [folder]
    if folder.parent.name == "snapshots":
        inside.append(folder.parent.parent / "blobs")
    return not any(target.is_relative_to(place) for place in inside)


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    try:
        with path.open("rb") as file:
            archive = file.read(4) == b"PK\3\4"  # what torch.load goes by
        if archive:
            _check_archive(path)
        # Files of before PyTorch 1.6 are no archives and cannot be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
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
            raise CheckpointError(
                f"{path}: entry {reprlib.repr(name)} is {type(value).__name__}, expected names of tensors"
            )
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise CheckpointError(f"{path}: {name} is a {value.layout} tensor on {value.device}, expected a plain one")
    size, named = path.stat().st_size, sum(value.numel() * value.element_size() for value in loaded.values())
    # Twice: word embeddings are often named a second time, as an MLM head's.
    if named > 2 * size:
        raise CheckpointError(f"{path}: its tensors would take {named} bytes, the file has {size}: they share memory")
    return loaded


def _check_archive(path: Path) -> None:
    """Raises pickle.UnpicklingError where an archive would unpack to more than it is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if min((entry.header_offset for entry in entries), default=0):
        raise pickle.UnpicklingError("does not begin with its first entry")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise pickle.UnpicklingError("compressed entries, which torch.save never writes")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise pickle.UnpicklingError("entries larger than the archive")


def _hint(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        if file.read(20).startswith(b"version https://git"):
            return "it is a git-lfs pointer: run git lfs pull"
    return f"{first_line(error)}; if the download was cut short, fetch it again"
