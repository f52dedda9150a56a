"""Masking for masked language modelling: which tokens a batch hides, and what stands in their place.

Source: Devlin et al. 2018, section 3.1 (80 % [MASK], 10 % a random word piece, 10 % unchanged; 15 % of the tokens), and
the SMARTCS paper, section 4 (one token per sequence).

Everything follows from (seed, step): numpy's Philox generator with that pair as its key, read as raw words, whose order
numpy keeps for good (NEP 19). The work is done on the CPU, so threads and devices change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from smartcs.data.encode import EncodedTask
from smartcs.data.packing import PackedBatch
from smartcs.model.tokenizer import SPECIAL_TOKENS

MaskStrategy = Literal["bert", "mask"]
# Of the chosen tokens under "bert"; the rest stays as it is.
_MASKED, _RANDOM = 0.8, 0.1
_NOT_HIDDEN = -1


class MaskedBatch(NamedTuple):
    """A batch with M of its tokens hidden.

    batch: the batch with other `input_ids`, everything else unchanged.
    positions: (M,) int64, where the chosen tokens stand among the T of the batch, ascending.
    targets: (M,) int64, the ids that stood there.
    """

    batch: PackedBatch
    positions: Tensor
    targets: Tensor

    def to(self, device: torch.device | str) -> MaskedBatch:
        """The same on another device."""
        return MaskedBatch(self.batch.to(device), self.positions.to(device), self.targets.to(device))

    def rows(self, begin: int, end: int) -> tuple[MaskedBatch, int]:
        """The rows from `begin` up to `end` of a batch on the CPU, and the number of tokens before them."""
        batch, first = self.batch.rows(begin, end)
        here = slice(*np.searchsorted(self.positions.numpy(), [first, first + batch.num_tokens]))
        return MaskedBatch(batch, self.positions[here] - first, self.targets[here]), first


class TokenMasker:
    """Chooses tokens of a batch and hides them; sequences alone or in pairs alike.

    Special tokens are never chosen and never put in: [PAD], [UNK], [CLS], [SEP], [MASK] and whatever else the tokenizer
    calls special. A sequence of nothing else contributes nothing.

    Args:
        tokenizer: says which ids are special and which are word pieces.
        strategy: what stands in place of a chosen token: "bert", [MASK] for 80 %, for 10 % a word piece drawn from all
            with equal chances, the token itself for 10 %; "mask", [MASK] for all.
        fraction: None chooses one token per sequence, each with equal chances. A number chooses every token with that
            probability, and one where that leaves a sequence with none.
        seed: 0 <= seed < 2**63.

    Raises:
        ValueError: a value out of range, or a tokenizer without [MASK] or without word pieces.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, strategy: MaskStrategy = "bert", fraction: float | None = None, seed: int = 0
    ) -> None:
        if strategy not in get_args(MaskStrategy):
            raise ValueError(f"TokenMasker: strategy is {strategy!r}, expected {' or '.join(get_args(MaskStrategy))}")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"TokenMasker: fraction is {fraction}, expected None or 0 < fraction <= 1")
        if not 0 <= seed < 2**63:
            raise ValueError(f"TokenMasker: seed is {seed}, expected 0 <= seed < 2**63")
        mask = tokenizer.token_to_id("[MASK]")
        if mask is None:
            raise ValueError("TokenMasker: tokenizer has no [MASK], expected one among its tokens")
        self.strategy, self.fraction, self.seed, self.mask_id = strategy, fraction, seed, mask

        ids = list(tokenizer.get_vocab(with_added_tokens=True).values())
        special = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        special += [i for i in map(tokenizer.token_to_id, SPECIAL_TOKENS) if i is not None]
        self._is_word = np.zeros(max(ids) + 1, dtype=bool)  # an id that no token has is no word either
        self._is_word[ids] = True
        self._is_word[special] = False
        self._words = np.flatnonzero(self._is_word)
        if not len(self._words):
            raise ValueError("TokenMasker: tokenizer has special tokens only, expected word pieces")

    def is_word(self, ids: np.ndarray) -> np.ndarray:
        """Whether each of the tokenizer's ids may be hidden: bool, shape of `ids`."""
        return self._is_word[ids]

    def __call__(self, batch: PackedBatch, step: int) -> MaskedBatch:
        """Hides tokens of a batch, which itself stays as it is.

        Args:
            batch: ids of the tokenizer, on any device; one that is not the CPU is waited for.
            step: 0 <= step < 2**63; another step hides other tokens.

        Returns:
            Tensors on the device of `batch`.

        Raises:
            ValueError: `step` is out of range.
            IndexError: an id is not the tokenizer's.
        """
        if not 0 <= step < 2**63:
            raise ValueError(f"TokenMasker: step is {step}, expected 0 <= step < 2**63")
        ids = batch.input_ids.cpu().numpy()
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self._is_word):
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise IndexError(f"TokenMasker: input_ids holds {bad}, expected 0 to {len(self._is_word) - 1}")
        draw = _Draw(self.seed, step)
        positions = self._choose(self.is_word(ids), batch.cu_seqlens.cpu().numpy(), draw)
        targets = ids[positions]
        masked = ids.copy()
        masked[positions] = self._substitutes(targets, draw)
        device = batch.input_ids.device
        return MaskedBatch(
            replace(batch, input_ids=torch.from_numpy(masked).to(device)),
            torch.from_numpy(positions).to(device),
            torch.from_numpy(targets).to(device),
        )

    def _choose(self, is_word: np.ndarray, offsets: np.ndarray, draw: _Draw) -> np.ndarray:
        """(M,) int64 positions of the tokens to hide; row b has the tokens offsets[b] up to offsets[b + 1]."""
        words = np.flatnonzero(is_word)
        first = np.searchsorted(words, offsets)  # row b has the words first[b] up to first[b + 1]
        # A word of each row, drawn for every row so that the words after it do not depend on the choice.
        one = first[:-1] + draw.below(np.diff(first))
        if self.fraction is None:
            return words[one[np.diff(first) > 0]]
        chosen = draw.uniform(len(words)) < self.fraction
        count = np.concatenate([[0], np.cumsum(chosen)])[first]
        chosen[one[(np.diff(first) > 0) & (np.diff(count) == 0)]] = True
        return words[chosen]

    def _substitutes(self, targets: np.ndarray, draw: _Draw) -> np.ndarray:
        """(M,) int64 ids that stand in the places of `targets`."""
        if self.strategy == "mask":
            return np.full_like(targets, self.mask_id)
        kind = draw.uniform(len(targets))
        random = self._words[draw.below(np.full(len(targets), len(self._words)))]
        return np.where(kind < _MASKED, self.mask_id, np.where(kind < _MASKED + _RANDOM, random, targets))


class MaskedTask:
    """A task whose tokens are hidden once for all, so that a model can be evaluated on it again and again.

    Args:
        task: N examples.
        masker, step: what hides them; batches of any size and order hide the same tokens.
    """

    def __init__(self, task: EncodedTask, masker: TokenMasker, step: int) -> None:
        masked = masker(task.batch(np.arange(len(task)))[0], step)
        targets = np.full(len(task.input_ids), _NOT_HIDDEN, dtype=np.int64)
        targets[masked.positions.numpy()] = masked.targets.numpy()
        self._inputs = replace(task, input_ids=masked.batch.input_ids.numpy())
        self._targets = replace(task, input_ids=targets)  # so that `batch` takes them the same way
        self.lengths = task.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: np.ndarray | Sequence[int]) -> MaskedBatch:
        """Packs the examples `indices`, as `EncodedTask.batch`."""
        targets = self._targets.batch(indices)[0].input_ids
        positions = (targets != _NOT_HIDDEN).nonzero()[:, 0]
        return MaskedBatch(self._inputs.batch(indices)[0], positions, targets[positions])


class _Draw:
    """Random numbers of one step, in the order they are asked for."""

    def __init__(self, seed: int, step: int) -> None:
        self._words = np.random.Philox(key=np.array([seed, step], dtype=np.uint64))

    def uniform(self, count: int) -> np.ndarray:
        """(count,) float64 in [0, 1), multiples of 2**-53."""
        return (self._words.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def below(self, limits: np.ndarray) -> np.ndarray:
        """int64 from 0 up to, not including, each of the limits; 0 where that is 0."""
        return (self.uniform(len(limits)) * limits).astype(np.int64)
