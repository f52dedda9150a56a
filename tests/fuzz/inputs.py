"""Inputs from bytes: valid files with changes, so that a fuzzer's mutations reach what lies behind a parser."""

import copy
import json
import struct
from typing import Any

import torch

# What a number, a text or a part is replaced with.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 255, 65_536, 2**31, 2**32, 2**40, 2**63, 2**64, -(2**63), 10**39, 10**60,
    0.0, -0.0, 0.5, 1e-45, 1e308, float("nan"), float("inf"), float("-inf"), "", "a", "bert", "\0", "\ud800", "é",
    "../x", "/etc/passwd", "config.json", "model-1-of-2.safetensors", "linked.safetensors", ".", "x" * 5000, "1e999",
    "[UNK]", "[MASK]", "mean", "cls", "F32", "BF16", "F64", "I8", [], {}, [0], [[]], {"a": {}}, [-1], [2**62, 2**62],
    [2**62, 4], [0, 2**62], [8, 4], [4], [[[[[]]]]],
)  # fmt: skip

_CHANGES = 8  # made to one value at most: each may double it


class Reader:
    """Bytes, taken one after the other; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def byte(self) -> int:
        value = self.data[self.at] if self.left > 0 else 0
        self.at += 1
        return value

    def below(self, count: int) -> int:
        """A number below `count`, which is at most 65536."""
        number = self.byte() if count <= 256 else self.byte() * 256 + self.byte()
        return number % count

    def take(self, count: int) -> bytes:
        found = self.data[self.at : self.at + count]
        self.at += count
        return found

    def edited(self, content: bytes) -> bytes:
        """The content with bytes overwritten, cut out or put in."""
        edited = bytearray(content)
        while self.left > 0:
            kind, place, size = self.byte() % 3, self.below(65_536) % (len(edited) + 1), self.byte() % 8
            new = self.take(size + 1)
            if kind == 0:
                edited[place : place + len(new)] = new
            elif kind == 1:
                edited[place:place] = new
            else:
                del edited[place : place + size + 1]
        return bytes(edited)


def changed(value: Any, reader: Reader) -> Any:
    """A JSON value with a few of its parts replaced, removed, renamed or doubled, as the bytes say."""
    root = [copy.deepcopy(value)]
    for _ in range(_CHANGES):
        if reader.left > 0:
            _change(root, reader)
    return root[0]


def _change(root: list[Any], reader: Reader) -> None:
    parent: Any = root
    key: Any = 0
    # Down to some part: mostly a leaf, sometimes what lies above it.
    while isinstance(parent[key], dict | list) and parent[key] and reader.byte() % 8:
        parent = parent[key]
        keys = sorted(parent) if isinstance(parent, dict) else range(len(parent))
        key = keys[reader.below(min(len(keys), 65_536))]
    kind = reader.byte() % 8
    if kind < 5:
        parent[key] = copy.deepcopy(NASTY[reader.below(len(NASTY))])
    elif kind == 5:
        parent[key] = reader.take(reader.byte() % 16).decode("utf-8", "replace")
    elif parent is root:
        root[0] = copy.deepcopy(NASTY[reader.below(len(NASTY))])
    elif kind == 6:
        del parent[key]
    elif isinstance(parent, dict):
        parent[reader.take(4).decode("utf-8", "replace")] = copy.deepcopy(parent[key])
    else:
        parent.append(copy.deepcopy(parent[key]))


_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


def safetensors_bytes(tensors: dict[str, torch.Tensor], reader: Reader) -> bytes:
    """A safetensors file of `tensors` whose header, length or data are changed."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, tensor in tensors.items():
        raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(content), len(content) + len(raw)]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        content += raw
    where = reader.byte() % 4 if reader.left > 0 else 0
    if where == 0:
        header = changed(header, reader)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    if where == 1:
        text = reader.edited(text)
    elif where == 2:
        content = reader.edited(content)
    length = len(text)
    if where == 3:
        length = int.from_bytes(reader.take(8).ljust(8, b"\0"), "little")
    return struct.pack("<Q", length) + text + content
