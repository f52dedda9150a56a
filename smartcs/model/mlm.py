"""Masked language modelling: the encoder, and one Linear from its hidden states to the vocabulary.

Source: the SMARTCS paper, section 4: "an MLM head consisting of a linear layer to project the model output onto the
vocabulary", log softmax and cross entropy. (The original BERT has a further layer and a LayerNorm before it and shares
the weights with the word embeddings.) Only hidden states of masked tokens are projected: for one token per sequence the
whole batch would be some twenty times the work.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from smartcs import ops
from smartcs.data.masking import MaskedBatch
from smartcs.data.packing import PackedBatch
from smartcs.model.bert import BertModel
from smartcs.ops.random import DropoutKey, compute_dtype

HeadStart = Literal["random", "embeddings"]


class MaskedLanguageModel(nn.Module):
    """BERT with a head that names the hidden tokens.

    Args:
        bert: the encoder, trained along with the head.
        head: where the head's (V, C) weights start: "random", as `nn.Linear` draws them, from torch's default
            generator; "embeddings", a copy of the word embeddings, from which they then part. Its biases start at zero.

    Raises:
        ValueError: unknown `head`.
    """

    def __init__(self, bert: BertModel, head: HeadStart = "random") -> None:
        super().__init__()
        if head not in get_args(HeadStart):
            raise ValueError(f"MaskedLanguageModel: head is {head!r}, expected {' or '.join(get_args(HeadStart))}")
        self.bert = bert
        words = bert.embeddings.word.weight
        # Drawn on the CPU: the same weights wherever they go.
        self.head = nn.Linear(bert.config.hidden_size, bert.config.vocab_size).to(words)
        nn.init.zeros_(self.head.bias)
        if head == "embeddings":
            with torch.no_grad():
                self.head.weight.copy_(words)

    def forward(self, batch: PackedBatch, positions: Tensor, dropout_key: DropoutKey | None = None) -> Tensor:
        """(M, V) logits of the tokens at `positions`.

        Args:
            batch, dropout_key: as for `BertModel`.
            positions: (M,) int64, from 0 to T - 1.
        """
        hidden = self.bert(batch, dropout_key).last_hidden_state  # (T, C)
        return ops.linear(hidden.index_select(0, positions), self.head.weight, self.head.bias)

    def loss(self, masked: MaskedBatch, dropout_key: DropoutKey | None = None) -> Tensor:
        """Mean cross entropy over the M hidden tokens, 0 where there is none; float32 (float64 for float64 weights)."""
        return masked_loss(self(masked.batch, masked.positions, dropout_key), masked.targets)


def masked_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] over M rows; 0, with zero gradients, for none.

    Args:
        logits: (M, V), any floating dtype.
        targets: (M,) int64.
    """
    losses = nn.functional.cross_entropy(logits.to(compute_dtype(logits)), targets, reduction="sum")
    return losses / max(1, len(targets))
