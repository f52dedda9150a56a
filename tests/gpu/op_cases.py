"""What runs on the device: the cases of tests/ops, and those of tests/kernels, which lie around the blocks' edges."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any, NamedTuple

from devices import REHEARSAL
from op_harness import Problem

OPS = ("add_layer_norm", "attention", "bias_gelu", "embedding", "linear", "perturb", "symmetric_kl")
_INTERPRETED = 3  # cases per op in a rehearsal
_NUMBERS = 300  # of a rehearsal's case, at most


class Case(NamedTuple):
    """One problem of one op; made when it is needed."""

    op: str
    make: Callable[[], Problem]
    name: str

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def cases_of(op: str) -> list[Case]:
    found = [Case(op, make, name) for name, make in {**_compiled(op), **_at_edges(op)}.items()]
    return _few(found) if REHEARSAL else found


def bf16_linear_cases() -> list[Case]:
    """Products in bf16 mode, with GELU and without: float32 arguments, whose rounding is the op's."""
    from ops import test_linear_precision as compiled

    shapes = [*compiled.CASES, *compiled.EMPTY]
    if find_spec("triton") is not None:
        shapes += import_module("test_linear").CASES
    found = [
        Case("linear", partial(compiled.problem, *shape, activation=activation), f"bf16-{activation}-{shape}")
        for shape, activation in product(shapes, (None, "gelu"))
    ]
    return _few(found) if REHEARSAL else found


def small_cases() -> list[Case]:
    """One case per op, with every optional argument it has, for what is not about sizes."""
    from ops.test_perturb import LARGE

    chosen = {
        "add_layer_norm": ((2, 3), True, {"dropout_p": 0.1, "seed": 2**40 + 1, "stream": 2**33 + 2}),
        "attention": ([2, 0, 1], 1, 2, {"dropout_p": 0.3, "seed": 2**35, "stream": 7}),
        "bias_gelu": ((2, 4),),
        "embedding": (2, 3, 2, {"dropout_p": 0.1, "seed": 3}, True),
        "linear": ((3, 4), 2),
        "perturb": (5, 6, [3, 0, 2], LARGE),
        "symmetric_kl": ((4, 3),),
    }
    return [Case(op, partial(_small, op, *case), "small") for op, case in chosen.items()]


def _small(op: str, *case: Any) -> Problem:
    problem = import_module(f"ops.test_{op}").problem(*case)
    if op == "embedding":  # whose position table would be most of a gradcheck
        tensors = problem.tensors
        tensors["position"], tensors["position_ids"] = tensors["position"][:2], tensors["position_ids"] % 2
    return problem


def _compiled(op: str) -> dict[str, Callable[[], Problem]]:
    """The cases of tests/ops."""
    module = import_module(f"ops.test_{op}")
    if op != "perturb":
        return {str(case): partial(module.problem, *case) for case in module.CASES}
    combined = product(module.RULES, module.CASES, module.OUTPUTS)
    return {
        f"{rule}-{case}-{output}": partial(module.problem, *case, output=output, **rule)
        for rule, case, output in combined
    }


def _at_edges(op: str) -> dict[str, Callable[[], Problem]]:
    """The cases of tests/kernels, where the op's kernel is Triton's."""
    if op not in ("add_layer_norm", "attention", "bias_gelu", "embedding") or find_spec("triton") is None:
        return {}
    module = import_module(f"test_{op}")  # of tests/kernels, see pytest's pythonpath
    cases = [*module.EDGES, *(case for case, _ in module.REAL_BLOCKS)] if op == "attention" else module.CASES
    return {str(case): partial(module.problem, *case) for case in cases}


def _few(found: list[Case]) -> list[Case]:
    """The largest of those that an interpreter runs at once, and an empty one."""
    sizes = {case: max(t.numel() for t in case.make().tensors.values() if t.is_floating_point()) for case in found}
    fitting = sorted((case for case in found if 0 < sizes[case] <= _NUMBERS), key=lambda case: -sizes[case])
    return fitting[:_INTERPRETED] + [case for case in found if sizes[case] == 0][:1]
