"""What a model and its batches are: whether SMART fits them, which positions are words, where the predictions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .arguments import ProblemType
from .embeddings import EmbeddingCalls


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within DistributedDataParallel and torch.compile, as accelerate wraps it."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether calling the model runs code of torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None


def word_embeddings(model: nn.Module) -> nn.Module:
    """The module that looks words up.

    Raises:
        TypeError: the model has none.
        ValueError: the model is wrapped for DataParallel, or generates text.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "the model is wrapped for DataParallel, whose copies the perturbation does not reach; expected a bare "
            "model or DistributedDataParallel (torchrun, accelerate launch)"
        )
    module = unwrapped(model)
    name, config = type(module).__name__, getattr(module, "config", None)
    generates = getattr(module, "can_generate", None)
    if getattr(config, "is_encoder_decoder", False) or (generates is not None and generates()):
        raise ValueError(f"{name} is a decoder or a model for generation, expected an encoder with a head for labels")
    try:
        embedding = module.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise TypeError(f"{name} has no input embeddings to perturb: get_input_embeddings() gives none")
    return embedding


def configured_problem_type(model: nn.Module) -> ProblemType:
    """By the model's config, as transformers decides it, but for what only labels tell (see `check_batch`).

    Models for multiple choice or a class per token classify whatever their config says.

    Raises:
        ValueError: the config has neither ``problem_type`` nor ``num_labels``.
    """
    names = [ancestor.__name__ for ancestor in type(model).__mro__]
    if any(name.endswith(("ForMultipleChoice", "ForTokenClassification")) for name in names):
        return "single_label_classification"
    config = getattr(model, "config", None)
    problem_type, num_labels = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
    if problem_type is None and num_labels is None:
        raise ValueError(
            f"the config of {type(model).__name__} has neither problem_type nor num_labels, expected one of them; "
            "or pass problem_type="
        )
    return problem_type or ("regression" if num_labels == 1 else "single_label_classification")


def check_replayable(model: nn.Module) -> None:
    """Raises ValueError if the model is where `SharedDropout` cannot repeat the random numbers."""
    others = {parameter.device.type for parameter in model.parameters()} - {"cpu", "cuda"}
    if others:
        raise ValueError(
            f"the model is on {', '.join(sorted(others))}, expected cpu or cuda: elsewhere dropout masks cannot be "
            "shared by the passes of a step; pass share_dropout=False, with dropout off in the model's config"
        )


def check_labels(batch: Mapping[str, Any]) -> None:
    """Raises ValueError unless the batch has labels."""
    _check_has(batch, "labels")


def _check_has(batch: Mapping[str, Any], name: str) -> None:
    if not isinstance(batch.get(name), Tensor):
        raise ValueError(f"the batch has {', '.join(map(str, batch)) or 'nothing'}, expected a tensor {name}")


def check_batch(batch: Mapping[str, Any], problem_type: ProblemType) -> None:
    """Raises ValueError unless SMART can be computed for this batch."""
    if batch.get("inputs_embeds") is not None:
        raise ValueError(
            f"the batch has {', '.join(map(str, batch))}; expected input_ids in place of inputs_embeds, which bypass "
            "the word embeddings"
        )
    for name in ("input_ids", "labels"):
        _check_has(batch, name)
    labels = batch["labels"]
    if problem_type == "single_label_classification" and labels.is_floating_point():
        raise ValueError(
            f"the labels are {labels.dtype}, expected integers for {problem_type}; set model.config.problem_type, or "
            "pass problem_type=, to 'multi_label_classification' or 'regression'"
        )
    if problem_type == "regression" and not labels.is_floating_point():
        raise ValueError(
            f"the labels are {labels.dtype}, expected floating-point numbers for regression; if they are classes, set "
            "model.config.problem_type, or pass problem_type=, to 'single_label_classification'"
        )


class Words(NamedTuple):
    """The embedded positions of a batch: a tensor of their shape (B, S, C), and (B, S) which of them are words."""

    like: Tensor
    mask: Tensor | None


def embedded_words(calls: EmbeddingCalls, batch: Mapping[str, Any], *, compare: bool) -> Words:
    """The result of the word embeddings and the batch's mask, fitted to each other.

    Args:
        calls: What the embeddings were called with, and returned.
        batch: With ``input_ids`` and, if there is padding, ``attention_mask``.
        compare: Whether to compare the ids looked up one by one with the batch's, which waits for the device: the shape
            alone does not tell sentences from positions where there are as many of both.

    Raises:
        ValueError: there is no such result, or it has another shape, or its positions are not laid out as the batch's,
            or the mask does not fit it.
    """
    embedded, attention_mask = calls.output, batch.get("attention_mask")
    if embedded is None:
        raise ValueError(
            "the model's forward did not call its input embeddings, so they cannot be perturbed; a part of the model "
            "that is compiled by itself hides the call: compile all of the model, or none of it"
        )
    if embedded.dim() != 3:
        raise ValueError(
            f"the input embeddings have shape {tuple(embedded.shape)}, expected (sentences, positions, channels): "
            "a model that removes padding by itself (FlashAttention) is not supported"
        )
    _check_layout(calls.ids, batch["input_ids"], compare)
    if attention_mask is None:
        return Words(embedded, None)
    shape = embedded.shape[:2]
    # Multiple choice has masks (B, choices, S), which the model flattens.
    if attention_mask.dim() not in (2, 3) or attention_mask.flatten(0, -2).shape != shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {tuple(shape)} to match input_ids"
        )
    return Words(embedded, attention_mask.reshape(shape))


def _check_layout(looked_up: Tensor | None, input_ids: Tensor, compare: bool) -> None:
    # Multiple choice has ids (B, choices, S), which the model flattens.
    given = input_ids.reshape(-1, input_ids.shape[-1])
    if looked_up is None or looked_up.shape != given.shape:
        got = "no tensor" if looked_up is None else f"ids of shape {tuple(looked_up.shape)}"
        raise ValueError(
            f"the input embeddings were called with {got}, expected {tuple(given.shape)} as in the batch's input_ids: "
            "a model that puts positions first (XLNet) or pads by itself (Longformer) is not supported"
        )
    if compare and not torch.equal(looked_up.to(given.device), given):
        raise ValueError(
            "the input embeddings were called with other ids than the batch's input_ids, expected the same in the same "
            "order: a model that puts positions first (XLNet) or replaces ids is not supported"
        )


def named_result(outputs: Any, name: str) -> Tensor:
    """A tensor of a model's results by its name; raises TypeError if there is none."""
    result = outputs.get(name) if isinstance(outputs, Mapping) else None
    if not isinstance(result, Tensor):
        got = ", ".join(outputs) if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
        raise TypeError(f"the model returned {got}, expected named results (return_dict=True) with {name}")
    return result


def predictions(outputs: Any, labels: Tensor, problem_type: ProblemType) -> Tensor:
    """The logits to compare: all, or for a class per token those of the labelled tokens, as (N, K).

    Raises:
        TypeError: the model did not return named results with ``logits``.
    """
    logits = named_result(outputs, "logits")
    if problem_type == "regression":
        # DeBERTa's are (B,) with labels, and (B, 1) without.
        return logits.flatten()
    per_token = problem_type == "single_label_classification" and logits.dim() > 2
    return logits[labels != -100] if per_token and labels.shape == logits.shape[:-1] else logits
