"""What a user would run instead: Hugging Face's BERT on padded batches, with smart-pytorch and torch's own AdamW.

The encoder is `transformers.BertModel` with its eager attention, its SDPA, or that compiled by torch.compile with
dynamic shapes; heads, losses and weights are those of the model it is made from. SMART is the package smart-pytorch
(one ascent step, its published settings), the Bregman anchor a deep copy that follows by `torch._foreach_lerp_`.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from smart_pytorch import SMARTLoss, kl_loss, sym_kl_loss
from torch import Tensor, nn
from transformers import BertConfig as PeerConfig
from transformers import BertModel as PeerBert

import smartcs
from smartcs.data.packing import PackedBatch
from smartcs.model.hf_config import config_to_hf
from smartcs.model.weights import state_dict_to_hf
from smartcs.training.metrics import task_loss

PEERS = ("transformers eager", "transformers sdpa", "transformers compile")
SMART_WEIGHT, BREGMAN_WEIGHT, BETA = 2.0, 1.0, 0.99


class Padded(NamedTuple):
    """A batch as Hugging Face takes it, all (B, S) int64: word pieces, 1 for tokens and 0 for padding, token types."""

    ids: Tensor
    mask: Tensor
    types: Tensor


def padded(batch: PackedBatch) -> Padded:
    return Padded(batch.to_padded(), batch.attention_mask(), batch.to_padded(batch.token_type_ids))


def mean_divergence(a: Tensor, b: Tensor) -> Tensor:
    """smart-pytorch's symmetrised divergence as a mean over the examples."""
    return sym_kl_loss(a, b, reduction="batchmean")


class Peer(nn.Module):
    """The model of `ours` with Hugging Face's encoder and torch's linear layers; the same weights, in copies."""

    def __init__(self, ours: smartcs.MultitaskBert, name: str) -> None:
        super().__init__()
        fields = {field: getattr(ours.bert.config, field) for field in ours.bert.config.__dataclass_fields__}
        attention = "eager" if name == "transformers eager" else "sdpa"
        self.bert = PeerBert(PeerConfig(**config_to_hf(fields), attn_implementation=attention))
        self.bert.load_state_dict(state_dict_to_hf(ours.bert.state_dict(), fields))
        self.heads = copy.deepcopy(ours.heads)
        self.encode: Callable[..., object] = self.bert
        if name == "transformers compile":
            self.encode = torch.compile(self.bert, dynamic=True)

    def embed(self, batch: Padded) -> Tensor:
        """(B, S, C): the word embeddings, where SMART's perturbation goes."""
        embedded: Tensor = self.bert.embeddings.word_embeddings(batch.ids)
        return embedded

    def forward(self, task: str, batch: Padded, embedded: Tensor | None = None) -> Tensor:
        """(B, 5) for SST, else (B,): what `MultitaskBert` gives for that task."""
        if embedded is None:
            embedded = self.embed(batch)
        out = self.encode(inputs_embeds=embedded, attention_mask=batch.mask, token_type_ids=batch.types)
        weights = batch.mask[:, :, None].to(embedded.dtype)
        pooled = (out.last_hidden_state * weights).sum(1) / weights.sum(1)  # type: ignore[attr-defined]
        hidden = torch.relu(self.heads["sst_hidden" if task == "sst" else "pair_shared"](pooled))
        result: Tensor = self.heads[f"{task}_output"](hidden)
        return result if task == "sst" else result.squeeze(-1)


class PeerStep:
    """A training step of a peer, with the terms of the recipe "baseline" or "smart-bregman"."""

    def __init__(self, ours: smartcs.MultitaskBert, name: str, recipe: str, learning_rate: float) -> None:
        self.model = Peer(ours, name).train()
        implementation = {"foreach": True} if name == "transformers eager" else {"fused": True}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=learning_rate, eps=1e-6, weight_decay=0.0, **implementation
        )
        self.anchor: Peer | None = None
        if recipe == "smart-bregman":
            self.anchor = Peer(ours, name).eval().requires_grad_(False)
        self._weights = list(self.model.parameters())

    def terms(self, task: str, batch: Padded, labels: Tensor) -> dict[str, Tensor]:
        """The task's loss, and on SST SMART's value and the divergence from the anchor, before their weights."""
        if task != "sst" or self.anchor is None:
            return {"task": task_loss(task, self.model(task, batch), labels)}
        embedded = self.model.embed(batch)
        output = self.model(task, batch, embedded)
        smart = SMARTLoss(lambda x: self.model(task, batch, x), kl_loss, mean_divergence)
        with torch.no_grad():
            target = self.anchor(task, batch)
        return {
            "task": task_loss(task, output, labels),
            "smart": smart(embedded, output),
            "bregman": mean_divergence(output, target),
        }

    def __call__(self, task: str, batch: Padded, labels: Tensor) -> float:
        """One optimizer step; returns the task's loss, which a training loop would log."""
        terms = self.terms(task, batch, labels)
        total = terms["task"]
        if "smart" in terms:
            total = total + SMART_WEIGHT * terms["smart"] + BREGMAN_WEIGHT * terms["bregman"]
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.anchor is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.anchor.parameters()), self._weights, 1 - BETA)
        return terms["task"].item()
