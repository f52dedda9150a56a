"""Bregman proximal point optimisation: holds a model's predictions near those of an earlier self, the anchor.

    theta_{t+1} = argmin F(theta) + mu D(theta, theta~_t),   D = 1/n sum_i l_s(f(x_i; theta), f(x_i; theta~_t))
    theta~_t = (1 - beta) theta_t + beta theta~_{t-1}

Why the momentum: the paper's own equation has theta_t as the anchor, beta = 0. Training takes one gradient step per
iteration, and takes it from theta = theta_t, where D and its gradient are exactly 0: to the letter, the method does
nothing. SMART's anchor therefore lags behind by momentum; or it is frozen for ``inner_steps`` steps, from the second of
which theta has moved away from theta_t and the plain anchor makes sense.

The anchor is evaluated without dropout. A model in training mode drops out, so its output differs from the anchor's
even at equal weights, and D also asks the thinned network to agree with the full one, at any beta.

Source: Jiang et al. 2019 (SMART, arXiv 1911.03437), section 3.2.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smartcs.ops.adamw import move_anchors
from smartcs.ops.checks import check_like, check_tensor

from .losses import PairLoss, Smoothness, check_option, smoothness_loss
from .running_means import RunningMeans

_OWNER = "BregmanAnchor"
_MEANS = ("anchor_divergence",)


class BregmanAnchor:
    """A copy of a model that follows it by momentum, and the divergence of the two.

    ::

        anchor = BregmanAnchor(model, beta=0.99)
        logits = model(batch)
        loss = F.cross_entropy(logits, labels) + mu * anchor.divergence(logits, batch)
        ...
        optimizer.step()
        anchor.update()  # or, in one pass over memory: smartcs.AdamW's step(anchor=anchor)

    The copy costs the memory of the weights once; parameters that are tied in the model are tied in it. It requires no
    gradient, stays in evaluation mode, and follows the model to another device. The model itself is never changed.

    Args:
        model: Any module that `copy.deepcopy` copies.
        beta: The momentum, in [0, 1], or a function from the step (optimizer steps before it) to one: `BetaSchedule`.
        loss: l_s, see `smoothness_loss`, or a callable (output, anchor output) -> scalar.
        inner_steps: S, optimizer steps against one frozen anchor.
        forward: (module, *inputs, **kwargs) -> output, for models whose call does not return the prediction; by default
            the module is called.
        detach_targets: The published gradients of a named loss, see `smoothness_loss`.

    Attributes:
        model: The model.
        anchor: Its copy.

    Raises:
        ValueError: an option is unknown or out of range, or the weights are in half precision, where momentum is
            rounded away and the anchor would stand still (beta=0 needs none and is allowed).
        TypeError: the model cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        beta: float | Callable[[int], float] = 0.99,
        *,
        loss: Smoothness | PairLoss = "categorical",
        inner_steps: int = 1,
        forward: Callable[..., Tensor] | None = None,
        detach_targets: bool = False,
    ) -> None:
        if not callable(loss):
            check_option(_OWNER, "loss", loss, Smoothness)
        if not callable(beta):
            _check_beta(beta)
        if not isinstance(inner_steps, int) or inner_steps < 1:
            raise ValueError(f"{_OWNER}: inner_steps is {inner_steps!r}, expected an int >= 1")
        for name, parameter in model.named_parameters():
            if parameter.dtype in (torch.float16, torch.bfloat16) and beta != 0:
                raise ValueError(
                    f"{_OWNER}: parameter {name} has dtype {parameter.dtype}, in which momentum is rounded away; "
                    "expected float32 weights (low precision through autocast), or beta=0"
                )
        try:
            self.anchor = copy.deepcopy(model)
        except Exception as error:
            raise TypeError(f"{_OWNER}: model {type(model).__name__} cannot be copied: {error}") from error
        self.anchor.eval().requires_grad_(False)
        self.model, self.beta, self.loss = model, beta, loss
        self.inner_steps, self.detach_targets = inner_steps, detach_targets
        self._forward = _call if forward is None else forward
        self._updates = 0
        self._match: _Match | None = None
        self.means = RunningMeans(_OWNER, _MEANS)

    def divergence(
        self, output: Tensor, *inputs: Any, loss: Smoothness | PairLoss | None = None, **kwargs: Any
    ) -> Tensor:
        """D of a batch, not multiplied by mu; the gradient goes to `output` alone.

        Args:
            output: The model's prediction for the inputs, with its graph.
            *inputs, **kwargs: What the model was called with; the anchor is called with the same.
            loss: Instead of the constructor's, for models of several tasks.

        Returns:
            0-dim, the dtype of the loss.

        Raises:
            ValueError: the anchor's output has another shape or device than `output`, or the loss is unknown.
            TypeError: an output is not a floating-point tensor, or dtypes differ.
        """
        loss = self.loss if loss is None else loss
        if not callable(loss):
            check_option(_OWNER, "loss", loss, Smoothness)
        check_tensor(_OWNER, "output", output)
        self._follow()
        with torch.no_grad():
            target = self._forward(self.anchor, *inputs, **kwargs)
        check_tensor(_OWNER, "the anchor's output", target)
        if callable(loss):
            value = loss(output, target)
        else:
            check_like(_OWNER, "output", output, target.shape, target, "the anchor's output")
            value = smoothness_loss(output, target, loss, detach_targets=self.detach_targets)
        self.means.add((value.detach(),), torch.isfinite(value.detach()))
        return value

    @torch.no_grad()
    def update(self) -> None:
        """Tells the anchor that the optimizer took a step; every `inner_steps`-th moves it, and copies the buffers.

        Raises:
            ValueError: the model has other parameters or buffers than when it was copied, or beta is out of range.
        """
        anchors, weight = self.next_move()
        move_anchors([(anchor, parameter) for parameter, anchor in anchors.items()], weight)
        self.moved()

    def next_move(self) -> tuple[dict[Tensor, Tensor], float]:
        """What `update` is about to do to the parameters, for an optimizer that does it in its own pass.

        Returns:
            {the model's parameter: the anchor's} and the share of the way that the latter move, 1 - beta. Empty and 0
            for a step that leaves them where they are.

        Raises:
            ValueError: as `update`.
        """
        weight = self.next_weight()
        return (self.pairs(), weight) if weight else ({}, 0.0)

    def next_weight(self) -> float:
        """The second of `next_move`."""
        beta = self.beta(self._updates) if callable(self.beta) else self.beta
        _check_beta(beta)
        return 1 - beta if self._moves() else 0.0

    def pairs(self) -> dict[Tensor, Tensor]:
        """{the model's parameter: the anchor's}, for an optimizer that learns elsewhere how far the latter move.

        Raises:
            ValueError: the model has other parameters or buffers than when it was copied.
        """
        self._follow()
        return self._matched()[0]

    @torch.no_grad()
    def moved(self) -> None:
        """Ends a step whose `next_move` has been made: copies the buffers and counts it."""
        if self._moves():
            for source, target in self._matched()[1]:
                target.copy_(source)
        self._updates += 1

    def statistics(self) -> dict[str, float]:
        """Waits for the device.

        Returns:
            "steps", the divergences computed so far, and "anchor_divergence", the mean of those that were finite.
        """
        return {"steps": self.means.steps, **self.means.means()[1]}

    def state_dict(self) -> dict[str, Any]:
        """{"weights": the anchor's, "updates": optimizer steps seen, "means": numbers that JSON holds}."""
        return {
            "weights": self.anchor.state_dict(),
            "updates": self._updates,
            "means": self.means.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a `state_dict`.

        Raises:
            ValueError: keys are missing or unknown.
            RuntimeError: the weights are another model's.
        """
        expected = ("weights", "updates", "means")
        if set(state) != set(expected):
            raise ValueError(
                f"{_OWNER}: the state has the keys {', '.join(sorted(state)) or 'none'}, "
                f"expected {', '.join(sorted(expected))}"
            )
        self.means.load_state_dict(state["means"])
        self.anchor.load_state_dict(state["weights"])
        self._updates = int(state["updates"])

    def _moves(self) -> bool:
        return (self._updates + 1) % self.inner_steps == 0

    def _matched(self) -> tuple[dict[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
        """Parameters and buffers of the model with the anchor's, by name; looked up again after a module changed."""
        if self._match is None or not self._match.holds():
            parameters = _pairs("parameter", self.model.named_parameters, self.anchor.named_parameters)
            buffers = _pairs("buffer", self.model.named_buffers, self.anchor.named_buffers)
            self._match = _Match(self.model, self.anchor, dict(parameters), buffers)
        return self._match.parameters, self._match.buffers

    def _follow(self) -> None:
        """Moves the anchor to the model's device, which may have changed since it was copied."""
        here, there = next(self.anchor.parameters(), None), next(self.model.parameters(), None)
        if here is not None and there is not None and here.device != there.device:
            self.anchor.to(there.device)


def _call(module: nn.Module, *inputs: Any, **kwargs: Any) -> Tensor:
    return module(*inputs, **kwargs)


def _check_beta(beta: float) -> None:
    if not 0 <= beta <= 1:
        raise ValueError(f"{_OWNER}: beta is {beta}, expected 0 <= beta <= 1")


def _pairs(what: str, theirs: Callable[[], Any], ours: Callable[[], Any]) -> list[tuple[Tensor, Tensor]]:
    """(the model's, the anchor's) tensors; tied ones appear once on both sides."""
    weights, anchors = dict(theirs()), dict(ours())
    if anchors.keys() != weights.keys():
        odd = sorted(anchors.keys() ^ weights.keys())
        raise ValueError(
            f"{_OWNER}: the model has {len(weights)} {what}s and its anchor {len(anchors)}, "
            f"differing in {', '.join(odd[:5])}; make a new anchor after changing the model"
        )
    return [(weight, anchors[name]) for name, weight in weights.items()]


class _Match:
    """Which tensor of a model corresponds to which of its anchor's, for as long as their modules hold the same ones."""

    def __init__(
        self,
        model: nn.Module,
        anchor: nn.Module,
        parameters: dict[Tensor, Tensor],
        buffers: list[tuple[Tensor, Tensor]],
    ) -> None:
        self.parameters, self.buffers = parameters, buffers
        # What a module registers, as it was. The tensors are held above and the modules here, so that no id is reused.
        self._registered = [
            (registered, list(map(id, registered.values())), list(registered.values()))
            for module in (*model.modules(), *anchor.modules())
            for registered in (module._parameters, module._buffers, module._modules)
        ]

    def holds(self) -> bool:
        return all(ids == list(map(id, registered.values())) for registered, ids, _ in self._registered)
