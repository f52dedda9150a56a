"""SMART and Bregman around a Hugging Face classifier or regressor: the loss of a batch, and what it is made of.

    loss = task loss + smart_weight * R + bregman_weight * D

R is the smoothness term of Jiang et al. 2019 (SMART, arXiv 1911.03437), section 3.1, on the word embeddings, D the
Bregman proximal point term of its section 3.2 with a momentum anchor. A step runs the clean pass that the model's own
loss needs, ``steps`` + 1 perturbed passes, and one of the anchor without gradient. Under autocast the task loss keeps
its precision, while R and D come from passes in the precision of the weights, the clean one included (one forward
more): a perturbation of 1e-5 does not survive a bf16 product, and the direction found with it would be noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from smartcs.smart import BregmanAnchor, SharedDropout, SmartRegularizer
from smartcs.smart.running_means import RunningMeans

from .arguments import LOSSES, ProblemType, SmartArguments, weight_at
from .embeddings import EmbeddingCalls, perturbed, plain, watched
from .inspection import (
    check_batch,
    check_labels,
    check_replayable,
    configured_problem_type,
    embedded_words,
    is_compiled,
    named_result,
    predictions,
    unwrapped,
    word_embeddings,
)


class SmartTerms(NamedTuple):
    """The regularisers' share of a loss: 0-dim tensors with gradient; a term whose weight is 0 is None.

    Attributes:
        weighted: smart_weight * smart + bregman_weight * bregman.
        smart: The smoothness term R.
        bregman: The proximal term D.
    """

    weighted: Tensor
    smart: Tensor | None
    bregman: Tensor | None


class SmartOutput(NamedTuple):
    """The loss of a batch and its parts, 0-dim tensors with gradient.

    Attributes:
        loss: What to differentiate: task_loss + smart_weight * smart + bregman_weight * bregman.
        task_loss: The model's own loss.
        smart: The smoothness term without its weight; None where the weight is 0, and in evaluation.
        bregman: The proximal term without its weight; None likewise.
        outputs: What the model returned for the batch.
    """

    loss: Tensor
    task_loss: Tensor
    smart: Tensor | None
    bregman: Tensor | None
    outputs: Any


class CleanPass(NamedTuple):
    """What is to be known of the model's own pass, which has no perturbation.

    Attributes:
        calls: What its word embeddings returned.
        masks: Its dropout.
        exact: Whether it ran as the perturbed passes will, but for its precision: not compiled.
    """

    calls: EmbeddingCalls
    masks: SharedDropout
    exact: bool


class SmartObjective:
    """The training loss of a model with SMART and Bregman. Three lines in a loop::

        smart = SmartObjective(model, smart_weight=2.0, bregman_weight=1.0)
        loss = smart(batch).loss  # in place of model(**batch).loss
        smart.update()  # after every optimizer.step()

    Args:
        model: An encoder with a head that takes ``labels`` and returns ``loss`` and ``logits``: sequence or token
            classification, regression, multiple choice. It may be wrapped for DistributedDataParallel, by accelerate
            or by torch.compile; the regularisers' passes call the model within. With bregman_weight, the anchor starts
            as a copy of it now.
        arguments: All settings at once.
        options: Single settings of `SmartArguments`, in place of those in ``arguments``.

    Raises:
        TypeError: an unknown option, or a model without input embeddings.
        ValueError: a setting is out of range, or the model is of another kind; the message says which.
    """

    def __init__(self, model: nn.Module, arguments: SmartArguments | None = None, **options: Any) -> None:
        self.arguments = arguments = SmartArguments.of(arguments, **options)
        self.model = model
        self._embedding = word_embeddings(model)
        self.problem_type = arguments.problem_type or configured_problem_type(unwrapped(model))
        self._regularizer = _regularizer(arguments, self.problem_type)
        self._anchor = _anchor(unwrapped(model), arguments, self.problem_type, self._predict)
        self._updates = 0
        self._layout_known = False
        self._begin_log()

    @staticmethod
    def validate(model: nn.Module, arguments: SmartArguments) -> None:
        """Raises what constructing an objective would of the settings and the kind of model, without its cost."""
        word_embeddings(model)
        problem_type = arguments.problem_type or configured_problem_type(unwrapped(model))
        _regularizer(arguments, problem_type)
        _anchor(nn.Identity(), arguments, problem_type, None)

    def __call__(self, batch: Mapping[str, Any]) -> SmartOutput:
        """The loss of a batch. In evaluation mode, or without gradients, it is the task loss alone.

        Args:
            batch: The model's keyword arguments, with ``input_ids`` and ``labels``. ``attention_mask`` tells which
                positions are padding; those are never perturbed.

        Raises:
            ValueError: the batch has no labels or no input_ids, or has inputs_embeds, or its labels are not of the
                problem type.
            TypeError: the model did not return named results with ``loss`` and ``logits``.
        """
        if not self.training(self.model):
            check_labels(batch)
            outputs = self.model(**batch)
            loss = named_result(outputs, "loss")
            return SmartOutput(loss, loss, None, None, outputs)
        self.check(batch)
        with self.clean_pass() as clean:
            outputs = self.model(**batch)
        loss = named_result(outputs, "loss")
        terms = self.terms(batch, outputs, clean)
        return SmartOutput(loss + terms.weighted, loss, terms.smart, terms.bregman, outputs)

    @staticmethod
    def training(model: nn.Module) -> bool:
        """Whether a loss of ``model`` is to be regularised: it is in training mode, and gradients are recorded."""
        return model.training and torch.is_grad_enabled()

    def check(self, batch: Mapping[str, Any]) -> None:
        """Raises ValueError unless SMART can be computed for this batch, before anything is computed."""
        check_batch(batch, self.problem_type)

    @contextmanager
    def clean_pass(self) -> Iterator[CleanPass]:
        """Around the model's own pass, for those who run it and compute its loss themselves; see `terms`.

        Raises:
            ValueError: dropout is to be shared, and the model is on a device whose masks cannot be repeated.
        """
        if self.arguments.share_dropout:
            check_replayable(self.model)
        masks = SharedDropout()
        # Compiled code may hold on to a hook that it has seen, or run without one that is new.
        compiled = is_compiled(self.model)
        with nullcontext(EmbeddingCalls()) if compiled else watched(self._embedding) as calls, masks:
            yield CleanPass(calls, masks, exact=not compiled)

    def terms(self, batch: Mapping[str, Any], outputs: Any, clean: CleanPass) -> SmartTerms:
        """The regularisers for a batch whose ``outputs`` came out of the pass within `clean_pass`.

        Raises:
            ValueError: the word embeddings were not called in that pass, or not as expected, or a weight's schedule
                gives a negative value or none that is finite.
            TypeError: ``outputs`` has no ``logits``, or the word embeddings returned something else than a tensor.
        """
        smart_weight = weight_at(self.arguments, "smart_weight", self._updates)
        bregman_weight = weight_at(self.arguments, "bregman_weight", self._updates)
        logits = predictions(outputs, batch["labels"], self.problem_type)
        terms = SmartTerms(torch.zeros((), dtype=torch.float32, device=logits.device), None, None)
        if smart_weight == 0 and bregman_weight == 0:
            return terms
        model, labels, calls = unwrapped(self.model), batch["labels"], clean.calls
        inputs = {name: value for name, value in batch.items() if name != "labels"}

        def predict(offset: Tensor | None = None) -> Tensor:
            with perturbed(self._embedding, offset) if offset is not None else nullcontext():
                return self._predict(model, inputs, labels)

        repeat: Callable[..., Tensor] = clean.masks.replay(predict) if self.arguments.share_dropout else predict
        with plain(model, *([] if self._anchor is None else [self._anchor.anchor])):
            if calls.rounded or not clean.exact:
                with watched(self._embedding) as calls:
                    logits = repeat()
            if smart_weight != 0:
                words = embedded_words(calls, batch, compare=not self._layout_known)
                self._layout_known = True
                smart = self._regularizer.from_offsets(repeat, words.like, logits, attention_mask=words.mask)
                terms = terms._replace(weighted=terms.weighted + smart_weight * smart, smart=smart)
            if self._anchor is not None and bregman_weight != 0:
                bregman = self._anchor.divergence(logits, inputs, labels)
                terms = terms._replace(weighted=terms.weighted + bregman_weight * bregman, bregman=bregman)
        self._log(terms)
        return terms

    def update(self) -> None:
        """Tells the objective that the optimizer took a step: moves the anchor and the schedules."""
        self._updates += 1
        if self._anchor is not None:
            self._anchor.update()

    def statistics(self) -> dict[str, dict[str, float] | None]:
        """Over all steps: {"smart": `SmartRegularizer.statistics`, "bregman": `BregmanAnchor.statistics` or None}."""
        anchor = None if self._anchor is None else self._anchor.statistics()
        return {"smart": self._regularizer.statistics(), "bregman": anchor}

    def metrics(self) -> dict[str, float]:
        """Means over the steps since the last call, for a log; waits for the device.

        Returns:
            "smart_loss" (without its weight), "smart_alignment" (cosine of the perturbation and the last ascent
            gradient), "smart_perturbation" (its norm), "smart_fallbacks" (steps whose SMART term was not finite and was
            left out), "bregman_loss" (without its weight). Means are over the steps where the term was finite; without
            such a step there is none.
        """
        metrics: dict[str, float] = {}
        for log in (self._smart_log, self._bregman_log):
            finite, means = log.means()
            metrics |= means if finite else {}
            if log is self._smart_log and log.steps:
                metrics["smart_fallbacks"] = log.steps - finite
        self._begin_log()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from: the anchor, the noise's counter, the schedules' step, the statistics."""
        anchor = None if self._anchor is None else self._anchor.state_dict()
        return {"updates": self._updates, "smart": self._regularizer.state_dict(), "bregman": anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`.

        Raises:
            ValueError: keys are missing or unknown, or the state has no anchor where one is needed, or the reverse.
            RuntimeError: the anchor is another model's.
        """
        expected = {"updates", "smart", "bregman"}
        if set(state) != expected:
            raise ValueError(
                f"SmartObjective: the state has the keys {', '.join(sorted(state)) or 'none'}, "
                f"expected {', '.join(sorted(expected))}"
            )
        if (state["bregman"] is None) != (self._anchor is None):
            has, wanted = ("no anchor", "one") if state["bregman"] is None else ("an anchor", "none")
            raise ValueError(
                f"SmartObjective: the state has {has}, expected {wanted} for bregman_weight="
                f"{self.arguments.bregman_weight!r}"
            )
        if self._anchor is not None:
            self._anchor.load_state_dict(state["bregman"])
        self._regularizer.load_state_dict(state["smart"])
        self._updates = int(state["updates"])

    def _predict(self, model: nn.Module, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
        return predictions(model(**inputs), labels, self.problem_type)

    def _begin_log(self) -> None:
        self._smart_log = RunningMeans("SmartObjective", ("smart_loss", "smart_alignment", "smart_perturbation"))
        self._bregman_log = RunningMeans("SmartObjective", ("bregman_loss",))

    def _log(self, terms: SmartTerms) -> None:
        last = self._regularizer.last
        if terms.smart is not None and last is not None:
            self._smart_log.add((last.value, last.alignment, last.perturbation), last.finite)
        if terms.bregman is not None:
            value = terms.bregman.detach()
            self._bregman_log.add((value,), torch.isfinite(value))


def _regularizer(arguments: SmartArguments, problem_type: ProblemType) -> SmartRegularizer:
    # Processes see different batches, and are to draw different noise for them.
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return SmartRegularizer(
        step_size=arguments.step_size,
        noise_std=arguments.noise_std,
        radius=arguments.radius,
        norm=arguments.norm,
        steps=arguments.steps,
        update=arguments.update,
        level=arguments.level,
        loss=LOSSES[problem_type],
        norm_eps=arguments.norm_eps,
        detach_targets=arguments.detach_targets,
        detach_clean=arguments.detach_clean,
        seed=arguments.seed + rank,
    )


def _anchor(
    model: nn.Module, arguments: SmartArguments, problem_type: ProblemType, forward: Callable[..., Tensor] | None
) -> BregmanAnchor | None:
    if arguments.bregman_weight == 0:
        return None
    return BregmanAnchor(
        model,
        arguments.beta,
        loss=LOSSES[problem_type],
        inner_steps=arguments.inner_steps,
        forward=forward,
        detach_targets=arguments.detach_targets,
    )
