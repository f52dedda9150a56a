"""How a perturbation lies in memory: rows, which of them are tokens, and which rows share one norm.

The op ``perturb`` knows packed rows, (N, C). Padded embeddings, (B, S, C), are B * S rows of which some are padding:
there the noise and its gradient are 0, so that they add nothing to any norm, and they count in no mean. Tokens are
numbered as if packed, so that packed and padded batches of the same sentences draw the same noise.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from smartcs import ops
from smartcs.ops.checks import check_cu_seqlens, check_device, check_float, check_tensor

Level = Literal["token", "sentence"]

_OWNER = "SmartRegularizer"


@dataclass(frozen=True)
class Layout:
    """The rows of one batch.

    Attributes:
        like: (N, C), has the dtype and device of the perturbation.
        shape: Of the embeddings, (T, C) or (B, S, C).
        tokens: (N, 1) bool, False for padding and inert rows; None where all rows are tokens.
        cu_seqlens: (B + 1,) int32, the rows of each sentence, where a sentence is a group; None where a row is.
        counted: (G,) bool, groups with a token; None where all have one.
    """

    like: Tensor
    shape: torch.Size
    tokens: Tensor | None
    cu_seqlens: Tensor | None
    counted: Tensor | None

    @classmethod
    def of(
        cls,
        name: str,
        like: Tensor,
        level: Level,
        cu_seqlens: Tensor | None,
        attention_mask: Tensor | None,
        num_tokens: Tensor | None = None,
    ) -> "Layout":
        """The layout of embeddings ``like``, called ``name`` in messages. See `SmartRegularizer` for the arguments."""
        check_float(_OWNER, name, like)
        if like.dim() not in (2, 3) or like.shape[-1] == 0:
            raise ValueError(
                f"{_OWNER}: {name} has shape {tuple(like.shape)}, expected packed (T, C) or padded (B, S, C) with C > 0"
            )
        if like.dim() == 2:
            return cls._packed(name, like, level, cu_seqlens, attention_mask, num_tokens)
        if cu_seqlens is not None:
            raise ValueError(f"{_OWNER}: cu_seqlens is for packed (T, C), but {name} has shape {tuple(like.shape)}")
        batch, width = like.shape[:2]
        tokens = None
        if attention_mask is not None:
            check_tensor(_OWNER, "attention_mask", attention_mask)
            if attention_mask.shape != like.shape[:2]:
                raise ValueError(
                    f"{_OWNER}: attention_mask has shape {tuple(attention_mask.shape)}, "
                    f"expected {(batch, width)} to match {name}"
                )
            check_device(_OWNER, "attention_mask", attention_mask, like, name)
            tokens = (attention_mask != 0).reshape(-1, 1)
        counted = None if tokens is None else tokens[:, 0]
        sentences = None
        if level == "sentence":
            sentences = torch.arange(batch + 1, dtype=torch.int32, device=like.device) * width
            counted = None if tokens is None else tokens.reshape(batch, width).any(dim=1)
        return cls(like.detach().reshape(-1, like.shape[2]), like.shape, tokens, sentences, counted)

    @classmethod
    def _packed(
        cls,
        name: str,
        like: Tensor,
        level: Level,
        cu_seqlens: Tensor | None,
        attention_mask: Tensor | None,
        num_tokens: Tensor | None,
    ) -> "Layout":
        if attention_mask is not None:
            raise ValueError(
                f"{_OWNER}: attention_mask is for padded (B, S, C), but {name} has shape {tuple(like.shape)}"
            )
        tokens = None
        if num_tokens is not None:
            tokens = (torch.arange(like.shape[0], device=like.device) < num_tokens).reshape(-1, 1)
        if level == "token":
            return cls(like.detach(), like.shape, tokens, None, None if tokens is None else tokens[:, 0])
        if cu_seqlens is None:
            raise ValueError(f'{_OWNER}: level="sentence" on packed {name} needs cu_seqlens')
        check_cu_seqlens(_OWNER, cu_seqlens, like, name)
        counted = cu_seqlens.diff() > 0
        if num_tokens is not None:
            counted = counted & (cu_seqlens[:-1] < num_tokens)
        return cls(like.detach(), like.shape, tokens, cu_seqlens, counted)

    def noise(self, std: float, seed: int, stream: int, counter_offset: Tensor | None) -> Tensor:
        """(N, C): normal noise on the tokens, 0 on padding."""
        drawn = ops.perturb_noise(self.like, std=std, seed=seed, stream=stream, counter_offset=counter_offset)
        if self.tokens is None:
            return drawn
        # Numbered without a wait for the device, which counting the tokens would need.
        packed_row = (self.tokens[:, 0].cumsum(0) - 1).clamp(min=0)
        return self.only_tokens(drawn[packed_row])

    def zeros(self) -> Tensor:
        """No perturbation, in the embeddings' shape."""
        return self.like.new_zeros(self.shape)

    def rows(self, values: Tensor) -> Tensor:
        """(N, C) from the embeddings' shape, 0 on padding."""
        return self.only_tokens(values.detach().reshape(self.like.shape))

    def only_tokens(self, rows: Tensor) -> Tensor:
        """The rows with padding set to 0, whatever it was."""
        return rows if self.tokens is None else torch.where(self.tokens, rows, torch.zeros_like(rows))

    def mean(self, values: Tensor) -> Tensor:
        """0-dim mean of (G,) numbers over the groups that hold a token; 0 where none does."""
        if self.counted is None:
            return values.sum() / max(values.numel(), 1)
        kept = torch.where(self.counted, values, torch.zeros_like(values))
        return kept.sum() / self.counted.sum().clamp(min=1)
