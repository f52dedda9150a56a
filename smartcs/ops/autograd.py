"""What the ops' autograd functions share."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a second differentiation through a fused op an error instead of a wrong result.

    With ``create_graph=True`` the engine runs backward functions with gradients enabled. A kernel records nothing, so
    what it returns would be a constant to autograd and a gradient penalty would silently vanish;
    ``torch.autograd.function.once_differentiable`` notices that only where the incoming gradient requires grad itself.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: torch.Tensor) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "smartcs: fused ops are differentiable once, and create_graph=True asks for more; "
                'compute this loss within smartcs.backend("reference")'
            )
        return backward(ctx, *grads)

    return checked
