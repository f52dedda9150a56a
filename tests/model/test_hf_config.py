"""config.json: read as transformers means it, refused where this encoder would compute another thing."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from smartcs.model.files import CheckpointError
from smartcs.model.hf_config import config_from_hf, config_to_hf, pooling_of, pooling_to_hf

BERT = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "type_vocab_size": 2,
}


def test_defaults_are_those_of_transformers() -> None:
    ours = config_from_hf({"model_type": "bert", "hidden_size": None, "unheard_of": 3})
    theirs = BertConfig()
    assert ours == {name: getattr(theirs, name) for name in ours}
    assert len(ours) == 12


def test_every_field_is_read() -> None:
    values = {
        **{"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 4},
        **{"intermediate_size": 7, "max_position_embeddings": 9, "type_vocab_size": 3, "pad_token_id": 6},
        **{"layer_norm_eps": 1e-5, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0.25},
        "initializer_range": 0.5,
    }
    assert config_from_hf({"model_type": "bert", **values}) == values
    assert config_from_hf(BertConfig(**values).to_dict()) == values


def test_config_without_model_type() -> None:
    """bert_config.json of 2018, before there was a second model."""
    old = {key: value for key, value in BERT.items() if key != "model_type"}
    assert config_from_hf({**old, "hidden_act": "gelu"}) == config_from_hf(BERT)
    with pytest.raises(CheckpointError, match=r"missing keys \['type_vocab_size'\]"):
        config_from_hf({key: value for key, value in old.items() if key != "type_vocab_size"})
    with pytest.raises(CheckpointError, match="RobertaModel"):
        config_from_hf({**old, "architectures": ["RobertaModel"]})


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', expected 'bert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', only 'gelu' is supported"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is set"),
        ({"quantization_config": {"bits": 8}}, "quantization_config is set"),
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"hidden_size": 0}, "hidden_size is 0, expected 1 to"),
        ({"hidden_size": 24.0}, "hidden_size is 24.0, expected an integer"),
        ({"hidden_size": "24"}, "hidden_size is '24', expected an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True, expected an integer"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected 1 to 1000"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": 10**400}, "vocab_size is 1000"),
        ({"pad_token_id": 60}, "pad_token_id 60 is not below vocab_size 60"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0, expected"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan, expected 1e-20 to 0.1"),
        ({"initializer_range": float("inf")}, "initializer_range is inf, expected"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0, expected 0.0 to"),
        ({"attention_probs_dropout_prob": "x"}, "attention_probs_dropout_prob is 'x'"),
    ],
)
def test_refused(edit: dict[str, Any], complaint: str) -> None:
    config_from_hf(BERT)
    with pytest.raises(CheckpointError, match=f"^some/config.json: {complaint}"):
        config_from_hf({**BERT, **edit}, source="some/config.json")


def test_harmless_keys_are_accepted() -> None:
    harmless = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    assert config_from_hf({**BERT, **harmless, "pruned_heads": {}, "use_cache": True}) == config_from_hf(BERT)


def test_writing_is_the_inverse_of_reading() -> None:
    fields = config_from_hf({**BERT, "layer_norm_eps": 1e-7, "pad_token_id": 3})
    assert config_from_hf(config_to_hf({**fields, "pooling": "cls"})) == fields
    with pytest.raises(CheckpointError, match=r"missing fields \['pooling'\], unknown fields \[\]"):
        config_to_hf(fields)
    with pytest.raises(CheckpointError, match=r"unknown fields \['surprise'\]"):
        config_to_hf({**fields, "pooling": "cls", "surprise": 1})
    with pytest.raises(CheckpointError, match="config: pooling is 'max', expected one of"):
        config_to_hf({**fields, "pooling": "max"})


FLAGS_OFF = {
    "word_embedding_dimension": 24,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": False,
}


def write_pooling(folder: Path, content: Any) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({**FLAGS_OFF, "pooling_mode_mean_tokens": True}, "mean"),
        ({**FLAGS_OFF, "pooling_mode_cls_token": True}, "cls"),
        ({"embedding_dimension": 24, "pooling_mode": "mean"}, "mean"),
        ({"embedding_dimension": 24, "pooling_mode": ["cls"]}, "cls"),
        (pooling_to_hf("mean", 24), "mean"),
        (pooling_to_hf("cls", 24), "cls"),
    ],
)
def test_pooling(tmp_path: Path, content: dict[str, Any], pooling: str) -> None:
    assert pooling_of(tmp_path) is None
    assert pooling_of(write_pooling(tmp_path, content)) == pooling


def test_pooler_is_no_pooling_file() -> None:
    assert pooling_to_hf("pooler", 24) is None


@pytest.mark.parametrize(
    ("content", "modes"),
    [
        ({**FLAGS_OFF, "pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({**FLAGS_OFF, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "'cls', 'mean'"),
        (FLAGS_OFF, r"\[\]"),
        ({"pooling_mode": "max"}, "'max'"),
        ({"pooling_mode": {"mean": 1}}, "mean"),
    ],
)
def test_unsupported_pooling(tmp_path: Path, content: dict[str, Any], modes: str) -> None:
    with pytest.raises(CheckpointError, match=f"{modes}.* is not supported: choose one of pooler, cls, mean"):
        pooling_of(write_pooling(tmp_path, content))
