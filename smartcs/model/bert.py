"""BERT's encoder on packed batches.

Read from the top: the configuration, one layer, the model. Shapes: T tokens of all sentences, B sentences, C = hidden
size, H heads of size D = C / H. There is no padding and so no attention mask: `PackedBatch.cu_seqlens` says where
sentences begin.

Source: Devlin et al. 2018. Outputs equal those of `transformers.BertModel` on the same weights.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from smartcs import ops
from smartcs.data.packing import PackedBatch
from smartcs.model.hf_config import POOLINGS
from smartcs.model.weights import load_checkpoint, save_checkpoint
from smartcs.ops.random import DropoutKey

PerturbAt = Literal["word_embeddings", "embedding_output"]


@dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder, in Hugging Face's names; the defaults are bert-base-uncased.

    `pooling` says what stands for a whole sentence (`BertOutput.pooled`): "pooler", tanh of a linear map of the first
    token, as in the paper; "cls", the first token; "mean", the mean of all tokens.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0
    initializer_range: float = 0.02
    pooling: str = "pooler"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"BertConfig: {name} is {getattr(self, name)}, expected at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BertConfig: hidden_size is {self.hidden_size}, expected a multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"BertConfig: {name} is {getattr(self, name)}, expected 0 <= {name} < 1")
        if self.pooling not in POOLINGS:
            raise ValueError(f"BertConfig: pooling is {self.pooling!r}, expected one of {', '.join(POOLINGS)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BertConfig":
        """A config from keyword values. Raises ValueError naming unknown keys."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"BertConfig: unknown keys {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**values)


class BertOutput(NamedTuple):
    """What an encoder returns.

    last_hidden_state: (T, C), one row per token, packed like the batch.
    pooler_output: (B, C), tanh of a linear map of each sentence's first token.
    pooled: (B, C), what `BertConfig.pooling` selects; rows of empty sentences are zero for "cls" and "mean".
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    pooled: Tensor


class BertEmbeddings(nn.Module):
    """Word, position and token type embeddings with their LayerNorm and dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, batch: PackedBatch, key: DropoutKey | None, perturbation: Tensor | None) -> Tensor:
        return ops.embedding(
            batch.input_ids,
            batch.token_type_ids,
            batch.position_ids,
            self.word.weight,
            self.token_type.weight,
            self.position.weight,
            self.norm.weight,
            self.norm.bias,
            eps=self.config.layer_norm_eps,
            perturbation=perturbation,
            sparse=self.word.sparse,
            **_dropout(self.config.hidden_dropout_prob, key, site=0),
        )  # (T, C)


class BertLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by dropout, a residual sum and LayerNorm.

    The linear modules hold parameters; the biases of the two output maps are added by the op that follows the product.
    What only products and attention read (q, k, v, their context, the feed-forward's inside) is stored in `low`:
    bfloat16 in bf16 mode (`smartcs.precision`), else the dtype of the weights, which the residual stream x always has.
    """

    def __init__(self, config: BertConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.first_site = 1 + 3 * index  # site 0 is the embeddings
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.intermediate = nn.Linear(hidden, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=eps)

    def forward(self, x: Tensor, batch: PackedBatch, key: DropoutKey | None) -> Tensor:
        config, site = self.config, self.first_site
        heads = config.num_attention_heads
        low = ops.activation_dtype(self.qkv.weight)

        qkv = ops.linear(x, self.qkv.weight, self.qkv.bias, out_dtype=low)  # (T, 3 C)
        context = ops.attention(
            qkv.view(-1, 3, heads, config.hidden_size // heads),  # (T, 3, H, D)
            batch.cu_seqlens,
            batch.max_seqlen,
            **_dropout(config.attention_probs_dropout_prob, key, site),
        )  # (T, H, D)
        attended = ops.linear(context.flatten(1), self.attention_output.weight)  # (T, C)
        x = ops.add_layer_norm(
            attended,
            residual=x,
            weight=self.attention_norm.weight,
            bias=self.attention_norm.bias,
            input_bias=self.attention_output.bias,
            eps=config.layer_norm_eps,
            **_dropout(config.hidden_dropout_prob, key, site + 1),
        )

        inner = ops.linear(
            x, self.intermediate.weight, self.intermediate.bias, activation="gelu", out_dtype=low
        )  # (T, intermediate)
        return ops.add_layer_norm(
            ops.linear(inner, self.output.weight),
            residual=x,
            weight=self.output_norm.weight,
            bias=self.output_norm.bias,
            input_bias=self.output.bias,
            eps=config.layer_norm_eps,
            **_dropout(config.hidden_dropout_prob, key, site + 2),
        )  # (T, C)


class BertModel(nn.Module):
    """The encoder: embeddings, layers, pooler.

    Args:
        config: Its shape. Weights start as in BERT: normal with `initializer_range`, biases zero, LayerNorms one and
            zero, drawn from torch's default generator.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config, index) for index in range(config.num_hidden_layers))
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.apply(self._initialize)

    def forward(
        self,
        batch: PackedBatch,
        dropout_key: DropoutKey | None = None,
        *,
        perturbation: Tensor | None = None,
        perturb_at: PerturbAt = "word_embeddings",
    ) -> BertOutput:
        """Encodes a batch.

        Args:
            batch: Token ids of B sentences.
            dropout_key: Names the dropout masks in training mode; equal keys give equal masks. Left out, a fresh one is
                drawn from torch's default generator. Not used in evaluation mode.
            perturbation: (T, C), SMART's v: moves every token's input; dtype of the weights.
            perturb_at: where: "word_embeddings", before position and type are added and all are normalised (as in
                mt-dnn), or "embedding_output", after that and after the dropout.

        Raises:
            ValueError: a sentence is longer than the model has positions, `perturbation` has another shape, or
                `perturb_at` is unknown.
            IndexError: an id is not in the vocabulary.
        """
        if not batch.inert:  # else that was before it was filled up
            self.check_length(batch)
        if not self.training:
            dropout_key = None
        elif dropout_key is None:
            dropout_key = DropoutKey.draw()
        if perturb_at not in get_args(PerturbAt):
            raise ValueError(
                f"BertModel: perturb_at is {perturb_at!r}, expected one of {', '.join(get_args(PerturbAt))}"
            )
        shape = (batch.num_tokens, self.config.hidden_size)
        if perturbation is not None and perturbation.shape != shape:
            raise ValueError(f"BertModel: perturbation has shape {tuple(perturbation.shape)}, expected {shape}")
        x = self.embeddings(batch, dropout_key, perturbation if perturb_at == "word_embeddings" else None)
        if perturbation is not None and perturb_at == "embedding_output":
            x = x + perturbation
        for layer in self.layers:
            x = layer(x, batch, dropout_key)
        first = _first_tokens(x, batch)
        pooler_output = torch.tanh(ops.linear(first, self.pooler.weight, self.pooler.bias))
        pooled = {"pooler": pooler_output, "cls": first}.get(self.config.pooling)
        return BertOutput(x, pooler_output, _mean_tokens(x, batch) if pooled is None else pooled)

    def check_length(self, batch: PackedBatch) -> None:
        """Raises ValueError where a sentence is longer than the model has positions."""
        if batch.max_seqlen > self.config.max_position_embeddings:
            raise ValueError(
                f"BertModel: the batch has a sentence of up to {batch.max_seqlen} tokens, "
                f"this model has {self.config.max_position_embeddings} positions; truncate it"
            )

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str], pooling: str = "auto") -> "BertModel":
        """Reads a Hugging Face BERT checkpoint: a folder, a hub id, or "minilm".

        Args:
            path_or_id: Where the checkpoint is, see `smartcs.model.sources.resolve`.
            pooling: "pooler", "cls", "mean", or "auto" to follow the checkpoint.

        Raises:
            ModelSourceError: there is no checkpoint at `path_or_id`; says what to do.
            CheckpointError: it is damaged or not a plain BERT.
        """
        checkpoint = load_checkpoint(path_or_id, pooling)
        # On the meta device nothing is drawn and thrown away; a pooler the file lacks has to be drawn.
        with torch.device("cpu" if checkpoint.missing else "meta"):
            model = cls(BertConfig.from_dict(checkpoint.config))
        model.load_state_dict(checkpoint.state_dict, strict=not checkpoint.missing, assign=not checkpoint.missing)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> None:
        """Writes a folder that `transformers.BertModel.from_pretrained` and this class read."""
        save_checkpoint(folder, asdict(self.config), self.state_dict(), tokenizer)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _dropout(p: float, key: DropoutKey | None, site: int) -> dict[str, Any]:
    """An op's dropout arguments at one place of the network; none without a key."""
    if key is None:
        return {}
    return {"dropout_p": p, "seed": key.seed, "stream": key.stream(site), "counter_offset": key.token_offset}


def _first_tokens(x: Tensor, batch: PackedBatch) -> Tensor:
    """(B, C): each sentence's first row of x; zero for a sentence without tokens."""
    if batch.num_tokens == 0:
        return x.sum(dim=0).expand(batch.batch_size, -1)  # zeros that backward() can pass
    starts = batch.cu_seqlens[:-1].long().clamp(max=batch.num_tokens - 1)
    return x[starts] * (batch.lengths > 0).to(x.dtype)[:, None]


def _mean_tokens(x: Tensor, batch: PackedBatch) -> Tensor:
    """(B, C): the mean of each sentence's rows of x; zero for a sentence without tokens."""
    lengths = batch.lengths.long()
    sentence = torch.arange(batch.batch_size, device=x.device)
    sentence = torch.repeat_interleave(sentence, lengths, output_size=batch.num_tokens)
    # index_add adds on a GPU in any order, a product in one.
    sum_rows = _sum_by_product if x.device.type == "cuda" else _sum_by_index
    return sum_rows(x, sentence, batch.batch_size) / lengths.clamp(min=1).to(x.dtype)[:, None]


def _sum_by_index(x: Tensor, index: Tensor, count: int) -> Tensor:
    """(count, C): sums of the rows of x with the same index."""
    return x.new_zeros((count, x.shape[1])).index_add(0, index, x)


def _sum_by_product(x: Tensor, index: Tensor, count: int) -> Tensor:
    """The same."""
    return (index == torch.arange(count, device=x.device)[:, None]).to(x.dtype) @ x
