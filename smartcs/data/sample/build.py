"""Put the sample together: sizes, label shares, and no sentence twice."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from smartcs.data.examples import SPLITS, TASKS, DataFolder, Examples, Text
from smartcs.data.sample.draw import Draw
from smartcs.data.sample.opinions import OpinionWriter
from smartcs.data.sample.paraphrases import paraphrase_pair
from smartcs.data.sample.scenes import similarity_pair

# Examples in train, dev and test.
_SIZES = {"sst": (3000, 400, 400), "qqp": (6000, 600, 600), "sts": (2400, 400, 400)}
# Percent of each sentiment class, and of the pairs that are no paraphrases and that are: shares like those
# of the real tasks, where strong opinions and paraphrases are the rarer ones.
_SHARES = {"sst": (15, 25, 20, 25, 15), "qqp": (60, 40)}


@lru_cache(maxsize=2)
def sample_folder(seed: int = 0) -> DataFolder:
    """The sample as train, dev and test of the three tasks, all with labels.

    SST 3,000 / 400 / 400 sentences, QQP 6,000 / 600 / 600 and STS 2,400 / 400 / 400 pairs of about 8 to 20
    words; no sentence stands twice anywhere in it. Takes a second or two, once per process and seed.
    """
    seen: set[str] = set()
    splits: dict[str, dict[str, Examples]] = {split: {} for split in SPLITS}
    for name, sizes in _SIZES.items():
        draw = Draw(seed, name)
        for split, size in zip(SPLITS, sizes, strict=True):
            splits[split][name] = _examples(name, split, size, seed, draw, seen)
    return DataFolder(f"embedded sample (synthetic, seed {seed})", **splits)


def _examples(name: str, split: str, size: int, seed: int, draw: Draw, seen: set[str]) -> Examples:
    wanted = _shuffled_labels(_SHARES[name], size, draw) if name in _SHARES else [0] * size
    writer = OpinionWriter(draw)
    texts: list[Text] = []
    labels: list[float] = []
    for label in wanted:
        while True:
            text, value = _one(name, label, writer, draw)
            sentences = {text} if isinstance(text, str) else set(text)
            if not sentences & seen:
                break
        seen |= sentences
        texts.append(text)
        labels.append(value)
    task = TASKS[name]
    return Examples(
        task,
        tuple(f"{name}-{split}-{row:04d}" for row in range(size)),
        tuple(texts),
        np.array(labels, dtype=task.label_dtype),
        f"embedded sample, {name} {split} (seed {seed})",
    )


def _one(name: str, label: int, writer: OpinionWriter, draw: Draw) -> tuple[Text, float]:
    if name == "sst":
        return writer.write(label - 2), label
    if name == "qqp":
        return paraphrase_pair(draw, same=label == 1), label
    first, second, score = similarity_pair(draw)
    return (first, second), score


def _shuffled_labels(shares: tuple[int, ...], size: int, draw: Draw) -> list[int]:
    labels = [label for label, percent in enumerate(shares) for _ in range(percent * size // 100)]
    for last in range(len(labels) - 1, 0, -1):  # Fisher-Yates
        other = draw.below(last + 1)
        labels[last], labels[other] = labels[other], labels[last]
    return labels
