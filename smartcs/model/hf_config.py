"""BERT's config.json of Hugging Face, read into the fields of `BertConfig` and written back.

Everything a config can ask for that this encoder does not compute is refused here by name, before a
weight is read: a model that loads is a model whose outputs equal those of `transformers.BertModel`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smartcs.model.files import CheckpointError, read_json

POOLINGS = ("pooler", "cls", "mean")

# Field -> (default of transformers.BertConfig, least, greatest). The upper limits are far above any
# published BERT; they stop a damaged file from asking for terabytes.
_INTEGERS: dict[str, tuple[int, int, int]] = {
    "vocab_size": (30522, 1, 10_000_000),
    "hidden_size": (768, 1, 65_536),
    "num_hidden_layers": (12, 1, 1_000),
    "num_attention_heads": (12, 1, 1_024),
    "intermediate_size": (3072, 1, 1_000_000),
    "max_position_embeddings": (512, 1, 1_000_000),
    "type_vocab_size": (2, 1, 1_000),
    "pad_token_id": (0, 0, 10_000_000),
}
_FLOATS: dict[str, tuple[float, float, float]] = {
    "layer_norm_eps": (1e-12, 1e-20, 0.1),
    "hidden_dropout_prob": (0.1, 0.0, 0.999),
    "attention_probs_dropout_prob": (0.1, 0.0, 0.999),
    "initializer_range": (0.02, 0.0, 100.0),
}
# Key -> the only value (beside absent and null) under which BERT computes what this encoder does.
_REQUIRED: dict[str, Any] = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
# A config.json without model_type (they were written in 2018) must at least have these.
_BERT_LIKE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "type_vocab_size")


def config_from_hf(raw: Mapping[str, Any], source: str = "config.json") -> dict[str, Any]:
    """The keyword arguments of `BertConfig`, without `pooling`, from a Hugging Face BERT config.

    Missing and null keys take the defaults of `transformers.BertConfig`; keys that do not change
    what the encoder computes are ignored.

    Args:
        raw: the parsed config.json.
        source: what errors call it, usually the file's path.

    Raises:
        CheckpointError: not BERT, a variant this encoder does not compute, or a value out of range.
    """
    _check_is_bert(raw, source)
    for key, wanted in _REQUIRED.items():
        got = raw.get(key)
        if got is not None and got != wanted:
            raise CheckpointError(f"{source}: {key} is {got!r}, only {wanted!r} is supported")
    for key in ("pruned_heads", "quantization_config"):
        if raw.get(key):
            raise CheckpointError(f"{source}: {key} is set; only whole, unquantised models are supported")

    fields: dict[str, Any] = {}
    for key, integer_limits in _INTEGERS.items():
        fields[key] = _number(source, key, raw.get(key), integer_limits, integer=True)
    for key, limits in _FLOATS.items():
        fields[key] = float(_number(source, key, raw.get(key), limits))
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    if hidden % heads:
        raise CheckpointError(f"{source}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if fields["pad_token_id"] >= fields["vocab_size"]:
        raise CheckpointError(
            f"{source}: pad_token_id {fields['pad_token_id']} is not below vocab_size {fields['vocab_size']}"
        )
    return fields


def config_to_hf(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json content for the fields of a `BertConfig`, as `transformers` reads it.

    Args:
        config: exactly the fields of `BertConfig` (`dataclasses.asdict`); `pooling` is not part of
            config.json, see `pooling_to_hf`.

    Raises:
        CheckpointError: a field is missing, unknown or out of range.
    """
    known = {*_INTEGERS, *_FLOATS, "pooling"}
    if set(config) != known:
        missing, unknown = sorted(known - set(config)), sorted(set(config) - known)
        raise CheckpointError(f"config: missing fields {missing}, unknown fields {unknown}")
    if config["pooling"] not in POOLINGS:
        raise CheckpointError(f"config: pooling is {config['pooling']!r}, expected one of {POOLINGS}")
    fields = config_from_hf({**config, "model_type": "bert"}, source="config")
    return {"architectures": ["BertModel"], "model_type": "bert", **_REQUIRED, **fields}


def pooling_of(folder: Path) -> str | None:
    """The pooling that a sentence-transformers folder asks for ("mean" or "cls"), or None.

    Reads both forms of `1_Pooling/config.json`: one flag per mode, or one `pooling_mode`.

    Raises:
        CheckpointError: it asks for another mode, or for several at once.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    raw = read_json(path)
    modes = raw.get("pooling_mode")
    if modes is None:
        flags = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        modes = [flags.get(key, key) for key, on in raw.items() if key.startswith("pooling_mode_") and on]
    if isinstance(modes, list) and len(modes) == 1:
        modes = modes[0]
    if modes not in ("mean", "cls"):
        raise CheckpointError(
            f"{path}: pooling {modes!r} is not supported: choose one of {', '.join(POOLINGS)} explicitly"
        )
    return str(modes)


def pooling_to_hf(pooling: str, hidden_size: int) -> dict[str, Any] | None:
    """Content of `1_Pooling/config.json` for "mean" and "cls"; None for "pooler", which has none."""
    if pooling == "pooler":
        return None
    return {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }


def _check_is_bert(raw: Mapping[str, Any], source: str) -> None:
    model_type = raw.get("model_type")
    if model_type is not None:
        if model_type != "bert":
            raise CheckpointError(f"{source}: model_type is {model_type!r}, expected 'bert'")
        return
    missing = [key for key in _BERT_LIKE if key not in raw]
    architectures = raw.get("architectures") or []
    named = isinstance(architectures, list) and all(str(name).startswith("Bert") for name in architectures)
    if missing or not named:
        raise CheckpointError(
            f"{source}: no model_type, and not a BERT config: missing keys {missing}, architectures {architectures}"
        )


def _number(source: str, key: str, value: Any, limits: tuple[float, float, float], integer: bool = False) -> Any:
    default, least, greatest = limits
    if value is None:
        return default
    # bool is a subclass of int; NaN, which JSON parsers accept, fails the range.
    if not isinstance(value, int if integer else (int, float)) or isinstance(value, bool):
        raise CheckpointError(f"{source}: {key} is {value!r}, expected {'an integer' if integer else 'a number'}")
    if not least <= value <= greatest:
        raise CheckpointError(f"{source}: {key} is {value!r}, expected {least} to {greatest}")
    return value
