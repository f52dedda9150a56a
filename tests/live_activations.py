"""How many bytes autograd keeps alive for backward passes at any moment, each storage counted once."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor


class _Kept:
    """A saved tensor; the meter hears when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class ActivationMeter(torch.autograd.graph.saved_tensors_hooks):
    """Within the block, meters what is saved for backward, but for the storages of `weights`.

    Attributes:
        live: bytes kept alive now.
        peak: the most so far.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        self._users: dict[int, int] = {}
        self.live = self.peak = 0
        super().__init__(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> "ActivationMeter":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> _Kept:
        kept, storage = _Kept(tensor.detach()), tensor.untyped_storage()
        pointer, size = storage.data_ptr(), storage.nbytes()
        if pointer in self._weights or size == 0:
            return kept
        if pointer not in self._users:
            self._users[pointer] = 0
            self.live += size
            self.peak = max(self.peak, self.live)
        self._users[pointer] += 1
        weakref.finalize(kept, self._release, pointer, size)
        return kept

    def _release(self, pointer: int, size: int) -> None:
        self._users[pointer] -= 1
        if self._users[pointer] == 0:
            del self._users[pointer]
            self.live -= size
