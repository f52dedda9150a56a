"""What becomes of a step whose loss may turn out not to be finite."""

import torch
from torch import Tensor


class Gate:
    """Lets gradients pass if `finite`, a 0-dim bool set before the backward pass, and turns them to 0 if not.

    The derivatives of a loss at infinite outputs are NaN, also when multiplied by 0.
    """

    finite: Tensor

    def passing(self, value: Tensor) -> Tensor:
        """``value``, through which the gradients go."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        value = value.view_as(value)
        value.register_hook(lambda grad: torch.where(self.finite, grad, torch.zeros_like(grad)))
        return value


def known_to_fail(finite: Tensor) -> bool:
    """Whether the step is known to be lost. An accelerator is not asked, the host would have to wait for the answer:
    there the step goes on without a perturbation, and its loss is replaced by 0.
    """
    return finite.device.type == "cpu" and not finite
