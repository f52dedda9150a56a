"""A multitask model of 2 layers and hidden size 32 with the sample's tokenizer and random weights."""

import torch

from smartcs import BertConfig, BertModel, HeadConfig, MultitaskBert
from smartcs.data.sample import sample_tokenizer


def small_config() -> BertConfig:
    return BertConfig(
        vocab_size=sample_tokenizer().get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        pooling="mean",
    )


def small_multitask(**heads) -> MultitaskBert:
    """In evaluation mode; the same weights every time."""
    torch.manual_seed(0)
    return MultitaskBert(BertModel(small_config()), HeadConfig(**heads), sample_tokenizer()).eval()
