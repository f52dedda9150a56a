"""Packed batches: the real tokens of a batch end to end, with no padded position anywhere.

Shapes: B rows (sentences or sentence pairs), T tokens of all rows together, S columns of a padded batch.
Row b owns the tokens ``cu_seqlens[b]`` up to ``cu_seqlens[b + 1]`` of every packed ``[T, ...]`` tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

_TOKEN_FIELDS = ("input_ids", "token_type_ids", "position_ids")
# Tokens below a number are rounded up to a multiple of another.
_FILLED_TO = ((256, 32), (1024, 64), (math.inf, 128))
_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """A batch without padding.

    Attributes:
        input_ids: [T] int64, word piece ids of all rows, row after row.
        token_type_ids: [T] int64, 0 for the first and 1 for the second sentence of a pair.
        position_ids: [T] int64, the index into the position embeddings.
        cu_seqlens: [B + 1] int32, where rows begin: first 0, last T, never decreasing.
        max_seqlen: no row is longer than this; the width of `to_padded`.
        inert: how many rows at the end, 0 or 1, only fill the batch up, see `filled`.

    An empty batch (B = 0, T = 0) and rows without tokens are legal.

    Raises:
        TypeError: a field is no tensor or has another dtype.
        ValueError: shapes, devices or `cu_seqlens` do not fit together. The values of `cu_seqlens` are
            read on the CPU only: on an accelerator that would make every batch wait for the device.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    inert: int = 0

    def __post_init__(self) -> None:
        for name in _TOKEN_FIELDS:
            _check_vector(name, getattr(self, name), torch.int64)
        _check_vector("cu_seqlens", self.cu_seqlens, torch.int32)
        tokens, device = self.input_ids.shape[0], self.input_ids.device
        for name in (*_TOKEN_FIELDS, "cu_seqlens"):
            value: Tensor = getattr(self, name)
            if name != "cu_seqlens" and value.shape[0] != tokens:
                raise ValueError(
                    f"PackedBatch: {name} has {value.shape[0]} tokens, expected {tokens} to match input_ids"
                )
            if value.device != device:
                raise ValueError(f"PackedBatch: {name} is on {value.device}, expected {device} to match input_ids")
        if self.cu_seqlens.shape[0] == 0:
            raise ValueError("PackedBatch: cu_seqlens has no element, expected B + 1 (one 0 for an empty batch)")
        if isinstance(self.max_seqlen, bool) or not isinstance(self.max_seqlen, int):
            raise TypeError(f"PackedBatch: max_seqlen is {self.max_seqlen!r}, expected an int")
        if device.type == "cpu":
            _check_offsets(self.cu_seqlens.numpy(), tokens, self.max_seqlen)

    @classmethod
    def from_padded(
        cls, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> PackedBatch:
        """Drop the padded positions of a Hugging Face style batch.

        Any 0/1 mask works: padded on the right, on the left, or with holes. The position id of a token is
        its column, as in `transformers.BertModel`, which numbers columns whatever the mask says; only a
        right-padded mask therefore starts every row at position 0.

        Args:
            input_ids: [B, S], any integer dtype.
            attention_mask: [B, S], bool or integer, 1 for a token and 0 for padding.
            token_type_ids: [B, S], any integer dtype; zeros when left out.

        Raises:
            TypeError: an argument is not an integer tensor (the mask may also be bool).
            ValueError: shapes or devices differ, or the mask holds something else than 0 and 1.
        """
        _check_matrix("input_ids", input_ids, _INTEGER_DTYPES, input_ids)
        _check_matrix("attention_mask", attention_mask, (torch.bool, *_INTEGER_DTYPES), input_ids)
        if token_type_ids is not None:
            _check_matrix("token_type_ids", token_type_ids, _INTEGER_DTYPES, input_ids)
        keep = attention_mask != 0
        if attention_mask.dtype != torch.bool:
            odd = attention_mask[keep & (attention_mask != 1)]
            if odd.numel():
                raise ValueError(
                    f"PackedBatch.from_padded: attention_mask holds {odd[0].item()}, expected only 0 and 1"
                )
        columns = keep.nonzero()[:, 1]  # row-major order: rows stay together and in order
        tokens = input_ids[keep].to(torch.int64)
        types = torch.zeros_like(tokens) if token_type_ids is None else token_type_ids[keep].to(torch.int64)
        lengths = keep.sum(dim=1)
        cu_seqlens = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=input_ids.device)
        cu_seqlens[1:] = lengths.cumsum(0)
        longest = int(lengths.max()) if lengths.numel() else 0
        return cls(tokens, types, columns, cu_seqlens, longest)

    @classmethod
    def from_lists(
        cls, input_ids: Sequence[Sequence[int]], token_type_ids: Sequence[Sequence[int]] | None = None
    ) -> PackedBatch:
        """Pack B rows of token ids given as lists; positions count from 0 in every row.

        Args:
            input_ids: B rows of ids, any lengths, also 0.
            token_type_ids: rows of the same lengths; zeros when left out.

        Raises:
            ValueError: `token_type_ids` has other row lengths than `input_ids`.
        """
        lengths = np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids))
        tokens = np.fromiter(chain.from_iterable(input_ids), dtype=np.int64, count=int(lengths.sum()))
        if token_type_ids is None:
            return cls.from_flat(tokens, np.zeros_like(tokens), lengths)
        type_lengths = [len(row) for row in token_type_ids]
        if type_lengths != lengths.tolist():
            raise ValueError(
                f"PackedBatch.from_lists: token_type_ids has rows of lengths {_short(type_lengths)}, "
                f"expected {_short(lengths.tolist())} to match input_ids"
            )
        types = np.fromiter(chain.from_iterable(token_type_ids), dtype=np.int64, count=len(tokens))
        return cls.from_flat(tokens, types, lengths)

    @classmethod
    def from_flat(cls, input_ids: np.ndarray, token_type_ids: np.ndarray, lengths: np.ndarray) -> PackedBatch:
        """Pack rows that already lie end to end in numpy arrays; positions count from 0 in every row.

        Args:
            input_ids: [T] integers; the batch shares the memory of an int64 array.
            token_type_ids: [T] integers, likewise.
            lengths: [B] integers with sum T.
        """
        ends = np.cumsum(lengths, dtype=np.int64)
        cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
        cu_seqlens[1:] = ends
        positions = np.arange(len(input_ids), dtype=np.int64)
        positions -= np.repeat(ends - lengths, lengths)
        return cls(
            torch.from_numpy(np.asarray(input_ids, dtype=np.int64)),
            torch.from_numpy(np.asarray(token_type_ids, dtype=np.int64)),
            torch.from_numpy(positions),
            torch.from_numpy(cu_seqlens),
            int(lengths.max(initial=0)),
        )

    @property
    def batch_size(self) -> int:
        """B, the number of rows."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens of all rows together."""
        return self.input_ids.shape[0]

    @property
    def lengths(self) -> Tensor:
        """[B] int32, tokens per row."""
        return self.cu_seqlens.diff()

    def attention_mask(self) -> Tensor:
        """[B, max_seqlen] int64: 1 for a token, 0 for padding, tokens on the left; fits `to_padded`."""
        columns = torch.arange(self.max_seqlen, device=self.cu_seqlens.device)
        return (columns < self.lengths[:, None]).to(torch.int64)

    def to_padded(self, values: Tensor | None = None, pad: float = 0) -> Tensor:
        """Spread packed values over a padded tensor; differentiable in `values`.

        Rows are padded on the right, whatever padding `from_padded` met.

        Args:
            values: [T, ...], any dtype; `input_ids` when left out.
            pad: the value of padded positions.

        Returns:
            [B, max_seqlen, ...], dtype and device of `values`.

        Raises:
            ValueError: `values` does not have T rows.
        """
        values = self.input_ids if values is None else values
        if values.dim() == 0 or values.shape[0] != self.num_tokens:
            raise ValueError(
                f"PackedBatch.to_padded: values has shape {tuple(values.shape)}, "
                f"expected ({self.num_tokens}, ...) to match the number of tokens"
            )
        padded = values.new_full((self.batch_size, self.max_seqlen, *values.shape[1:]), pad)
        padded[self.attention_mask().to(torch.bool)] = values
        return padded

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        if self.input_ids.device == torch.device(device):
            return self
        return PackedBatch(
            self.input_ids.to(device),
            self.token_type_ids.to(device),
            self.position_ids.to(device),
            self.cu_seqlens.to(device),
            self.max_seqlen,
            self.inert,
        )

    def rows(self, begin: int, end: int) -> tuple[PackedBatch, int]:
        """The rows from `begin` up to `end`, views of a batch on the CPU, and the number of tokens before them."""
        offsets = self.cu_seqlens[begin : end + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        ids, types, positions = (getattr(self, name)[first:last] for name in _TOKEN_FIELDS)
        return PackedBatch(ids, types, positions, offsets - offsets[0], self.max_seqlen), first

    def filled(self) -> PackedBatch:
        """The batch with one more row, of zeros, and a larger `max_seqlen`: few shapes for many batches.

        A GPU's kernels and launches depend on T and `max_seqlen`, so there they are rounded up. The inert row belongs
        to no example: a model computes it and throws it away.
        """
        if self.inert:
            raise ValueError("PackedBatch.filled: the batch is filled up already")
        step = next(step for limit, step in _FILLED_TO if self.num_tokens < limit)
        fill = -self.num_tokens % step
        longest = max(self.max_seqlen, step)
        zeros, end = self.input_ids.new_zeros(fill), self.cu_seqlens.new_full((1,), self.num_tokens + fill)
        return PackedBatch(
            torch.cat([self.input_ids, zeros]),
            torch.cat([self.token_type_ids, zeros]),
            torch.cat([self.position_ids, zeros]),
            torch.cat([self.cu_seqlens, end]),
            longest + -longest % 64,
            inert=1,
        )

    def __repr__(self) -> str:
        return (
            f"PackedBatch(batch_size={self.batch_size}, num_tokens={self.num_tokens}, "
            f"max_seqlen={self.max_seqlen}, device='{self.input_ids.device}')"
        )


def _check_vector(name: str, value: object, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"PackedBatch: {name} is a {type(value).__name__}, expected a torch.Tensor")
    if value.dtype != dtype:
        raise TypeError(f"PackedBatch: {name} has dtype {value.dtype}, expected {dtype}")
    if value.dim() != 1:
        raise ValueError(f"PackedBatch: {name} has shape {tuple(value.shape)}, expected one dimension")


def _check_matrix(name: str, value: object, dtypes: tuple[torch.dtype, ...], like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"PackedBatch.from_padded: {name} is a {type(value).__name__}, expected a torch.Tensor")
    if value.dtype not in dtypes:
        wanted = "a bool or integer" if torch.bool in dtypes else "an integer"
        raise TypeError(f"PackedBatch.from_padded: {name} has dtype {value.dtype}, expected {wanted} tensor")
    if value.dim() != 2:
        raise ValueError(f"PackedBatch.from_padded: {name} has shape {tuple(value.shape)}, expected [B, S]")
    if value.shape != like.shape:
        raise ValueError(
            f"PackedBatch.from_padded: {name} has shape {tuple(value.shape)}, "
            f"expected {tuple(like.shape)} to match input_ids"
        )
    if value.device != like.device:
        raise ValueError(
            f"PackedBatch.from_padded: {name} is on {value.device}, expected {like.device} to match input_ids"
        )


def _check_offsets(offsets: np.ndarray, tokens: int, max_seqlen: int) -> None:
    if offsets[0] != 0 or offsets[-1] != tokens:
        raise ValueError(f"PackedBatch: cu_seqlens runs from {offsets[0]} to {offsets[-1]}, expected 0 to T = {tokens}")
    longest = 0
    if len(offsets) > 1:
        lengths = offsets[1:] - offsets[:-1]
        longest = int(lengths.max())
        if lengths.min() < 0:
            row = int(np.argmin(lengths))
            raise ValueError(
                f"PackedBatch: cu_seqlens falls from {offsets[row]} to {offsets[row + 1]} at row {row}, "
                "expected it never to decrease"
            )
    if max_seqlen < longest:
        raise ValueError(f"PackedBatch: max_seqlen is {max_seqlen}, expected at least {longest} (longest row)")


def _short(lengths: list[int]) -> str:
    return str(lengths) if len(lengths) <= 8 else f"{lengths[:8]} and {len(lengths) - 8} more"
