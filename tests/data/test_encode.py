"""Tokenizing a task: equal to the tokenizer's own output, truncation reported, batches in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from smartcs.data.encode import encode
from smartcs.data.examples import TASKS, DataError, Examples, Text
from smartcs.data.packing import PackedBatch
from smartcs.data.sample import sample_folder, sample_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return sample_tokenizer()


def _examples(task: str, texts: list[Text], lines: np.ndarray | None = None) -> Examples:
    ids = tuple(f"id{number}" for number in range(len(texts)))
    labels = np.arange(len(texts)).astype(TASKS[task].label_dtype)
    return Examples(TASKS[task], ids, tuple(texts), labels, "file.csv", lines)


@pytest.mark.parametrize("task", ["sst", "qqp", "sts"])
def test_equals_the_tokenizer_one_by_one(tokenizer: Tokenizer, task: str) -> None:
    examples = sample_folder().dev[task]
    encoded = encode(tokenizer, examples)
    assert len(encoded) == len(examples)
    assert encoded.truncated == ()
    assert encoded.input_ids.dtype == encoded.token_type_ids.dtype == np.int32
    for row in range(0, len(examples), 7):
        text = examples.texts[row]
        expected = tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)
        part = slice(encoded.offsets[row], encoded.offsets[row + 1])
        assert encoded.input_ids[part].tolist() == expected.ids
        assert encoded.token_type_ids[part].tolist() == expected.type_ids


def test_batch_equals_lists_in_any_order(tokenizer: Tokenizer) -> None:
    examples = sample_folder().dev["qqp"]
    encoded = encode(tokenizer, examples)
    rows = [17, 3, 3, 599, 0]
    batch, labels = encoded.batch(rows)
    encodings = [tokenizer.encode(*examples.texts[row]) for row in rows]
    expected = PackedBatch.from_lists([e.ids for e in encodings], [e.type_ids for e in encodings])
    for name in ("input_ids", "token_type_ids", "position_ids", "cu_seqlens"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert batch.max_seqlen == expected.max_seqlen
    assert labels is not None
    assert examples.labels is not None
    assert labels.dtype == torch.float32
    assert labels.tolist() == examples.labels[rows].tolist()


@pytest.mark.parametrize("tokens", [1, 30, 500, 10**6])
def test_batches_by_tokens(tokenizer: Tokenizer, tokens: int) -> None:
    """Every example once and in order; none without tokens, and as even as one example allows."""
    encoded = encode(tokenizer, sample_folder().dev["sst"])
    batches = list(encoded.batches(tokens))
    assert torch.equal(torch.cat([batch.input_ids for batch in batches]), torch.from_numpy(encoded.input_ids).long())
    assert torch.equal(torch.cat([batch.lengths for batch in batches]), torch.from_numpy(encoded.lengths).int())
    sizes, longest = [batch.num_tokens for batch in batches], int(encoded.lengths.max())
    if tokens == 1:
        assert sizes == encoded.lengths.tolist()
    elif tokens > longest:
        assert len(sizes) == -(-len(encoded.input_ids) // tokens)
        assert max(sizes) - min(sizes) < 2 * longest and max(sizes) < tokens + longest


def test_nothing_makes_no_batches(tokenizer: Tokenizer) -> None:
    assert list(encode(tokenizer, _examples("sst", [])).batches(100)) == []


def test_empty_batch_and_bad_index(tokenizer: Tokenizer) -> None:
    encoded = encode(tokenizer, _examples("sst", ["good", "bad"]))
    batch, labels = encoded.batch([])
    assert (batch.batch_size, batch.num_tokens) == (0, 0)
    assert labels is not None
    assert labels.shape == (0,)
    assert labels.dtype == torch.int64
    for bad in (2, -1):
        with pytest.raises(IndexError, match=f"sst: example {bad} asked for, expected 0 to 1"):
            encoded.batch([0, bad])


def test_no_examples_and_no_labels(tokenizer: Tokenizer) -> None:
    empty = encode(tokenizer, _examples("sst", []))
    assert len(empty) == 0
    assert empty.offsets.tolist() == [0]
    unlabelled = Examples(TASKS["sst"], ("a",), ("good",), None, "file.csv")
    assert encode(tokenizer, unlabelled).batch([0])[1] is None


def test_truncation_is_longest_first_and_reported(tokenizer: Tokenizer) -> None:
    pairs: list[Text] = [("good bad", "the the the the the the the the"), ("good", "bad")]
    examples = _examples("qqp", pairs, lines=np.array([5, 6]))
    encoded = encode(tokenizer, examples, max_length=8)
    pieces = [tokenizer.id_to_token(number) for number in encoded.input_ids[: encoded.offsets[1]]]
    assert pieces == ["[CLS]", "good", "bad", "[SEP]", "the", "the", "the", "[SEP]"]
    assert encoded.token_type_ids[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert encoded.lengths.tolist() == [8, 5]
    assert encoded.truncated == ("file.csv, line 5 (13 word pieces)",)
    assert "truncated 1: file.csv, line 5 (13 word pieces)" in encoded.describe()
    with pytest.raises(DataError, match=r"file.csv: sequences over 8 word pieces.* 1: file.csv, line 5"):
        encode(tokenizer, examples, max_length=8, strict=True)


def test_exactly_the_limit_is_not_truncated(tokenizer: Tokenizer) -> None:
    encoded = encode(tokenizer, _examples("sst", ["the " * 510, "the " * 511]))
    assert encoded.lengths.tolist() == [512, 512]
    assert encoded.truncated == ("file.csv, id id1 (513 word pieces)",)


def test_many_truncated_are_counted(tokenizer: Tokenizer) -> None:
    encoded = encode(tokenizer, _examples("sst", ["the " * 20] * 9), max_length=5)
    assert len(encoded.truncated) == 9
    assert encoded.describe().endswith("id id4 (22 word pieces); and 4 more")


def test_tokenizer_settings_do_not_count_and_stay(tokenizer: Tokenizer) -> None:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.enable_truncation(6)
    own.enable_padding(length=6)
    before = own.to_str()
    examples = _examples("sst", ["the " * 30, "good"])
    encoded = encode(own, examples, max_length=20)
    assert encoded.lengths.tolist() == [20, 3]
    assert own.to_str() == before
    untouched = tokenizer.to_str()
    encode(tokenizer, examples, max_length=20)
    assert tokenizer.to_str() == untouched


def test_limit_too_small(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_length is 4, expected at least 5"):
        encode(tokenizer, _examples("sst", ["good"]), max_length=4)


def test_more_examples_than_one_chunk(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = sample_folder().dev["sst"]
    whole = encode(tokenizer, examples, max_length=12)
    monkeypatch.setattr("smartcs.data.encode._CHUNK", 37)
    parts = encode(tokenizer, examples, max_length=12)
    np.testing.assert_array_equal(whole.input_ids, parts.input_ids)
    np.testing.assert_array_equal(whole.offsets, parts.offsets)
    assert whole.truncated == parts.truncated
    assert len(whole.truncated) > 50
