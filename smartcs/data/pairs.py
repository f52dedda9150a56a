"""Pairs taken apart: from [CLS] a [SEP] b [SEP] to [CLS] a [SEP] and [CLS] b [SEP], for siamese encoding."""

from __future__ import annotations

import torch
from torch import Tensor

from smartcs.data.packing import PackedBatch


def sentences_of_pairs(batch: PackedBatch) -> PackedBatch:
    """The sentences of B pairs, each as a sequence of its own: B first ones, then B second ones.

    Args:
        batch: pairs as one sequence each, [CLS] a [SEP] with token type 0, then b [SEP] with token type 1.

    Returns:
        2 B rows with token type 0 and positions from 0; a second sentence begins with its pair's [CLS]. A row without
        tokens stays one.

    Raises:
        ValueError: a row has tokens, but not of both types (on the CPU only, where looking costs nothing).
    """
    _check_whole("sentences_of_pairs", batch)
    lengths = batch.lengths.long()
    rows = torch.repeat_interleave(
        torch.arange(batch.batch_size, device=lengths.device), lengths, output_size=batch.num_tokens
    )
    is_second = batch.token_type_ids != 0
    seconds = torch.zeros_like(lengths).index_add(0, rows, is_second.long())
    firsts = lengths - seconds
    if lengths.device.type == "cpu":
        _check_pairs(firsts, seconds)
    occupied = (lengths > 0).long()
    own = torch.cat([firsts, seconds + occupied])
    ends = own.cumsum(0)
    starts = ends - own

    # Where each token goes: its place in its row, for second sentences counted from the [CLS] put before them.
    place = torch.arange(batch.num_tokens, device=lengths.device) - batch.cu_seqlens[:-1].long()[rows]
    target = torch.where(
        is_second, starts[batch.batch_size :][rows] + place - firsts[rows] + 1, starts[: batch.batch_size][rows] + place
    )
    total = batch.num_tokens + int(occupied.sum())
    input_ids = batch.input_ids.new_empty(total)
    input_ids[target] = batch.input_ids
    filled = occupied.bool()
    input_ids[starts[batch.batch_size :][filled]] = batch.input_ids[batch.cu_seqlens[:-1].long()[filled]]
    positions = torch.arange(total, device=lengths.device) - torch.repeat_interleave(starts, own, output_size=total)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    return PackedBatch(input_ids, torch.zeros_like(input_ids), positions, cu_seqlens, batch.max_seqlen)


def concatenate(first: PackedBatch, second: PackedBatch) -> PackedBatch:
    """The rows of two batches in one: those of `first`, then those of `second`."""
    _check_whole("concatenate", first, second)
    return PackedBatch(
        torch.cat([first.input_ids, second.input_ids]),
        torch.cat([first.token_type_ids, second.token_type_ids]),
        torch.cat([first.position_ids, second.position_ids]),
        torch.cat([first.cu_seqlens, second.cu_seqlens[1:] + first.num_tokens]),
        max(first.max_seqlen, second.max_seqlen),
    )


def _check_whole(owner: str, *batches: PackedBatch) -> None:
    if any(batch.inert for batch in batches):
        raise ValueError(f"{owner}: the batch is filled up with an inert row, expected examples alone")


def _check_pairs(firsts: Tensor, seconds: Tensor) -> None:
    alone = ((firsts == 0) != (seconds == 0)).nonzero()
    if alone.numel():
        row = int(alone[0])
        raise ValueError(
            f"sentences_of_pairs: row {row} has {int(firsts[row])} tokens of type 0 and {int(seconds[row])} of type 1, "
            "expected a pair with both"
        )
