"""One encoder, three tasks: sentiment (SST), paraphrase (QQP) and similarity (STS).

Sentences go through BERT alone, pairs as one sequence [CLS] a [SEP] b [SEP] with token types 0 and 1. The pair tasks
share their first linear layer. Source: the SMARTCS paper, section 4 and figure 1.
"""

import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from smartcs import ops
from smartcs.data.encode import encode
from smartcs.data.examples import TASKS, Examples, Text
from smartcs.data.packing import PackedBatch
from smartcs.data.pairs import sentences_of_pairs
from smartcs.data.prefetch import Prefetcher
from smartcs.model.bert import BertModel, PerturbAt
from smartcs.model.files import CheckpointError, Writer, json_writer, read_json, tensor_writer
from smartcs.model.sources import resolve
from smartcs.model.tensor_files import read_tensors
from smartcs.model.tokenizer import load_tokenizer
from smartcs.model.weights import DTYPES, save_checkpoint
from smartcs.ops.random import DropoutKey, dropout

SST_CLASSES = 5
Cosine = Literal["none", "fusion", "direct"]
HEADS_CONFIG = "smartcs.json"
HEADS_WEIGHTS = "heads.safetensors"
_FORMAT = 1  # of smartcs.json
_FIRST_SITE = 2**15  # dropout sites of the heads; the encoder counts from 0
_CHUNK = 1024  # texts tokenized at a time, in the background while the ones before them are encoded
# Word pieces encoded at a time. With fewer, products are slower; with more, a layer's activations leave the cache.
_TOKENS = 2048


@dataclass(frozen=True)
class HeadConfig:
    """The heads.

    Attributes:
        sst_head: "relu_hidden": Linear, ReLU, Linear. "relu_logits": Linear, ReLU on the logits themselves, the other
            reading of the paper's sentence.
        dropout: probability of dropping an element before each head's last layer; the paper's `dropout` row uses 0.15.
        cosine: the similarity head. "none": as for paraphrases. "fusion": the cosine of the two sentences, each encoded
            alone, scaled to 0..5 and concatenated with the pair's shared layer before the last one. "direct": the
            scaled cosine is the score, there is no other layer (the paper's first try, which failed).
    """

    sst_head: str = "relu_hidden"
    dropout: float = 0.0
    cosine: Cosine = "none"

    def __post_init__(self) -> None:
        if self.sst_head not in ("relu_hidden", "relu_logits"):
            raise ValueError(f"HeadConfig: sst_head is {self.sst_head!r}, expected relu_hidden or relu_logits")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"HeadConfig: dropout is {self.dropout}, expected 0 <= dropout < 1")
        if self.cosine not in get_args(Cosine):
            raise ValueError(f"HeadConfig: cosine is {self.cosine!r}, expected one of {', '.join(get_args(Cosine))}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HeadConfig":
        """A config from keyword values. Raises ValueError naming unknown keys."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"HeadConfig: unknown keys {', '.join(unknown)}")
        return cls(**values)


class MultitaskBert(nn.Module):
    """BERT with a head per task.

    Args:
        bert: The encoder, fine-tuned along with the heads.
        heads: Their configuration. Weights start as `nn.Linear` draws them, from torch's default generator.
        tokenizer: Needed for everything that takes text.
    """

    def __init__(self, bert: BertModel, heads: HeadConfig | None = None, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.bert = bert
        self.head_config = HeadConfig() if heads is None else heads
        self.tokenizer = tokenizer
        hidden = bert.config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "pair_shared": nn.Linear(hidden, hidden),
                "qqp_output": nn.Linear(hidden, 1),
                "sst_output": nn.Linear(hidden, SST_CLASSES),
            }
        )
        if self.head_config.sst_head == "relu_hidden":
            self.heads["sst_hidden"] = nn.Linear(hidden, hidden)
        if self.head_config.cosine != "direct":
            self.heads["sts_output"] = nn.Linear(hidden + (self.head_config.cosine == "fusion"), 1)
            # Scores begin at the middle of their scale: from zero, the first steps would do nothing but push every
            # sentence's encoding one way, and at higher learning rates it stays there.
            nn.init.constant_(self.heads.get_parameter("sts_output.bias"), TASKS["sts"].high / 2)

    def forward(
        self,
        task: str,
        batch: PackedBatch,
        dropout_key: DropoutKey | None = None,
        *,
        perturbation: Tensor | None = None,
        perturb_at: PerturbAt = "word_embeddings",
        encoded: bool = False,
    ) -> Tensor:
        """The output of the task named "sst", "qqp" or "sts": one of the three below.

        Args:
            task: Its name.
            batch: B sentences (SST) or pairs.
            dropout_key: See `BertModel.forward`.
            perturbation: (T, C), added to the input of the T tokens of `encoder_input(task, batch)`.
            perturb_at: See `BertModel.forward`.
            encoded: Whether the batch is such an encoder input already.
        """
        outputs = {"sst": self._sentiment, "qqp": self._paraphrase, "sts": self._similarity}
        if task not in outputs:
            raise ValueError(f"MultitaskBert: task is {task!r}, expected one of {', '.join(outputs)}")
        key = None
        if self.training:
            key = DropoutKey.draw() if dropout_key is None else dropout_key
        if not encoded:
            batch = self.encoder_input(task, batch)
        pooled = self.bert(batch, key, perturbation=perturbation, perturb_at=perturb_at).pooled
        return outputs[task](pooled[: batch.batch_size - batch.inert], key)

    def sentiment_logits(self, batch: PackedBatch, dropout_key: DropoutKey | None = None) -> Tensor:
        """(B, 5) logits of the sentiment classes of B sentences."""
        return self("sst", batch, dropout_key)

    def paraphrase_logit(self, batch: PackedBatch, dropout_key: DropoutKey | None = None) -> Tensor:
        """(B,) logits that the sentences of B pairs mean the same."""
        return self("qqp", batch, dropout_key)

    def similarity_score(self, batch: PackedBatch, dropout_key: DropoutKey | None = None) -> Tensor:
        """(B,) similarity of B pairs, trained towards 0 (unrelated) to 5 (equivalent); not clamped."""
        return self("sts", batch, dropout_key)

    def encoder_input(self, task: str, batch: PackedBatch) -> PackedBatch:
        """What the encoder reads for a batch of `task`: the batch, but for STS with a cosine.

        Then it is the sentences of B pairs, each alone, as 2 B sequences (`sentences_of_pairs`); with "fusion" each
        pair comes before its two, so that one pass encodes all.
        """
        if task != "sts" or self.head_config.cosine == "none":
            return batch
        return sentences_of_pairs(batch, keep_pairs=self.head_config.cosine == "fusion")

    def output_shape(self, task: str) -> tuple[int, ...]:
        """The shape of the output for one example: (5,) for SST, else ()."""
        return (SST_CLASSES,) if task == "sst" else ()

    def encoder_lengths(self, task: str, lengths: np.ndarray) -> np.ndarray:
        """(B,): how many tokens `encoder_input` has of examples of these many, each at least 1."""
        if task != "sts" or self.head_config.cosine == "none":
            return lengths
        alone = lengths + 1  # the second sentence's [CLS]
        return alone if self.head_config.cosine == "direct" else lengths + alone

    @torch.inference_mode()
    def sentiment(self, sentences: Sequence[str], batch_tokens: int = _TOKENS) -> Tensor:
        """(N, 5) probabilities of the classes 0 (very negative) to 4 (very positive).

        Here and in the three methods below, `batch_tokens` is about how many word pieces are encoded at a time; it
        changes speed and memory only.
        """
        return self._predict("sst", sentences, batch_tokens).softmax(dim=-1)

    @torch.inference_mode()
    def paraphrase(self, pairs: Sequence[tuple[str, str]], batch_tokens: int = _TOKENS) -> Tensor:
        """(N,) probabilities that the two sentences of a pair mean the same."""
        return self._predict("qqp", pairs, batch_tokens).sigmoid()

    @torch.inference_mode()
    def similarity(self, pairs: Sequence[tuple[str, str]], batch_tokens: int = _TOKENS) -> Tensor:
        """(N,) similarity scores, about 0 (unrelated) to 5 (equivalent)."""
        return self._predict("sts", pairs, batch_tokens)

    @torch.inference_mode()
    def embed(self, sentences: Sequence[str], batch_tokens: int = _TOKENS) -> Tensor:
        """(N, C) sentence embeddings: the encoder's pooled output of each sentence alone, not normalised."""
        with self._without_dropout():
            rows = [self.bert(batch).pooled for batch in self._batches("sst", sentences, batch_tokens)]
        return torch.cat([*rows, self._no_rows(self.bert.config.hidden_size)])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes encoder and tokenizer in Hugging Face's form, the heads beside them."""
        heads: dict[str, Writer] = {
            HEADS_CONFIG: json_writer({"format": _FORMAT, "heads": asdict(self.head_config)}),
            HEADS_WEIGHTS: tensor_writer(self.heads.state_dict()),
        }
        # All in one go, so that no crash leaves the new encoder beside the old heads.
        save_checkpoint(folder, asdict(self.bert.config), self.bert.state_dict(), self.tokenizer, extra=heads)

    @classmethod
    def from_pretrained(cls, run_dir: str | os.PathLike[str]) -> "MultitaskBert":
        """Reads what `save_pretrained` wrote, a training run's output folder.

        Raises:
            ModelSourceError: there is no checkpoint in `run_dir`.
            CheckpointError: the folder holds an encoder without heads, or a damaged file.
        """
        folder = resolve(run_dir)
        if not (folder / HEADS_CONFIG).is_file() or not (folder / HEADS_WEIGHTS).is_file():
            raise CheckpointError(
                f"{folder}: has no {HEADS_CONFIG} and {HEADS_WEIGHTS}: it holds an encoder without task heads; "
                f"train them with: python -m smartcs.train --model {folder}"
            )
        heads = _read_heads(folder / HEADS_CONFIG)
        bert = BertModel.from_pretrained(folder)
        model = cls(bert, heads, load_tokenizer(folder, bert.config.vocab_size))
        expected = model.heads.state_dict()
        tensors = read_tensors(folder / HEADS_WEIGHTS)
        for name in sorted(set(expected) | set(tensors)):
            got = tuple(tensors[name].shape) if name in tensors else "no such tensor"
            wanted = tuple(expected[name].shape) if name in expected else "no such tensor"
            if got != wanted:
                raise CheckpointError(f"{folder / HEADS_WEIGHTS}: {name}: got {got}, expected {wanted}")
            if tensors[name].dtype not in DTYPES or not torch.isfinite(tensors[name].float()).all():
                raise CheckpointError(f"{folder / HEADS_WEIGHTS}: {name}: expected finite floating-point numbers")
        model.heads.load_state_dict(tensors)
        return model.eval()

    def _sentiment(self, pooled: Tensor, key: DropoutKey | None) -> Tensor:
        if self.head_config.sst_head == "relu_logits":
            return torch.relu(self._linear("sst_output", self._dropout(pooled, key, 0)))
        hidden = torch.relu(self._linear("sst_hidden", pooled))
        return self._linear("sst_output", self._dropout(hidden, key, 0))

    def _paraphrase(self, pooled: Tensor, key: DropoutKey | None) -> Tensor:
        return self._linear("qqp_output", self._pair_hidden(pooled, key, site=1)).squeeze(-1)

    def _similarity(self, pooled: Tensor, key: DropoutKey | None) -> Tensor:
        if self.head_config.cosine == "none":
            return self._linear("sts_output", self._pair_hidden(pooled, key, site=2)).squeeze(-1)
        rows = 3 if self.head_config.cosine == "fusion" else 2  # of each pair, see encoder_input
        *pairs, first, second = (pooled[row::rows] for row in range(rows))
        cosine = (functional.cosine_similarity(first, second) + 1) * (TASKS["sts"].high / 2)  # (B,), 0..5
        if not pairs:
            return cosine
        fused = torch.cat([self._pair_hidden(pairs[0], key, site=2), cosine[:, None]], dim=1)  # (B, C + 1)
        return self._linear("sts_output", fused).squeeze(-1)

    def _pair_hidden(self, pooled: Tensor, key: DropoutKey | None, site: int) -> Tensor:
        return self._dropout(torch.relu(self._linear("pair_shared", pooled)), key, site)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return ops.linear(x, self.heads.get_parameter(f"{name}.weight"), self.heads.get_parameter(f"{name}.bias"))

    def _dropout(self, x: Tensor, key: DropoutKey | None, site: int) -> Tensor:
        if key is None:
            return x
        stream = key.stream(_FIRST_SITE + site)
        return dropout(x, self.head_config.dropout, seed=key.seed, stream=stream, counter_offset=key.example_offset)

    def _predict(self, task: str, texts: Sequence[Text], batch_tokens: int) -> Tensor:
        with self._without_dropout():
            rows = [self(task, batch) for batch in self._batches(task, texts, batch_tokens)]
        return torch.cat([*rows, self._no_rows(*self.output_shape(task))])

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Evaluation mode within the block; afterwards, also after an error, every module has the mode it had."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def _batches(self, task: str, texts: Sequence[Text], batch_tokens: int) -> Iterator[PackedBatch]:
        """The texts in order, batches of about equal numbers of tokens, made in a background thread."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError("MultitaskBert: tokenizer is None, expected one to read text with")
        if isinstance(batch_tokens, bool) or not isinstance(batch_tokens, int) or batch_tokens < 1:
            raise ValueError(f"MultitaskBert: batch_tokens is {batch_tokens!r}, expected an integer of at least 1")
        checked = _check_texts(task, texts)

        def packed() -> Iterator[PackedBatch]:
            for begin in range(0, len(checked), _CHUNK):
                chunk = checked[begin : begin + _CHUNK]
                ids = tuple(str(begin + i) for i in range(len(chunk)))
                examples = Examples(TASKS[task], ids, chunk, labels=None, source="texts")
                yield from encode(tokenizer, examples, self.bert.config.max_position_embeddings).batches(batch_tokens)

        device = next(self.parameters()).device
        with closing(Prefetcher(packed())) as batches:
            for batch in batches:
                yield batch.to(device)

    def _no_rows(self, *shape: int) -> Tensor:
        parameter = next(self.parameters())
        return torch.empty((0, *shape), dtype=parameter.dtype, device=parameter.device)


def _read_heads(path: Path) -> HeadConfig:
    """The head configuration in smartcs.json. Raises CheckpointError naming the file."""
    values = read_json(path)
    unknown = sorted(set(values) - {"format", "heads"})
    if unknown:
        raise CheckpointError(f"{path}: unknown keys {', '.join(unknown)}, expected format and heads")
    if values.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: format is {values.get('format')!r}, expected {_FORMAT}")
    try:
        return HeadConfig.from_dict(values["heads"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a head configuration ({error})") from None


def _check_texts(task: str, texts: Iterable[Any]) -> tuple[Text, ...]:
    """The texts of a task, pairs as tuples. Raises TypeError naming the first that is something else."""
    pairs = len(TASKS[task].text_columns) == 2
    wanted = "a tuple or list of two strings" if pairs else "a string"
    if isinstance(texts, str):
        raise TypeError(f"MultitaskBert: got one string, expected a sequence, each of it {wanted}")
    checked: list[Text] = []
    for index, text in enumerate(texts):
        if not pairs and isinstance(text, str):
            checked.append(text)
        elif pairs and isinstance(text, tuple | list) and [isinstance(part, str) for part in text] == [True, True]:
            checked.append((text[0], text[1]))
        else:
            raise TypeError(f"MultitaskBert: text {index} is {reprlib.repr(text)}, expected {wanted}")
    return tuple(checked)
