"""What a target is, and what all targets share."""

import atexit
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs import Reader, changed

warnings.simplefilter("ignore")
FOLDER = Path(tempfile.mkdtemp(prefix="smartcs-fuzz-"))  # a target writes a file per input: best where memory is
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """One reader: its function of an input, and what it may raise."""

    run: Callable[[bytes], None]
    refuses: tuple[type[Exception], ...]

    def check(self, data: bytes) -> bool:
        """Runs it on an input; whether that was read. Whatever it should not raise comes through."""
        try:
            self.run(data)
        except self.refuses as error:
            message = str(error)
            assert message.strip() and len(message) < 20_000, f"a message of {len(message)} characters"
            return False
        return True


def target(*refuses: type[Exception]) -> Callable[[Callable[[bytes], None]], Target]:
    return lambda run: Target(run, refuses)


def place(name: str, content: bytes) -> Path:
    """The file, with this content alone in its folder."""
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def json_of(data: bytes, valid: Any) -> bytes:
    """A JSON file: the bytes as they are, or a valid value with changes."""
    if not data or data[0] % 2 == 0:
        return data[1:]
    return json.dumps(changed(valid, Reader(data[1:]))).encode("utf-8", "surrogatepass")
