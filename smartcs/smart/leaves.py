"""Freezing whatever a result was computed from, for a pass that wants no parameter gradients.

``torch.autograd.grad(loss, v)`` asks for v's gradient alone, but a custom autograd function decides by
``ctx.needs_input_grad``, which was fixed in its forward pass, and computes its weights' gradients too
(github.com/pytorch/pytorch/issues/174017); torch's own functions do not, but save what they would need for it. With
``requires_grad`` off during the forward pass, neither happens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def frozen_leaves(*results: Tensor) -> Iterator[list[Tensor]]:
    """Within the block, the leaves of the results' autograd graphs, which are the parameters, require no grad.

    Graphs recorded before stay valid, as long as they are not run backward inside the block.
    """
    leaves = graph_leaves(*results)
    for leaf in leaves:
        leaf.requires_grad_(False)
    try:
        yield leaves
    finally:
        for leaf in leaves:
            leaf.requires_grad_(True)


def graph_leaves(*results: Tensor) -> list[Tensor]:
    """The tensors whose ``grad`` a backward pass from the results would fill."""
    nodes = [result.grad_fn for result in results]
    seen: set[object] = set()
    leaves: list[Tensor] = []
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.append(node.variable)  # type: ignore[attr-defined]
        nodes.extend(following for following, _ in node.next_functions)
    return leaves
