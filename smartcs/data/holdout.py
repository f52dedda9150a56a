"""A part of the training examples in place of the dev split, so that settings can be chosen without looking at dev."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from smartcs.data.examples import DataError, DataFolder, Examples, Text


def hold_out(folder: DataFolder, share: float) -> DataFolder:
    """The training examples of `folder` in two: about `share` of their texts as dev, the others as train; no test.

    An example is held out where the SHA-256 of its text says so: equal texts fall on one side, and the choice is the
    same for any seed, order and number of examples.

    Args:
        folder: its dev and test splits are not looked at.
        share: of the texts, above 0 and below 1.

    Raises:
        DataError: a task has too few examples for both parts.
    """
    train, dev = {}, {}
    for name, examples in folder.train.items():
        held = np.array([_place(text) < share for text in examples.texts], dtype=bool)
        train[name], dev[name] = _part(examples, ~held), replace(_part(examples, held), skipped=())
        if not len(train[name]) or not len(dev[name]):
            raise DataError(
                f"{examples.source}: a holdout of {share:g} leaves {len(train[name])} of {len(examples)} examples for "
                f"training and {len(dev[name])} for evaluation, expected some for both"
            )
    return DataFolder(f"{folder.source}, {share:g} of its training texts held out", train, dev)


def _place(text: Text) -> float:
    """Where in [0, 1) a text lies."""
    sentences = [text] if isinstance(text, str) else list(text)
    digest = hashlib.sha256("\0".join(sentences).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _part(examples: Examples, chosen: np.ndarray) -> Examples:
    rows = np.flatnonzero(chosen)
    return replace(
        examples,
        ids=tuple(examples.ids[row] for row in rows),
        texts=tuple(examples.texts[row] for row in rows),
        labels=None if examples.labels is None else examples.labels[rows],
        lines=None if examples.lines is None else examples.lines[rows],
    )
