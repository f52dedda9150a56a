"""A folder's files appear whole or not at all, and bad JSON is named by its file."""

import stat
from pathlib import Path

import pytest

from smartcs.model.files import CheckpointError, first_line, json_writer, read_json, text_writer, write_files


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_write_replace_and_remove(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write_files(folder, {"a": text_writer("1\r\n2"), "sub/b": json_writer({"y": 1, "x": "é"})})
    assert (folder / "a").read_bytes() == b"1\r\n2"
    assert read_json(folder / "sub" / "b") == {"x": "é", "y": 1}
    write_files(folder, {"a": text_writer("3")}, remove=["sub/b", "never there"])
    assert contents(folder) == {"a": "3"}


def test_failed_write_leaves_the_old_files(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": text_writer("old a"), "b": text_writer("old b")})

    def disk_full(path: Path) -> None:
        path.write_text("half of it")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_files(tmp_path, {"a": text_writer("new a"), "b": disk_full}, remove=["a"])
    assert contents(tmp_path) == {"a": "old a", "b": "old b"}


def test_files_have_the_usual_mode(tmp_path: Path) -> None:
    def private(path: Path) -> None:
        path.unlink()
        path.touch(mode=0o600)

    (tmp_path / "plain").write_text("")
    write_files(tmp_path, {"private": private, "text": text_writer("")})
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_target_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match="it is a file, expected a folder"):
        write_files(tmp_path / "a", {"config.json": text_writer("")})
    assert contents(tmp_path) == {"a": "not a folder"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"a": "\xff"}', b"[" * 100_000])
def test_bad_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config.json: (not valid JSON \(|expected a JSON object, got)"):
        read_json(tmp_path / "config.json")


def test_first_line() -> None:
    assert first_line(ValueError("a\nb")) == "ValueError: a"
    assert first_line(EOFError()) == "EOFError"
