"""What a model and its batches are: whether SMART fits them, which positions are words, where the predictions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from .arguments import ProblemType


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

    Raises:
        ValueError: the config has neither ``problem_type`` nor ``num_labels``.
    """
    config = getattr(model, "config", None)
    problem_type, num_labels = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
    if problem_type is None and num_labels is None:
        raise ValueError(
            f"the config of {type(model).__name__} has neither problem_type nor num_labels, expected one of them; "
            "or pass problem_type="
        )
    return problem_type or ("regression" if num_labels == 1 else "single_label_classification")


def check_batch(batch: Mapping[str, Any], problem_type: ProblemType) -> None:
    """Raises ValueError unless SMART can be computed for this batch."""
    has = f"the batch has {', '.join(map(str, batch)) or 'nothing'}"
    if batch.get("inputs_embeds") is not None:
        raise ValueError(f"{has}; expected input_ids in place of inputs_embeds, which bypass the word embeddings")
    for name in ("input_ids", "labels"):
        if not isinstance(batch.get(name), Tensor):
            raise ValueError(f"{has}, expected a tensor {name}")
    labels = batch["labels"]
    if problem_type == "single_label_classification" and labels.is_floating_point():
        raise ValueError(
            f"the labels are {labels.dtype}, expected integers for {problem_type}; set model.config.problem_type, or "
            "pass problem_type=, to 'multi_label_classification' or 'regression'"
        )


class Words(NamedTuple):
    """The embedded positions of a batch: a tensor of their shape (B, S, C), and (B, S) which of them are words."""

    like: Tensor
    mask: Tensor | None


def embedded_words(embedded: Tensor | None, attention_mask: Tensor | None) -> Words:
    """The result of the word embeddings and the batch's mask, fitted to each other.

    Raises:
        ValueError: there is no such result, or it has another shape, or the mask does not fit it.
    """
    if embedded is None:
        raise ValueError("the model's forward did not call its input embeddings, so they cannot be perturbed")
    if embedded.dim() != 3:
        raise ValueError(
            f"the input embeddings have shape {tuple(embedded.shape)}, expected (sentences, positions, channels): "
            "a model that removes padding by itself (FlashAttention) is not supported"
        )
    if attention_mask is None:
        return Words(embedded, None)
    shape = embedded.shape[:2]
    # Multiple choice has masks (B, choices, S), which the model flattens.
    if attention_mask.dim() not in (2, 3) or attention_mask.flatten(0, -2).shape != shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected {tuple(shape)} to match input_ids"
        )
    return Words(embedded, attention_mask.reshape(shape))


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
