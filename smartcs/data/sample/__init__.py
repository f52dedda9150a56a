"""The embedded default: synthetic English for the three tasks, and a tokenizer made for it.

A grammar with its own words writes everything (`opinions`, `paraphrases`, `scenes`); nothing is taken from
a data set. The sample is a pure function of its seed, the same on every platform. It is meant for trying
things out and for tests: accuracies on it say nothing about real text.
"""

from __future__ import annotations

from pathlib import Path

from smartcs.data import formats
from smartcs.data.sample.build import sample_folder
from smartcs.data.sample.vocabulary import sample_tokenizer, sample_vocabulary

__all__ = ["sample_folder", "sample_tokenizer", "sample_vocabulary", "write_folder"]


def write_folder(path: str | Path, seed: int = 0) -> None:
    """Write the sample as course files, to look at or to train from.

    Raises:
        DataError: one of the files is there already; nothing is written.
    """
    formats.save_folder(sample_folder(seed), path)
