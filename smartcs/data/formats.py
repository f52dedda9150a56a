"""Read and write the task files of Stanford's CS224N default project.

A file is tab-separated UTF-8 with one header line; its first column (a row index) has no name and is not
used. `examples.TASKS` lists the three tasks and their columns; `load_folder` reads a folder of them.

Quoting follows CSV (RFC 4180) inside a line: a field that begins with a double quote ends at its closing
one, and ``""`` in between stands for one. A quoted field never spans lines: no published file has one that
does, and so a quote that is never closed costs its own row and not the rows below it.

Per row (skipped, counted and named by file and line; with ``strict=True`` all of them together an error):
another number of columns than the header, a quote that is not closed or is followed by more text, a blank
line between rows, a NUL byte, an empty id or sentence, a label that is missing or not a number, a line of more than
LINE_CHARACTERS.

Per file (`DataError` at once): folder or file missing, empty, header only, more than FILE_BYTES or FILE_LINES, not
UTF-8, another delimiter, a column missing from the header, more than half of the rows malformed, and a label that is a
number outside the task's range: such a file uses another scale, so its other labels cannot be trusted either.

Harmless: a byte order mark, CRLF line ends, blank lines at the end, repeated ids, columns in another order,
columns that no task reads. The test split needs no labels: `Examples.labels` is None where the label column
is missing or empty in every row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from smartcs._reading import MIB, read_bounded
from smartcs.data.examples import SPLITS, TASKS, DataError, DataFolder, Examples, SkippedRow, TaskSpec, Text

__all__ = [
    "TASKS",
    "DataError",
    "DataFolder",
    "Examples",
    "SkippedRow",
    "TaskSpec",
    "load_file",
    "load_folder",
    "save_folder",
]

FILE_BYTES = 256 * MIB  # the 400,000 pairs of the whole Quora set are 60 MB
FILE_LINES = 2_000_000
LINE_CHARACTERS = 100_000  # no encoder takes a hundredth of that
_LABEL_CHARACTERS = 40
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.ASCII | re.IGNORECASE)
_SHOWN = 5  # rows named in a message before the rest is only counted


def load_folder(path: str | Path, *, strict: bool = False) -> DataFolder:
    """Read ``ids-sst-*.csv``, ``quora-*.csv`` and ``sts-*.csv`` of a folder.

    train and dev must be there for every task. test is optional, also under the course's name for its
    unlabelled files (``ids-sst-test-student.csv``), which counts only when the plain name is missing.

    Args:
        path: the folder.
        strict: whether malformed rows are an error instead of being skipped.

    Raises:
        DataError: see the module's docstring.
    """
    folder = Path(path)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise DataError(f"{folder}: found {found}, expected a folder with the files {_expected_files()}")
    wanted = {split: {name: _find_file(folder, task, split) for name, task in TASKS.items()} for split in SPLITS}
    missing = [
        f"{TASKS[name].prefix}-{split}.csv"
        for split in ("train", "dev")
        for name, file in wanted[split].items()
        if file is None
    ]
    if missing:
        present = sorted(entry.name for entry in folder.iterdir())
        raise DataError(
            f"{folder}: missing {', '.join(missing)}; expected {_expected_files()}; "
            f"the folder holds {_listing(present)}"
        )
    splits = {
        split: {
            name: load_file(file, TASKS[name], labels_optional=split == "test")
            for name, file in files.items()
            if file is not None
        }
        for split, files in wanted.items()
    }
    loaded = DataFolder(str(folder), splits["train"], splits["dev"], splits["test"])
    if strict and loaded.skipped:
        raise _strict_error(loaded.skipped)
    return loaded


def load_file(path: str | Path, task: TaskSpec, *, labels_optional: bool = False, strict: bool = False) -> Examples:
    """Read one task file.

    Args:
        path: the file.
        task: which columns to read and which labels are legal.
        labels_optional: accept a file whose label column is missing or empty throughout.
        strict: whether malformed rows are an error instead of being skipped.

    Raises:
        DataError: see the module's docstring.
    """
    file = Path(path)
    lines = _read_lines(file)
    header = _split_line(lines[0])
    if isinstance(header, str):
        raise DataError(f"{file}, line 1: the header has {header}")
    header = [name.strip() for name in header]
    columns = _find_columns(file, header, task, labels_optional)
    if len(lines) == 1:
        raise DataError(f"{file}: only a header line, expected rows below it")
    label_column = columns.pop(task.label_column, None)
    if label_column is not None and labels_optional:
        rows = (_split_line(line) for line in lines[1:])
        if not any(row[label_column].strip() for row in rows if _fits(row, header)):
            label_column = None

    ids: list[str] = []
    texts: list[Text] = []
    labels: list[float] = []
    numbers: list[int] = []
    skipped: list[SkippedRow] = []
    for number, line in enumerate(lines[1:], start=2):
        row = _split_line(line)
        problem = row if isinstance(row, str) else _check_row(row, header, columns, label_column)
        if isinstance(row, str) or problem:
            skipped.append(SkippedRow(str(file), number, problem))
            continue
        if label_column is not None:
            # strip() takes more for white space than float() does, such as the separators U+001C to U+001F.
            label = float(row[label_column].strip())
            if not 0 <= label <= task.high or (task.integral and label != int(label)):
                raise DataError(
                    f"{file}, line {number}: {task.label_column} is {row[label_column].strip()!r}, "
                    f"expected {task.wanted_label}"
                )
            labels.append(label)
        sentences = [row[columns[name]].strip() for name in task.text_columns]
        ids.append(row[columns["id"]].strip())
        texts.append(sentences[0] if len(sentences) == 1 else (sentences[0], sentences[1]))
        numbers.append(number)

    if 2 * len(skipped) > len(lines) - 1:
        raise DataError(
            f"{file}: {len(skipped)} of {_rows(len(lines) - 1)} are malformed, more than half: {_first_rows(skipped)}"
        )
    if strict and skipped:
        raise _strict_error(skipped)
    return Examples(
        task,
        tuple(ids),
        tuple(texts),
        None if label_column is None else np.array(labels, dtype=task.label_dtype),
        str(file),
        np.array(numbers, dtype=np.int64),
        tuple(skipped),
    )


def save_folder(folder: DataFolder, path: str | Path) -> None:
    """Write all splits in the course's format; `load_folder` reads back the same ids, texts and labels.

    Args:
        folder: what to write.
        path: the target folder, made if needed.

    Raises:
        DataError: one of the files is there already, or a text cannot stand on one line; nothing is written.
    """
    contents: dict[Path, str] = {}
    for split, examples in folder.splits():
        file = Path(path) / f"{examples.task.prefix}-{split}.csv"
        if file.exists():
            raise DataError(f"{file}: is there already, expected a folder without it")
        contents[file] = _format_file(examples)
    Path(path).mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        file.write_text(content, encoding="utf-8", newline="\n")


def _format_file(examples: Examples) -> str:
    task = examples.task
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(["", "id", *task.text_columns, *([] if examples.labels is None else [task.label_column])])
    for row, text in enumerate(examples.texts):
        texts = [text] if isinstance(text, str) else list(text)
        if any(character in field for field in texts for character in "\n\r\0"):
            raise DataError(f"{examples.where(row)}: the text holds a line break or NUL byte: {text!r}")
        label = [] if examples.labels is None else [examples.labels[row].item()]
        writer.writerow([row, examples.ids[row], *texts, *label])
    return buffer.getvalue()


def _find_file(folder: Path, task: TaskSpec, split: str) -> Path | None:
    names = [f"{task.prefix}-{split}.csv"]
    if split == "test":
        names.append(f"{task.prefix}-test-student.csv")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_lines(file: Path) -> list[str]:
    """The physical lines without line ends and without blank lines at the end; at least one."""
    try:
        raw = read_bounded(file, FILE_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}: begins with a UTF-16 byte order mark, expected UTF-8 text")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Offsets of the error count from behind a byte order mark.
        at = error.start + (len(raw) - len(error.object))
        line = raw.count(b"\n", 0, at) + 1
        raise DataError(
            f"{file}, line {line}: byte 0x{raw[at]:02x} at byte offset {at} of the file is not UTF-8 "
            f"({error.reason}), expected UTF-8 text"
        ) from error
    count = text.count("\n")
    if count > FILE_LINES:
        raise DataError(f"{file}: {count} lines, expected at most {FILE_LINES}")
    # Not splitlines(): it also splits at U+2028, U+0085 and others, which may stand inside a sentence.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{file}: the file is empty, expected a header line and rows")
    return lines


def _split_line(line: str) -> list[str] | str:
    """The fields of a line, or what is wrong with it."""
    if len(line) > LINE_CHARACTERS:
        return f"{len(line)} characters, expected at most {LINE_CHARACTERS}"
    if "\0" in line:
        return "a NUL byte"
    if not line.strip():
        return "a blank line"
    if '"' not in line:
        return line.split("\t")
    try:
        return next(csv.reader([line], delimiter="\t", strict=True))
    except csv.Error as error:
        return f"unbalanced double quotes ({error})"


def _fits(row: list[str] | str, header: list[str]) -> bool:
    return isinstance(row, list) and len(row) == len(header)


def _find_columns(file: Path, header: list[str], task: TaskSpec, labels_optional: bool) -> dict[str, int]:
    needed = ["id", *task.text_columns]
    if not labels_optional or task.label_column in header:
        needed.append(task.label_column)
    missing = [name for name in needed if name not in header]
    if missing:
        other = next((d for d in (",", ";", "|") if len(header) == 1 and d in header[0]), None)
        if other:
            raise DataError(
                f"{file}, line 1: the header is separated by {other!r}, "
                f"expected tabs between the columns {', '.join(needed)}"
            )
        found = _listing([repr(name[:40]) for name in header])
        raise DataError(f"{file}, line 1: column {', '.join(map(repr, missing))} is missing, the header has {found}")
    twice = [name for name in needed if header.count(name) > 1]
    if twice:
        raise DataError(f"{file}, line 1: column {', '.join(map(repr, twice))} stands more than once in the header")
    return {name: header.index(name) for name in needed}


def _check_row(row: list[str], header: list[str], columns: dict[str, int], label_column: int | None) -> str:
    """What is wrong with a row, "" if nothing is."""
    if len(row) != len(header):
        return f"{len(row)} columns, expected {len(header)} as in the header"
    problems = [f"{name} is empty" for name, at in columns.items() if not row[at].strip()]
    if label_column is not None:
        label = row[label_column].strip()
        if not label:
            problems.append(f"{header[label_column]} is empty")
        elif len(label) > _LABEL_CHARACTERS or not _NUMBER.fullmatch(label):
            problems.append(f"{header[label_column]} is {label[:40]!r}, not a number")
    # Whoever wrote the file met an unbalanced quote in its own input: the field then begins with that
    # quote, holds the text of the fields behind it, and those are empty.
    swallowing = [name for name, at in columns.items() if row[at].startswith('"') and row[at].count('"') % 2]
    if problems and swallowing:
        problems.append(f"an unbalanced double quote at the start of {swallowing[0]} swallowed what follows")
    return "; ".join(problems)


def _strict_error(skipped: Sequence[SkippedRow]) -> DataError:
    return DataError(f"{_rows(len(skipped))} malformed, and strict reading was asked for: {_first_rows(skipped)}")


def _first_rows(skipped: Sequence[SkippedRow]) -> str:
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return "; ".join(map(str, skipped[:_SHOWN])) + more


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _expected_files() -> str:
    names = ", ".join(f"{task.prefix}-{{train,dev}}.csv" for task in TASKS.values())
    return f"{names} (and -test.csv, optional)"


def _listing(names: list[str]) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
