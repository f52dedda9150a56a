"""Checkpoints on disk: folders that are there whole or not at all, and that say so when a byte has changed since.

CHECKPOINTS/step-NNNNNNNN/     NNNNNNNN optimizer steps into the run, those of pretraining included
    manifest.json              sizes and SHA-256 of all other files, and of itself
    anything else              the caller's

A checkpoint is written under a temporary name, every file and folder of it synchronised with the disk, and renamed.
Whenever the process or the machine stops, what has the final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartcs.model.files import CheckpointError, first_line, json_writer, read_json, write_files

MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_LEFT_OVER = re.compile(r"\.(step-\d{8,})\.\d+\.(tmp|old)")


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole, or was when `read` looked.

    Attributes:
        folder: where.
        step: optimizer steps before it.
        needs: names of the checkpoints that it refers to.
    """

    folder: Path
    step: int
    needs: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Compares every file with the manifest.

        Raises:
            CheckpointError: a file is missing, cut, changed or not listed; names the first one found.
        """
        step, needs, files = _read_manifest(folder)
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        found.discard(MANIFEST)
        for name in sorted(found ^ set(files)):
            raise CheckpointError(f"{folder / name}: {'not in' if name in found else 'missing, but in'} {MANIFEST}")
        for name, (size, digest) in files.items():
            path = folder / name
            if path.is_symlink() or not path.is_file():
                raise CheckpointError(f"{path}: expected a file")
            if path.stat().st_size != size:
                raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, {MANIFEST} says {size}")
            if digest_of(path) != digest:
                raise CheckpointError(
                    f"{path}: has changed since it was written: its SHA-256 is not that in {MANIFEST}"
                )
        return cls(folder, step, needs)


def name_of(step: int) -> str:
    """The folder's name of the checkpoint after so many steps."""
    return f"step-{step:08}"


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_name(value: object) -> bool:
    """Whether a checkpoint's folder may be called that."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def listed(checkpoints: Path) -> list[Path]:
    """The checkpoints in a folder that may not exist, whole or not, the newest first."""
    if not checkpoints.is_dir():
        return []
    found = {path: _NAME.fullmatch(path.name) for path in checkpoints.iterdir() if path.is_dir()}
    return sorted((path for path, name in found.items() if name), key=lambda path: int(path.name[5:]), reverse=True)


def write_checkpoint(
    checkpoints: Path, step: int, fill: Callable[[Path], None], needs: Iterable[str] = ()
) -> Checkpoint:
    """Writes one, in the place of another of the same step.

    Args:
        checkpoints: created if missing.
        step: counts optimizer steps.
        fill: writes the files into the folder it is given.
        needs: names of other checkpoints, which `prune` shall keep for as long as this one.

    Raises:
        OSError: it could not be written; what was there before still is, and nothing else.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    target = checkpoints / name_of(step)
    temporary, old = (checkpoints / f".{target.name}.{os.getpid()}.{kind}" for kind in ("tmp", "old"))
    try:
        temporary.mkdir()
        fill(temporary)
        files = {}
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            _synchronise(path)
            files[path.relative_to(temporary).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
        manifest = {"format": _FORMAT, "step": step, "needs": sorted(needs), "files": files}
        write_files(temporary, {MANIFEST: json_writer({**manifest, "sha256": _own_digest(manifest)})})
        _synchronise(temporary / MANIFEST)
        for path in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
            _synchronise(path)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        _synchronise(checkpoints)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return Checkpoint(target, step, tuple(sorted(needs)))


def prune(checkpoints: Path, newest: Checkpoint, keep: int) -> None:
    """Removes all but the newest `keep`, of which `newest` is the first, and those that they need.

    Later ones than `newest` are of a run that went on from an earlier checkpoint instead: they go, too.
    """
    paths = listed(checkpoints)
    kept = [path for path in paths if _step_of(path) <= newest.step][:keep]
    needed = set(newest.needs)
    for path in kept:
        with suppress(CheckpointError, OSError):  # a damaged one needs nothing
            needed.update(_read_manifest(path)[1])
    for path in paths:
        if path not in kept and path.name not in needed:
            remove(path)


def remove(folder: Path) -> None:
    """Removes a checkpoint, or as much of it as the system lets go; what is left is no checkpoint any more."""
    with suppress(OSError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def put_back(checkpoints: Path) -> None:
    """Puts back what a killed process was about to replace; several processes may do so at a time."""
    for path, name in _left_over(checkpoints):
        if name[2] == "old" and not (checkpoints / name[1]).exists():
            with suppress(OSError):
                path.rename(checkpoints / name[1])


def clean(checkpoints: Path) -> None:
    """Removes what a killed process has left half-written, after `put_back`."""
    put_back(checkpoints)
    for path, name in _left_over(checkpoints):
        if name[2] == "tmp" or (checkpoints / name[1]).exists():  # else it is the only one
            shutil.rmtree(path, ignore_errors=True)


def _left_over(checkpoints: Path) -> list[tuple[Path, re.Match[str]]]:
    paths = list(checkpoints.iterdir()) if checkpoints.is_dir() else []
    return [(path, name) for path in paths if (name := _LEFT_OVER.fullmatch(path.name))]


def remove_all(checkpoints: Path) -> None:
    """Removes all checkpoints, and the folder if that leaves it empty."""
    clean(checkpoints)
    for path in listed(checkpoints):
        remove(path)
    with suppress(OSError):
        checkpoints.rmdir()


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _own_digest(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_manifest(folder: Path) -> tuple[int, tuple[str, ...], dict[str, tuple[int, str]]]:
    """Step, needed checkpoints, and name -> (bytes, SHA-256) of the files."""
    path = folder / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{path}: missing, expected a checkpoint")
    manifest = read_json(path)
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: format is {reprlib.repr(manifest.get('format'))}, expected {_FORMAT}")
    if manifest.pop("sha256", None) != _own_digest(manifest):
        raise CheckpointError(f"{path}: its own SHA-256 is another: it has changed since it was written")
    try:
        step, needs = manifest["step"], tuple(manifest["needs"])
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a manifest ({first_line(error)})") from None
    if type(step) is not int or not all(map(is_name, needs)):
        found = f"step is {reprlib.repr(step)} and needs {reprlib.repr(needs)}"
        raise CheckpointError(f"{path}: {found}, expected a number and names")
    return step, needs, files


def _synchronise(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
