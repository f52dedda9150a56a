"""The inner loop asks for the perturbation's gradient and nothing else: no parameter gradient, no more memory."""

import pytest
import torch
from op_harness import Calls, normal
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smartcs import BertConfig, BertModel, DropoutKey, PackedBatch, backend
from smartcs._extension import extension_status
from smartcs.smart import SmartRegularizer, adversarial
from smartcs.smart.leaves import frozen_leaves, graph_leaves

CHANNELS = 8


class _CountedLinear(torch.autograd.Function):
    """x W^T, counting the gradients it computes. Like many a fused kernel, it goes by needs_input_grad."""

    computed: dict[str, int]

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grads = {"input": lambda: grad @ weight, "parameter": lambda: grad.T @ x}
        for name, need in zip(grads, ctx.needs_input_grad, strict=True):
            _CountedLinear.computed[name] += need
        return tuple(make() if need else None for make, need in zip(grads.values(), ctx.needs_input_grad, strict=True))


@pytest.fixture
def weights() -> list[nn.Parameter]:
    _CountedLinear.computed = {"input": 0, "parameter": 0}
    return [nn.Parameter(normal(CHANNELS, CHANNELS, seed=seed).float()) for seed in range(2)]


def network(x: Tensor, weights: list[nn.Parameter]) -> Tensor:
    for weight in weights:
        x = torch.tanh(_CountedLinear.apply(x, weight))
    return x


def test_a_custom_function_computes_what_is_not_wanted(weights) -> None:
    """Why the parameters have to be frozen: autograd.grad(loss, v) alone does not spare their gradients."""
    v = torch.zeros(3, CHANNELS, requires_grad=True)
    torch.autograd.grad(network(v, weights).sum(), v)
    assert _CountedLinear.computed == {"input": 2, "parameter": 2}


@pytest.mark.parametrize("steps", [1, 3])
def test_no_parameter_gradient_in_the_inner_loop(weights, steps: int) -> None:
    x = normal(3, CHANNELS, seed=5).float()
    clean = network(x, weights)
    reg = SmartRegularizer(steps=steps)
    value = reg(lambda e: network(e, weights), x, clean)
    assert _CountedLinear.computed == {"input": 2 * steps, "parameter": 0}
    assert all(weight.requires_grad and weight.grad is None for weight in weights)
    # Both passes' gradients reach the parameters afterwards: clean and perturbed.
    value.backward()
    assert _CountedLinear.computed["parameter"] == 4
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)


def test_parameters_thaw_when_the_network_fails(weights) -> None:
    def forward(e: Tensor) -> Tensor:
        raise KeyError("no such layer")

    x = normal(3, CHANNELS, seed=5).float()
    with pytest.raises(KeyError):
        SmartRegularizer()(forward, x, network(x, weights))
    assert all(weight.requires_grad for weight in weights)


def test_leaves_are_the_parameters_in_use() -> None:
    used, unused, frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    tied = nn.Linear(3, 3)
    tied.weight = used.weight
    x = torch.ones(2, 3, requires_grad=True)
    y = tied(frozen(used(x)))
    expected = {id(t) for t in (used.weight, used.bias, tied.bias, x)}
    assert {id(t) for t in graph_leaves(y)} == expected and len(graph_leaves(y)) == len(expected)
    assert graph_leaves(y.detach()) == []
    with frozen_leaves(y):
        assert not any(t.requires_grad for t in (used.weight, used.bias, tied.bias, x))
        assert unused.weight.requires_grad
    y.sum().backward()  # the graph from before is still good
    assert used.weight.grad is not None and not frozen.weight.requires_grad


def _bert() -> tuple[BertModel, PackedBatch]:
    torch.manual_seed(0)
    return BertModel(BertConfig(50, 16, 2, 2, 24, 20)), PackedBatch.from_lists([[2, 5, 7, 3], [2, 9, 3]])


@pytest.mark.parametrize("known", [True, False])
def test_smartcs_ops(known: bool) -> None:
    """Also where the parameters are not known, because clean_output comes without its graph."""
    if not extension_status()[0]:
        pytest.skip("counts calls of compiled kernels")
    bert, batch = _bert()

    def forward(v: Tensor | None) -> Tensor:
        return bert(batch, DropoutKey(0, 1), perturbation=v).pooler_output

    with backend("fused"):
        clean = forward(None)
        reg, like = SmartRegularizer(), torch.zeros(7, 16)
        with Calls() as calls:
            value = reg.from_offsets(forward, like, clean if known else clean.detach())
        inner = [(name, arguments) for name, arguments in calls.made if name.endswith("_bwd")]
        with Calls() as calls:
            value.backward()
        outer = [(name, arguments) for name, arguments in calls.made if name.endswith("_bwd")]

    def needed(made, position: slice) -> set[bool]:
        return {need for name, arguments in made if name == "linear_bwd" for need in arguments[position]}

    x_only, parameters = slice(3, 4), slice(4, 6)
    assert needed(inner, x_only) == {True}
    assert needed(inner, parameters) == {False}
    assert True in needed(outer, parameters)
    assert all(p.requires_grad for p in bert.parameters())
    assert bert.layers[0].qkv.weight.grad is not None


def _saved_bytes(run) -> int:
    """What autograd keeps for the backward pass of run(), each storage once, parameters not counted."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(kept.values())


def test_inner_pass_saves_less() -> None:
    """Without parameter gradients, the inputs of matrix products are not kept."""
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    x = torch.randn(200, 64)
    clean, saved = model(x), []

    def forward(e: Tensor) -> Tensor:
        kept = []
        saved.append(_saved_bytes(lambda: kept.append(model(e))))
        return kept[0]

    SmartRegularizer()(forward, x, clean)
    inner, final = saved
    assert inner < 0.5 * final


def test_no_more_than_two_sets_of_activations() -> None:
    """The graph of an inner pass is gone before the next pass begins; only the last perturbed one stays."""
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 3))
    x = torch.randn(50, 64)
    alive: set[int] = set()

    class Mark(torch.autograd.Function):
        """Notes graphs that are recorded, and those of them that still exist."""

        @staticmethod
        def forward(ctx, y, number):
            ctx.note = _Note(alive, number)
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad, None

    counts: list[int] = []

    def forward(e: Tensor) -> Tensor:
        counts.append(len(alive))
        return Mark.apply(model(e), len(counts))

    clean = forward(x)
    value = SmartRegularizer(steps=3)(forward, x, clean)
    assert counts == [0, 1, 1, 1, 1]  # when a pass begins, only the clean one exists
    assert alive == {1, 5}
    del value, clean
    assert not alive


class _Note:
    """Present in a set as long as it lives."""

    def __init__(self, alive: set[int], number: int) -> None:
        self.alive, self.number = alive, number
        alive.add(number)

    def __del__(self) -> None:
        self.alive.discard(self.number)


class _Waits(TorchFunctionMode):
    """Records what an accelerator's host would have to wait for: values, and shapes that depend on values."""

    NAMES = {"item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "equal", "allclose", "unique"}
    NAMES |= {"__bool__", "__int__", "__float__", "__index__", "__contains__"}

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        by_mask = func.__name__ == "__getitem__" and isinstance(args[1], Tensor) and args[1].dtype == torch.bool
        if func.__name__ in self.NAMES or by_mask:
            self.made.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("update", ["mtdnn", "projected", "paper"])
def test_nothing_waits_for_the_device(update: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps an accelerator takes, on its implementation, the reference."""
    monkeypatch.setattr(adversarial, "known_to_fail", lambda finite: False)
    model = nn.Sequential(nn.Linear(CHANNELS, 16), nn.Tanh(), nn.Linear(16, 3))
    x = torch.randn(4, 6, CHANNELS) if padded else torch.randn(24, CHANNELS)
    mask = torch.ones(4, 6).tril() if padded else None
    reg = SmartRegularizer(update=update)
    with backend("reference"):
        clean = model(x)
        with _Waits() as waits:
            reg(model, x, clean, attention_mask=mask)
    assert waits.made == []
    with _Waits() as waits:
        reg.statistics()
        assert reg.last is not None and reg.last.finite and x[x > 0].numel()
    assert waits.made == ["tolist", "__bool__", "__getitem__"]  # asking does wait, and the recorder sees it
