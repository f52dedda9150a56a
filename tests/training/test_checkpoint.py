"""Checkpoints on disk: whole or not there, hashed, in time removed."""

import json
import os
import shutil

import pytest

from smartcs.model.files import CheckpointError
from smartcs.training import checkpoint as checkpoint_module
from smartcs.training.checkpoint import (
    MANIFEST,
    Checkpoint,
    clean,
    listed,
    name_of,
    prune,
    remove_all,
    write_checkpoint,
)


def fill(folder):
    (folder / "inner").mkdir()
    (folder / "weights").write_bytes(bytes(range(256)))
    (folder / "inner" / "note.txt").write_text("a note")
    (folder / "empty").write_bytes(b"")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def written(tmp_path):
    write_checkpoint(tmp_path, 12, fill)
    return tmp_path / "step-00000012"


def test_what_is_written_reads_as_whole(written):
    assert Checkpoint.read(written) == Checkpoint(written, 12, ())
    assert names(written.parent) == [written.name], "no temporary name is left"
    manifest = json.loads((written / MANIFEST).read_text())
    assert set(manifest["files"]) == {"weights", "inner/note.txt", "empty"}
    assert manifest["files"]["weights"]["bytes"] == 256


@pytest.mark.parametrize("name", ["weights", "inner/note.txt", MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "missing", "link"])
def test_damage_is_found_and_named(written, name, damage):
    path = written / name
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-2])
    elif damage == "flipped":
        path.write_bytes(content[:3] + bytes([content[3] ^ 4]) + content[4:])
    elif damage == "longer":
        path.write_bytes(content + b" ")
    else:
        path.unlink()
        if damage == "link":
            (written.parent / "elsewhere").write_bytes(content)
            path.symlink_to(written.parent / "elsewhere")
    if (name, damage) == (MANIFEST, "longer"):
        assert Checkpoint.read(written).step == 12, "a blank after the JSON says nothing else"
        return
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.read(written)


@pytest.mark.parametrize("bit", range(0, 8 * 200, 37))
def test_any_bit_of_the_manifest_counts(written, bit):
    """Also those that leave it valid JSON: a digit of a size, a letter of a name."""
    content = bytearray((written / MANIFEST).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (written / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=MANIFEST):
        Checkpoint.read(written)


def test_a_file_more_is_damage(written):
    (written / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: not in manifest.json"):
        Checkpoint.read(written)


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"step": "12"}, {"needs": ["../../etc"]}, {"files": {"weights": 256}}, {"files": None}],
    ids=str,
)
def test_a_manifest_of_another_kind_is_refused(written, change):
    manifest = json.loads((written / MANIFEST).read_text()) | change
    del manifest["sha256"]
    manifest["sha256"] = checkpoint_module._own_digest(manifest)
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=MANIFEST):
        Checkpoint.read(written)


@pytest.mark.parametrize("where", ["fill", "sync", "rename"])
def test_a_failed_write_leaves_what_was_there(written, monkeypatch, where):
    def fail(*_):
        raise OSError(28, "No space left on device")

    other = fill
    if where == "fill":

        def other(folder):
            fill(folder)
            fail()

    elif where == "sync":
        monkeypatch.setattr(checkpoint_module.os, "fsync", fail)
    else:
        original = checkpoint_module.Path.rename
        monkeypatch.setattr(
            checkpoint_module.Path, "rename", lambda a, b: fail() if a.suffix == ".tmp" else original(a, b)
        )
    for step in (12, 13):
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(written.parent, step, other)
        assert names(written.parent) == [written.name] and Checkpoint.read(written).step == 12


MOMENTS = ["fsync"] * 6 + ["rename", "rename", "fsync", "rmtree"]


@pytest.mark.parametrize("moment", range(len(MOMENTS)), ids=lambda moment: f"{moment}-{MOMENTS[moment]}")
def test_killed_at_any_moment_of_a_write(written, monkeypatch, moment):
    """In the place of another of the same step: before every call that changes names or waits for the disk."""
    calls = []

    def counted(name, original):
        def counting(*arguments, **options):
            if len(calls) == moment:
                os._exit(9 if name == MOMENTS[moment] else 1)
            calls.append(name)
            return original(*arguments, **options)

        return counting

    child = os.fork()
    if child == 0:
        checkpoint_module.os.fsync = counted("fsync", os.fsync)
        checkpoint_module.Path.rename = counted("rename", checkpoint_module.Path.rename)
        checkpoint_module.shutil.rmtree = counted("rmtree", shutil.rmtree)
        write_checkpoint(written.parent, 12, fill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert moment < 2 or names(written.parent) != [written.name], "it leaves something behind"
    clean(written.parent)
    assert names(written.parent) == [written.name] and Checkpoint.read(written).step == 12


def test_what_cannot_be_put_back_stays(written, monkeypatch):
    """A folder that may not be changed, as it seems: the only copy is not removed from it."""
    old = written.rename(written.with_name(f".{written.name}.7.old"))

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(checkpoint_module.Path, "rename", refuse)
    clean(written.parent)
    assert Checkpoint.read(old).step == 12


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order, rename = [], checkpoint_module.Path.rename

    def sync(handle):
        order.append(os.readlink(f"/proc/self/fd/{handle}"))

    def renamed(path, target):
        order.append("renamed")
        return rename(path, target)

    monkeypatch.setattr(checkpoint_module.os, "fsync", sync)
    monkeypatch.setattr(checkpoint_module.Path, "rename", renamed)
    write_checkpoint(tmp_path, 3, fill)
    before, after = order[: order.index("renamed")], order[order.index("renamed") + 1 :]
    temporary = before[-1]
    assert ".step-00000003." in temporary
    expected = {f"{temporary}/{name}" for name in ("weights", "inner/note.txt", "empty", "inner", MANIFEST)}
    assert set(before) == {temporary, *expected} and after == [str(tmp_path)]


def test_the_newest_are_kept_and_what_they_need(tmp_path):
    write_checkpoint(tmp_path, 1, fill)
    for step, needs in ((2, ["step-00000001"]), (3, ["step-00000001"]), (4, ["step-00000003"])):
        prune(tmp_path, write_checkpoint(tmp_path, step, fill, needs), 2)
    assert names(tmp_path) == [name_of(step) for step in (1, 3, 4)], "the third needs the first"
    prune(tmp_path, write_checkpoint(tmp_path, 5, fill), 2)
    assert names(tmp_path) == [name_of(step) for step in (3, 4, 5)]
    prune(tmp_path, write_checkpoint(tmp_path, 6, fill), 2)
    assert names(tmp_path) == [name_of(step) for step in (5, 6)]


def test_later_ones_are_of_another_future(tmp_path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, step, fill)
    shutil.rmtree(tmp_path / name_of(3) / "inner")
    prune(tmp_path, write_checkpoint(tmp_path, 2, fill), 2)
    assert names(tmp_path) == [name_of(1), name_of(2)]


def test_only_checkpoints_are_listed_and_removed(tmp_path):
    for name in ("step-1", "step-00000001x", "other", ".step-00000002.7.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000009").write_text("a file")
    write_checkpoint(tmp_path, 100_000_000, fill)
    write_checkpoint(tmp_path, 99, fill)
    assert [path.name for path in listed(tmp_path)] == ["step-100000000", "step-00000099"]
    remove_all(tmp_path)
    assert names(tmp_path) == ["other", "step-00000001x", "step-00000009", "step-1"]
    assert listed(tmp_path / "nowhere") == []
    remove_all(tmp_path / "nowhere")
