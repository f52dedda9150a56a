"""AdamW with this project's defaults."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from smartcs.ops.backend import get_backend


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019, bias-corrected), in one pass over memory on the fused backend.

    With the fused backend selected when it is made, the update runs in torch's fused kernel, else as a loop of
    tensor operations; the state dict is torch's either way, and one loads into the other.

    Args:
        params: parameters or groups of them, as for any torch optimizer.
        lr: learning rate; no default is right for every model.
        betas: decay of the two moments.
        eps: added to the root of the second moment. 1e-6 as in BERT's own optimizer, not torch's 1e-8.
        weight_decay: decoupled from the gradient; 0 as in the paper.

    Raises:
        ValueError: a value out of range, or no parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        self._fused = get_backend() == "fused"
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=self._fused or None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the implementation stays the one chosen here, not the one the state was saved by."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["fused"] = self._fused or None
