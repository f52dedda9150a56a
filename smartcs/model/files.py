"""Reading and writing the files of a checkpoint folder, and the two errors that go with them."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from smartcs._reading import JSON_BYTES, parse_json, read_text

_SHOWN = 500  # characters of a library's message
Writer = Callable[[Path], None]
"""Writes one whole file to the path it is given."""


class ModelSourceError(OSError):
    """A model could not be found or fetched; the message is one line and says what to do."""


class CheckpointError(ValueError):
    """A file of a checkpoint is damaged, or describes a model that is not a plain BERT encoder."""


def first_line(error: BaseException) -> str:
    """`Type: message` of an error, without the advice that libraries print on the lines below, nor what they quote."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:_SHOWN]}" if lines else type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, within the limits of `smartcs._reading`.

    Raises:
        CheckpointError: the file holds anything else; the message names it.
    """
    try:
        value = parse_json(read_text(path, JSON_BYTES))
    except ValueError as error:  # too large, bad UTF-8 and bad JSON alike
        raise CheckpointError(f"{path}: not valid JSON ({first_line(error)})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


@contextmanager
def damaged(path: Path, wanted: str) -> Iterator[None]:
    """Makes a CheckpointError, "`path`: not `wanted`", of what values of other types or out of range raise inside.

    For files that this package writes itself: whoever uses their values need not check the type of each.
    """
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not {wanted} ({first_line(error)})") from error


def json_writer(value: Mapping[str, Any]) -> Writer:
    """A writer for `write_files` that stores `value` as indented, sorted JSON."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    return lambda path: _write_text(path, text)


def text_writer(text: str) -> Writer:
    """A writer for `write_files` that stores `text` as UTF-8 with its line ends untouched."""
    return lambda path: _write_text(path, text)


def tensor_writer(tensors: Mapping[str, Tensor]) -> Writer:
    """A writer for `write_files` that stores tensors of any device and layout as safetensors.

    They are copied to the host, where they must be, when the file is written: only one file's are there at a time.
    """

    def write(path: Path) -> None:
        on_host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(on_host, path, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, say, which is an OSError everywhere else
            found = re.search(r"os error (\d+)", str(error))
            if found is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error

    return write


def copy_writer(source: Path) -> Writer:
    """A writer for `write_files` that copies a file."""

    def write(path: Path) -> None:
        copyfile(source, path)

    return write


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def write_files(folder: Path, writers: Mapping[str, Writer], remove: Iterable[str] = ()) -> None:
    """Write several files of a folder so that a crash or a full disk leaves the old ones whole.

    Every file is first written in full under a temporary name beside its target, and only when all
    of them are complete are they moved into place (`os.replace`, atomic on one file system).

    Args:
        folder: created with its parents if missing.
        writers: file name relative to `folder` -> function that writes that file to a given path.
        remove: names that must not survive beside the new files (they would contradict them).

    Raises:
        NotADirectoryError: `folder` is a file.
        FileExistsError: a folder inside it, where a file belongs, is a link that leads out of it.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot save to {folder}: it is a file, expected a folder")
    remove = tuple(remove)
    for name in (*writers, *remove):
        place = (folder / name).parent
        if not place.resolve().is_relative_to(folder.resolve()):
            raise FileExistsError(f"cannot save to {place}: it is a link that leads out of {folder}")
    temporary: dict[Path, Path] = {}
    try:
        for name, write in writers.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # The process id keeps two runs that save to one folder from writing into one file.
            temporary[target] = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            temporary[target].touch()
            mode = temporary[target].stat().st_mode
            write(temporary[target])
            # safetensors makes files that only their owner may read; others shall get the usual mode.
            temporary[target].chmod(mode)
        for target, path in temporary.items():
            os.replace(path, target)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    for name in remove:
        (folder / name).unlink(missing_ok=True)
