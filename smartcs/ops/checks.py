"""Argument checks of the ops' front doors: every message names the op, the argument, what it got and what it wanted."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(op: str, name: str, value: object) -> None:
    """Raises TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is {type(value).__name__}, expected a torch.Tensor")


def check_float(op: str, name: str, value: Tensor) -> None:
    """Raises TypeError unless ``value`` is a floating-point tensor."""
    check_tensor(op, name, value)
    if value.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} has dtype {value.dtype}, expected a floating-point dtype")


def check_shape(op: str, name: str, value: Tensor, expected: Sequence[int], why: str) -> None:
    """Raises ValueError unless ``value`` has the expected shape; ``why`` says where that shape comes from."""
    if value.shape != torch.Size(expected):
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, expected {tuple(expected)} to match {why}")


def check_like(op: str, name: str, value: Tensor, shape: Sequence[int], like: Tensor, like_name: str) -> None:
    """Raises unless ``value`` has this shape and the dtype and device of ``like``."""
    check_tensor(op, name, value)
    check_shape(op, name, value, shape, like_name)
    if value.dtype != like.dtype:
        raise TypeError(f"{op}: {name} has dtype {value.dtype}, expected {like.dtype} like {like_name}")
    check_device(op, name, value, like, like_name)


def check_device(op: str, name: str, value: Tensor, like: Tensor, like_name: str) -> None:
    """Raises ValueError unless ``value`` is on the device of ``like``."""
    if value.device != like.device:
        raise ValueError(f"{op}: {name} is on {value.device}, expected {like.device} like {like_name}")


def check_ids(op: str, name: str, value: Tensor, shape: Sequence[int], why: str) -> None:
    """Raises unless ``value`` is an int64 tensor of this shape."""
    check_tensor(op, name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{op}: {name} has dtype {value.dtype}, expected torch.int64")
    check_shape(op, name, value, shape, why)


def check_int(op: str, name: str, value: object) -> None:
    """Raises TypeError unless ``value`` is an integer, possibly a symbolic one under torch.compile."""
    if not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{op}: {name} is {value!r}, expected an int")


def check_number(op: str, name: str, value: object) -> None:
    """Raises TypeError unless ``value`` is a number."""
    if not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{op}: {name} is {value!r}, expected a number")


def check_cu_seqlens(op: str, value: object, like: Tensor, like_name: str) -> None:
    """Raises unless ``value`` is an int32 tensor of shape (B + 1,) on the device of ``like``."""
    check_tensor(op, "cu_seqlens", value)
    assert isinstance(value, Tensor)
    if value.dtype != torch.int32:
        raise TypeError(f"{op}: cu_seqlens has dtype {value.dtype}, expected torch.int32")
    if value.dim() != 1 or value.shape[0] == 0:
        raise ValueError(f"{op}: cu_seqlens has shape {tuple(value.shape)}, expected (B + 1,)")
    check_device(op, "cu_seqlens", value, like, like_name)


def check_bounds(op: str, bounds: Sequence[int], tokens: int, like_name: str) -> None:
    """Raises ValueError unless the values of cu_seqlens start at 0, never decrease and end at ``tokens``."""
    if bounds[0] != 0:
        raise ValueError(f"{op}: cu_seqlens starts at {bounds[0]}, expected 0")
    for b, (begin, end) in enumerate(pairwise(bounds)):
        if end < begin:
            raise ValueError(f"{op}: cu_seqlens decreases at index {b + 1}")
    if bounds[-1] != tokens:
        raise ValueError(f"{op}: cu_seqlens ends at {bounds[-1]}, but {like_name} has {tokens} tokens")


def check_dropout(
    op: str, p: float, seed: int, stream: int, counter_offset: Tensor | None = None, like: Tensor | None = None
) -> None:
    """Raises unless 0 <= p < 1 and `check_stream` is content."""
    check_number(op, "dropout_p", p)
    if not 0 <= p < 1:
        raise ValueError(f"{op}: dropout_p is {p}, expected 0 <= dropout_p < 1")
    check_stream(op, seed, stream, counter_offset, like)


def check_stream(
    op: str, seed: int, stream: int, counter_offset: Tensor | None = None, like: Tensor | None = None
) -> None:
    """Raises unless seed and stream have at most 63 bits and counter_offset is two int64 on the device of ``like``."""
    check_int(op, "seed", seed)
    check_int(op, "stream", stream)
    if not (0 <= seed < 2**63 and 0 <= stream < 2**63):
        raise ValueError(f"{op}: seed is {seed} and stream {stream}, expected both in [0, 2**63)")
    if counter_offset is None:
        return
    check_tensor(op, "counter_offset", counter_offset)
    if counter_offset.dtype != torch.int64 or counter_offset.shape != (2,) or not counter_offset.is_contiguous():
        raise ValueError(
            f"{op}: counter_offset is {counter_offset.dtype} of shape {tuple(counter_offset.shape)} and strides "
            f"{counter_offset.stride()}, expected two int64 side by side"
        )
    if like is not None and counter_offset.device != like.device:
        raise ValueError(f"{op}: counter_offset is on {counter_offset.device}, expected {like.device}")
