"""Word embeddings of any model, watched and perturbed in place, and passes that are exact enough to see it.

A forward hook on the embedding module leaves everything around it as it is: position ids, token types, padding,
whatever the architecture computes from ``input_ids``. Handing in ``inputs_embeds`` instead would change some of it
(RoBERTa counts positions by the padding id).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from smartcs.smart.exact import exact_products, rounding


class EmbeddingCalls:
    """What the word embeddings returned during a pass.

    Attributes:
        output: of the last call, detached; None before the first call.
        ids: what the last call looked up; None before the first call, or where its first argument is no tensor.
        rounded: whether autocast or TF32 was on in it, see `smartcs.smart.exact.rounding`.
    """

    def __init__(self) -> None:
        self.output: Tensor | None = None
        self.ids: Tensor | None = None
        self.rounded = False

    def record(self, arguments: tuple[object, ...], output: object) -> None:
        """Notes one call's arguments and output.

        Raises:
            ValueError: another call's output had another shape, so which of them are the sentence's words is unknown.
            TypeError: the output is no tensor.
        """
        output = _tensor(output)
        if self.output is not None and self.output.shape != output.shape:
            raise ValueError(
                f"the input embeddings were called with results of shape {tuple(self.output.shape)} and "
                f"{tuple(output.shape)} in one pass, expected one shape: which of them to perturb is unknown"
            )
        self.output = output.detach()
        self.ids = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
        self.rounded = rounding(output.device.type) > 0


@contextmanager
def watched(embedding: nn.Module) -> Iterator[EmbeddingCalls]:
    """Records the calls of ``embedding`` while the context lasts."""
    calls = EmbeddingCalls()

    def record(module: nn.Module, inputs: tuple[object, ...], named: dict[str, object], output: object) -> None:
        calls.record((*inputs, *named.values()), output)

    handle = embedding.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def perturbed(embedding: nn.Module, offset: Tensor) -> Iterator[None]:
    """Adds ``offset`` to the result of every call of ``embedding`` while the context lasts.

    Raises:
        RuntimeError: at the call, where autocast is on: the offset would be lost in the first matrix product.
        ValueError: at the call, where the result's shape is not that of ``offset``.
        TypeError: at the call, where the result is no tensor.
    """

    def add(module: nn.Module, inputs: tuple[object, ...], output: object) -> Tensor:
        output = _tensor(output)
        if torch.is_autocast_enabled(output.device.type):
            raise RuntimeError(
                "autocast is on in the model's forward, where a perturbation would be rounded away; "
                "enter autocast around the call of the model, or through accelerate"
            )
        if output.shape != offset.shape:
            raise ValueError(
                f"the input embeddings returned shape {tuple(output.shape)} in the perturbed pass, "
                f"expected {tuple(offset.shape)} as in the pass without perturbation"
            )
        return output + offset

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def plain(*modules: nn.Module) -> Iterator[None]:
    """Calls of the modules run as written and in the precision of their weights: not compiled, no autocast, no TF32.

    accelerate's mixed precision enters autocast inside ``model.forward``, which it replaces, and keeps the original of;
    the original takes its place meanwhile.
    """
    with ExitStack() as stack:
        devices = {parameter.device.type for module in modules for parameter in module.parameters()}
        stack.enter_context(exact_products(*devices))
        for module in modules:
            values = module.__dict__
            if "forward" in values and "_original_forward" in values:
                stack.enter_context(_replaced(values, "forward", values["_original_forward"]))
            if values.get("_compiled_call_impl") is not None:
                stack.enter_context(_replaced(values, "_compiled_call_impl", None))
        yield


def _tensor(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the input embeddings returned a {type(output).__name__}, expected a tensor: a model with quantized or "
            "other special embeddings (I-BERT) is not supported"
        )
    return output


@contextmanager
def _replaced(values: dict[str, object], name: str, value: object) -> Iterator[None]:
    before = values[name]
    values[name] = value
    try:
        yield
    finally:
        values[name] = before
