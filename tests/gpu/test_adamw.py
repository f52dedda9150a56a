"""adamw on the device: the steps of tests/ops against the formulas in float64, the same bits twice, the raw op."""

import math

import pytest
import torch
from devices import DEVICE, REHEARSAL, fused
from op_harness import Calls, check_raw
from ops.test_adamw import compare, entries, formula, reference, run

from smartcs.ops import AdamWTensors, adamw

STEPS = 6 if REHEARSAL else 50
WRITTEN = ("parameter", "exp_avg", "exp_avg_sq", "step", "anchor")


def there(entry: AdamWTensors) -> AdamWTensors:
    """A copy on the device."""
    tensors = {k: t.to(DEVICE, copy=True) for k, t in entry._asdict().items() if isinstance(t, torch.Tensor)}
    return entry._replace(**tensors)


def step_there(tensors, **settings):
    """adamw on the device, the results copied back."""
    moved = [there(entry) for entry in tensors]
    norm = adamw(moved, **settings)
    for entry, other in zip(tensors, moved, strict=True):
        for name in WRITTEN:
            getattr(entry, name).copy_(getattr(other, name))
    return None if norm is None else norm.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("max_grad_norm", [40.0, None])
def test_steps(max_grad_norm, dtype):
    settings = {"steps": STEPS, "max_grad_norm": max_grad_norm}
    truth = run(formula, torch.float64, STEPS, max_grad_norm or math.inf)
    with fused("adamw"):
        results = run(step_there, dtype, **settings)
    compare(results, truth, run(reference, dtype, **settings))


def test_deterministic():
    with fused("adamw"):
        first, second = (run(step_there, steps=STEPS) for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_schedule_on_the_device():
    """The bits that the host's numbers give: it is what a CUDA graph's replays read anew."""
    scheduled, expected = ([there(e._replace(grad=torch.ones_like(e.parameter))) for e in entries()] for _ in range(2))
    with fused("adamw"):
        for factor, weight in [(1.0, 0.3), (0.37, 0.0), (1e-3, 1.0)]:
            schedule = torch.tensor([factor, weight], dtype=torch.float64, device=DEVICE)
            adamw(scheduled, max_grad_norm=40.0, schedule=schedule)
            now = [e._replace(settings=e.settings._replace(lr=e.settings.lr * factor)) for e in expected]
            adamw(now, max_grad_norm=40.0, anchor_weight=weight)
    for entry, other in zip(scheduled, expected, strict=True):
        assert all(torch.equal(getattr(entry, name), getattr(other, name)) for name in WRITTEN)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_changes_where_the_norm_is_not_finite(bad):
    found = [there(e._replace(grad=torch.ones_like(e.parameter))) for e in entries()]
    found[3].grad[7, 7] = bad
    before = [there(e) for e in found]
    with fused("adamw"):
        norm = adamw(found, max_grad_norm=1.0, anchor_weight=0.5)
    assert not norm.isfinite()
    for entry, old in zip(found, before, strict=True):
        assert all(torch.equal(getattr(entry, name), getattr(old, name)) for name in WRITTEN)


def test_packed_copies():
    """The bits that packing the new values gives, written where a product reads them."""
    found = [there(e._replace(grad=torch.ones_like(e.parameter))) for e in entries() if e.parameter.dim() == 2]
    pack = torch.ops.smartcs.pack_weight
    with fused("adamw", *(() if REHEARSAL else ("linear",))):
        found = [e._replace(packed=torch.zeros_like(pack(e.parameter, False))) for e in found if e.parameter.numel()]
        adamw(found, max_grad_norm=40.0, anchor_weight=0.5)
        assert found and all(torch.equal(e.packed, pack(e.parameter, False)) for e in found)


@pytest.mark.parametrize("norm", [None, 1.0])
def test_runs_its_raw_op(norm):
    found = [there(e._replace(grad=torch.ones_like(e.parameter))) for e in entries()]
    with fused("adamw"), Calls() as calls:
        adamw(found, max_grad_norm=norm, anchor_weight=0.5)
    assert {t.device.type for t in calls.arguments("adamw_step")[0]} == {DEVICE}
    check_raw("adamw_step", *calls.arguments("adamw_step"))
