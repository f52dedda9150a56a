"""From a configuration to data and a model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from smartcs.data.encode import EncodedTask, encode
from smartcs.data.examples import TASKS, DataFolder, Examples
from smartcs.data.formats import load_folder
from smartcs.data.holdout import hold_out
from smartcs.data.sample import sample_folder, sample_tokenizer
from smartcs.model.bert import BertConfig, BertLayer, BertModel
from smartcs.model.multitask import HeadConfig, MultitaskBert
from smartcs.model.sources import bundled_minilm, resolve
from smartcs.model.tokenizer import load_tokenizer
from smartcs.model.weights import load_checkpoint
from smartcs.training.config import TrainConfig
from smartcs.training.recipes import AUTO_MODEL, SAMPLE_DATA, SMALL_MODEL, model_name

# The encoder that starts from random weights: large enough for the sample, small enough to learn it in two
# minutes. At this width BERT's own 0.02 would leave the layers with almost no say beside the residual sums.
SMALL_BERT = BertConfig(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=512,
    initializer_range=0.1,
    pooling="mean",
)
_WORD_SCALE = 4.0


def load_data(data: str, *, strict: bool = False, tasks: Collection[str] = TASKS, holdout: float = 0.0) -> DataFolder:
    """Some tasks of the embedded sample, or of a folder of the course's files, which holds all.

    Args:
        data: "sample" or the folder.
        strict: whether malformed rows are an error.
        tasks: their names.
        holdout: share of the training texts that stands in for the dev split, see `smartcs.data.holdout`.

    Raises:
        DataError: see `smartcs.data.formats` and `smartcs.data.holdout`.
    """
    folder = sample_folder() if data == SAMPLE_DATA else load_folder(Path(data).expanduser(), strict=strict)
    if holdout:
        folder = hold_out(folder, holdout)
    if set(TASKS) <= set(tasks):
        return folder

    def chosen(split: dict[str, Examples]) -> dict[str, Examples]:
        return {name: examples for name, examples in split.items() if name in tasks}

    return replace(folder, train=chosen(folder.train), dev=chosen(folder.dev), test=chosen(folder.test))


def build_model(config: TrainConfig) -> MultitaskBert:
    """The encoder that `config` names, with new heads drawn from `config.seed`, in training mode.

    Raises:
        ModelSourceError: there is no such model, or no tokenizer with it.
        CheckpointError: it is damaged or no plain BERT.
    """
    heads = HeadConfig(sst_head=config.sst_head, dropout=config.head_dropout, cosine=config.cosine)
    name = model_name(config.model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # and no GPU's
        if name == SMALL_MODEL:
            tokenizer = sample_tokenizer()
            shape = replace(SMALL_BERT, vocab_size=tokenizer.get_vocab_size())
            if config.pooling != "auto":
                shape = replace(shape, pooling=config.pooling)
            bert = _let_words_match(BertModel(_with_dropout(shape, config.encoder_dropout)))
        else:
            # Not by its name, which a folder of the current directory could also have.
            bundled = bundled_minilm() if config.model == AUTO_MODEL else None
            folder = resolve(name) if bundled is None else bundled
            checkpoint = load_checkpoint(folder, config.pooling)
            shape = BertConfig.from_dict(checkpoint.config)
            tokenizer = load_tokenizer(folder, shape.vocab_size)
            bert = BertModel(_with_dropout(shape, config.encoder_dropout))
            bert.load_state_dict({**bert.state_dict(), **checkpoint.state_dict})
        return MultitaskBert(bert, heads, tokenizer).train()


def encode_split(
    model: MultitaskBert, split: dict[str, Examples], max_length: int, *, strict: bool = False
) -> dict[str, EncodedTask]:
    """Tokenizes the tasks of one split, in the order of TASKS.

    Raises:
        DataError: with `strict`, a sequence is longer than `max_length` or than the model has positions.
    """
    assert model.tokenizer is not None
    limit = min(max_length, model.bert.config.max_position_embeddings)
    return {name: encode(model.tokenizer, split[name], limit, strict=strict) for name in TASKS if name in split}


def describe_model(model: MultitaskBert, name: str) -> str:
    """One line for people."""
    shape = model.bert.config
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return (
        f"{Path(name).name if Path(name).is_dir() else name}: {shape.num_hidden_layers} layers, "
        f"hidden size {shape.hidden_size}, {millions:.1f} million parameters, {shape.pooling} pooling"
    )


def _with_dropout(shape: BertConfig, dropout: float | None) -> BertConfig:
    if dropout is None:
        return shape
    return replace(shape, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)


@torch.no_grad()
def _let_words_match(bert: BertModel) -> BertModel:
    """Makes tokens of the first layer attend to their like in the other sentence.

    Which words two sentences share is what the pair tasks begin with, and to find that from random weights takes
    far more steps than a first try should. So keys start as the queries' copy there, and words count for more
    than positions and token types.
    """
    bert.embeddings.word.weight.mul_(_WORD_SCALE)
    first = bert.layers[0]
    assert isinstance(first, BertLayer)
    query, key, _ = first.qkv.weight.chunk(3)
    key.copy_(query)
    return bert
