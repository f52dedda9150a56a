"""What the tests of every op do: run it on both backends, compare within the error budget, vary threads and so on.

A test file describes each case as a ``Problem``; the functions here take it from there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from error_budget import BudgetExceeded, Kind, check
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from smartcs._extension import extension_status
from smartcs.ops.backend import Backend, backend

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
THREADS = (1, 2, 5)

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """One case of one op.

    Args:
        op: As called by a user, on ``tensors`` and ``settings`` by name; its result is named "y".
        tensors: The op's tensor arguments in float64 (and integers), and "grad_y", the gradient to send back.
        kinds: How "y" and the gradient of each differentiable tensor are judged; "y" alone for an op without gradient.
        settings: The op's other arguments.
    """

    op: Callable[..., Tensor]
    tensors: Values
    kinds: dict[str, Kind]
    settings: dict[str, Any] = field(default_factory=dict)

    def rounded(self, dtype: torch.dtype) -> Values:
        """The tensors as the tested dtype holds them."""
        return {name: t.to(dtype) if t.is_floating_point() else t for name, t in self.tensors.items()}


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers that depend on nothing but the arguments."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(limit: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(limit, shape, generator=torch.Generator().manual_seed(seed))


def offsets(lengths: list[int]) -> Tensor:
    """cu_seqlens of sequences with these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def evaluate(problem: Problem, values: Values, name: Backend, device: str = "cpu") -> Values:
    """The result "y" and the gradient of every differentiable tensor, on one backend and device, copied to the CPU."""
    values = {key: value.detach().to(device) for key, value in values.items()}
    arguments = {key: value for key, value in values.items() if key != "grad_y"}
    leaves = {key: arguments[key].clone(memory_format=torch.preserve_format) for key in problem.kinds if key != "y"}
    for leaf in leaves.values():
        leaf.requires_grad_()
    with backend(name):
        y = problem.op(**(arguments | leaves), **problem.settings)
        grads: tuple[Tensor, ...] = ()
        if leaves:
            grads = torch.autograd.grad(y, list(leaves.values()), values["grad_y"].to(y.dtype).reshape(y.shape))
    return {"y": y.detach().cpu(), **{key: grad.cpu() for key, grad in zip(leaves, grads, strict=True)}}


def truth_and_fallback(problem: Problem, dtype: torch.dtype) -> tuple[Values, Values]:
    """The reference on the rounded inputs, in float64 and in ``dtype``."""
    values = problem.rounded(dtype)
    widened = {name: t.double() if t.is_floating_point() else t for name, t in values.items()}
    return evaluate(problem, widened, "reference"), evaluate(problem, values, "reference")


def check_results(problem: Problem, dtype: torch.dtype, results: Values) -> None:
    """Holds results (as returned by ``evaluate``) to the error budget."""
    truth, fallback = truth_and_fallback(problem, dtype)
    for name, kind in problem.kinds.items():
        check(results[name], truth[name], fallback[name], kind, name=name if name == "y" else f"gradient of {name}")


def check_budget(problem: Problem, dtype: torch.dtype, name: Backend = "fused", device: str = "cpu") -> None:
    """Holds the op to the error budget on one backend, result and gradients; the truth is always the CPU's."""
    check_results(problem, dtype, evaluate(problem, problem.rounded(dtype), name, device))


def check_mutant(problem: Problem, dtype: torch.dtype, formula: Callable[..., Values], mutation: str) -> None:
    """The op's formulas written out must pass the budget, and the same with one mistake in them must not.

    Args:
        formula: Called with the rounded tensors in the compute dtype, the settings and ``mutation`` ("" for none).
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    values = {name: t.to(compute) if t.is_floating_point() else t for name, t in problem.rounded(dtype).items()}
    fallback = truth_and_fallback(problem, dtype)[1]

    def results(mutation: str) -> Values:
        computed = formula(**values, **problem.settings, mutation=mutation)
        return {name: t.reshape(fallback[name].shape).to(fallback[name].dtype) for name, t in computed.items()}

    check_results(problem, dtype, results(""))
    with pytest.raises(BudgetExceeded):
        check_results(problem, dtype, results(mutation))


def check_equal(first: Values, second: Values, what: str) -> None:
    """Both must be equal to the last bit."""
    for name, value in first.items():
        assert torch.equal(value, second[name]), f"{name}: {what}, by {(value - second[name]).abs().max()}"


@contextmanager
def threads(count: int) -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


def instruction_sets() -> list[str]:
    """The kernel sets that were compiled in and that this CPU can run."""
    return _runnable("instruction_set", ("baseline", "avx2", "avx512"))


def bf16_products() -> list[str]:
    """The ways to multiply bfloat16 that this machine has."""
    return _runnable("bf16_products", ("amx", "avx512_bf16", "portable"), back="auto")


def _runnable(setting: str, names: Sequence[str], back: str | None = None) -> list[str]:
    if not extension_status()[0]:
        return []
    found, choose = [], getattr(torch.ops.smartcs, f"set_{setting}")
    back = getattr(torch.ops.smartcs, setting)() if back is None else back
    for name in names:
        try:
            choose(name)
            found.append(name)
        except RuntimeError:
            pass
    choose(back)
    return found


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    previous = torch.ops.smartcs.instruction_set()
    torch.ops.smartcs.set_instruction_set(name)
    try:
        yield
    finally:
        torch.ops.smartcs.set_instruction_set(previous)


def check_threads(problem: Problem, dtype: torch.dtype = torch.float32) -> None:
    """Result and gradients must not depend on the number of threads, to the last bit."""
    values, results = problem.rounded(dtype), {}
    for count in THREADS:
        with threads(count):
            results[count] = evaluate(problem, values, "fused")
    for count in THREADS[1:]:
        check_equal(results[1], results[count], f"{count} threads and 1 differ")


def check_instruction_sets(problem: Problem, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    """Every instruction set of this CPU must stay within the budget."""
    for dtype in dtypes:
        values = problem.rounded(dtype)
        for name in instruction_sets():
            with instruction_set(name):
                results = evaluate(problem, values, "fused")
            check_results(problem, dtype, results)


def strided(tensor: Tensor) -> Tensor:
    """The same numbers in memory with gaps, in an order of axes that no kernel wants."""
    axes = tuple(reversed(range(tensor.dim())))
    spread = tensor.permute(axes).repeat_interleave(2, dim=0)
    return spread[::2].permute(axes)


def check_strided(problem: Problem) -> None:
    """Non-contiguous inputs and gradients give the bits that contiguous ones give."""
    values = problem.rounded(torch.float32)
    gaps = {name: strided(t) for name, t in values.items()}
    assert not all(t.is_contiguous() for t in gaps.values())
    check_equal(evaluate(problem, values, "fused"), evaluate(problem, gaps, "fused"), "strided input changes it")


def check_gradients(problem: Problem, name: Backend = "fused", device: str = "cpu") -> None:
    """gradcheck in float64 on one backend: numerical against analytical, and the same bits on every call."""
    names = [name for name in problem.kinds if name != "y"]
    fixed = {name: t.to(device) for name, t in problem.tensors.items() if name not in (*names, "grad_y")}

    def run(*leaves: Tensor) -> Tensor:
        return problem.op(**fixed, **dict(zip(names, leaves, strict=True)), **problem.settings)

    with backend(name):
        inputs = tuple(problem.tensors[name].to(device, copy=True).requires_grad_() for name in names)
        assert torch.autograd.gradcheck(run, inputs, nondet_tol=0.0)


class Calls(TorchDispatchMode):
    """Records the raw smartcs ops called within a ``with`` block, as (name, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "smartcs":
            self.made.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    def arguments(self, name: str) -> tuple[Any, ...]:
        """The arguments of the only call of this op."""
        (found,) = [arguments for op, arguments in self.made if op == name]
        return found


def check_compiled(
    problems: list[Problem], name: Backend = "fused", compiler: str = "aot_eager", compilations: int = 2
) -> None:
    """torch.compile(fullgraph=True) gives eager's bits; new lengths, seeds and streams soon stop recompiling.

    ``problems`` differ in those alone. The second may compile again, with sizes and integers as variables.
    """
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(problems[0].op, fullgraph=True, backend=counter)
    for problem in problems:
        values = problem.rounded(torch.float32)
        eager = evaluate(problem, values, name)
        check_equal(eager, evaluate(replace(problem, op=compiled), values, name), "compiled and eager differ")
    assert counter.frame_count <= compilations, f"{counter.frame_count} compilations in {len(problems)} calls"


def check_raw(name: str, *arguments: Any) -> Any:
    """torch.library.opcheck of a raw op (schema, aliasing, fake kernel, tracing); returns what the op returns."""
    op = getattr(torch.ops.smartcs, name).default
    torch.library.opcheck(op, arguments)
    return op(*arguments)
