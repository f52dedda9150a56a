"""The optimizer's step as a workload: AdamW and the Bregman anchor over the weights of a whole model."""

import copy
from dataclasses import dataclass

import torch
from roof import ADAMW_BYTES, ANCHOR_BYTES
from setting import encoder
from torch import Tensor, nn

import smartcs

_ROWS = 1000  # of the word table, with a gradient
_RATE, _BETA = 3e-5, 0.99


@dataclass(frozen=True)
class OptimizerWorkload:
    """One step on a model of that shape, whose word table has a gradient in some rows only.

    Ours is `smartcs.AdamW`, which takes that gradient as a sparse tensor and moves the anchor in the same pass. torch's
    is its fused AdamW, which needs a dense gradient, and `torch._foreach_lerp_` for the anchor. On a GPU ours takes the
    dense one, too.
    """

    shape: str
    device: str = "cpu"

    def bytes(self, mode: str, precision: str) -> int:
        with torch.device("meta"):
            model = encoder(self.shape)
        table = model.embeddings.word.weight
        numbers = sum(p.numel() for p in model.parameters())
        if self.device == "cpu":
            numbers += _ROWS * table.shape[1] - table.numel()
        return numbers * (ADAMW_BYTES + ANCHOR_BYTES)

    def operations(self, mode: str) -> int:
        return 0

    def rate(self, precision: str) -> str:
        return precision

    def verify(self, precision: str) -> None:
        """After three steps, weights and anchors of all candidates must agree to float32's rounding."""
        found = {}
        for candidate in ("fused", "reference", "torch"):
            model, anchor, step = self._make(candidate, shape="tiny")
            for _ in range(3):
                step()
            found[candidate] = [p.detach() for module in (model, anchor) for p in module.parameters()]
        for candidate in ("fused", "reference"):
            torch.testing.assert_close(found[candidate], found["torch"], rtol=1e-5, atol=1e-7)

    def step(self, candidate: str, mode: str, precision: str):  # type: ignore[no-untyped-def]
        """A function that does the timed work once."""
        return self._make("torch" if candidate.startswith("torch") else candidate, self.shape)[2]

    def _make(self, candidate: str, shape: str):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        model = encoder(shape).to(self.device)
        word = model.embeddings.word.weight
        rows = torch.randperm(word.shape[0])[:_ROWS].sort().values.to(self.device)
        for parameter in model.parameters():
            parameter.grad = 1e-3 * torch.randn(parameter.shape).to(self.device)
        values = 1e-3 * torch.randn(_ROWS, word.shape[1]).to(self.device)
        if candidate == "torch":
            return self._of_torch(model, word, rows, values)
        sparse = torch.sparse_coo_tensor(rows[None], values, word.shape, is_coalesced=True, check_invariants=False)
        word.grad = sparse if self.device == "cpu" else sparse.to_dense()
        with smartcs.backend(candidate):  # type: ignore[arg-type]
            anchor = smartcs.BregmanAnchor(model, _BETA)
            optimizer = smartcs.AdamW(model.parameters(), lr=_RATE)

        def run() -> None:
            with smartcs.backend(candidate):  # type: ignore[arg-type]
                optimizer.step(anchor=anchor)

        return model, anchor.anchor, run

    def _of_torch(self, model: nn.Module, word: Tensor, rows: Tensor, values: Tensor):  # type: ignore[no-untyped-def]
        word.grad = torch.zeros_like(word).index_copy_(0, rows, values)
        anchor = copy.deepcopy(model).requires_grad_(False)
        anchors, weights = list(anchor.parameters()), list(model.parameters())
        optimizer = torch.optim.AdamW(weights, lr=_RATE, eps=1e-6, weight_decay=0.0, fused=True)

        def run() -> None:
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(anchors, weights, 1 - _BETA)

        return model, anchor, run
