"""Pairs taken apart for siamese encoding."""

import pytest
import torch

from smartcs import PackedBatch
from smartcs.data.pairs import concatenate, sentences_of_pairs
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
    assert same(got, encode([a for a, _ in PAIRS] + [b for _, b in PAIRS]))
    assert got.max_seqlen >= got.lengths.max()


def test_rows_without_tokens_stay():
    batch = PackedBatch.from_lists([[], [2, 5, 3, 6, 3], []], [[], [0, 0, 0, 1, 1], []])
    got = sentences_of_pairs(batch)
    assert got.lengths.tolist() == [0, 3, 0, 0, 3, 0] and got.input_ids.tolist() == [2, 5, 3, 2, 6, 3]
    empty = sentences_of_pairs(PackedBatch.from_lists([]))
    assert empty.batch_size == 0 and empty.num_tokens == 0


def test_a_sentence_alone_is_refused():
    with pytest.raises(ValueError, match="row 1 has 3 tokens of type 0 and 0 of type 1, expected a pair with both"):
        sentences_of_pairs(PackedBatch.from_lists([[2, 5, 3, 6, 3], [2, 5, 3]], [[0, 0, 0, 1, 1], [0, 0, 0]]))


def test_concatenate():
    first, second = encode(PAIRS), encode(["a fine film"])
    both = concatenate(first, second)
    assert same(both, encode([*PAIRS, "a fine film"])) and both.max_seqlen == first.max_seqlen
