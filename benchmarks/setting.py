"""What the benchmarks of whole models share: encoder shapes, sentences, and the paper's batches."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from results_io import RESULTS

import smartcs
from smartcs.data.encode import EncodedTask, encode
from smartcs.model.sources import bundled_minilm
from smartcs.model.tokenizer import load_tokenizer
from smartcs.training.recipes import SAMPLE_DATA

BATCHES = {"sst": 6, "qqp": 40, "sts": 4}
# Layers, hidden size, heads, intermediate size.
SHAPES = {"tiny": (2, 64, 2, 128), "minilm": (6, 384, 12, 1536), "base": (12, 768, 12, 3072)}
WORDS = 30522  # the optimizer's time is that of the real vocabulary's table


def encoder(shape: str | tuple[int, int, int, int], dropout: float = 0.1) -> smartcs.BertModel:
    """An encoder of that shape with new weights, drawn from torch's default generator; mean pooling."""
    layers, hidden, heads, inner = SHAPES[shape] if isinstance(shape, str) else shape
    return smartcs.BertModel(
        smartcs.BertConfig(
            vocab_size=WORDS,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            pooling="mean",
        )
    )


def sentences(folder: str = SAMPLE_DATA) -> dict[str, EncodedTask]:
    """The training sentences of a folder of the course's files, or of the embedded sample, as word pieces."""
    from smartcs.data.sample import sample_tokenizer
    from smartcs.training.setup import load_data  # needs tyro, which the encoder alone does not

    found = bundled_minilm()
    tokenizer = sample_tokenizer() if found is None else load_tokenizer(found, WORDS)
    return {task: encode(tokenizer, examples) for task, examples in load_data(folder).train.items()}


@contextmanager
def mode(backend: str, precision: str) -> Iterator[None]:
    """Within the block, this backend and this precision."""
    with smartcs.backend(backend), smartcs.precision(precision):  # type: ignore[arg-type]
        yield


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """--threads, --rounds, --data and --output."""
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--data", default=SAMPLE_DATA, help="folder of the course's files; default: embedded sentences")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
