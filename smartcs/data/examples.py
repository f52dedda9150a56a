"""What a data set is here: the three tasks, examples with ids and labels, and a folder of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

Text: TypeAlias = str | tuple[str, str]
SPLITS = ("train", "dev", "test")
_SHOWN = 20  # skipped rows named before the rest is only counted


class DataError(ValueError):
    """Data that cannot be used; the message says which file and line, what was found and what is wanted."""


@dataclass(frozen=True)
class TaskSpec:
    """One task: where its examples lie and what its labels mean.

    Attributes:
        name: short name, the key of every per-task mapping.
        prefix: file names are ``{prefix}-{split}.csv``.
        text_columns: one column (sentences) or two (pairs).
        label_column: the column of the label.
        high: labels run from 0 to this.
        integral: whether labels are the classes 0, 1, .., high; otherwise any number in the range.
    """

    name: str
    prefix: str
    text_columns: tuple[str, ...]
    label_column: str
    high: int
    integral: bool

    @property
    def label_dtype(self) -> type[np.int64] | type[np.float32]:
        """int64 class numbers for more than two classes (cross entropy), else float32 targets."""
        return np.int64 if self.integral and self.high > 1 else np.float32

    @property
    def wanted_label(self) -> str:
        """The legal labels, in words."""
        return f"an integer from 0 to {self.high}" if self.integral else f"a number from 0 to {self.high}"


TASKS: dict[str, TaskSpec] = {
    "sst": TaskSpec("sst", "ids-sst", ("sentence",), "sentiment", high=4, integral=True),
    "qqp": TaskSpec("qqp", "quora", ("sentence1", "sentence2"), "is_duplicate", high=1, integral=True),
    "sts": TaskSpec("sts", "sts", ("sentence1", "sentence2"), "similarity", high=5, integral=False),
}


@dataclass(frozen=True)
class SkippedRow:
    """A malformed row: file, physical line (the header is line 1) and what is wrong with it."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Examples:
    """The N examples of one task and split.

    Attributes:
        task: what the labels mean.
        ids: N ids as in the file (not necessarily distinct).
        texts: N sentences, or N pairs of sentences.
        labels: [N] int64 (SST) or float32 (QQP, STS); None where the file has none.
        source: the file, or another name for where the examples come from.
        lines: [N] int64, line of each example in `source`; None when it is no file.
        skipped: the malformed rows that were left out.
    """

    task: TaskSpec
    ids: tuple[str, ...]
    texts: tuple[Text, ...]
    labels: np.ndarray | None
    source: str
    lines: np.ndarray | None = None
    skipped: tuple[SkippedRow, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, index: int) -> str:
        """Where example `index` stands: file and line, or its id."""
        place = f"id {self.ids[index]}" if self.lines is None else f"line {self.lines[index]}"
        return f"{self.source}, {place}"


@dataclass(frozen=True, eq=False)
class DataFolder:
    """All tasks of a data folder: ``folder.train["sst"]``, ``folder.dev["qqp"]``, ``folder.test.get("sts")``.

    `train` and `dev` hold the same tasks, as a rule all, `test` those of them that have a test file.
    """

    source: str
    train: dict[str, Examples]
    dev: dict[str, Examples]
    test: dict[str, Examples] = field(default_factory=dict)

    def splits(self) -> Iterator[tuple[str, Examples]]:
        """(split, examples) of all tasks, train first."""
        for split in SPLITS:
            for examples in getattr(self, split).values():
                yield split, examples

    @property
    def skipped(self) -> tuple[SkippedRow, ...]:
        """The malformed rows of all files."""
        return tuple(row for _, examples in self.splits() for row in examples.skipped)

    def describe(self) -> str:
        """A few lines for people: where from, rows per task and split, every skipped row by file and line."""
        lines = [f"data: {self.source}"]
        for name in self.train:
            counts = [f"{split} {len(ex)}" for split, ex in self.splits() if ex.task.name == name]
            lines.append(f"  {name}: " + ", ".join(counts))
        if self.skipped:
            lines += [f"  {line}" for line in describe_skipped(self.skipped)]
        return "\n".join(lines)


def describe_skipped(rows: Sequence[SkippedRow]) -> list[str]:
    """Lines for people: how many rows were skipped, and the first of them by file and line."""
    lines = [f"skipped {len(rows)} malformed {'row' if len(rows) == 1 else 'rows'}:"]
    lines += [f"  {row}" for row in rows[:_SHOWN]]
    if len(rows) > _SHOWN:
        lines.append(f"  and {len(rows) - _SHOWN} more")
    return lines
