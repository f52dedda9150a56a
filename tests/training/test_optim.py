"""smartcs.AdamW is torch's AdamW with other defaults."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import smartcs
from smartcs import ops
from smartcs.ops import backend as selection
from smartcs.ops.adamw import fusable


class Called(TorchDispatchMode):
    """The names of the ops called within."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().split(".")[0])
        return func(*args, **(kwargs or {}))


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 33), (5,), (3,))]


def steps(optimizer, params, count=4, begin=0):
    for step in range(begin, begin + count):
        generator = torch.Generator().manual_seed(step)
        for index, parameter in enumerate(params):
            # The last parameter has a gradient only sometimes, like the head of another task.
            has = index < 2 or step % 2
            parameter.grad = torch.randn(parameter.shape, generator=generator) if has else None
        optimizer.step()


def assert_close(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torch(backend, weight_decay):
    ours, theirs = parameters(), parameters()
    with smartcs.backend(backend):
        optimizer = smartcs.AdamW(ours, lr=1e-2, weight_decay=weight_decay)
    expected = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, weight_decay=weight_decay)
    steps(optimizer, ours)
    steps(expected, theirs)
    assert not torch.equal(ours[0], parameters()[0])
    assert_close(ours, theirs)


def test_defaults_are_berts():
    defaults = smartcs.AdamW(parameters(), lr=1e-3).defaults
    assert (defaults["betas"], defaults["eps"], defaults["weight_decay"]) == ((0.9, 0.999), 1e-6, 0.0)
    with pytest.raises(TypeError, match="lr"):
        smartcs.AdamW(parameters())
    with pytest.raises(ValueError, match="learning rate"):
        smartcs.AdamW(parameters(), lr=-1.0)


def test_a_parameter_without_gradient_stays():
    params = parameters()
    optimizer = smartcs.AdamW(params, lr=1e-2, weight_decay=0.5)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert torch.equal(params[2], parameters()[2]) and not torch.equal(params[0], parameters()[0])


@pytest.mark.parametrize("saved_by", ["torch", "fused", "reference"])
@pytest.mark.parametrize("loaded_by", ["fused", "reference"])
def test_state_dict_is_torchs(saved_by, loaded_by):
    first = parameters()
    if saved_by == "torch":
        optimizer = torch.optim.AdamW(first, lr=1e-2, eps=1e-6, weight_decay=0.0)
    else:
        with smartcs.backend(saved_by):
            optimizer = smartcs.AdamW(first, lr=1e-2)
    steps(optimizer, first)
    second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
    with smartcs.backend(loaded_by):
        resumed = smartcs.AdamW(second, lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert bool(resumed.param_groups[0]["fused"]) == (loaded_by == "fused")
    assert resumed.param_groups[0]["lr"] == 1e-2
    steps(optimizer, first, begin=4)
    steps(resumed, second, begin=4)
    assert_close(first, second)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("inner_steps", [1, 2])
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_anchor_and_sparse_rows_equal_torch(backend, inner_steps, weight_decay):
    """Against torch's AdamW and the anchor's own update, with a table written and an anchor made in between."""
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Embedding(50, 6, sparse=True), torch.nn.Linear(6, 3))
    theirs = copy.deepcopy(ours)
    theirs[0].sparse = False
    with smartcs.backend(backend):
        optimizer = smartcs.AdamW(ours.parameters(), lr=1e-2, weight_decay=weight_decay)
        expected = torch.optim.AdamW(theirs.parameters(), lr=1e-2, eps=1e-6, weight_decay=weight_decay)
        anchors = [smartcs.BregmanAnchor(m, 0.7, inner_steps=inner_steps) for m in (ours, theirs)]
        for step in range(9):
            ids = torch.randint(50, (8,), generator=torch.Generator().manual_seed(step))
            if step == 4:
                with torch.no_grad():
                    for model in (ours, theirs):
                        model[0].weight[ids[0] - 1] += 1
            if step == 6:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                anchors[0].anchor.load_state_dict(anchors[1].anchor.state_dict())
            for model in (ours, theirs):
                model.zero_grad()
                for _ in range(2):
                    model(ids).square().sum().backward()
            assert ours[0].weight.grad.is_sparse
            optimizer.step(anchor=anchors[0])
            expected.step()
            anchors[1].update()
            assert_close(ours.parameters(), theirs.parameters())
            assert_close(anchors[0].anchor.parameters(), anchors[1].anchor.parameters())


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_a_norm_that_is_not_finite_stops_the_step(backend):
    model = torch.nn.Linear(3, 3)
    with smartcs.backend(backend):
        anchor = smartcs.BregmanAnchor(model, 0.5)
        optimizer = smartcs.AdamW(model.parameters(), lr=1.0, max_grad_norm=1.0)
        model(torch.full((1, 3), torch.inf)).sum().backward()
        before = copy.deepcopy(model.state_dict())
        optimizer.step(anchor=anchor)
    assert not optimizer.grad_norm.isfinite() and anchor.state_dict()["updates"] == 0
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(ValueError, match="AdamW: max_grad_norm is -1, expected a positive number or None"):
        smartcs.AdamW(model.parameters(), lr=1.0, max_grad_norm=-1)


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_schedule(backend):
    """As a learning rate set by the host and the anchor's own beta, where the anchor moves and where it rests."""
    models = [torch.nn.Linear(5, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    schedule = torch.empty(2, dtype=torch.float64)
    with smartcs.backend(backend):
        anchors = [smartcs.BregmanAnchor(m, 0.75, inner_steps=2) for m in models]
        ours, expected = (smartcs.AdamW(m.parameters(), lr=0.1, max_grad_norm=2.0) for m in models)
        for step in range(6):
            factor = 1 / (1 + step)
            schedule.copy_(torch.tensor([factor, anchors[0].next_weight()], dtype=torch.float64))
            expected.param_groups[0]["lr"] = 0.1 * factor
            for model in models:
                model.zero_grad()
                model(torch.full((2, 5), 1.0 + step)).square().sum().backward()
            ours.step(anchor=anchors[0], schedule=schedule)
            anchors[0].moved()
            expected.step(anchor=anchors[1])
            for ours_now, theirs in ((models[0], models[1]), (anchors[0].anchor, anchors[1].anchor)):
                assert all(map(torch.equal, ours_now.parameters(), theirs.parameters()))
    assert anchors[0].state_dict()["updates"] == 6
    with pytest.raises(ValueError, match="adamw: schedule is torch.float32"):
        ours.step(schedule=schedule.float())


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Tensors on a GPU that have no values, as if the extension had been built with CUDA."""
    if not selection.extension_status()[0]:
        pytest.skip("needs the compiled extension")
    monkeypatch.setattr(selection, "_on_gpu", {"adamw": ""})
    with smartcs.backend("fused"), FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        yield


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by copy.deepcopy
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_step_on_a_gpu_does_not_wait(on_a_gpu, scheduled):
    """One call of the op; asking for a value would raise, as there is none."""
    model = torch.nn.ParameterList([torch.ones(7, 4), torch.ones(5)])
    anchor = smartcs.BregmanAnchor(model, 0.9)
    optimizer = smartcs.AdamW(model.parameters(), lr=0.1, max_grad_norm=1.0)
    schedule = torch.ones(2, dtype=torch.float64) if scheduled else None
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        with Called() as called:
            optimizer.step(anchor=anchor, schedule=schedule)
    assert [name for name in called.names if not name.startswith("profiler")] == ["smartcs::adamw_step"]
    assert optimizer.grad_norm.device.type == "cuda" and anchor._updates == (0 if scheduled else 2)
    with pytest.raises(DataDependentOutputException):
        optimizer.grad_norm.item()


def test_sparse_gradients_on_a_gpu_are_torchs(on_a_gpu):
    table, moments = torch.ones(6, 2), [torch.zeros(6, 2) for _ in range(2)]
    settings = ops.AdamWSettings(0.1, 0.9, 0.999, 1e-6, 0.0)
    entry = ops.AdamWTensors(table, torch.ones(6, 2), *moments, torch.zeros(()), settings)
    assert fusable([entry])
    assert not fusable([entry._replace(grad=SimpleNamespace(is_sparse=True))])
    assert not fusable([entry, entry._replace(step=torch.zeros((), device="cpu"))])
    assert not fusable([entry, entry._replace(parameter=torch.ones(6, 2, device="cpu"))])
    assert not fusable([entry, entry._replace(row_flags=torch.zeros(6, dtype=torch.uint8))])


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_torch_loads_ours(backend):
    first = parameters()
    with smartcs.backend(backend):
        optimizer = smartcs.AdamW(first, lr=1e-2)
        steps(optimizer, first)
        second = [torch.nn.Parameter(parameter.detach().clone()) for parameter in first]
        resumed = torch.optim.AdamW(second, lr=1.0)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        steps(optimizer, first, begin=4)
    steps(resumed, second, begin=4)
    assert_close(first, second)
    for x, y in zip(optimizer.state.values(), resumed.state.values(), strict=True):
        assert x["step"] == y["step"] and x["step"].dtype == y["step"].dtype


@pytest.mark.parametrize("saved_by", ["fused", "reference"])
@pytest.mark.parametrize("loaded_by", ["fused", "reference"])
def test_counts_are_loaded_to_where_the_loader_keeps_them(saved_by, loaded_by):
    """The fused backend's beside the parameter, the reference's on the CPU; the given state stays as it was."""
    state = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2, 2), "exp_avg_sq": torch.zeros(2, 2)}
    with smartcs.backend(saved_by):
        saved = smartcs.AdamW([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1).state_dict() | {"state": {0: state}}
    before = copy.deepcopy(saved["param_groups"])
    elsewhere = torch.nn.Parameter(torch.zeros(2, 2, device="meta"))
    with smartcs.backend(loaded_by):
        optimizer = smartcs.AdamW([elsewhere], lr=0.1)
    optimizer.load_state_dict(saved)
    assert optimizer.state[elsewhere]["step"].device.type == ("meta" if loaded_by == "fused" else "cpu")
    assert saved["param_groups"] == before


@pytest.mark.parametrize(("shape", "sparse"), [((5,), 1), ((4, 3, 2), 1), ((4, 3), 2)], ids=str)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_sparse_in_another_way(backend, shape, sparse):
    """Refused before anything is touched, the first parameter included."""
    good, bad = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(shape))
    good.grad, bad.grad = torch.ones(2), torch.ones(shape).to_sparse(sparse)
    with smartcs.backend(backend):
        optimizer = smartcs.AdamW([good, bad], lr=0.1)
        with pytest.raises(ValueError, match=r"the gradient of param_groups\[0\]\['params'\]\[1\]") as error:
            optimizer.step()
    assert f"{shape}, is sparse in {sparse} of {len(shape)} dimensions, expected rows of a matrix" in str(error.value)
    assert not optimizer.state and torch.equal(good, torch.ones(2))


def test_a_table_moved_twice_between_steps():
    """Back to the address that it had, with other values: the anchor follows all rows nevertheless."""
    memory = torch.zeros(6, 2).numpy()
    table = torch.nn.Embedding.from_pretrained(torch.from_numpy(memory), freeze=False, sparse=True)
    anchor = smartcs.BregmanAnchor(table, 0.5)
    optimizer = smartcs.AdamW(table.parameters(), lr=0.1)
    table(torch.tensor([3])).sum().backward()
    optimizer.step(anchor=anchor)
    before = anchor.anchor.weight.clone()
    table.weight.data = torch.ones(6, 2)
    memory += 2
    table.weight.data = torch.from_numpy(memory)
    optimizer.step(anchor=anchor)
    torch.testing.assert_close(anchor.anchor.weight, before.lerp(table.weight.detach(), 0.5))
