"""What the ops' autograd functions share."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

P = TypeVar("P", Tensor, Tensor | None)


class _Mode(threading.local):
    def __init__(self) -> None:
        # An attribute of the instance: torch.compile watches it, and would take one of the class for a constant.
        self.input_gradients_only = False


_mode = _Mode()


@contextmanager
def input_gradients_only() -> Iterator[None]:
    """Within this context every smartcs op takes its parameters (weights, biases, tables) for constants.

    Their gradients are not computed, and nothing is saved for them. SMART's inner loop wants the gradient of one
    perturbation alone, but ``torch.autograd.grad(loss, [v])`` does not tell a custom autograd function so: its
    ``needs_input_grad`` says which inputs of the forward pass required a gradient, and all parameters do. Ops would
    compute every weight gradient, for autograd to throw away.

    The forward pass counts: what is recorded outside keeps its parameter gradients wherever it is differentiated.
    Holds for the current thread, nests, and is seen by torch.compile.
    """
    previous = _mode.input_gradients_only
    _mode.input_gradients_only = True
    try:
        yield
    finally:
        _mode.input_gradients_only = previous


def parameter(value: P) -> P:
    """``value`` as an op's parameter: detached within ``input_gradients_only``."""
    if value is None or not _mode.input_gradients_only:
        return value
    return value.detach()


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
