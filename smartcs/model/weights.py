"""BERT checkpoints of Hugging Face: read into the parameter names of `BertModel`, and written back.

Reading is strict. Every parameter of the encoder must be in the file with the shape the config
implies, and every tensor of the file must be accounted for:

- the encoder's own tensors, with or without the prefix `bert.`, with `gamma`/`beta` for old files;
- index buffers that old versions stored (`embeddings.position_ids`): skipped;
- heads trained on top (`cls.`, `classifier.`, `qa_outputs.`): listed in `Checkpoint.ignored`;
- beside a `bert.` prefix, any other tensor is some other head: listed, with a warning;
- anything else would change what the encoder computes (an adapter, a further layer): an error.

The pooler alone may be missing; see `load_checkpoint`.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from smartcs.model.files import CheckpointError, Writer, json_writer, read_json, tensor_writer, write_files
from smartcs.model.hf_config import (
    POOLINGS,
    config_from_hf,
    config_to_hf,
    pooling_of,
    pooling_to_hf,
)
from smartcs.model.sources import resolve, weight_file
from smartcs.model.tensor_files import read_tensors
from smartcs.model.tokenizer import TOKENIZER_FILES, tokenizer_writers

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PREFIX = "bert."
_WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
_POOLER = ("pooler.weight", "pooler.bias")
_HF_POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
_HEADS = ("cls.", "classifier.", "qa_outputs.")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# An MLM head shares the word embeddings; a file may hold them under the head's name only.
_TIED_WORD_EMBEDDINGS = "cls.predictions.decoder.weight"


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` read.

    Attributes:
        config: keyword arguments of `BertConfig`, `pooling` included.
        state_dict: parameter name of `BertModel` -> float32 CPU tensor that owns its memory.
        missing: parameters the file does not hold, which keep their fresh initialisation: the
            pooler's two, or none.
        ignored: names of the file's tensors that belong to heads and were left out.
    """

    config: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


class EncoderWeights(NamedTuple):
    """What `state_dict_from_hf` found; the fields are those of `Checkpoint`."""

    state_dict: dict[str, torch.Tensor]
    missing: tuple[str, ...]
    ignored: tuple[str, ...]


class _Parameter(NamedTuple):
    """One parameter of BertModel and the Hugging Face tensors stacked in it, first axis first."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[str, ...]

    @property
    def piece_shape(self) -> tuple[int, ...]:
        return (self.shape[0] // len(self.pieces), *self.shape[1:])


def load_checkpoint(path_or_id: str | os.PathLike[str], pooling: str = "auto") -> Checkpoint:
    """Read config.json and the weights of a BERT checkpoint.

    The weights are `model.safetensors` or else `pytorch_model.bin` (read with `weights_only`, so no
    code in it runs), whole or sharded with an index. float16, bfloat16 and float64 become float32.

    Without a pooler in the file its parameters are reported in `missing`, a warning says so, and
    `pooling="auto"` never chooses it.

    Args:
        path_or_id: folder, hub id or "minilm", see `sources.resolve`.
        pooling: "pooler", "cls", "mean", or "auto": the mode in `1_Pooling/config.json`, else
            "pooler" where the file has one, else "cls".

    Raises:
        ModelSourceError: nothing to read at `path_or_id`.
        CheckpointError: a damaged file, a config that is not plain BERT, a tensor that is missing,
            unknown, not finite, or of the wrong shape or type.
        ValueError: unknown `pooling`.
    """
    if pooling not in ("auto", *POOLINGS):
        raise ValueError(f"pooling is {pooling!r}, expected one of {('auto', *POOLINGS)}")
    folder = resolve(path_or_id)
    config_path = folder / "config.json"
    raw_config = read_json(config_path)
    config = config_from_hf(raw_config, str(config_path))
    from_files = pooling_of(folder) if pooling == "auto" else None

    path = weight_file(folder)
    assert path is not None  # resolve() has checked
    tied = raw_config.get("tie_word_embeddings") is not False
    state_dict, missing, ignored = state_dict_from_hf(read_tensors(path), config, str(path), tied=tied)
    others = {name for name in ignored if not name.startswith(_HEADS)}
    if others:
        warnings.warn(f"{path}: ignored tensors outside the encoder: {_some(others)}", stacklevel=2)
    if pooling == "auto":
        pooling = from_files or ("cls" if missing else "pooler")
    if missing:
        use = "which pooling uses" if pooling == "pooler" else f"which pooling {pooling!r} does not use"
        warnings.warn(f"{path}: no pooler; pooler_output, {use}, starts from random weights", stacklevel=2)
    return Checkpoint({**config, "pooling": pooling}, state_dict, missing, ignored)


def state_dict_from_hf(
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    source: str = "state_dict",
    tied: bool = True,
) -> EncoderWeights:
    """Parameters of `BertModel` from the tensors of a Hugging Face BERT.

    Args:
        tensors: any of the names that the head of this file lists, any floating dtype.
        config: fields of `BertConfig`.
        source: what errors call `tensors`, usually the file.
        tied: word embeddings that are missing may be taken from an MLM head.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    encoder, heads = _encoder_tensors(tensors, source)
    if tied and _TIED_WORD_EMBEDDINGS in heads:
        encoder.setdefault(_WORD_EMBEDDINGS, heads[_TIED_WORD_EMBEDDINGS])
    layout = _layout(config)
    missing = _check_tensors(encoder, layout, source)
    present = [parameter for parameter in layout if parameter.name not in missing]
    state_dict = {parameter.name: _stack(parameter, encoder, source) for parameter in present}
    return EncoderWeights(state_dict, missing, tuple(sorted(heads)))


def state_dict_to_hf(state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The inverse: CPU tensors named as in `transformers.BertModel`, of unchanged dtype, sharing nothing.

    Raises:
        CheckpointError: `state_dict` has not exactly the names and shapes of `BertModel(config)`.
    """
    layout = _layout(config)
    names = {parameter.name for parameter in layout}
    if set(state_dict) != names:
        raise CheckpointError(
            f"state_dict: missing {_some(names - set(state_dict))}, unknown {_some(set(state_dict) - names)}"
        )
    tensors: dict[str, torch.Tensor] = {}
    for parameter in layout:
        value = state_dict[parameter.name].detach()
        _check_tensor("state_dict", parameter.name, value, parameter.shape)
        # Copies, because safetensors refuses tensors that share memory, as the pieces of one qkv do.
        for piece, part in zip(parameter.pieces, value.chunk(len(parameter.pieces)), strict=True):
            tensors[piece] = part.to("cpu", copy=True).contiguous()
    return tensors


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    tokenizer: Tokenizer | None = None,
    extra: Mapping[str, Writer] | None = None,
) -> None:
    """Write a folder that `transformers.BertModel`, `AutoTokenizer` and `load_checkpoint` read.

    Writes config.json, model.safetensors, `1_Pooling/config.json` (unless pooling is "pooler") and
    the tokenizer's files. Each file appears whole or not at all, see `files.write_files`.

    Args:
        folder: created if missing; files of the same names are replaced.
        config: all fields of `BertConfig` (`dataclasses.asdict`).
        state_dict: exactly the parameters of `BertModel`, any floating dtype (stored as it is) and
            device.
        tokenizer: None leaves tokenizer files that are already there as they are.
        extra: files of the caller that belong to this checkpoint, as for `files.write_files`; all are moved
            into place together.

    Raises:
        CheckpointError: names, shapes or dtypes that do not fit `config`; nothing is written then.
    """
    hf_config = config_to_hf(config)
    tensors = state_dict_to_hf(state_dict, config)
    writers: dict[str, Writer] = {
        "config.json": json_writer(hf_config),
        "model.safetensors": tensor_writer(tensors),
    }
    optional = {"1_Pooling/config.json"}
    pooling = pooling_to_hf(config["pooling"], config["hidden_size"])
    if pooling is not None:
        writers["1_Pooling/config.json"] = json_writer(pooling)
    if tokenizer is not None:
        writers |= tokenizer_writers(tokenizer, config["vocab_size"], config["max_position_embeddings"])
        optional |= TOKENIZER_FILES
    writers |= extra or {}
    # What an earlier save left would contradict this one, such as a pooling file beside "pooler".
    write_files(Path(folder), writers, remove=optional - set(writers))


def _layout(config: Mapping[str, Any]) -> list[_Parameter]:
    """Every parameter of `BertModel(config)`: its name, its shape, its Hugging Face tensors."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layout = [
        _Parameter("embeddings.word.weight", (config["vocab_size"], hidden), (_WORD_EMBEDDINGS,)),
        _Parameter(
            "embeddings.position.weight",
            (config["max_position_embeddings"], hidden),
            ("embeddings.position_embeddings.weight",),
        ),
        _Parameter(
            "embeddings.token_type.weight",
            (config["type_vocab_size"], hidden),
            ("embeddings.token_type_embeddings.weight",),
        ),
    ]

    def add(name: str, rows: int, columns: int | None, *hf_names: str) -> None:
        # columns=None: a LayerNorm, whose weight is a vector like its bias.
        weight_shape = (rows,) if columns is None else (rows, columns)
        for kind, shape in (("weight", weight_shape), ("bias", (rows,))):
            layout.append(_Parameter(f"{name}.{kind}", shape, tuple(f"{hf}.{kind}" for hf in hf_names)))

    add("embeddings.norm", hidden, None, "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        ours, hf = f"layers.{i}", f"encoder.layer.{i}"
        attention = f"{hf}.attention.self"
        qkv = (f"{attention}.query", f"{attention}.key", f"{attention}.value")
        add(f"{ours}.qkv", 3 * hidden, hidden, *qkv)
        add(f"{ours}.attention_output", hidden, hidden, f"{hf}.attention.output.dense")
        add(f"{ours}.attention_norm", hidden, None, f"{hf}.attention.output.LayerNorm")
        add(f"{ours}.intermediate", inner, hidden, f"{hf}.intermediate.dense")
        add(f"{ours}.output", hidden, inner, f"{hf}.output.dense")
        add(f"{ours}.output_norm", hidden, None, f"{hf}.output.LayerNorm")
    add("pooler", hidden, hidden, "pooler.dense")
    return layout


def _encoder_tensors(
    tensors: Mapping[str, torch.Tensor], source: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split a file into the encoder's tensors, in today's names without prefix, and the heads'."""
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    encoder: dict[str, torch.Tensor] = {}
    heads: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(prefix) or name.startswith(_HEADS):
            heads[name] = tensor
            continue
        modern = name.removeprefix(prefix)
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if modern.endswith(f"LayerNorm{old}"):
                modern = modern.removesuffix(old) + new
        if modern in _BUFFERS:
            continue
        if modern in encoder:
            raise CheckpointError(f"{source}: holds {modern!r} twice, under its old name and its new one")
        encoder[modern] = tensor
    return encoder, heads


def _check_tensors(tensors: Mapping[str, torch.Tensor], layout: list[_Parameter], source: str) -> tuple[str, ...]:
    """Check names, shapes and dtypes; return the parameters that are missing and may be."""
    wanted = {piece: parameter for parameter in layout for piece in parameter.pieces}
    unknown = set(tensors) - set(wanted)
    if unknown:
        raise CheckpointError(f"{source}: tensors that a BERT of this config does not have: {_some(unknown)}")
    absent = set(wanted) - set(tensors)
    missing: tuple[str, ...] = ()
    if absent.issuperset(_HF_POOLER):
        absent -= _HF_POOLER
        missing = _POOLER
    if absent:
        raise CheckpointError(f"{source}: no tensors for {_some(absent)}")
    for name, tensor in tensors.items():
        _check_tensor(source, name, tensor, wanted[name].piece_shape)
    return missing


def _check_tensor(source: str, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{source}: {name} has shape {tuple(tensor.shape)}, expected {shape} from the config")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise CheckpointError(f"{source}: {name} has dtype {tensor.dtype}, expected one of {expected}")


def _stack(parameter: _Parameter, tensors: Mapping[str, torch.Tensor], source: str) -> torch.Tensor:
    """One parameter in float32, in memory of its own (safetensors hands out views of the file)."""
    value = torch.cat([tensors[piece].detach() for piece in parameter.pieces]).to(torch.float32)
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{source}: {' or '.join(parameter.pieces)} holds NaN or infinity in float32")
    return value


def _some(names: set[str], limit: int = 5) -> str:
    """The first few names, sorted, and how many more there are."""
    listed = ", ".join(sorted(names)[:limit]) or "none"
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
