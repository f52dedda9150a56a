"""Reading course files: what is accepted, what is skipped and named, and what is an error."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from smartcs.data import formats
from smartcs.data.formats import TASKS, DataError, load_file, load_folder, save_folder

SST, QQP, STS = TASKS["sst"], TASKS["qqp"], TASKS["sts"]
REAL = Path(__file__).parents[3] / "shared" / "data" / "cs224n"

SST_HEADER = "\tid\tsentence\tsentiment"
QQP_HEADER = "\tid\tsentence1\tsentence2\tis_duplicate"


def _write(file: Path, *lines: str, end: str = "\n") -> Path:
    file.write_bytes("".join(line + end for line in lines).encode())
    return file


def _sst(tmp_path: Path, *rows: str, end: str = "\n") -> Path:
    return _write(tmp_path / "ids-sst-train.csv", SST_HEADER, *rows, end=end)


def _folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    for split in ("train", "dev"):
        _write(path / f"ids-sst-{split}.csv", SST_HEADER, "0\ta\tGood .\t3", "1\tb\tBad .\t1")
        _write(path / f"quora-{split}.csv", QQP_HEADER, "0\tc\tWhy?\tWhat for?\t1.0")
        _write(path / f"sts-{split}.csv", "\tid\tsentence1\tsentence2\tsimilarity", "0\td\tA cat.\tA dog.\t2.4")
    return path


# Accepted.


def test_reads_all_tasks_and_label_types(tmp_path: Path) -> None:
    folder = load_folder(_folder(tmp_path))
    assert folder.train["sst"].texts == ("Good .", "Bad .")
    assert folder.train["sst"].ids == ("a", "b")
    assert folder.dev["qqp"].texts == (("Why?", "What for?"),)
    assert folder.test == {}
    assert folder.skipped == ()
    for name, dtype, value in (("sst", np.int64, 3), ("qqp", np.float32, 1), ("sts", np.float32, np.float32(2.4))):
        labels = folder.train[name].labels
        assert labels is not None
        assert labels.dtype == dtype
        assert labels[0] == value
    assert "sst: train 2, dev 2" in folder.describe()
    assert "skipped" not in folder.describe()


def test_csv_quoting_inside_a_line(tmp_path: Path) -> None:
    file = _sst(
        tmp_path,
        '0\ta\t"He said ""fine"" twice ."\t3',
        '1\tb\tThe 12" disc\t2',
        '2\tc\t"a tab\there"\t2',
        '3\td\t""""\t2',
    )
    examples = load_file(file, SST)
    assert examples.texts == ('He said "fine" twice .', 'The 12" disc', "a tab\there", '"')
    assert examples.skipped == ()


def test_an_open_quote_costs_only_its_own_row(tmp_path: Path) -> None:
    file = _sst(tmp_path, "0\ta\tfirst\t3", '1\tb\t"never closed\t2', "2\tc\tthird\t1", '3\td\tends with "\t0')
    examples = load_file(file, SST)
    assert examples.ids == ("a", "c", "d")
    (row,) = examples.skipped
    assert (row.file, row.line) == (str(file), 3)
    assert "unbalanced double quotes" in row.reason


def test_a_quoted_field_over_two_lines_is_two_named_rows(tmp_path: Path) -> None:
    file = _sst(tmp_path, *["0\ta\tfine\t3"] * 3, '1\tb\t"begins here', 'and ends here"\t2')
    examples = load_file(file, SST)
    assert len(examples) == 3
    assert [row.line for row in examples.skipped] == [5, 6]


def test_bom_crlf_trailing_blank_lines_and_separator_characters(tmp_path: Path) -> None:
    text = "\ufeff" + "\r\n".join([SST_HEADER, "0\ta\tone\u2028line\x85here\t3", "1\tb\ttwo\t1", "", "  ", ""])
    file = tmp_path / "file.csv"
    file.write_bytes(text.encode())
    examples = load_file(file, SST)
    assert examples.texts == ("one\u2028line\x85here", "two")
    assert examples.lines is not None
    assert examples.lines.tolist() == [2, 3]
    assert examples.skipped == ()


def test_column_order_extra_columns_and_repeated_ids(tmp_path: Path) -> None:
    file = _write(tmp_path / "f.csv", "sentiment\tnote\tsentence\tid", "4\tx\tone\ta", "0\ty\ttwo\ta")
    examples = load_file(file, SST)
    assert examples.ids == ("a", "a")
    assert examples.texts == ("one", "two")
    assert examples.labels is not None
    assert examples.labels.tolist() == [4, 0]


@pytest.mark.parametrize("name", ["quora-test.csv", "quora-test-student.csv"])
def test_unlabelled_test_file(tmp_path: Path, name: str) -> None:
    folder = _folder(tmp_path)
    _write(folder / name, "\tid\tsentence1\tsentence2", "0\te\tWho?\tWhich one?")
    loaded = load_folder(folder)
    assert list(loaded.test) == ["qqp"]
    assert loaded.test["qqp"].labels is None
    assert loaded.test["qqp"].texts == (("Who?", "Which one?"),)


def test_plain_test_file_wins_over_the_student_file(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    _write(folder / "ids-sst-test-student.csv", "\tid\tsentence", "0\tx\tstudent")
    _write(folder / "ids-sst-test.csv", SST_HEADER, "0\tx\tplain\t4")
    test = load_folder(folder).test["sst"]
    assert test.texts == ("plain",)
    assert test.labels is not None


def test_empty_label_column_means_no_labels_only_in_a_test_file(tmp_path: Path) -> None:
    file = _sst(tmp_path, "0\ta\tone\t", "a blank field", "1\tb\ttwo\t")
    examples = load_file(file, SST, labels_optional=True)
    assert examples.labels is None
    assert len(examples) == 2
    with pytest.raises(DataError, match="3 of 3 rows are malformed, more than half: .*sentiment is empty"):
        load_file(file, SST)


# Skipped row by row.


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("9\tx\ttoo few", "3 columns, expected 4 as in the header"),
        ("9\tx\ttoo\tmany\t3", "5 columns, expected 4 as in the header"),
        ("", "a blank line"),
        ("9\tx\t  \t3", "sentence is empty"),
        ("9\t\ttext\t3", "id is empty"),
        ("9\tx\ttext\t", "sentiment is empty"),
        ("9\tx\ttext\tgood", "sentiment is 'good', not a number"),
        ("9\tx\ttext\t1_0", "sentiment is '1_0', not a number"),
        ("9\tx\tte\0xt\t3", "a NUL byte"),
        ('9\tx\t"text" more\t3', "unbalanced double quotes"),
        ('9\tx\t"""text\tgood?"\t', "an unbalanced double quote at the start of sentence swallowed what follows"),
    ],
)
def test_malformed_rows_are_named_or_refused(tmp_path: Path, row: str, reason: str) -> None:
    file = _sst(tmp_path, "0\ta\tone\t0", "1\tb\ttwo\t1", row, "2\tc\tthree\t2")
    examples = load_file(file, SST)
    assert examples.ids == ("a", "b", "c")
    assert examples.labels is not None
    assert examples.labels.tolist() == [0, 1, 2]
    assert examples.where(2) == f"{file}, line 5"
    (skipped,) = examples.skipped
    assert reason in skipped.reason
    assert str(skipped).startswith(f"{file}, line 4: ")
    with pytest.raises(DataError) as caught:
        load_file(file, SST, strict=True)
    assert "1 row malformed" in str(caught.value)
    assert str(skipped) in str(caught.value)


def test_strict_folder_lists_the_first_rows_of_all_files(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    _write(folder / "quora-dev.csv", QQP_HEADER, *["0\tc\tWhy?\tWhat for?\t1.0"] * 9, *["broken"] * 7)
    loaded = load_folder(folder)
    assert [row.line for row in loaded.skipped] == list(range(11, 18))
    assert "skipped 7 malformed rows:" in loaded.describe()
    assert f"{folder / 'quora-dev.csv'}, line 17: 1 columns" in loaded.describe()
    with pytest.raises(DataError, match=r"7 rows malformed.*line 11: .*line 15: .*; and 2 more$"):
        load_folder(folder, strict=True)


# Errors of a whole file.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty, expected a header line and rows"),
        (b"\n \n", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        (b"\tid\tsentence\tsentiment\n", "only a header line, expected rows below it"),
        (b"id,sentence,sentiment\n0,a,3\n", "separated by ',', expected tabs between the columns id, sentence"),
        (b"id;sentence;sentiment\n0;a;3\n", "separated by ';', expected tabs"),
        (b"\tid\ttext\tsentiment\n0\ta\tb\t3\n", "column 'sentence' is missing, the header has '', 'id', 'text'"),
        (b"\tid\tsentence\n0\ta\tb\n", "column 'sentiment' is missing, the header has '', 'id', 'sentence'"),
        (b"id\tid\tsentence\tsentiment\n0\ta\tb\t3\n", "column 'id' stands more than once"),
        (b'id\tsentence\t"sentiment\n0\ta\tb\n', "line 1: the header has unbalanced double quotes"),
        (b"\tid\tsentence\tsentiment\n0\ta\tok\t3\n1\tb\tcaf\xe9\t3\n", "line 3: byte 0xe9 at byte offset 39"),
        (
            b"\xef\xbb\xbf\tid\tsentence\tsentiment\n0\tcaf\xe9\tok\t3\n",
            "line 2: byte 0xe9 at byte offset 31 of the file is not UTF-8",
        ),
        ("\tid\tsentence\tsentiment\n".encode("utf-16"), "UTF-16 byte order mark, expected UTF-8"),
        (b"\tid\tsentence\tsentiment\n0\ta\tok\t3\nx\ny\n", "2 of 3 rows are malformed, more than half: "),
        (b"\tid\tsentence\tsentiment\n0\ta\tok\t5\n", "line 2: sentiment is '5', expected an integer from 0 to 4"),
        (b"\tid\tsentence\tsentiment\n0\ta\tok\t-1\n", "sentiment is '-1', expected an integer from 0 to 4"),
        (b"\tid\tsentence\tsentiment\n0\ta\tok\t2.5\n", "sentiment is '2.5', expected an integer from 0 to 4"),
        (b"\tid\tsentence\tsentiment\n0\ta\tok\tnan\n", "sentiment is 'nan', expected an integer from 0 to 4"),
        (b"\tid\tsentence\tsentiment\n0\ta\tok\tinf\n", "sentiment is 'inf', expected an integer from 0 to 4"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "ids-sst-train.csv"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_file(file, SST)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_score_out_of_range(tmp_path: Path) -> None:
    file = _write(tmp_path / "f.csv", "\tid\tsentence1\tsentence2\tsimilarity", "0\ta\tx\ty\t5.2")
    with pytest.raises(DataError, match=r"line 2: similarity is '5.2', expected a number from 0 to 5"):
        load_file(file, STS)


def test_half_malformed_is_still_read(tmp_path: Path) -> None:
    assert len(load_file(_sst(tmp_path, "0\ta\tok\t3", "broken"), SST)) == 1


def test_missing_folder_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: found nothing there, expected a folder with the files ids-sst-"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="found a file, expected a folder"):
        load_folder(_write(tmp_path / "f.csv", "x"))
    folder = _folder(tmp_path / "data")
    (folder / "quora-dev.csv").unlink()
    (folder / "sts-train.csv").unlink()
    with pytest.raises(
        DataError, match=r"missing sts-train.csv, quora-dev.csv; expected .*; the folder holds ids-sst-"
    ):
        load_folder(folder)
    with pytest.raises(DataError, match="gone.csv: cannot be read"):
        load_file(tmp_path / "gone.csv", SST)


def test_label_between_separators(tmp_path: Path) -> None:
    """What strip() takes off and float() does not."""
    assert load_file(_sst(tmp_path, "0\ta\tgood\t\x1c3\x1f"), SST).labels.tolist() == [3]


# Sizes.


def test_label_of_many_digits_takes_no_time(tmp_path: Path) -> None:
    """A pattern that tries every split of the digits would take minutes."""
    label = "1" * 90_000 + "x"
    file = _write(tmp_path / "f.csv", SST_HEADER, "0\ta\tgood\t1", "1\tb\tgood\t1", f"2\tc\tgood\t{label}")
    begun = time.monotonic()
    skipped = load_file(file, SST).skipped
    assert time.monotonic() - begun < 10
    assert [row.line for row in skipped] == [4] and "not a number" in skipped[0].reason
    assert len(skipped[0].reason) < 100


def test_long_lines_cost_their_own_row(tmp_path: Path) -> None:
    whole = [f"{i}\ta{i}\tgood\t1" for i in range(3)]
    long = ["3\tb\t" + "x" * 100_001 + "\t1", '4\tc\t"' + "x" * 200_000 + '"\t1']
    found = load_file(_write(tmp_path / "f.csv", SST_HEADER, *whole, *long), SST)
    assert [row.line for row in found.skipped] == [5, 6]
    assert all("characters, expected at most 100000" in row.reason for row in found.skipped)


@pytest.mark.parametrize(
    ("limit", "complaint"), [("FILE_BYTES", "more than 60 bytes"), ("FILE_LINES", "80 lines, expected at most 60")]
)
def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, complaint: str) -> None:
    file = _write(tmp_path / "f.csv", SST_HEADER, *["0\ta\tgood\t1"] * 79)
    assert len(load_file(file, SST)) == 79
    monkeypatch.setattr(formats, limit, 60)
    with pytest.raises(DataError, match=complaint):
        load_file(file, SST)


def test_header_of_many_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="and 10000 more") as caught:
        load_file(_write(tmp_path / "f.csv", "\t".join(f"c{i}" for i in range(10_010)), "0"), SST)
    assert len(str(caught.value)) < 1000


# Writing.


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    source = _folder(tmp_path / "a")
    _write(source / "ids-sst-dev.csv", SST_HEADER, '0\ta\t"quotes "" and\ttabs"\t4', "1\tb\t'\u00e9\u2028\t0")
    _write(source / "quora-test.csv", "\tid\tsentence1\tsentence2", "0\te\tWho?\tWhich one?")
    first = load_folder(source)
    save_folder(first, tmp_path / "b")
    second = load_folder(tmp_path / "b", strict=True)
    for (split, a), (_, b) in zip(first.splits(), second.splits(), strict=True):
        assert (a.ids, a.texts) == (b.ids, b.texts), split
        np.testing.assert_array_equal(a.labels, b.labels)
    with pytest.raises(DataError, match=r"ids-sst-train.csv: is there already"):
        save_folder(first, tmp_path / "b")


def test_save_refuses_line_breaks_before_writing(tmp_path: Path) -> None:
    folder = load_folder(_folder(tmp_path / "a"))
    object.__setattr__(folder.dev["sts"], "texts", (("one\nline", "two"),))
    with pytest.raises(DataError, match=r"sts-dev.csv, line 2: the text holds a line break"):
        save_folder(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()


# The real files.


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the CS224N files are not at {REAL}")
def test_real_files() -> None:
    folder = load_folder(REAL)
    sizes = {(split, examples.task.name): len(examples) for split, examples in folder.splits()}
    assert sizes == {
        ("train", "sst"): 7443,
        ("train", "qqp"): 13998,
        ("train", "sts"): 5177,
        ("dev", "sst"): 1101,
        ("dev", "qqp"): 2500,
        ("dev", "sts"): 863,
    }
    assert [(Path(row.file).name, row.line) for row in folder.skipped] == [
        ("quora-train.csv", 726),
        ("quora-train.csv", 8410),
    ]
    assert all("unbalanced double quote" in row.reason for row in folder.skipped)
    with pytest.raises(DataError, match=r"2 rows malformed.*line 726: .*line 8410: "):
        load_folder(REAL, strict=True)
