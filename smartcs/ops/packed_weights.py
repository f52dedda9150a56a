"""Weights rounded to bfloat16 in the order the fused products read them, made once per change of the weight.

A weight W (N outputs, K inputs) has two packed forms: "forward" for y = x W^T and "transposed" for dx = dy W, in the
layouts of csrc/cpu/bf16_layout.h; on a GPU one form serves both, W in bfloat16. They are made when they are first
needed and again after the weight has changed, which its version counter or storage tells: every in-place operation
counts, and so does loading a checkpoint. Writing through ``weight.data`` does not (autograd would not notice either):
use ``torch.no_grad()`` instead. Optimizers may write as they like, torch's fused ones do not count either: after a step
a hook does.

smartcs' AdamW writes the packed forms in the pass that updates the weight, see `buffers` and `written`.

On a GPU a form stays in its place for as long as its weight has the same shape, whatever is written to either: a CUDA
graph that reads and writes it there can be replayed, see `renew`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary


class Seen:
    """A tensor as it was."""

    def __init__(self, tensor: Tensor) -> None:
        # The alias keeps the storage, lest its address be given to other values.
        self._alias, self._version = tensor.detach(), _version(tensor)

    def still(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, or an alias that counts with it, is in the same place and nobody wrote to it."""
        return self._version == _version(tensor) and self._alias.is_set_to(tensor)


class PackedWeight:
    """The packed forms of one weight. The weight comes with every call: this does not keep it alive."""

    def __init__(self) -> None:
        # By `transposed`: the form, and the weight that it was made from.
        self._forms: dict[bool, tuple[Tensor, Seen]] = {}

    def get(self, weight: Tensor, *, transposed: bool) -> Tensor:
        """A form with the present values of ``weight``, which may also be a detached alias of it."""
        form, seen = self._forms.get(transposed, (None, None))
        if form is None or seen is None or not seen.still(weight):
            # Ordinary tensors also where evaluation packs first: training goes on with them.
            with torch.inference_mode(False), torch.no_grad():
                if form is None or not _written_in_place(form, weight, transposed):
                    form = torch.ops.smartcs.pack_weight(weight.detach().contiguous(), transposed)
            self._forms[transposed] = form, Seen(weight)
        return form

    def present(self) -> dict[bool, Tensor]:
        """The forms that have been made, whether or not their values are the weight's."""
        return {transposed: form for transposed, (form, _) in self._forms.items()}

    def written(self, weight: Tensor) -> None:
        """All forms that have been made hold the present values of ``weight``."""
        self._forms = {transposed: (form, Seen(weight)) for transposed, (form, _) in self._forms.items()}

    def renew(self, weight: Tensor) -> None:
        """Makes the forms anew that are there and do not hold them."""
        for transposed in self._forms:
            self.get(weight, transposed=transposed)


_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def entry(weight: Tensor) -> PackedWeight:
    """The packed forms of ``weight``: kept for as long as it lives if it is a parameter, else for this use alone."""
    if not isinstance(weight, nn.Parameter) or weight.is_inference():
        return PackedWeight()
    found = _packed.get(weight)
    if found is None:
        found = _packed[weight] = PackedWeight()
    return found


def of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both packed forms, forward and transposed.

    Args:
        weight: (N, K), float32, on the CPU.

    Returns:
        Two 1-D bfloat16 tensors. They are the cache's: later calls may return the same ones with other values.
    """
    packed = entry(weight)
    return packed.get(weight, transposed=False), packed.get(weight, transposed=True)


def buffers(weight: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The forms that exist, whatever their values are, for an optimizer to write into.

    Returns:
        Forward and, if there has been a backward pass, transposed; None for a weight that no product has packed.
    """
    found = _packed.get(weight)
    forms = {} if found is None else found.present()
    return (forms[False], forms.get(True)) if False in forms else None


def written(weight: Tensor) -> None:
    """Tells that the tensors of `buffers` hold the present values of ``weight``; call it after the version counts.

    An optimizer that does so in its step has these weights in ``written_packed``, for that step's hook to pass over.
    """
    found = _packed.get(weight)
    if found is not None:
        found.written(weight)


def renew(weights: Iterable[Tensor]) -> None:
    """Has all forms of these weights hold their present values: before what reads them without asking."""
    for weight in weights:
        found = _packed.get(weight)
        if found is not None:
            found.renew(weight)


def _count_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After any optimizer's step: counts a change of the weights that it had a gradient for."""
    own = getattr(optimizer, "written_packed", ())
    for group in optimizer.param_groups if len(_packed) > 0 else ():
        for weight in group["params"]:
            if weight.grad is not None and weight in _packed and weight not in own:
                torch.autograd.graph.increment_version(weight)


register_optimizer_step_post_hook(_count_step)


def _written_in_place(form: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether the form now holds the weight's values: a GPU's does, unless the weight has another shape now."""
    del transposed
    if weight.device.type != "cuda" or (form.shape, form.device) != (weight.shape, weight.device):
        return False
    form.copy_(weight.detach())
    return True


def _version(tensor: Tensor) -> int:
    # Tensors made in inference mode count no versions; they have an entry for one use only.
    return 0 if tensor.is_inference() else tensor._version
