"""Tokenize a task once, up front, and hand out packed batches of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from smartcs.data.examples import DataError, Examples, TaskSpec, Text
from smartcs.data.packing import PackedBatch

_SHORTEST = 5  # [CLS] a [SEP] b [SEP]: a pair cut below that would lose a sentence
_CHUNK = 8192  # sequences tokenized at a time; bounds the memory of the Encoding objects
_SHOWN = 5  # truncated sequences named in a message before the rest is only counted


@dataclass(frozen=True, eq=False)
class EncodedTask:
    """N tokenized examples, end to end in flat arrays.

    Attributes:
        task: what the labels mean.
        ids: N example ids.
        input_ids: [T] int32, word piece ids of all examples.
        token_type_ids: [T] int32, 0 for the first and 1 for the second sentence of a pair.
        offsets: [N + 1] int64, where examples begin.
        labels: [N] int64 or float32 as in `Examples`, or None.
        truncated: one line per example that was longer than the limit: where it stands and its length.
    """

    task: TaskSpec
    ids: tuple[str, ...]
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray | None
    truncated: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, word pieces per example, special tokens included."""
        return np.diff(self.offsets)

    def batch(self, indices: np.ndarray | Sequence[int]) -> tuple[PackedBatch, Tensor | None]:
        """Pack the examples `indices`, in that order.

        Args:
            indices: [B] integers in 0..N-1, repeats allowed.

        Returns:
            The batch on the CPU, and its labels: [B] int64 or float32, None without labels.

        Raises:
            IndexError: an index lies outside 0..N-1.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            bad = rows[(rows < 0) | (rows >= len(self))][0]
            raise IndexError(f"{self.task.name}: example {bad} asked for, expected 0 to {len(self) - 1}")
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.cumsum(lengths)
        # Token t of the batch is token t - (ends - lengths) of its row, and that row begins at starts.
        tokens = np.arange(ends[-1] if len(ends) else 0)
        tokens += np.repeat(starts - ends + lengths, lengths)
        packed = PackedBatch.from_flat(self.input_ids[tokens], self.token_type_ids[tokens], lengths)
        return packed, None if self.labels is None else torch.from_numpy(self.labels[rows])

    def batches(self, tokens: int) -> Iterator[PackedBatch]:
        """All examples in their order, in batches of about `tokens` word pieces, as even as they can be cut.

        Args:
            tokens: at least 1; an example of more is a batch, or the greater part of one.
        """
        total = len(self.input_ids)
        count = -(-total // tokens)
        cuts = np.unique(np.searchsorted(self.offsets, np.linspace(0, total, count + 1)))
        for begin, end in zip(cuts.tolist(), cuts[1:].tolist(), strict=False):
            yield self.batch(np.arange(begin, end))[0]

    def describe(self) -> str:
        """For people: how many examples and word pieces, and which examples were truncated."""
        lengths = self.lengths
        text = f"{self.task.name}: {len(self)} examples, {len(self.input_ids)} word pieces"
        if len(lengths):
            text += f" (mean {lengths.mean():.1f}, max {lengths.max()})"
        return f"{text}; truncated {_first(self.truncated)}" if self.truncated else text


def encode(tokenizer: Tokenizer, examples: Examples, max_length: int = 512, *, strict: bool = False) -> EncodedTask:
    """Tokenize all examples with special tokens, pairs as one sequence.

    A sequence of more than `max_length` word pieces is cut to it: pieces go from the end of the longer
    sentence first and the special tokens stay. It is listed in `EncodedTask.truncated`.

    Args:
        tokenizer: used as it is, but for its own truncation and padding, which do not count here; it is
            not changed.
        examples: sentences or pairs, and labels.
        max_length: the most word pieces of a sequence, special tokens included; at least 5.
        strict: whether a sequence that is too long is an error instead of being cut.

    Raises:
        ValueError: `max_length` is too small.
        DataError: with `strict`, sequences are too long; names the first ones.
    """
    if max_length < _SHORTEST:
        raise ValueError(f"encode: max_length is {max_length}, expected at least {_SHORTEST}")
    plain = _without_limits(tokenizer)
    cut: Tokenizer | None = None
    truncated: list[str] = []
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths = np.zeros(len(examples), dtype=np.int64)
    for begin in range(0, len(examples), _CHUNK):
        texts: list[Text] = list(examples.texts[begin : begin + _CHUNK])
        encodings: list[Encoding] = plain.encode_batch_fast(texts)
        sizes = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        long = np.flatnonzero(sizes > max_length).tolist()
        truncated += [f"{examples.where(begin + row)} ({sizes[row]} word pieces)" for row in long]
        if long and not strict:
            if cut is None:
                cut = _copy(tokenizer)
                cut.no_padding()
                cut.enable_truncation(max_length, strategy="longest_first")
            for row, encoding in zip(long, cut.encode_batch_fast([texts[row] for row in long]), strict=True):
                encodings[row], sizes[row] = encoding, len(encoding)
        lengths[begin : begin + len(texts)] = sizes
        ids.append(_flatten([encoding.ids for encoding in encodings], int(sizes.sum())))
        types.append(_flatten([encoding.type_ids for encoding in encodings], int(sizes.sum())))
    if strict and truncated:
        raise DataError(
            f"{examples.source}: sequences over {max_length} word pieces, and strict reading was asked for: "
            f"{_first(truncated)}"
        )
    offsets = np.zeros(len(examples) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    empty = np.zeros(0, dtype=np.int32)
    return EncodedTask(
        examples.task,
        examples.ids,
        np.concatenate([empty, *ids]),
        np.concatenate([empty, *types]),
        offsets,
        examples.labels,
        tuple(truncated),
    )


def data_digest(encoded: Mapping[str, Mapping[str, EncodedTask]]) -> str:
    """SHA-256, in hexadecimal, of what a model sees of split -> task -> examples: word pieces, offsets and labels."""
    digest = hashlib.sha256()
    for split, tasks in encoded.items():
        for name, task in tasks.items():
            digest.update(f"{split} {name} {len(task)} {task.labels is not None}\n".encode())
            for array in (task.input_ids, task.offsets, task.labels):
                if array is not None:
                    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def examples_digest(task: EncodedTask) -> str:
    """SHA-256, in hexadecimal, of all that a run sees of some examples: ids, word pieces, types, offsets, labels."""
    digest = hashlib.sha256("\n".join(task.ids).encode())
    for array in (task.input_ids, task.token_type_ids, task.offsets, task.labels):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself where it neither cuts nor pads, else a copy that does not."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    plain = _copy(tokenizer)
    plain.no_truncation()
    plain.no_padding()
    return plain


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.to_str())


def _flatten(rows: list[list[int]], count: int) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=count)


def _first(truncated: Sequence[str]) -> str:
    more = f"; and {len(truncated) - _SHOWN} more" if len(truncated) > _SHOWN else ""
    return f"{len(truncated)}: " + "; ".join(truncated[:_SHOWN]) + more
