"""Reading files that others may have written: never more than a stated size, and JSON of which nothing is guessed.

Limits are far above what the files of any model or data set hold; what they stop is a file made to exhaust memory.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MIB = 2**20
JSON_BYTES = 64 * MIB  # config.json, an index of shards, metrics.json: kilobytes
JSON_DEPTH = 64
JSON_DIGITS = 40  # of an integer: 2^64 has 20


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a file.

    Raises:
        ValueError: it has more than `limit`; no more than that is read.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes, the most that is read of such a file")
    return content


def read_text(path: Path, limit: int) -> str:
    """The text of a UTF-8 file, its line ends as they are.

    Raises:
        ValueError: it has more than `limit` bytes, or is not UTF-8.
        OSError: it cannot be read.
    """
    content = read_bounded(path, limit)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from None


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON (NaN and Infinity are not), a key twice in one object, a number that a double does not
            hold or an integer of more than JSON_DIGITS digits, half a surrogate pair, nested deeper than JSON_DEPTH.
    """
    try:
        value = json.loads(
            content,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {JSON_DEPTH} levels") from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} stands twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:JSON_DIGITS]} is too large for a number")
    return value


def _short_int(text: str) -> int:
    if len(text) > JSON_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _check(value: Any) -> None:
    """Raises ValueError where a value is nested too deep or holds text that no file can hold."""
    level = [value]
    for _ in range(JSON_DEPTH + 1):
        if not level:
            return
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                # A lone surrogate, "\ud800", would be an error wherever the text is printed or written.
                item.encode("utf-8")
            elif isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
    raise ValueError(f"nested deeper than {JSON_DEPTH} levels")
