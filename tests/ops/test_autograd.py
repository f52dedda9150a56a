"""What autograd may do with the ops beyond one backward pass: again, twice, and not at all."""

import pytest
import torch

from smartcs.ops import add_layer_norm, attention, bias_gelu, embedding, linear, symmetric_kl

ROW = torch.linspace(-1, 1, 6)
IDS = torch.arange(3)
ONE = torch.ones(6)

# Each op as a function of one tensor of shape (3, 6).
OPS = {
    "add_layer_norm": lambda x: add_layer_norm(x, x.detach().cos(), ONE, ROW),
    "attention": lambda x: attention(x.reshape(1, 3, 2, 3), torch.tensor([0, 1], dtype=torch.int32), 1),
    "bias_gelu": lambda x: bias_gelu(x, ROW),
    "embedding": lambda x: embedding(IDS, IDS, IDS, x, x.detach(), x.detach(), ONE, ROW),
    "linear": lambda x: linear(x, x.detach().sin()),
    "symmetric_kl": lambda x: symmetric_kl(x, x.detach().sin()),
}


def leaf() -> torch.Tensor:
    return torch.arange(18.0).sin().reshape(3, 6).requires_grad_()


@pytest.mark.parametrize("name", OPS)
def test_a_second_derivative_is_refused_not_dropped(fused, name):
    x = leaf()
    loss = OPS[name](x).square().sum() if name != "symmetric_kl" else OPS[name](x)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, x, create_graph=True)


@pytest.mark.parametrize("name", OPS)
def test_the_reference_has_second_derivatives(reference, name):
    x = leaf()
    (gradient,) = torch.autograd.grad(OPS[name](x).square().sum(), x, create_graph=True)
    assert gradient.requires_grad
    gradient.square().sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("shape", [(3, 6), (1, 3, 6)])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_gradients_of_x_and_residual_are_two_tensors(fused, shape, dropout_p):
    x, residual = (leaf().detach().reshape(shape).requires_grad_() for _ in range(2))
    y = add_layer_norm(x, residual, ONE, ROW, dropout_p=dropout_p, seed=1, stream=1)
    grad_y = torch.linspace(-1, 2, y.numel()).reshape(shape)
    y.backward(grad_y, retain_graph=True)
    once = x.grad.clone(), residual.grad.clone()
    y.backward(grad_y)
    torch.testing.assert_close((x.grad, residual.grad), (2 * once[0], 2 * once[1]))


def test_freed_memory_is_not_read(fused):
    x = torch.randn(400, 60)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="storage was freed"):
        torch.ops.smartcs.bias_gelu_fwd(x, None)
