"""Pairs taken apart: from [CLS] a [SEP] b [SEP] to [CLS] a [SEP] and [CLS] b [SEP], for siamese encoding."""

from __future__ import annotations

import torch
from torch import Tensor

from smartcs.data.packing import PackedBatch


def sentences_of_pairs(batch: PackedBatch, *, keep_pairs: bool = False) -> PackedBatch:
    """The sentences of B pairs, each as a sequence of its own: first, second, first, second, ...

    What is made of a pair lies together, so that a part of the pairs becomes a part of the rows and tokens.

    Args:
        batch: pairs as one sequence each, [CLS] a [SEP] with token type 0, then b [SEP] with token type 1.
        keep_pairs: whether each pair comes before its sentences, as it is: pair, first, second, ...

    Returns:
        2 B rows, or 3 B; the sentences with token type 0 and positions from 0, a second one beginning with its pair's
        [CLS]. Of a row without tokens come rows without tokens.

    Raises:
        ValueError: a row has tokens, but not of both types (on the CPU only, where looking costs nothing), or the batch
            is filled up.
    """
    if batch.inert:
        raise ValueError("sentences_of_pairs: the batch is filled up with an inert row, expected pairs alone")
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
    own = torch.stack([*[lengths] * keep_pairs, firsts, seconds + occupied], dim=1)  # (B, 2 or 3)
    ends = own.flatten().cumsum(0)
    starts = ends - own.flatten()
    *pair, first, second = starts.view_as(own).unbind(1)

    # Where each token goes: its place in its row, for second sentences counted from the [CLS] put before them.
    place = torch.arange(batch.num_tokens, device=lengths.device) - batch.cu_seqlens[:-1].long()[rows]
    target = torch.where(is_second, (second - firsts + 1)[rows], first[rows]) + place
    total = (1 + keep_pairs) * batch.num_tokens + int(occupied.sum())
    input_ids = batch.input_ids.new_empty(total)
    input_ids[target] = batch.input_ids
    filled = occupied.bool()
    input_ids[second[filled]] = batch.input_ids[batch.cu_seqlens[:-1].long()[filled]]
    token_type_ids = torch.zeros_like(input_ids)
    positions = torch.arange(total, device=lengths.device)
    positions -= torch.repeat_interleave(starts, own.flatten(), output_size=total)
    for start in pair:
        target = start[rows] + place
        input_ids[target] = batch.input_ids
        token_type_ids[target] = batch.token_type_ids
        positions[target] = batch.position_ids
    cu_seqlens = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    return PackedBatch(input_ids, token_type_ids, positions, cu_seqlens, batch.max_seqlen)


def _check_pairs(firsts: Tensor, seconds: Tensor) -> None:
    alone = ((firsts == 0) != (seconds == 0)).nonzero()
    if alone.numel():
        row = int(alone[0])
        raise ValueError(
            f"sentences_of_pairs: row {row} has {int(firsts[row])} tokens of type 0 and {int(seconds[row])} of type 1, "
            "expected a pair with both"
        )
