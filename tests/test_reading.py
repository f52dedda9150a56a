"""Files that others wrote are read up to a limit, and JSON without guessing."""

import json
import math
from pathlib import Path

import pytest

from smartcs import _reading
from smartcs._reading import parse_json, read_bounded, read_text


def test_reads_no_more_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        read_bounded(Path("/dev/zero"), 1000)  # which has no end


def test_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("é\r\n".encode())
    assert read_text(tmp_path / "text", 4) == "é\r\n"
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_text(tmp_path / "latin", 4)


@pytest.mark.parametrize(
    "text", ["{}", "[1, -2.5e3, null, true]", '{"a": {"b": [[]]}, "c": "\\u00e9\\ud83d\\ude00"}', str(2**64), "1e308"]
)
def test_json_is_read_as_json_does(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        ('{"x": {"hidden_size": 1, "hidden_size": 2}}', "the key 'hidden_size' stands twice"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("1e999", "too large for a number"),
        ("9" * 41, "an integer of 41 digits"),
        ("[" * 65 + "]" * 65, "nested deeper than 64"),
        ("[" * 100_000, "nested deeper than 64"),
        ('{"a":' * 100_000, "nested deeper than 64"),
        ('"\\ud800"', "surrogates not allowed"),
        ('{"\\udfff": 1}', "surrogates not allowed"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 300


def test_json_at_the_limits() -> None:
    depth = _reading.JSON_DEPTH
    assert parse_json("[" * depth + "]" * depth)
    assert parse_json("9" * _reading.JSON_DIGITS) == 10**_reading.JSON_DIGITS - 1
    assert math.isclose(parse_json("1.7976931348623157e308"), 1.7976931348623157e308)
