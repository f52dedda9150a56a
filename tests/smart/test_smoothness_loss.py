"""smoothness_loss: the three distances, their reductions and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from op_harness import normal

from smartcs import ops
from smartcs.smart import smoothness_loss

KINDS = ("categorical", "bernoulli", "squared")
A, B = normal(4, 3, seed=1), normal(4, 3, seed=2)


def plain(kind: str) -> torch.Tensor:
    """Of each example."""
    if kind == "squared":
        return (A - B) ** 2
    if kind == "bernoulli":
        return (A.sigmoid() - B.sigmoid()) * (A - B)
    p, q = A.softmax(-1), B.softmax(-1)
    return ((p - q) * (p.log() - q.log())).sum(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_reductions(kind: str) -> None:
    expected = plain(kind)
    torch.testing.assert_close(smoothness_loss(A, B, kind, reduction="none"), expected)
    torch.testing.assert_close(smoothness_loss(A, B, kind, reduction="sum"), expected.sum())
    torch.testing.assert_close(smoothness_loss(A, B, kind), expected.mean())


def test_mean_squared_error() -> None:
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    ours, torchs = smoothness_loss(a, b, "squared", detach_targets=True), F.mse_loss(a, b)
    torch.testing.assert_close(ours, torchs)
    for one, other in zip(*(torch.autograd.grad(t, (a, b)) for t in (ours, torchs)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
@pytest.mark.parametrize("detach_targets", [False, True])
def test_divergences_are_the_op(kind: str, detach_targets: bool) -> None:
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    ours = smoothness_loss(a, b, kind, detach_targets=detach_targets)
    theirs = ops.symmetric_kl(a, b, distribution=kind, detach_targets=detach_targets)
    assert ours == theirs
    for one, other in zip(*(torch.autograd.grad(t, (a, b)) for t in (ours, theirs)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, result", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_dtypes_and_empty(kind: str, dtype: torch.dtype, result: torch.dtype) -> None:
    assert smoothness_loss(A.to(dtype), B.to(dtype), kind).dtype == result
    empty = torch.zeros(0, 3, dtype=dtype)
    assert smoothness_loss(empty, empty, kind) == 0


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((A, B, "kl"), {}, ValueError, "kind is 'kl', expected one of categorical, bernoulli, squared"),
        ((A, B, "squared"), {"reduction": "max"}, ValueError, "reduction is 'max', expected one of mean, sum, none"),
        ((A, B[:2], "squared"), {}, ValueError, r"b has shape \(2, 3\), expected \(4, 3\) to match a"),
        ((A, B.float(), "squared"), {}, TypeError, "b has dtype torch.float32, expected torch.float64"),
        ((A.long(), B, "squared"), {}, TypeError, "a has dtype torch.int64, expected a floating-point dtype"),
    ],
)
def test_messages(arguments, options, error, message) -> None:
    with pytest.raises(error, match=f"smoothness_loss: {message}"):
        smoothness_loss(*arguments, **options)
