"""What is fuzzed: every reader of a file that somebody else may have written, as a function of that file's bytes.

A target returns where the bytes are read or refused as they should be. Refused means one of the classes named with the
target, with a message. Read means that what came back fits its promise, which the target checks: an assertion, any
other exception, a crash or a hang is a finding. The same functions run under hypothesis (test_readers.py) and under a
coverage-guided fuzzer (guided.py).

The first byte of an input says what the rest is: whole file contents as they are, or (odd) changes made to a valid
file, so that inputs get past the parsers too.
"""

import atexit
import json
import math
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from inputs import Reader, changed, safetensors_bytes
from small_models import small_config

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
from smartcs.report.run_data import RunData
from smartcs.training.checkpoint import MANIFEST, Checkpoint, _own_digest, write_checkpoint
from smartcs.training.commandline import UsageError
from smartcs.training.config import TrainConfig
from smartcs.training.predictions import read_predictions
from smartcs.training.resume import Resumption
from smartcs.training.run_folder import read_config

warnings.simplefilter("ignore")
FOLDER = Path(tempfile.mkdtemp(prefix="smartcs-fuzz-"))  # a target writes a file per input: best where memory is
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
HF_CONFIG = config_to_hf(asdict(small_config()))
TINY = replace(
    small_config(), vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4,
    max_position_embeddings=4,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One reader: its function of an input, and what it may raise."""

    run: Callable[[bytes], None]
    refuses: tuple[type[Exception], ...]


TARGETS: dict[str, Target] = {}


def target(*refuses: type[Exception]) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    def add(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run, refuses)
        return run

    return add


def check(name: str, data: bytes) -> bool:
    """Runs a target on an input; whether it was read. Whatever it should not raise comes through."""
    try:
        TARGETS[name].run(data)
    except TARGETS[name].refuses as error:
        message = str(error)
        assert message.strip() and len(message) < 20_000, f"{name}: a message of {len(message)} characters"
        return False
    return True


def place(name: str, content: bytes) -> Path:
    """The file, with this content alone in its folder."""
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def json_of(data: bytes, valid: Any) -> bytes:
    """A JSON file: the bytes as they are, or a valid value with changes."""
    if not data or data[0] % 2 == 0:
        return data[1:]
    return json.dumps(changed(valid, Reader(data[1:]))).encode("utf-8", "surrogatepass")


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


@cache
def _checkpoint() -> dict[str, Any]:
    """The manifest of a checkpoint, which is there."""
    return read_json(write_checkpoint(FOLDER / "run", 3, _fill, ["step-00000002"]).folder / MANIFEST)


def _fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_bytes(b"1234")
    (folder / "b").write_bytes(b"")


@target(CheckpointError)
def checkpoint_manifest(data: bytes) -> None:
    valid = _checkpoint()
    folder = FOLDER / "run" / "step-00000003"
    content = json_of(data, {key: value for key, value in valid.items() if key != "sha256"})
    if data and data[0] % 2 and isinstance(manifest := json.loads(content), dict):
        # Signed by whoever changed it: its hash guards against accidents.
        content = json.dumps({**manifest, "sha256": _own_digest(manifest)}).encode("utf-8", "surrogatepass")
    (folder / MANIFEST).write_bytes(content)
    found = Checkpoint.read(folder)
    assert isinstance(found.step, int) and all("/" not in name and name.startswith("step-") for name in found.needs)
    assert set(json.loads(content)["files"]) == {"sub/a", "b"}


_STATE = {
    "format": 1,
    "stage": "fine-tuning",
    "seconds": {"number": "inf"},
    "data": {"train": {"sst": "0"}},
    "conditions": {"threads": 1},
    "record": {"best": None, "weights": {"checkpoint": "step-00000004", "files": {}}},
    "loop": {"sampler": {"epoch": 1, "step": 2, "cycles": 3}},
    "optimizer": {"steps": [1, 2]},
}


@target(CheckpointError, UsageError)
def checkpoint_state(data: bytes) -> None:
    """A run's only checkpoint, signed by whoever changed it."""
    place("resumed/checkpoints/outside.safetensors", safetensors_bytes({"outside": torch.ones(2)}, Reader(b"")))

    def fill(folder: Path) -> None:
        (folder / "train_config.json").write_text("{}")
        (folder / "state.json").write_bytes(json_of(data, _STATE))
        (folder / "optimizer.safetensors").write_bytes(safetensors_bytes({"exp_avg/w": torch.ones(2)}, Reader(b"")))

    write_checkpoint(FOLDER / "resumed" / "checkpoints", 8, fill)
    found = Resumption.find(FOLDER / "resumed")
    assert all(name.isidentifier() for name in found.state) and "outside" not in str(found.state)
    found.check(replace(found.config, epochs=found.config.epochs + 1))
    assert found.as_long(found.config).cycles > 0 or found.pretraining
    assert isinstance(found.changed_conditions({"threads": 2}), str) and not found.finished(found.config)


METRICS = {
    "finished": True,
    "diverged": False,
    "epochs": [{"epoch": 1, "dev": {"sst": {"accuracy": 0.5}}}],
    "config": {"recipe": "baseline", "tasks": "all", "epochs": 1, "bregman": {"tasks": "all"}},
    "bregman": {"anchor_divergence": 0.25},
    "environment": {"versions": {"torch": "2"}},
}


@target(CheckpointError)
def metrics_json(data: bytes) -> None:
    (FOLDER / "metrics").mkdir(exist_ok=True)
    place("metrics/metrics.json", json_of(data, METRICS))
    run = RunData.read(FOLDER / "metrics")
    assert isinstance(run.config, dict) and isinstance(run.epochs, list) and isinstance(run.recipe, str)
    assert isinstance(run.section("environment", "versions"), dict)


@target(CheckpointError)
def losses_csv(data: bytes) -> None:
    place("losses/metrics.json", b"{}")
    place("losses/losses.csv", data)
    run = RunData.read(FOLDER / "losses")
    for curves in run.curves.values():
        for curve in curves.values():
            assert len(curve.steps) == len(curve.values) and all(map(math.isfinite, curve.values))
    # What draws them works in 64 bits.
    assert all(abs(number) < 2**53 for number in (run.last_step, *run.epoch_ends, *run.epoch_ends.values()))


@target(CheckpointError)
def predictions(data: bytes) -> None:
    place("predictions/sst-dev-output.csv", data)
    found = read_predictions(FOLDER / "predictions", "dev", ["sst"])["sst"]
    assert found.ndim == 1 and (found.size == 0 or math.isfinite(found.sum()))
