"""The embedded sample: always the same, nothing twice, the promised labels, and no shortcut through words."""

from __future__ import annotations

import hashlib
import re
import string
from pathlib import Path

import numpy as np
import pytest

from smartcs.data.examples import DataError, Examples
from smartcs.data.formats import load_folder
from smartcs.data.sample import sample_folder, sample_tokenizer, sample_vocabulary, write_folder
from smartcs.data.sample.draw import Draw
from smartcs.data.sample.opinion_words import DOMAINS, GENERAL
from smartcs.data.sample.opinions import OpinionWriter
from smartcs.data.sample.paraphrases import Comparison, Deed, Frame, Journey, Question, Sequence, Transfer
from smartcs.data.sample.scenes import Scene

# Changes only when the grammar changes on purpose: then every figure quoted for the sample changes too.
SHA256 = "5063112eebe349595adf9376d178065d8e64ab525a79bd86eda9fd3e2a63d5ee"


def _sentences(examples: Examples) -> list[str]:
    return [sentence for text in examples.texts for sentence in ((text,) if isinstance(text, str) else text)]


def _labels(examples: Examples) -> np.ndarray:
    assert examples.labels is not None
    return examples.labels


def test_is_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for _, examples in sample_folder().splits():
        for row in zip(examples.ids, examples.texts, _labels(examples).tolist(), strict=True):
            digest.update(repr(row).encode())
    assert digest.hexdigest() == SHA256


def test_random_numbers_are_splitmix64() -> None:
    """First outputs of SplitMix64 for state 1234567, as published with the Java and Rosetta versions."""
    draw = Draw(0, "")
    draw._state = 1234567
    assert [draw.below(1 << 64) for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_another_seed_gives_another_sample() -> None:
    assert sample_folder(1).train["sst"].texts != sample_folder(0).train["sst"].texts


def test_sizes_and_no_sentence_twice() -> None:
    folder = sample_folder()
    sizes = {name: [len(split[name]) for split in (folder.train, folder.dev, folder.test)] for name in folder.train}
    assert sizes == {"sst": [3000, 400, 400], "qqp": [6000, 600, 600], "sts": [2400, 400, 400]}
    sentences = [sentence for _, examples in folder.splits() for sentence in _sentences(examples)]
    assert len(set(sentences)) == len(sentences) == 3800 + 2 * 7200 + 2 * 3200
    assert all(re.fullmatch(r"[A-Z][A-Za-z ,;]+[.?]", sentence) for sentence in sentences)
    assert not any("  " in sentence or " ," in sentence for sentence in sentences)


def test_label_shares() -> None:
    for split, examples in sample_folder().splits():
        labels = _labels(examples)
        if examples.task.name == "sst":
            shares = np.bincount(labels, minlength=5) / len(labels)
            np.testing.assert_allclose(shares, [0.15, 0.25, 0.2, 0.25, 0.15])
        elif examples.task.name == "qqp":
            assert labels.mean() == pytest.approx(0.4)
        else:
            assert (labels.min(), labels.max()) == (0, 5), split
            assert np.unique(labels).size > 15
            assert labels.std() > 1.2
            assert (labels * 4 == np.round(labels * 4)).all()


def test_lengths_are_those_of_real_sentences() -> None:
    words = [len(sentence.split()) for _, examples in sample_folder().splits() for sentence in _sentences(examples)]
    assert 8 <= np.mean(words) <= 14
    assert max(words) <= 26


# What the labels mean.


@pytest.mark.parametrize("value", [-2, -1, 1, 2])
def test_predicates_express_their_value(value: int) -> None:
    """Every adjective phrase of a value, judged by an own reading of its words."""
    writer = OpinionWriter(Draw(5, "test"))
    writer.write(value)
    values = {word: grade for grade in (-2, -1, 1, 2) for word in (*writer._domain.adjectives[grade], *GENERAL[grade])}
    for _ in range(200):
        phrase = writer._predicate(value)
        (grade, *others) = [values[word] for word in phrase.split() if word in values]
        first = phrase.removesuffix(f" {phrase.split()[-1]}")
        if first in ("almost", "nearly", "close to"):
            assert value * 2 == grade
        elif first in ("not at all", "anything but", "not in the least"):
            assert value == -2 * grade
        elif first in ("not", "hardly", "not really") or others:
            assert value == -grade
        elif first in ("very", "really", "extremely", "truly", "remarkably", "incredibly"):
            assert value == 2 * grade
        else:
            assert value == grade


@pytest.mark.parametrize("kind", [Question, Comparison, Journey, Deed, Transfer, Sequence])
def test_a_changed_frame_shares_no_wording(kind: type[Frame]) -> None:
    """A sentence has one meaning: no wording of a frame may be a wording of its change."""
    draw = Draw(11, kind.__name__)
    for _ in range(60):
        frame = kind.draw(draw)
        changed = frame.change(draw)
        assert changed != frame
        assert not {frame.word(draw) for _ in range(40)} & {changed.word(draw) for _ in range(40)}


def test_similarity_of_scenes() -> None:
    draw = Draw(3, "scenes")
    for _ in range(200):
        scene = Scene.draw(draw)
        other = scene.neighbour(draw)
        assert scene.similarity(scene) == 5
        assert scene.similarity(other) == other.similarity(scene)
        assert (scene.similarity(other) == 5) == (scene == other)
    a = Scene(who=(0, 0), verb=(0, 0), object=0, where=(0, 0))
    assert a.similarity(Scene(who=(0, 1), verb=(0, 0), object=0, where=(1, 0))) == 5 * (0.15 + 0.5)
    assert a.similarity(Scene(who=(1, 0), verb=(0, 0), object=1, where=(0, 0))) == 5 * (0.25 + 0.2)
    assert a.similarity(Scene(who=(1, 0), verb=(1, 0), object=0, where=(1, 0))) == 0


def test_word_overlap_does_not_give_the_paraphrases_away() -> None:
    """The best threshold on the share of common words, chosen on the very pairs it is judged on."""
    examples = sample_folder().train["qqp"]
    overlap = np.array([_overlap(*text) for text in examples.texts])
    labels = _labels(examples) > 0
    best = max(((overlap >= threshold) == labels).mean() for threshold in np.unique(overlap))
    assert 0.6 < best < 0.7


def test_opinion_words_do_not_give_the_sentiment_away() -> None:
    """The sum of the grades of the adjectives in a sentence, with the best cut points: far from enough."""
    grades = {word: grade for grade, words in GENERAL.items() for word in words}
    for domain in DOMAINS:
        grades |= {word: grade for grade, words in domain.adjectives.items() for word in words}
    examples = sample_folder().train["sst"]
    found = [re.findall("[a-z]+", sentence) for sentence in _sentences(examples)]
    sums = np.array([sum(grades.get(word, 0) for word in sentence) for sentence in found])
    labels = _labels(examples)
    best = np.array([np.bincount(labels[sums == total], minlength=5).max() for total in np.unique(sums)]).sum()
    assert 0.3 < best / len(labels) < 0.6


def _overlap(first: str, second: str) -> float:
    a, b = (set(re.findall("[a-z]+", text.lower())) for text in (first, second))
    return len(a & b) / len(a | b)


# Files and tokenizer.


def test_written_files_read_back(tmp_path: Path) -> None:
    write_folder(tmp_path / "sample")
    loaded = load_folder(tmp_path / "sample", strict=True)
    for (split, a), (_, b) in zip(sample_folder().splits(), loaded.splits(), strict=True):
        assert (a.ids, a.texts) == (b.ids, b.texts), split
        np.testing.assert_array_equal(a.labels, b.labels)
    with pytest.raises(DataError, match="is there already"):
        write_folder(tmp_path / "sample")


def test_tokenizer_knows_the_sample_and_spells_the_rest() -> None:
    tokenizer, vocabulary = sample_tokenizer(), sample_vocabulary()
    assert len(set(vocabulary)) == len(vocabulary)
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.get_vocab() == {piece: number for number, piece in enumerate(vocabulary)}
    sentences = [sentence for _, examples in sample_folder().splits() for sentence in _sentences(examples)]
    encodings = tokenizer.encode_batch_fast(sentences, add_special_tokens=False)
    words = sum(len(re.findall(r"\w+|[^\w\s]", sentence)) for sentence in sentences)
    assert sum(map(len, encodings)) < 1.001 * words  # whole words, but for the rarest
    text = f"A Zebra's {string.punctuation} costs $12.50, na\u00efve & 3rd!"
    assert "[UNK]" not in tokenizer.encode(text).tokens
    pair = tokenizer.encode("the good film", "the dull film")
    assert pair.tokens == ["[CLS]", "the", "good", "film", "[SEP]", "the", "dull", "film", "[SEP]"]
    assert pair.type_ids == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert tokenizer.decode(pair.ids) == "the good film the dull film"
