"""Weight files: whole ones are read bit for bit; cut, foreign or hostile ones are refused unread."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from smartcs.model.files import CheckpointError
from smartcs.model.tensor_files import read_tensors

TENSORS = {
    "a.weight": torch.randn(30, 20, generator=torch.Generator().manual_seed(0)),
    "b.half": torch.arange(7, dtype=torch.float16),
    "c.brain": torch.arange(7, dtype=torch.bfloat16),
    "d.empty": torch.zeros(0, 4),
    "e.scalar": torch.tensor(3.0, dtype=torch.float64),
}
NAMES = ("model.safetensors", "pytorch_model.bin")


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


@pytest.mark.parametrize("name", NAMES)
def test_whole_file(tmp_path: Path, name: str) -> None:
    assert_equal(read_tensors(write(tmp_path / name, TENSORS)), TENSORS)


def test_bin_of_before_pytorch_1_6(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert_equal(read_tensors(path), TENSORS)


@pytest.mark.parametrize("name", NAMES)
def test_sharded(tmp_path: Path, name: str) -> None:
    names = sorted(TENSORS)
    suffix = Path(name).suffix
    first, second = f"model-00001-of-00002{suffix}", f"model-00002-of-00002{suffix}"
    for shard, part in ((first, names[::2]), (second, names[1::2])):
        write(tmp_path / shard, {key: TENSORS[key] for key in part})
    weight_map = dict.fromkeys(names[::2], first) | dict.fromkeys(names[1::2], second)
    index = tmp_path / f"{name}.index.json"

    def read(value: Any) -> dict[str, torch.Tensor]:
        index.write_text(json.dumps({"weight_map": value}))
        return read_tensors(index)

    assert_equal(read(weight_map), TENSORS)
    with pytest.raises(CheckpointError, match="lists 'extra', which its files do not hold"):
        read({**weight_map, "extra": first})
    # Outside the folder, absolute, absent: a file of this machine must not be read on an index's word.
    write(tmp_path.parent / f"outside{suffix}", TENSORS)
    (tmp_path / f"link{suffix}").symlink_to(tmp_path.parent / f"outside{suffix}")
    bad_names = [
        f"../outside{suffix}",
        str(tmp_path / first),
        f"model-00003-of-00002{suffix}",
        ".",
        "",
        f"link{suffix}",
    ]
    for bad in (*bad_names, "\0", "x" * 5000):
        with pytest.raises(CheckpointError, match="which is no file in that folder"):
            read({**weight_map, "a.weight": bad})
    for wrong in (["a"], None, {"a": 3}):
        with pytest.raises(CheckpointError, match="weight_map must map"):
            read(wrong)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "header": lambda content: content[:100],
    "half": lambda content: content[: len(content) // 2],
    "last byte": lambda content: content[:-1],
    "noise": lambda content: bytes(i * 37 % 256 for i in range(5000)),
    "web page": lambda content: b"<!doctype html><title>404</title>" * 20,
    "git-lfs": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", NAMES)
def test_damaged_file(tmp_path: Path, name: str, how: str) -> None:
    path = write(tmp_path / name, TENSORS)
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and caught.value.__cause__ is None
    assert ("git lfs pull" if how == "git-lfs" else "fetch it again") in message


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("bare_pickle", [False, True])
def test_pickle_bomb_is_not_executed(tmp_path: Path, bare_pickle: bool) -> None:
    crater, path = tmp_path / "crater", tmp_path / "pytorch_model.bin"
    content = {**TENSORS, "boom": Bomb(crater)}
    if bare_pickle:
        path.write_bytes(pickle.dumps({"boom": Bomb(crater)}, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: refused, .* more than tensors"):
        read_tensors(path)
    assert not crater.exists()
    if bare_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert crater.exists(), "the bomb of this test is a dud"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([torch.ones(2)], "expected a dict of tensors, got list"),
        ({"state_dict": {"a": torch.ones(2)}}, "entry 'state_dict' is dict, expected names of tensors"),
        ({3: torch.ones(2)}, "entry 3 is Tensor, expected names of tensors"),
    ],
)
def test_bin_with_other_content(tmp_path: Path, content: Any, complaint: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=complaint):
        read_tensors(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("name", NAMES)
def test_shards_of_the_hubs_cache(tmp_path: Path, name: str) -> None:
    """There every file is a link to one in blobs, beside the snapshots."""
    suffix = Path(name).suffix
    snapshot, blob = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blob.mkdir()
    write(blob / f"4567{suffix}", TENSORS)
    (snapshot / f"model-1{suffix}").symlink_to(Path("..", "..", "blobs", f"4567{suffix}"))
    (snapshot / f"{name}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, f"model-1{suffix}")}))
    assert_equal(read_tensors(snapshot / f"{name}.index.json"), TENSORS)


def test_compressed_bin(tmp_path: Path) -> None:
    """A kilobyte that unpacks to a gigabyte is refused before it does."""
    whole, path = write(tmp_path / "whole.bin", {"a": torch.zeros(100_000)}), tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
    assert path.stat().st_size < whole.stat().st_size / 50
    plain = path.read_bytes()
    # torch looks farther back than zipfile for the list of an archive's entries.
    for content, message in (
        (plain, "compressed entries, which torch.save never"),
        (plain + bytes(66_000), "not a zip"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            read_tensors(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.ones(()).expand(2**40)},
        {f"a{i}": tensor for tensor in [torch.ones(1000)] for i in range(100)},
    ],
    ids=["one number, expanded", "one tensor under many names"],
)
def test_bin_that_claims_more_than_it_holds(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"its tensors would take \d+ bytes, the file has \d+"):
        read_tensors(write(tmp_path / "pytorch_model.bin", tensors))


def test_bin_with_tied_weights(tmp_path: Path) -> None:
    embeddings = torch.ones(100, 100)
    tensors = {"word": embeddings, "decoder": embeddings, "bias": torch.ones(3)}
    assert_equal(read_tensors(write(tmp_path / "pytorch_model.bin", tensors)), tensors)


@pytest.mark.parametrize("odd", [torch.ones(4).to_sparse(), torch.ones(4, device="meta")], ids=["sparse", "meta"])
def test_bin_with_tensors_of_other_kinds(tmp_path: Path, odd: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: "):
        read_tensors(write(tmp_path / "pytorch_model.bin", {"a": odd}))


def header_of(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites a safetensors file's header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


HEADERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "too large": lambda header: header["a.weight"].update(shape=[2**40, 2**40]),
    "overflow": lambda header: header["a.weight"].update(shape=[2**62, 4]),
    "negative": lambda header: header["a.weight"].update(shape=[-30, -20]),
    "beyond": lambda header: header["a.weight"].update(data_offsets=[0, 2**40]),
    "overlap": lambda header: header["b.half"].update(data_offsets=header["a.weight"]["data_offsets"]),
    "reversed": lambda header: header["a.weight"].update(data_offsets=header["a.weight"]["data_offsets"][::-1]),
    "type": lambda header: header["a.weight"].update(dtype="F31"),
    "no object": lambda header: header.update({"a.weight": 3}),
}


@pytest.mark.parametrize("how", HEADERS)
def test_safetensors_with_a_wrong_header(tmp_path: Path, how: str) -> None:
    path = write(tmp_path / "model.safetensors", TENSORS)
    header_of(path, HEADERS[how])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(path)


def test_safetensors_with_a_header_of_exabytes(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", TENSORS)
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(path)
