"""SMART: smoothness-inducing adversarial regularisation of any network.

    R_s = 1/n sum_i  max over ||x~_i - x_i||_p <= eps  of  l_s(f(x~_i), f(x_i))

The maximum is approached in T steps from small noise; with v the perturbation of the embeddings x:

    v ~ N(0, sigma^2)
    T times:  g = grad_v sum_i l_s(f(x + v), stop_grad f(x)),   v <- update(v, g)      (``smartcs.ops.perturb``)
    R_s = 1/n sum_i l_s(f(x + v), f(x)),   v constant, gradient through both sides

What is kept in memory: the activations of the clean pass and of the last perturbed pass, two sets. Those of the inner
passes are freed before the next one begins, and hold only what v's gradient needs: no parameter gradient is computed in
the inner loop, nor anything saved for one (``leaves``, ``smartcs.ops.input_gradients_only``).

Low precision: noise of 1e-5 does not survive a rounding to bfloat16. Under autocast, and in smartcs' own bf16 mode, the
inner loop therefore runs in float32, against an f(x) of its own, one forward pass more (``exact``). The last perturbed
pass has a v of norm 1, which does survive, and runs as the clean pass did; where v is too small for that
(update="projected" with a small radius or step size, or steps=0), it runs in float32, too, against such an f(x).

Where published implementations (mt-dnn, smart-pytorch) differ, and why not so here:

* The inner loss is a sum over the examples, since each x_i has its own maximum: with a mean, as in smart-pytorch with
  ``kl_loss``, the ascent shrinks as the batch grows. (mt-dnn sums as well.) ``inner_reduction="mean"`` is theirs.
* mt-dnn's inner loss is a difference of log-odds with an epsilon inside the logarithms. Any callable can be
  ``inner_loss``; the default is l_s itself, in a form that is exact for near-equal logits.
* Both treat the target of each KL term as a constant. ``detach_targets=True`` does; the default is the true gradient.
* Both divide by the norm of v + alpha g, so their perturbation has norm 1 whatever alpha, and at sigma = 1e-5 its
  direction is the noise's, not the gradient's: see ``adversarial_alignment``. That is ``update="mtdnn"``, the default,
  as the papers ran it; ``"projected"`` is Jiang et al.'s algorithm 1 and does find the adversarial direction. Its v is
  at most the smaller of ``radius`` and about ``steps * step_size`` (in its largest element, and plus the noise): a
  radius of 1e-5 makes R_s negligible, and beyond steps * step_size it changes nothing, so set both to compare the two.
* mt-dnn perturbs padding, too, and a non-finite norm ends in an error. Here padding is left alone, and a step whose
  inner loop is not finite contributes nothing and is counted.

Source: Jiang et al. 2019 (SMART, arXiv 1911.03437), section 3.1 and algorithm 1.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smartcs import ops
from smartcs.ops.checks import check_device, check_float, check_like, check_tensor
from smartcs.ops.perturb import Norm, Update

from .exact import check_resolution, exact_products, rounding
from .gate import Gate, known_to_fail
from .layout import Layout, Level
from .leaves import frozen_leaves
from .losses import PairLoss, Smoothness, check_option, scalar_loss, smoothness_loss
from .running_means import RunningMeans

InnerReduction = Literal["sum", "mean"]
Forward = Callable[[Tensor], Tensor]

_OWNER = "SmartRegularizer"
_MEANS = ("adversarial_alignment", "perturbation_norm", "regulariser")


class SmartStep(NamedTuple):
    """What happened in one step: 0-dim tensors on the embeddings' device, without gradient; 0 if not finite.

    value: the regulariser R_s.
    alignment: cosine of the final perturbation and the last gradient, mean over the groups; 0 with steps=0. Near 0, the
        perturbation is random; near 1, adversarial.
    perturbation: its p-norm, mean over the groups.
    finite: bool, whether the step counted.
    """

    value: Tensor
    alignment: Tensor
    perturbation: Tensor
    finite: Tensor


class SmartRegularizer:
    """R_s of a network f, given as any function from embeddings to a prediction.

    ::

        reg = SmartRegularizer(loss="categorical")
        logits = f(x)
        loss = F.cross_entropy(logits, labels) + 2.0 * reg(f, x, logits)

    f must be the same function as in the clean pass: share its dropout masks (a ``DropoutKey``, or ``SharedDropout``
    for torch's own dropout), else R_s measures their difference. Autocast, if any, goes around the clean pass and this
    call, not into f, where it could not be switched off.

    Args:
        step_size: alpha, the length of an ascent step; bounds v as `radius` does with update="projected".
        noise_std: sigma, of the first noise.
        radius: eps, of the ball around x; used by update="projected" alone.
        norm: p, "inf", "2" or "1".
        steps: T. 0 leaves v the noise it was, of its size; for a random direction of "mtdnn"'s size: step_size 0.
        update: The rule for v, see ``smartcs.ops.perturb``.
        level: Which rows share a norm: each "token" has its own, or all tokens of a "sentence" one.
        loss: l_s, see `smoothness_loss`, or a callable (perturbed output, clean output) -> scalar.
        inner_loss: The loss whose gradient v follows; `loss` if None.
        inner_reduction: Of a named inner loss over the examples. A callable's scalar is differentiated as it is.
        norm_eps: Guards the division by a norm.
        detach_targets: The published gradients of a named loss, see `smoothness_loss`.
        detach_clean: Gradient to the parameters through the perturbed side alone.
        seed: Of the noise; regularisers of one run that should not draw alike need different ones.

    Attributes:
        last: The latest step; None before the first.

    Raises:
        ValueError: an option is unknown or a number out of range.
    """

    def __init__(
        self,
        *,
        step_size: float = 1e-3,
        noise_std: float = 1e-5,
        radius: float = 1e-5,
        norm: Norm = "inf",
        steps: int = 1,
        update: Update = "mtdnn",
        level: Level = "token",
        loss: Smoothness | PairLoss = "categorical",
        inner_loss: Smoothness | PairLoss | None = None,
        inner_reduction: InnerReduction = "sum",
        norm_eps: float = 1e-6,
        detach_targets: bool = False,
        detach_clean: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 <= step_size < math.inf:
            raise ValueError(f"{_OWNER}: step_size is {step_size}, expected a finite number >= 0")
        for name, number in (("noise_std", noise_std), ("radius", radius), ("norm_eps", norm_eps)):
            if not 0 < number < math.inf:
                raise ValueError(f"{_OWNER}: {name} is {number}, expected a finite number > 0")
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"{_OWNER}: steps is {steps!r}, expected an int >= 0")
        if not 0 <= seed < 2**63:
            raise ValueError(f"{_OWNER}: seed is {seed}, expected 0 <= seed < 2**63")
        check_option(_OWNER, "norm", norm, Norm)
        check_option(_OWNER, "update", update, Update)
        check_option(_OWNER, "level", level, Level)
        check_option(_OWNER, "inner_reduction", inner_reduction, InnerReduction)
        inner_loss = loss if inner_loss is None else inner_loss
        for name, given in (("loss", loss), ("inner_loss", inner_loss)):
            if not callable(given):
                check_option(_OWNER, name, given, Smoothness)
        self.step_size, self.noise_std, self.radius, self.norm_eps = step_size, noise_std, radius, norm_eps
        self.norm, self.steps, self.update, self.level, self.seed = norm, steps, update, level, seed
        self.loss, self.inner_loss, self.inner_reduction = loss, inner_loss, inner_reduction
        self.detach_targets, self.detach_clean = detach_targets, detach_clean
        self.last: SmartStep | None = None
        self.means = RunningMeans(_OWNER, _MEANS)

    def __call__(
        self,
        forward: Forward,
        embeddings: Tensor,
        clean_output: Tensor,
        *,
        noise: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stream: int | None = None,
    ) -> Tensor:
        """R_s at a batch, not multiplied by lambda.

        Args:
            forward: f, from embeddings to a tensor like clean_output.
            embeddings: x, packed (T, C), or padded (B, S, C); float32 or float64. Gradients flow on into them.
            clean_output: f(x), with its graph.
            noise: The first v, shape and dtype of x, instead of drawing it.
            cu_seqlens: (B + 1,) int32, where the sentences of packed embeddings begin; needed at sentence level.
            attention_mask: (B, S) with 0 for padding of padded embeddings, which then is not perturbed.
            stream: Names the drawn noise together with `seed`, 0 <= stream < 2**63; the number of steps so far if None.

        Returns:
            0-dim, the dtype of the loss. Where the inner loop or the value is not finite, a 0 that adds nothing to any
            gradient. (CUDA is not waited for: there, zeros go back through the network, which could make NaN of them
            only where its own derivatives at v are not finite.)

        Raises:
            ValueError: a shape or device does not match, f does not depend on its argument, or the embeddings or f's
                result have a precision too low for noise this small.
            TypeError: an argument or f's result is not a floating-point tensor, or dtypes differ.
        """
        layout = Layout.of("embeddings", embeddings, self.level, cu_seqlens, attention_mask)
        v = self._first(layout, noise, stream, None)
        return self._regularise(lambda v: forward(embeddings + v), layout, clean_output, v, noise is None)

    def from_offsets(
        self,
        forward_offset: Forward,
        like: Tensor,
        clean_output: Tensor,
        *,
        noise: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        stream: int | None = None,
        counter_offset: Tensor | None = None,
        num_tokens: Tensor | None = None,
    ) -> Tensor:
        """The same for a network that adds v itself: x + v never exists as a tensor of its own.

        Args:
            forward_offset: From v to f(x + v).
            like: Any tensor with the shape, dtype and device of x; its values are not read.
            counter_offset: (2,), where stream and tokens are counted from, see ``smartcs.ops.random``.
            num_tokens: 0-dim integer on the device: rows of packed x from there on only fill up.
            Everything else is as in calling the regulariser.
        """
        layout = Layout.of("like", like, self.level, cu_seqlens, attention_mask, num_tokens)
        v = self._first(layout, noise, stream, counter_offset)
        return self._regularise(forward_offset, layout, clean_output, v, noise is None)

    def statistics(self) -> dict[str, float]:
        """Over all steps so far; waits for the device.

        Returns:
            "steps", "fallbacks" (steps that were not finite and contributed nothing), and the means over the others
            of "adversarial_alignment", "perturbation_norm" and "regulariser", 0 where there were none.
        """
        finite, means = self.means.means()
        return {"steps": self.means.steps, "fallbacks": self.means.steps - finite, **means}

    def state_dict(self) -> dict[str, float]:
        """Numbers that JSON holds, from which a resumed run continues: the statistics and the noise's counter."""
        return self.means.state_dict()

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from a `state_dict`. Raises ValueError naming missing and unknown keys."""
        self.means.load_state_dict(state)

    def _first(self, layout: Layout, noise: Tensor | None, stream: int | None, counter_offset: Tensor | None) -> Tensor:
        """The v to begin with, (N, C)."""
        if noise is None:
            stream = self.means.steps if stream is None else stream
            return layout.noise(self.noise_std, self.seed, stream, counter_offset)
        check_like(_OWNER, "noise", noise, layout.shape, layout.like.reshape(layout.shape), "the embeddings")
        return layout.rows(noise)

    def _regularise(self, forward: Forward, layout: Layout, clean: Tensor, v: Tensor, drawn: bool) -> Tensor:
        check_float(_OWNER, "clean_output", clean)
        check_device(_OWNER, "clean_output", clean, layout.like, "the embeddings")
        smallest = self._smallest(drawn)
        check_resolution(_OWNER, layout.like, "the embeddings round", *smallest)
        spacing = rounding(device := layout.like.device.type)  # of the products that the clean pass made
        with exact_products(device) if spacing else nullcontext():
            target = clean.detach()
            if spacing and self.steps:
                with torch.no_grad():
                    target = forward(layout.zeros())
            check_float(_OWNER, "the result of forward", target)
            if not spacing or self.steps:
                check_resolution(_OWNER, target, "the result of forward rounds", *smallest)
            v, alignment, size, finite = self._ascend(forward, layout, clean, target, v)
        if known_to_fail(finite):
            return self._finish(None, alignment, size, finite)
        v = torch.where(finite, v, torch.zeros_like(v)).reshape(layout.shape)
        too_small = self._last_size() < spacing
        with exact_products(device) if too_small else nullcontext():
            if too_small:
                clean = forward(layout.zeros())
            clean = clean.detach() if self.detach_clean else clean
            output, gate = forward(v), Gate()
        value = self._loss(self.loss, "mean", gate.passing(output), gate.passing(clean))
        finite = gate.finite = finite & torch.isfinite(value.detach())
        if known_to_fail(finite):
            return self._finish(None, alignment, size, finite)
        return self._finish(value, alignment, size, finite)

    def _ascend(
        self, forward: Forward, layout: Layout, clean: Tensor, target: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """T steps from v (N, C), away from `target`; `clean` has the graph of f.

        Returns the last v, its alignment and norm, and whether all was finite.
        """
        finite = torch.ones((), dtype=torch.bool, device=v.device)
        if self.steps == 0:
            # The rule of a vanished gradient: v stays, and its norm comes with it.
            v, statistics = self._perturb(v, torch.zeros_like(v), layout, "paper")
        with torch.enable_grad(), ops.input_gradients_only(), frozen_leaves(clean):
            for _ in range(self.steps):
                g, loss = self._inner_gradient(forward, v.reshape(layout.shape), target)
                v, statistics = self._perturb(v, layout.rows(g), layout, self.update)
                finite = finite & torch.isfinite(loss) & (statistics[:, 2] > 0).all()
                if known_to_fail(finite):
                    break
        return v, layout.mean(statistics[:, 0]), layout.mean(statistics[:, 1]), finite

    def _inner_gradient(self, forward: Forward, v: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """g, and the inner loss without its graph, which ends here."""
        v = v.detach().requires_grad_()
        loss = self._loss(self.inner_loss, self.inner_reduction, forward(v), target)
        g = torch.autograd.grad(loss, v, allow_unused=True)[0] if loss.requires_grad else None
        if g is None:
            raise ValueError(
                f"{_OWNER}: the output of forward does not depend on its argument, so there is no gradient to follow; "
                "is it computed from other embeddings, or under torch.no_grad?"
            )
        return g, loss.detach()

    def _perturb(self, v: Tensor, g: Tensor, layout: Layout, update: Update) -> tuple[Tensor, Tensor]:
        return ops.perturb(
            v,
            g,
            update=update,
            norm=self.norm,
            cu_seqlens=layout.cu_seqlens,
            step_size=self.step_size,
            radius=self.radius,
            norm_eps=self.norm_eps,
        )

    def _loss(self, loss: Smoothness | PairLoss, reduction: InnerReduction, output: Tensor, target: Tensor) -> Tensor:
        check_tensor(_OWNER, "the result of forward", output)
        if callable(loss):
            return scalar_loss(_OWNER, loss, output, target)
        check_like(_OWNER, "the result of forward", output, target.shape, target, "clean_output")
        return smoothness_loss(output, target, loss, reduction=reduction, detach_targets=self.detach_targets)

    def _finish(self, value: Tensor | None, alignment: Tensor, size: Tensor, finite: Tensor) -> Tensor:
        """Records the step. Returns its loss: 0, of no graph, without a value, and 0 where the value is not finite."""
        if value is None:
            value = alignment.new_zeros((), requires_grad=torch.is_grad_enabled())
        value = torch.where(finite, value, torch.zeros_like(value))
        seen = [torch.where(finite, t, torch.zeros_like(t)) for t in (value.detach(), alignment, size)]
        self.last = SmartStep(seen[0], seen[1], seen[2], finite)
        self.means.add((alignment, size, value), finite)
        return value

    def _last_size(self) -> float:
        """The size that v has at most after the ascent."""
        if self.steps and self.update == "projected":
            return min(self.radius, self.steps * self.step_size + self.noise_std)
        return 1.0 if self.steps else self.noise_std

    def _smallest(self, drawn: bool) -> tuple[float, str]:
        """The smallest size that v is known to have on the way, and the setting that says so."""
        noise = (self.noise_std if drawn else math.inf, "noise_std")
        return min(noise, (self.radius if self.update == "projected" else math.inf, "radius"))
