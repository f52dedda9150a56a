"""A part of the training examples in place of the dev split."""

from dataclasses import replace

import numpy as np
import pytest

from smartcs.data.examples import DataError
from smartcs.data.holdout import hold_out
from smartcs.data.sample import sample_folder


def test_both_parts_make_up_the_training_examples():
    folder = sample_folder()
    cut = hold_out(folder, 0.2)
    assert set(cut.train) == set(cut.dev) == set(folder.train) and not cut.test
    for name, whole in folder.train.items():
        train, dev = cut.train[name], cut.dev[name]
        assert sorted([*train.texts, *dev.texts]) == sorted(whole.texts)
        assert sorted([*train.ids, *dev.ids]) == sorted(whole.ids)
        assert 0.1 < len(dev) / len(whole) < 0.3
        labels = dict(zip(whole.ids, whole.labels, strict=True))
        for part in (train, dev):
            assert np.array_equal(part.labels, [labels[each] for each in part.ids])


def test_dev_is_not_looked_at():
    folder = sample_folder()
    assert hold_out(replace(folder, dev={}, test={}), 0.2).dev["sst"].texts == hold_out(folder, 0.2).dev["sst"].texts


def test_equal_texts_fall_on_one_side_whatever_their_order():
    folder = sample_folder()
    sst = folder.train["sst"]
    count = len(sst)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(count), 2))
    twice = replace(
        sst,
        ids=tuple(f"{row}" for row in range(2 * count)),
        texts=tuple(sst.texts[row] for row in order),
        labels=sst.labels[order],
        lines=None,
    )
    cut = hold_out(replace(folder, train={**folder.train, "sst": twice}), 0.2)
    assert not set(cut.train["sst"].texts) & set(cut.dev["sst"].texts)
    assert set(cut.dev["sst"].texts) == set(hold_out(folder, 0.2).dev["sst"].texts)


def test_a_larger_share_holds_the_smaller_one():
    folder = sample_folder()
    small, large = (set(hold_out(folder, share).dev["qqp"].texts) for share in (0.1, 0.3))
    assert small < large


def test_too_small_for_two_parts():
    with pytest.raises(DataError, match="a holdout of 1e-09 leaves .* expected some for both"):
        hold_out(sample_folder(), 1e-9)
