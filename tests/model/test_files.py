"""A folder's files appear whole or not at all, and bad JSON is named by its file."""

import stat
from pathlib import Path

import pytest

from smartcs.model import files
from smartcs.model.files import CheckpointError, damaged, first_line, json_writer, read_json, text_writer, write_files


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


def test_link_that_leads_out(tmp_path: Path) -> None:
    """Saving into a folder that somebody prepared writes into that folder only."""
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "config.json").write_text("mine")
    (folder / "1_Pooling").symlink_to(outside)
    for writers, remove in (({"1_Pooling/config.json": text_writer("")}, ()), ({}, ("1_Pooling/config.json",))):
        with pytest.raises(FileExistsError, match=r"1_Pooling: it is a link that leads out of"):
            write_files(folder, writers, remove=remove)
    # A file that is a link is replaced, not followed; the folder itself may be one.
    (folder / "a").symlink_to(outside / "config.json")
    (tmp_path / "link").symlink_to(folder)
    write_files(tmp_path / "link", {"a": text_writer("new")})
    assert contents(outside) == {"config.json": "mine"} and (folder / "a").read_text() == "new"


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


def test_json_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"a": "' + "x" * 100 + '"}')
    assert read_json(tmp_path / "config.json")
    monkeypatch.setattr(files, "JSON_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"config.json: .*more than 100 bytes"):
        read_json(tmp_path / "config.json")


def test_damaged_names_the_file() -> None:
    with (
        pytest.raises(CheckpointError, match=r"metrics.json: not a run's \(KeyError: 'b'\)"),
        damaged(Path("metrics.json"), "a run's"),
    ):
        {}["b"]
    with pytest.raises(OSError, match="disk"), damaged(Path("metrics.json"), "a run's"):
        raise OSError("disk")


def test_first_line() -> None:
    assert first_line(ValueError("a\nb")) == "ValueError: a"
    assert first_line(EOFError()) == "EOFError"
