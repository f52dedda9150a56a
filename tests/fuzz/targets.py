"""What is fuzzed: every reader of a file that somebody else may have written, as a function of that file's bytes.

A target returns where the bytes are read or refused as they should be. Refused means one of the classes named with the
target, with a message. Read means that what came back fits its promise, which the target checks: an assertion, any
other exception, a crash or a hang is a finding. The same functions run under hypothesis (test_readers.py) and under a
coverage-guided fuzzer (guided.py).

The first byte of an input says what the rest is: whole file contents as they are, or (odd) changes made to a valid
file, so that inputs get past the parsers too.
"""

import json
import math
import shutil
import zipfile
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import run_targets
import torch
from inputs import Reader, safetensors_bytes
from small_models import small_config
from target import FOLDER, Target, json_of, place, target

from smartcs import BertModel
from smartcs._reading import parse_json
from smartcs.data.examples import TASKS, DataError
from smartcs.data.formats import load_file
from smartcs.data.sample import sample_tokenizer
from smartcs.model.files import CheckpointError, ModelSourceError, read_json
from smartcs.model.hf_config import POOLINGS, config_from_hf, config_to_hf, pooling_of
from smartcs.model.multitask import HeadConfig, _read_heads
from smartcs.model.tensor_files import read_tensors
from smartcs.model.tokenizer import load_tokenizer
from smartcs.model.weights import state_dict_from_hf, state_dict_to_hf
from smartcs.training.config import TrainConfig
from smartcs.training.run_folder import read_config

HF_CONFIG = config_to_hf(asdict(small_config()))
TINY = replace(
    small_config(), vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
    max_position_embeddings=4,
)  # fmt: skip


@target(ValueError)
def json_values(data: bytes) -> None:
    value = parse_json(data[1:])
    assert parse_json(json.dumps(value)) == value


@target(DataError)
def data_file(data: bytes) -> None:
    kind = data[0] if data else 0
    task = list(TASKS.values())[kind % 3]
    found = load_file(place("data.csv", data[1:]), task, labels_optional=kind % 2 == 1, strict=kind >= 128)
    count = len(found.ids)
    assert len(found.texts) == len(found.lines) == count
    for text in found.texts:
        sentences = (text,) if len(task.text_columns) == 1 else text
        assert all(isinstance(sentence, str) and sentence.strip() for sentence in sentences)
    if found.labels is not None:
        assert found.labels.shape == (count,) and found.labels.dtype == task.label_dtype
        assert ((found.labels >= 0) & (found.labels <= task.high)).all()
    assert found.labels is not None or kind % 2 == 1


@target(CheckpointError)
def model_config(data: bytes) -> None:
    path = place("config.json", json_of(data, HF_CONFIG))
    fields = config_from_hf(read_json(path), str(path))
    assert 0 < fields["hidden_size"] <= 65_536 and fields["hidden_size"] % fields["num_attention_heads"] == 0
    assert 0 < fields["num_hidden_layers"] <= 1000 and 0 < fields["vocab_size"] <= 10_000_000
    assert all(math.isfinite(value) for value in fields.values())
    assert config_from_hf(config_to_hf({**fields, "pooling": "cls"})) == fields


_POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


@target(CheckpointError)
def pooling_config(data: bytes) -> None:
    place("pooling/1_Pooling/config.json", json_of(data, _POOLING))
    assert pooling_of(FOLDER / "pooling") in (None, *POOLINGS)


_HEADS = {"format": 1, "heads": asdict(HeadConfig())}


@target(CheckpointError)
def heads_config(data: bytes) -> None:
    assert isinstance(_read_heads(place("smartcs.json", json_of(data, _HEADS))), HeadConfig)


@target(CheckpointError)
def run_config(data: bytes) -> None:
    place("run/train_config.json", json_of(data, asdict(TrainConfig())))
    config = read_config(FOLDER / "run")
    assert isinstance(config, TrainConfig) and set(config.trained_tasks) <= set(TASKS) and config.epochs >= 0


@cache
def _tensors() -> dict[str, torch.Tensor]:
    """A checkpoint of the smallest BERT, by Hugging Face's names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return state_dict_to_hf(BertModel(TINY).state_dict(), asdict(TINY))


def _read_weights(path: Path) -> None:
    read = read_tensors(path)
    used = sum(tensor.numel() * tensor.element_size() for tensor in read.values())
    assert used <= 2 * sum(entry.stat().st_size for entry in path.parent.iterdir()), "more tensors than file"
    found = state_dict_from_hf(read, asdict(TINY), str(path))
    for name, tensor in found.state_dict.items():
        assert tensor.dtype == torch.float32 and tensor.isfinite().all(), name
    total = sum(tensor.numel() for tensor in found.state_dict.values())
    assert total == sum(tensor.numel() for tensor in _tensors().values()) - (20 if found.missing else 0)


def _safetensors(data: bytes) -> bytes:
    return data[1:] if not data or data[0] % 2 == 0 else safetensors_bytes(_tensors(), Reader(data[1:]))


@target(CheckpointError)
def safetensors_file(data: bytes) -> None:
    shutil.rmtree(FOLDER / "weights", ignore_errors=True)
    _read_weights(place("weights/model.safetensors", _safetensors(data)))


def _index() -> dict[str, Any]:
    names, files = sorted(_tensors()), ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    return {"metadata": {"total_size": 1}, "weight_map": {name: files[i % 2] for i, name in enumerate(names)}}


@cache
def _shards() -> Path:
    for file in sorted(set(_index()["weight_map"].values())):
        part = {name: tensor for name, tensor in _tensors().items() if _index()["weight_map"][name] == file}
        place(f"shards/{file}", safetensors_bytes(part, Reader(b"")))
    (FOLDER / "shards" / "linked.safetensors").symlink_to("/etc/passwd")
    place("shards/config.json", b"{}")
    return FOLDER / "shards"


@target(CheckpointError)
def shard_index(data: bytes) -> None:
    _shards()
    path = place("shards/model.safetensors.index.json", json_of(data, _index()))
    weight_map = read_json(path).get("weight_map")
    _read_weights(path)
    assert all("/" not in name and not name.startswith((".", "linked")) for name in weight_map.values())


@cache
def _saved() -> dict[str, bytes]:
    path = FOLDER / "saved.bin"
    torch.save(_tensors(), path)
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


@target(CheckpointError)
def bin_file(data: bytes) -> None:
    shutil.rmtree(FOLDER / "bin", ignore_errors=True)
    path = place("bin/pytorch_model.bin", data[1:])
    if data and data[0] % 2:
        reader = Reader(data[1:])
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if reader.byte() == 255 else zipfile.ZIP_STORED) as file:
            for name, content in _saved().items():
                file.writestr(name, reader.edited(content) if name.endswith((".pkl", "version")) else content)
    _read_weights(path)


@cache
def _tokenizer() -> dict[str, Any]:
    """The sample's tokenizer with few words."""
    value = json.loads(sample_tokenizer().to_str())
    kept = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    words = [word for word, i in value["model"]["vocab"].items() if word in kept or (word.isalpha() and i < 300)]
    ids = {word: i for i, word in enumerate(sorted(words, key=value["model"]["vocab"].__getitem__))}
    value["model"]["vocab"] = ids
    for entry in value["added_tokens"]:
        entry["id"] = ids[entry["content"]]
    for name, token in value["post_processor"].get("special_tokens", {}).items():
        token["ids"] = [ids[name]]
    return value


def _check_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, 400)
    for text in ("", "a film", "\u4e2d\u0301 [MASK] [SEP] \U0001f600" + "x" * 200):
        for pair in (None, "other words"):
            encoding = tokenizer.encode(text, pair)
            assert len(encoding.ids) == len(encoding.type_ids)
            assert all(0 <= i < 400 for i in encoding.ids) and set(encoding.type_ids) <= {0, 1}


@target(CheckpointError)
def tokenizer_json(data: bytes) -> None:
    place("tokenizer/tokenizer.json", json_of(data, _tokenizer()))
    _check_tokenizer(FOLDER / "tokenizer")


_VOCAB_CONFIG = {"do_lower_case": True, "strip_accents": None, "tokenizer_class": "BertTokenizer"}


@target(CheckpointError, ModelSourceError)
def vocabulary(data: bytes) -> None:
    if data and data[0] % 2:
        place("vocabulary/tokenizer_config.json", json_of(data, _VOCAB_CONFIG))
        data = b"\x00[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\nfilm\n"
    else:
        place("vocabulary/tokenizer_config.json", b"{}")
    place("vocabulary/vocab.txt", data[1:])
    _check_tokenizer(FOLDER / "vocabulary")


# By name, those of a run's files too.
TARGETS = {name: found for name, found in (vars(run_targets) | globals()).items() if isinstance(found, Target)}
