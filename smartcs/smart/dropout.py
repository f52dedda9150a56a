"""Equal dropout masks for several passes of a model that uses torch's own dropout.

SMART compares f(x + v) with f(x). Where every pass draws its own masks, as in mt-dnn, the two differ by their dropout
and hardly by v. smartcs' own model names its masks by a key and needs nothing of this; torch's dropout takes its masks
from the generator's state, so a pass with the same state has the same masks.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class SharedDropout:
    """Lets further passes repeat the random numbers of a first one.

    ::

        masks = SharedDropout()
        with masks:
            logits = model(inputs_embeds=x)
        smoothness = reg(masks.replay(lambda x: model(inputs_embeds=x)), x, logits)

    Replayed calls leave the generators as they found them, so training continues as if they had not happened. Covered
    are torch's default generators of the CPU and of every CUDA device, and no others: on MPS or XPU every pass draws
    masks of its own, silently. The masks are equal if the model draws in the same order and in the same shapes; with
    autocast or torch.compile, run all passes the same way.
    """

    def __init__(self) -> None:
        self._start: tuple[Tensor, list[Tensor]] | None = None

    def __enter__(self) -> "SharedDropout":
        self._start = _generator_states()
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def replay(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The function, every call of which draws what the last ``with`` block drew.

        Raises:
            RuntimeError: (the call) there has been no ``with`` block.
        """

        @wraps(function)
        def replayed(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if self._start is None:
                raise RuntimeError(
                    "SharedDropout.replay: nothing to replay yet, run the first pass in 'with masks: ...'"
                )
            present = _generator_states()
            _set_generator_states(self._start)
            try:
                return function(*args, **kwargs)
            finally:
                _set_generator_states(present)

        return replayed


def _generator_states() -> tuple[Tensor, list[Tensor]]:
    # Untouched CUDA stays untouched: asking for its state would start it. The states live on the host: no wait.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda


def _set_generator_states(states: tuple[Tensor, list[Tensor]]) -> None:
    cpu, cuda = states
    torch.set_rng_state(cpu)
    for device, state in enumerate(cuda):
        torch.cuda.set_rng_state(state, device)
