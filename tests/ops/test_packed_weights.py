"""Packed weights: the layout, and that a product never sees values that the weight no longer has."""

import copy
import gc
import weakref

import pytest
import torch
from op_harness import normal
from torch import nn

import smartcs
from smartcs.ops import input_gradients_only, linear, packed_weights
from smartcs.ops.precision import precision

pytestmark = pytest.mark.usefixtures("fused", "fused_products")
PANEL, DEPTH_STEP = 64, 32


def parameter(outputs=5, inputs=40, seed=0) -> nn.Parameter:
    return nn.Parameter(normal(outputs, inputs, seed=seed).float())


def layout(matrix):
    """[panels][depth / 2][64][2] of a matrix (columns, depth), zero outside of it, element by element."""
    columns, depth = matrix.shape
    packed = torch.zeros(-(-columns // PANEL), -(-depth // DEPTH_STEP) * DEPTH_STEP // 2, PANEL, 2)
    for n in range(columns):
        for k in range(depth):
            packed[n // PANEL, k // 2, n % PANEL, k % 2] = matrix[n, k]
    return packed.flatten().bfloat16()


def product(weight):
    """What a layer would compute with the weight now: its columns."""
    with precision("bf16"), torch.no_grad():
        return linear(torch.eye(weight.shape[1]), weight).T


def check_fresh(weight):
    assert torch.equal(product(weight), weight.detach().bfloat16().float())
    forward, transposed = packed_weights.of(weight)
    assert torch.equal(forward, layout(weight.detach())) and torch.equal(transposed, layout(weight.detach().T))


def same_forms(weight, first) -> bool:
    return all(a is b for a, b in zip(first, packed_weights.of(weight), strict=True))


@pytest.mark.parametrize("shape", [(5, 40), (64, 32), (65, 33), (130, 3), (1, 1)], ids=str)
def test_layout(shape):
    check_fresh(parameter(*shape))


def test_packed_once_as_long_as_the_weight_stays():
    weight = parameter()
    first = packed_weights.of(weight)
    product(weight)
    with input_gradients_only():
        product(weight)
    with torch.inference_mode():
        product(weight)
    assert same_forms(weight, first)


class ThroughData(torch.optim.SGD):
    """Writes as many optimizers outside of torch do."""

    def step(self, closure=None):
        for weight in self.param_groups[0]["params"]:
            if weight.grad is not None:
                weight.data.add_(weight.grad)


CHANGES = {
    "in place": lambda w: w.detach().mul_(2),
    "a row": lambda w: w.detach()[0].zero_(),
    "data": lambda w: setattr(w, "data", normal(5, 40, seed=9).float()),
    "copy": lambda w: nn.Module.load_state_dict(holder(w), {"weight": normal(5, 40, seed=9).float()}),
    "SGD": lambda w: torch.optim.SGD([w], lr=1.0).step(),
    "AdamW, fused": lambda w: torch.optim.AdamW([w], lr=1.0, fused=True).step(),
    "an optimizer through data": lambda w: ThroughData([w]).step(),
    "transposed in its place": lambda w: setattr(w, "data", w.data.view(40, 5).T),
    "foreach": lambda w: torch._foreach_lerp_([w.detach()], [torch.ones(5, 40)], 0.5),
}


def holder(weight):
    module = nn.Module()
    module.weight = weight
    return module


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change):
    weight = parameter()
    weight.grad = torch.ones_like(weight)
    check_fresh(weight)
    before = weight.detach().clone()
    CHANGES[change](weight)
    assert not torch.equal(weight, before)
    check_fresh(weight)


def test_the_transposed_form_is_made_for_the_first_backward_pass():
    weight, x = parameter(), torch.ones(2, 40, requires_grad=True)
    assert packed_weights.buffers(weight) is None
    with precision("bf16"):
        y = linear(x, weight)
    forward, transposed = packed_weights.buffers(weight)
    assert forward is packed_weights.entry(weight).get(weight, transposed=False) and transposed is None
    y.sum().backward()
    assert packed_weights.buffers(weight)[1] is packed_weights.of(weight)[1]


def test_an_optimizer_can_write_them():
    weight = parameter()
    packed_weights.of(weight)
    with torch.no_grad():
        weight.mul_(2)
    old = packed_weights.buffers(weight)
    for form in old:
        form.mul_(2)
    packed_weights.written(weight)
    assert same_forms(weight, old)
    check_fresh(weight)
    with torch.no_grad():
        weight.add_(1)
    check_fresh(weight)


def test_packed_in_inference_mode_and_written_outside():
    weight = parameter()
    with torch.inference_mode():
        packed_weights.of(weight)
    packed_weights.buffers(weight)[0].zero_()


def test_written_without_buffers_is_nothing():
    weight = parameter()
    packed_weights.written(weight)
    assert packed_weights.buffers(weight) is None


def test_weights_share_nothing():
    first, second = parameter(seed=1), parameter(seed=2)
    check_fresh(first)
    check_fresh(copy.deepcopy(first))
    check_fresh(second)
    check_fresh(first)


def test_they_go_with_the_weight():
    weight = parameter()
    kept = weakref.ref(packed_weights.entry(weight))
    product(weight)
    assert kept() is not None
    del weight
    gc.collect()
    assert kept() is None


def test_what_is_no_parameter_is_not_kept():
    weight = normal(5, 40).float()
    check_fresh(weight)
    assert packed_weights.buffers(weight) is None
    with torch.inference_mode():
        inside = nn.Parameter(normal(5, 40).float())
        assert torch.equal(product(inside), inside.bfloat16().float())
        assert packed_weights.buffers(inside) is None


def test_an_address_used_again_is_seen():
    """The version does not count reassignments, and the second one may be given the memory that the first set free."""
    memory = torch.zeros(5, 40).numpy()
    weight = nn.Parameter(torch.from_numpy(memory))
    packed_weights.of(weight)
    weight.data = torch.ones(5, 40)
    memory += 2
    weight.data = torch.from_numpy(memory)
    check_fresh(weight)
    for repeat in range(20):
        weight = nn.Parameter(torch.zeros(64, 64))
        packed_weights.of(weight)
        for value in (1, 2):
            weight.data = torch.full((64, 64), float(value + repeat))
        check_fresh(weight)


@pytest.mark.parametrize("fused", [True, False])
def test_a_weight_without_gradient_is_left_alone(fused):
    """It is not packed again, and a graph that holds it can go backward after the step."""
    frozen, trained = parameter(seed=1), parameter(seed=2)
    trained.grad = torch.ones_like(trained)
    first = packed_weights.of(frozen)
    y = (frozen * torch.ones(5, 40, requires_grad=True)).sum()
    torch.optim.SGD([frozen, trained], lr=1.0, fused=fused).step()
    y.backward()
    assert same_forms(frozen, first)


class Writing(torch.optim.SGD):
    """Says, like smartcs' own, that it wrote the forms."""

    written_packed = frozenset()

    def step(self, closure=None):
        super().step(closure)
        self.written_packed = set(self.param_groups[0]["params"])
        for weight in self.written_packed:
            packed_weights.written(weight)


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_that_writes_them_keeps_them(fused):
    weight = parameter()
    weight.grad = torch.ones_like(weight)
    first = packed_weights.of(weight)
    Writing([weight], lr=0.0, fused=fused).step()
    assert same_forms(weight, first)
    torch.optim.SGD([weight], lr=0.0, fused=True).step()
    assert not same_forms(weight, first)


@pytest.mark.parametrize("made_under", ["fused", "reference"])
def test_what_smartcs_optimizer_wrote_once_is_not_passed_over_later(made_under):
    """Neither the model's weight, nor the anchor's, which is in no group of that optimizer."""
    model = nn.Linear(40, 5)
    anchor = smartcs.BregmanAnchor(model, 0.5)
    with smartcs.backend(made_under):
        optimizer = smartcs.AdamW(model.parameters(), lr=0.1)
    weights = model.weight, anchor.anchor.weight
    for weight in weights:
        product(weight)
    model(torch.ones(2, 40)).sum().backward()
    form = packed_weights.buffers(model.weight)[0]
    optimizer.step(anchor=anchor)
    for weight in weights:
        product(weight)
        assert weight is not model.weight or packed_weights.buffers(weight)[0] is form  # written, not made anew
        check_fresh(weight)
        weight.grad = torch.ones_like(weight)
        torch.optim.AdamW([weight], lr=1.0, fused=True).step()
        check_fresh(weight)
