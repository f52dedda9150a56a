"""Every op, pass and dtype on the device against the float64 reference on the CPU, within the error budget."""

from dataclasses import replace

import pytest
import torch
from devices import DEVICE, REHEARSAL, dtypes_of, fused, missing
from op_cases import OPS, Case, bf16_linear_cases, cases_of, small_cases
from op_harness import Calls, check_budget, check_equal, check_gradients, check_raw, evaluate

from smartcs.ops.backend import CPU_OPS

CASES = [case for op in OPS for case in cases_of(op)]
FORWARD = [(case, dtype) for case in CASES for dtype in dtypes_of(case.op)]
BACKWARD = [(case, dtype) for case, dtype in FORWARD if case.op != "perturb"]
LOW_CASES = bf16_linear_cases()
RAW_OPS = {"perturb": 1, "linear": 3}  # the others: forward and backward
WITH_KERNEL = [case for case in small_cases() if case.op != "linear"] + LOW_CASES[:1]
# An interpreter takes long for the others; tests/kernels has them.
NO_GRADCHECK = ("perturb", "attention", "embedding") if REHEARSAL else ("perturb",)
WITH_GRADIENT = [case for case in small_cases() if case.op not in NO_GRADCHECK]


@pytest.mark.parametrize("op", CPU_OPS)
def test_has_a_kernel(op):
    """A proof that is skipped for want of a kernel is none: here it fails."""
    assert missing(op) is None, missing(op)


@pytest.mark.parametrize(("case", "dtype"), FORWARD, ids=str)
def test_forward(case: Case, dtype):
    problem = case.make()
    with fused(case.op):
        check_budget(replace(problem, kinds={"y": problem.kinds["y"]}), dtype, device=DEVICE)


@pytest.mark.parametrize(("case", "dtype"), BACKWARD, ids=str)
def test_backward(case: Case, dtype):
    with fused(case.op):
        check_budget(case.make(), dtype, device=DEVICE)


@pytest.mark.parametrize("case", LOW_CASES, ids=str)
def test_products_in_bf16(case: Case):
    with fused(case.op):
        check_budget(case.make(), torch.float32, device=DEVICE)


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=str)
def test_gradcheck(case: Case):
    """In float64, numerical against analytical; and the budget of float64."""
    with fused(case.op):
        check_gradients(case.make(), device=DEVICE)
        check_budget(case.make(), torch.float64, device=DEVICE)


@pytest.mark.parametrize("case", small_cases() if REHEARSAL else CASES + LOW_CASES, ids=str)
def test_deterministic(case: Case):
    problem = case.make()
    values = problem.rounded(torch.float32)
    with fused(case.op):
        first, second = (evaluate(problem, values, "fused", DEVICE) for _ in range(2))
    check_equal(first, second, "a second run differs")


@pytest.mark.parametrize("case", WITH_KERNEL, ids=str)
def test_runs_its_raw_ops(case: Case):
    """And not the reference; every raw op that was called passes opcheck with the arguments it was called with."""
    problem = case.make()
    with fused(case.op), Calls() as calls:
        evaluate(problem, problem.rounded(torch.float32), "fused", DEVICE)
    made = {name: [a for a in found if isinstance(a, torch.Tensor)] for name, found in calls.made}
    made = {name: tensors for name, tensors in made.items() if tensors}
    assert len(made) == RAW_OPS.get(case.op, 2), list(made)
    for name, arguments in calls.made:
        if name in made:
            assert {tensor.device.type for tensor in made[name]} == {DEVICE}
        # A weight packed for a GPU has another shape, and the fake kernel goes by the device.
        if name in made and not (REHEARSAL and name == "pack_weight"):
            with fused(case.op):
                check_raw(name, *(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments))
