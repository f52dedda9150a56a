"""Pairs taken apart for siamese encoding."""

from dataclasses import replace

import pytest
import torch

from smartcs import PackedBatch
from smartcs.data.pairs import sentences_of_pairs
from smartcs.data.sample import sample_tokenizer

PAIRS = [("a fine film", "a good film"), ("the soup was cold", "rain"), ("", "the train was late")]


def encode(texts) -> PackedBatch:
    encodings = [sample_tokenizer().encode(*([text] if isinstance(text, str) else text)) for text in texts]
    return PackedBatch.from_lists([e.ids for e in encodings], [e.type_ids for e in encodings])


def same(got: PackedBatch, wanted: PackedBatch) -> bool:
    fields = ("input_ids", "token_type_ids", "position_ids", "cu_seqlens")
    return all(torch.equal(getattr(got, name), getattr(wanted, name)) for name in fields)


def test_sentences_are_as_if_encoded_alone():
    got = sentences_of_pairs(encode(PAIRS))
    assert same(got, encode([text for pair in PAIRS for text in pair]))
    assert got.max_seqlen >= got.lengths.max()


def test_pairs_come_before_their_sentences():
    batch = encode(PAIRS)
    got = sentences_of_pairs(batch, keep_pairs=True)
    assert same(got, encode([text for pair in PAIRS for text in (pair, *pair)])) and got.max_seqlen == batch.max_seqlen
    # A pair's own positions are kept, whatever they are; its sentences count from 0.
    shifted = sentences_of_pairs(replace(batch, position_ids=batch.position_ids + 7), keep_pairs=True)
    pairs = torch.repeat_interleave(torch.arange(9) % 3 == 0, got.lengths)
    assert torch.equal(shifted.position_ids, got.position_ids + 7 * pairs)


@pytest.mark.parametrize("keep_pairs", [False, True])
def test_a_part_of_the_pairs_is_a_part_of_the_rows(keep_pairs):
    whole, part = sentences_of_pairs(encode(PAIRS), keep_pairs=keep_pairs), encode(PAIRS[1:])
    part = sentences_of_pairs(part, keep_pairs=keep_pairs)
    first = whole.num_tokens - part.num_tokens
    assert torch.equal(part.input_ids, whole.input_ids[first:])
    assert torch.equal(part.cu_seqlens, whole.cu_seqlens[2 + keep_pairs :] - first)


def test_rows_without_tokens_stay():
    batch = PackedBatch.from_lists([[], [2, 5, 3, 6, 3], []], [[], [0, 0, 0, 1, 1], []])
    got = sentences_of_pairs(batch)
    assert got.lengths.tolist() == [0, 0, 3, 3, 0, 0] and got.input_ids.tolist() == [2, 5, 3, 2, 6, 3]
    got = sentences_of_pairs(batch, keep_pairs=True)
    assert got.lengths.tolist() == [0, 0, 0, 5, 3, 3, 0, 0, 0]
    for keep_pairs in (False, True):
        empty = sentences_of_pairs(PackedBatch.from_lists([]), keep_pairs=keep_pairs)
        assert empty.batch_size == 0 and empty.num_tokens == 0


def test_a_sentence_alone_is_refused():
    with pytest.raises(ValueError, match="row 1 has 3 tokens of type 0 and 0 of type 1, expected a pair with both"):
        sentences_of_pairs(PackedBatch.from_lists([[2, 5, 3, 6, 3], [2, 5, 3]], [[0, 0, 0, 1, 1], [0, 0, 0]]))
