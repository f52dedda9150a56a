"""input_gradients_only: within it, no parameter gradient is computed and nothing kept for one."""

import threading

import pytest
import torch
from op_harness import Calls, integers, normal
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from smartcs.ops import add_layer_norm, bias_gelu, embedding, input_gradients_only, linear

Tensors = dict[str, Tensor]


def leaves(**shapes: tuple[int, ...]) -> Tensors:
    return {name: normal(*shape, seed=i).float().requires_grad_() for i, (name, shape) in enumerate(shapes.items())}


IDS = integers(4, 9, seed=1)
TABLES = {"word": (4, 6), "token_type": (4, 6), "position": (4, 6), "weight": (6,), "bias": (6,)}
# Each op with its parameters and its other input x of shape (9, 6), and the flags of its backward pass that ask for
# parameter gradients.
OPS = {
    "add_layer_norm": (
        lambda x, **p: add_layer_norm(x, x.detach().cos(), **p),
        {"weight": (6,), "bias": (6,), "input_bias": (6,)},
        slice(-1, None),
    ),
    "bias_gelu": (bias_gelu, {"bias": (6,)}, slice(-1, None)),
    "embedding": (lambda x, **p: embedding(IDS, IDS, IDS, **p, perturbation=x), TABLES, slice(-5, -1)),
    "linear": (linear, {"weight": (5, 6), "bias": (5,)}, slice(-2, None)),
}


def backward_flags(calls: Calls, name: str) -> tuple[bool, ...]:
    return calls.arguments(f"{name}_bwd")[OPS[name][2]]


@pytest.mark.parametrize("name", OPS)
def test_without_it_every_parameter_gradient_is_computed(fused, name):
    """Why the context exists: asking autograd for the gradient of x alone does not reach a custom function."""
    op, shapes, _ = OPS[name]
    x = leaves(x=(9, 6))["x"]
    loss = op(x, **leaves(**shapes)).sum()
    with Calls() as calls:
        torch.autograd.grad(loss, [x])
    assert all(backward_flags(calls, name))


@pytest.mark.parametrize("name", OPS)
def test_no_parameter_gradient_is_computed(fused, name):
    op, shapes, _ = OPS[name]
    x = leaves(x=(9, 6))["x"]
    with input_gradients_only():
        loss = op(x, **leaves(**shapes)).sum()
    with Calls() as calls:
        torch.autograd.grad(loss, [x])
    assert not any(backward_flags(calls, name))


@pytest.mark.parametrize("name", OPS)
def test_same_gradient_of_the_input(either, name):
    """To the bit; the parameters get none, though the backward pass asks for all there are."""
    op, shapes, _ = OPS[name]
    parameters, x = leaves(**shapes), leaves(x=(9, 6))["x"]
    y = op(x, **parameters)
    grad_y = normal(*y.shape, seed=20).float()
    (expected,) = torch.autograd.grad(y, [x], grad_y)
    with input_gradients_only():
        y = op(x, **parameters)
    y.backward(grad_y)
    assert torch.equal(x.grad, expected)
    assert all(parameter.grad is None for parameter in parameters.values())
    assert all(parameter.requires_grad for parameter in parameters.values())


def saved(run) -> list[tuple[int, ...]]:
    """The shapes of the tensors autograd keeps for a backward pass."""
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return kept


def test_linear_keeps_no_activation(either):
    """x is kept for the weight's gradient alone: a layer's four products hold nothing of the batch."""
    p = leaves(x=(9, 6), weight=(5, 6), bias=(5,))
    assert (9, 6) in saved(lambda: linear(**p))
    with input_gradients_only():
        kept = saved(lambda: linear(**p))
    assert (9, 6) not in kept and kept


def test_frozen_parameters_cost_nothing_without_it(fused):
    """Parameters that require no gradient are constants anyway, and a frozen input keeps no weight."""
    p = leaves(x=(9, 6), weight=(5, 6))
    p["weight"].requires_grad_(False)
    assert saved(lambda: linear(**p)) == [(5, 6)]
    frozen_input = {"x": p["x"].detach(), "weight": p["weight"].clone().requires_grad_()}
    assert saved(lambda: linear(**frozen_input)) == [(9, 6)]


def parameter_gradients(run=linear) -> bool:
    """Whether an op called now would give its parameters gradients."""
    p = leaves(x=(9, 6), weight=(5, 6))
    run(**p).sum().backward()
    return p["weight"].grad is not None


def test_nests(either):
    with input_gradients_only():
        with input_gradients_only():
            assert not parameter_gradients()
        assert not parameter_gradients()
    assert parameter_gradients()


def test_ends_with_an_exception(either):
    with pytest.raises(KeyError), input_gradients_only():
        raise KeyError
    assert parameter_gradients()


def test_the_forward_pass_counts(either):
    """A loss computed before keeps its parameter gradients inside; one computed inside has none afterwards."""
    p = leaves(x=(9, 6), weight=(5, 6))
    loss = linear(**p).sum()
    with input_gradients_only():
        loss.backward()
    assert p["weight"].grad is not None


def test_other_threads_are_not_concerned(either):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(parameter_gradients()))
    with input_gradients_only():
        thread.start()
        thread.join()
        assert not parameter_gradients()
    assert seen == [True]


def test_compiled(either):
    """A compiled function is compiled again inside the context, not reused; the context may be within it, too."""
    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert parameter_gradients(compiled)
        with input_gradients_only():
            assert not parameter_gradients(compiled)

    def inside(x: Tensor, weight: Tensor) -> Tensor:
        with input_gradients_only():
            return linear(x, weight)

    assert not parameter_gradients(torch.compile(inside, fullgraph=True, backend="aot_eager"))
    assert parameter_gradients(compiled)
