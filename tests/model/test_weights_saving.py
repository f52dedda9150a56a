"""What `save_checkpoint` writes, `transformers` and `load_checkpoint` read back bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel

from smartcs.model.files import CheckpointError
from smartcs.model.hf_config import pooling_of
from smartcs.model.tokenizer import load_tokenizer
from smartcs.model.weights import load_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint by transformers, no two parameters alike and no value at its default."""
    sizes: dict[str, Any] = {
        **{"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
        **{"intermediate_size": 40, "max_position_embeddings": 20, "type_vocab_size": 3, "pad_token_id": 1},
        **{"layer_norm_eps": 1e-7, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3},
        "initializer_range": 0.5,
    }
    torch.manual_seed(0)
    model = BertModel(BertConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def small_tokenizer(folder: Path, words: int = 60) -> Tokenizer:
    folder.mkdir()
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(words - 5))]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return load_tokenizer(folder)


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
def test_saved_folder_is_what_transformers_reads(folder: Path, tmp_path: Path, pooling: str) -> None:
    checkpoint = load_checkpoint(folder, pooling=pooling)
    tokenizer = small_tokenizer(tmp_path / "vocab")
    saved = tmp_path / "new" / "saved"
    save_checkpoint(saved, checkpoint.config, checkpoint.state_dict, tokenizer)

    model, report = BertModel.from_pretrained(saved, output_loading_info=True)
    assert not any(report.values()), report
    assert_equal(model.state_dict(), BertModel.from_pretrained(folder).state_dict())
    config = checkpoint.config | {"architectures": ["BertModel"]}
    assert {name: getattr(model.config, name) for name in config if name != "pooling"} == {
        name: value for name, value in config.items() if name != "pooling"
    }
    assert AutoTokenizer.from_pretrained(saved)("w3 w9", "w1")["input_ids"] == [2, 8, 14, 3, 6, 3]
    assert load_tokenizer(saved, 60).to_str() == tokenizer.to_str()

    again = load_checkpoint(saved)
    assert again.config == checkpoint.config
    assert_equal(again.state_dict, checkpoint.state_dict)
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    if pooling != "pooler":
        names.add("1_Pooling")
    assert {path.name for path in saved.iterdir()} == names
    # safetensors alone would have made its file unreadable for others.
    assert len({path.stat().st_mode for path in saved.iterdir() if path.is_file()}) == 1


def test_replaces_what_an_earlier_left(folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(folder, pooling="mean")
    tokenizer = small_tokenizer(tmp_path / "vocab")
    save_checkpoint(tmp_path / "a", checkpoint.config, checkpoint.state_dict, tokenizer)
    assert pooling_of(tmp_path / "a") == "mean"
    doubled = {name: value * 2 for name, value in checkpoint.state_dict.items()}
    save_checkpoint(tmp_path / "a", {**checkpoint.config, "pooling": "pooler"}, doubled)
    again = load_checkpoint(tmp_path / "a")
    assert again.config["pooling"] == "pooler"
    assert_equal(again.state_dict, doubled)
    load_tokenizer(tmp_path / "a")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_dtype(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    checkpoint = load_checkpoint(folder)
    values = {name: (value / 3).to(dtype) for name, value in checkpoint.state_dict.items()}
    save_checkpoint(tmp_path / "a", checkpoint.config, values)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    key = stored["encoder.layer.1.attention.self.key.weight"]
    assert key.dtype == dtype and torch.equal(key, values["layers.1.qkv.weight"][24:48])


def test_reads_strided_parameters(folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(folder)
    strided = {name: value.t().contiguous().t().requires_grad_() for name, value in checkpoint.state_dict.items()}
    assert not strided["layers.0.intermediate.weight"].is_contiguous()
    save_checkpoint(tmp_path / "a", checkpoint.config, strided)
    assert_equal(load_checkpoint(tmp_path / "a").state_dict, checkpoint.state_dict)


@pytest.mark.parametrize(
    ("config", "tensors", "complaint"),
    [
        ({"surprise": 1}, {}, r"unknown fields \['surprise'\]"),
        ({"pooling": "max"}, {}, "pooling is 'max'"),
        ({"num_attention_heads": 7}, {}, "is not a multiple of num_attention_heads 7"),
        ({"num_hidden_layers": 3}, {}, "state_dict: missing layers.2.* and 7 more, unknown none"),
        ({}, {"head.weight": torch.ones(2)}, "missing none, unknown head.weight"),
        ({}, {"layers.1.qkv.bias": torch.ones(71)}, r"layers.1.qkv.bias has shape \(71,\), expected \(72,\)"),
        ({}, {"layers.1.qkv.bias": torch.ones(72, dtype=torch.int32)}, "has dtype torch.int32"),
    ],
)
def test_bad_writes_nothing(
    folder: Path, tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], complaint: str
) -> None:
    checkpoint = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match=complaint):
        save_checkpoint(tmp_path / "a", checkpoint.config | config, checkpoint.state_dict | tensors)
    assert not (tmp_path / "a").exists()


def test_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(folder)
    tokenizer = small_tokenizer(tmp_path / "vocab", words=61)
    with pytest.raises(CheckpointError, match="ids up to 60, but the model's vocab_size is 60"):
        save_checkpoint(tmp_path / "a", checkpoint.config, checkpoint.state_dict, tokenizer)
    assert not (tmp_path / "a").exists()
