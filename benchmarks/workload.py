"""A workload: one op at one size, timed fused, on the reference, and as torch has it.

A workload is verified against the error budget before anything is timed. "forward" is evaluation: no gradient, no
dropout. "training" is forward and backward with dropout 0.1 where the op has dropout; "backward" is its second half.
"bf16" stores activations in bfloat16 and rounds the operands of products to it (`smartcs.precision`); weights that a
model keeps in float32 stay so, but torch's candidate gets them in bfloat16, the form it is fastest with.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Outside pytest, whose configuration names this folder.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from error_budget import check  # noqa: E402
from op_harness import Problem, Values, check_results, evaluate, integers, normal, offsets  # noqa: E402

import smartcs  # noqa: E402

__all__ = ["Problem", "Step", "Values", "Workload", "integers", "normal", "offsets", "torch_bf16_failure"]

MODES = ("forward", "training")
PRECISIONS = ("fp32", "bf16")
CANDIDATES = ("fused", "reference", "torch")
COMPILED = "torch.compile"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Step = Callable[[], object]
Prepared = tuple[Callable[[], Tensor], Values, Tensor | None]
"""The forward pass, the leaves of its gradients, and the gradient to send back."""


@dataclass(frozen=True)
class Workload:
    """One op at one size.

    Args:
        problem: tensors and the op itself, without dropout; "grad_y" among them if there is a backward pass.
        builtin: the same with torch's functions, from the same tensors (or those of ``arrange``) and dropout_p.
        numbers: values no implementation can avoid to read or write, each operand once: forward and backward.
        products: floating-point operations of its products: forward and backward.
        dropout: whether the op has dropout.
        wide: tensors that stay float32 in bf16.
        low_settings: the op's further settings in bf16.
        timed: the op's further settings in what is timed, which do not change its values.
        arrange: brings tensors into the layout torch wants; not timed.
        restore: brings torch's result and gradients back.
        smaller: makes a workload to verify instead, where verifying this one takes too long.
        device: where all but the reference of a verification runs.
    """

    problem: Problem
    builtin: Callable[..., Tensor]
    numbers: tuple[int, int]
    products: tuple[int, int] = (0, 0)
    dropout: bool = True
    wide: tuple[str, ...] = ()
    low_settings: Mapping[str, Any] = field(default_factory=dict)
    timed: Mapping[str, Any] = field(default_factory=dict)
    arrange: Callable[[Values], Values] = dict
    restore: Callable[[Values], Values] = dict
    smaller: "Callable[[], Workload] | None" = None
    device: str = "cpu"

    @property
    def modes(self) -> tuple[str, ...]:
        """An op without gradients has no training mode."""
        return MODES if "grad_y" in self.problem.tensors else MODES[:1]

    def bytes(self, mode: str, precision: str) -> int:
        return _of_mode(self.numbers, mode) * DTYPES[precision].itemsize

    def operations(self, mode: str) -> int:
        return _of_mode(self.products, mode)

    def rate(self, precision: str) -> str:
        """The precision whose products set its pace: attention's are float32 in bf16, too."""
        return precision if self.low_settings else "fp32"

    def verify(self, precision: str) -> None:
        """Holds the fused op to the error budget, with and without dropout, and torch's functions in float64.

        In float64 because how torch rounds in float32 is its own affair: only that both compute the same matters.
        """
        if self.smaller is not None:
            replace(self.smaller(), device=self.device).verify(precision)
            return
        for mode in self.modes:
            self._check_fused(mode, precision)
        if precision == "fp32":
            forward, leaves, grad_y = self._builtin("forward", torch.float64, grad="training" in self.modes)
            y = forward()
            _backward(y, leaves, grad_y)
            results = {"y": y.detach().cpu()} | {
                name: leaf.grad.cpu() for name, leaf in leaves.items() if leaf.grad is not None
            }
            check_results(self.problem, torch.float64, self.restore(results))

    def step(self, candidate: str, mode: str, precision: str) -> Step:
        """A function that does the timed work once."""
        grad = mode != "forward"
        if candidate in ("torch", COMPILED):
            forward, leaves, grad_y = self._builtin(mode, DTYPES[precision], grad, compiled=candidate == COMPILED)
        else:
            forward, leaves, grad_y = self._own(candidate, mode, precision, grad)
        if mode != "backward":

            def run() -> None:
                with torch.set_grad_enabled(grad):
                    y = forward()
                if grad:
                    _backward(y, leaves, grad_y)

            return run
        y = forward()
        assert grad_y is not None
        wanted, grad_y = list(leaves.values()), grad_y.reshape(y.shape)
        return lambda: torch.autograd.grad(y, wanted, grad_y, retain_graph=True)

    def _own(self, candidate: str, mode: str, precision: str, grad: bool) -> Prepared:
        problem = self._problem(mode, precision)
        values = {name: t.to(self.device) for name, t in self._rounded(precision).items()}
        settings = problem.settings | (dict(self.timed) if grad else {})
        grad_y = values.pop("grad_y", None)
        leaves = {name: values[name].requires_grad_(grad) for name in problem.kinds if name != "y"}

        def forward() -> Tensor:
            with smartcs.backend(candidate):  # type: ignore[arg-type]
                return problem.op(**values, **settings)

        return forward, leaves, grad_y

    def _problem(self, mode: str, precision: str) -> Problem:
        """With the mode's dropout, the op within the precision."""
        op, settings = self.problem.op, dict(self.problem.settings)
        if mode != "forward" and self.dropout:
            settings |= {"dropout_p": 0.1, "seed": 1, "stream": 2}
        if precision == "bf16":
            settings |= self.low_settings

        def within(**arguments: Any) -> Tensor:
            with smartcs.precision(precision):  # type: ignore[arg-type]
                return op(**arguments)

        return replace(self.problem, op=within, settings=settings)

    def _rounded(self, precision: str) -> Values:
        values = self.problem.rounded(DTYPES[precision])
        return values | {name: values[name].float() for name in self.wide}

    def _check_fused(self, mode: str, precision: str) -> None:
        """The tests' check, but that some tensors of bf16 are float32: with values that bfloat16 holds."""
        problem, values = self._problem(mode, precision), self._rounded(precision)
        fused, fallback = evaluate(problem, values, "fused", self.device), evaluate(problem, values, "reference")
        exact = replace(problem, settings={k: v for k, v in problem.settings.items() if k not in self.low_settings})
        truth = evaluate(exact, {k: v.double() if v.is_floating_point() else v for k, v in values.items()}, "reference")
        for name, kind in problem.kinds.items():
            check(fused[name], truth[name], fallback[name], kind, name=f"{name} of {mode} in {precision}")

    def _builtin(self, mode: str, dtype: torch.dtype, grad: bool, compiled: bool = False) -> Prepared:
        arranged = self.arrange(self.problem.rounded(dtype))
        values = {name: t.to(self.device, copy=True) for name, t in arranged.items()}
        grad_y = values.pop("grad_y", None)
        leaves = {name: t.requires_grad_(grad) for name, t in values.items() if name in self.problem.kinds}
        settings = {"dropout_p": 0.0 if mode == "forward" else 0.1} if self.dropout else {}
        function = torch.compile(self.builtin, dynamic=False) if compiled else self.builtin
        return lambda: function(**values, **settings), leaves, grad_y


def _of_mode(counts: tuple[int, int], mode: str) -> int:
    return {"forward": counts[0], "backward": counts[1], "training": sum(counts)}[mode]


def _backward(y: Tensor, leaves: Values, grad_y: Tensor | None) -> None:
    if grad_y is not None and leaves:
        for leaf in leaves.values():
            leaf.grad = None
        y.backward(grad_y.reshape(y.shape))


@cache
def torch_bf16_failure() -> str:
    """Why torch's bfloat16 products cannot be timed here, or nothing: tried in a process of its own, since on some
    CPUs they end it with an illegal instruction.
    """
    tried = (
        "import torch; x = torch.randn(300, 384, dtype=torch.bfloat16, requires_grad=True);"
        "torch.nn.functional.linear(x, torch.randn(384, 384, dtype=torch.bfloat16)).sum().backward()"
    )
    code = subprocess.run([sys.executable, "-c", tried], capture_output=True).returncode
    return f"torch's bfloat16 product ends its process with {code} on this CPU" if code else ""
