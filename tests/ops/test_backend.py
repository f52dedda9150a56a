"""Which implementation runs: selection, report, and what happens where the compiled extension is missing."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from op_harness import Calls

import smartcs._extension
import smartcs.ops.backend as selection
from smartcs.ops import add_layer_norm, attention, bias_gelu, embedding, linear, perturb, perturb_noise, symmetric_kl
from smartcs.ops.backend import OpReport, backend, backend_report, get_backend, set_backend


@pytest.fixture(autouse=True)
def restored():
    """Leaves selection and warnings as they were."""
    current, warned = get_backend(), set(selection._warned)
    yield
    selection._current = current
    selection._warned.clear()
    selection._warned.update(warned)


@pytest.fixture
def missing(monkeypatch):
    """As if the extension had not been built; nothing has been warned of yet."""
    monkeypatch.setattr(smartcs._extension, "_status", (False, "no compiler was there"))
    selection._warned.clear()


def run_every_op(dtype: torch.dtype = torch.float32) -> None:
    x, row = torch.ones(4, 6, dtype=dtype), torch.ones(6, dtype=dtype)
    ids = torch.zeros(4, dtype=torch.int64)
    attention(torch.ones(4, 3, 2, 5, dtype=dtype), torch.tensor([0, 4], dtype=torch.int32), 4)
    add_layer_norm(x, x, row, row)
    bias_gelu(x, row)
    embedding(ids, ids, ids, x, x, x, row, row)
    linear(x, x)
    perturb(perturb_noise(x, std=1.0, seed=0, stream=0), x)
    symmetric_kl(x, x)


FORWARDS = ["add_layer_norm_fwd", "attention_fwd", "bias_gelu_fwd", "embedding_fwd", "linear_fwd", "perturb_noise"]
FORWARDS += ["perturb_step", "symmetric_kl_fwd"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fused_runs_every_kernel(fused, dtype):
    with Calls() as calls:
        run_every_op(dtype)
    assert sorted(name for name, _ in calls.made) == FORWARDS


def test_fused_leaves_other_dtypes_to_the_reference(fused):
    with Calls() as calls:
        run_every_op(torch.float16)
    assert calls.made == []


def test_reference_runs_no_kernel(reference):
    with Calls() as calls:
        run_every_op()
    assert calls.made == []


def test_select():
    set_backend("reference")
    assert get_backend() == "reference"
    with backend("reference"):
        assert get_backend() == "reference"
    set_backend("reference")
    assert get_backend() == "reference"


def test_context_manager(fused):
    with backend("reference"):
        with backend("fused"):
            assert get_backend() == "fused"
        assert get_backend() == "reference"
    assert get_backend() == "fused"
    with pytest.raises(KeyError), backend("reference"):
        raise KeyError
    assert get_backend() == "fused"


def test_backward_follows_forward(fused):
    """A result computed by a kernel is differentiated by a kernel, whatever is selected by then."""
    x = torch.ones(4, 6, requires_grad=True)
    y = bias_gelu(x)
    with Calls() as calls, backend("reference"):
        y.sum().backward()
    assert [name for name, _ in calls.made] == ["bias_gelu_bwd"]


@pytest.mark.parametrize("select", [set_backend, lambda name: backend(name).__enter__()], ids=["set", "context"])
def test_unknown_name(select):
    before = get_backend()
    with pytest.raises(ValueError, match="backend: got 'cuda', expected one of fused, reference"):
        select("cuda")
    assert get_backend() == before


OPS = ["adamw", "add_layer_norm", "attention", "bias_gelu", "embedding", "linear", "perturb", "symmetric_kl"]


def test_report(fused):
    reasons = dict.fromkeys(OPS, f"C++ kernel, {torch.ops.smartcs.instruction_set()} instructions")
    reasons["linear"] = f"float32 products by {torch.ops.smartcs.linear_library()}"
    assert backend_report() == [OpReport(op, "fused", reason) for op, reason in reasons.items()]


def test_report_of_the_reference(reference):
    rows = backend_report()
    assert [row.op for row in rows] == OPS
    assert {row.backend for row in rows} == {"reference"}
    assert {row.reason for row in rows} == {"selected"}


def test_missing_extension_warns_once(missing):
    with pytest.warns(UserWarning, match="running on the PyTorch reference, which is slower: no compiler was there"):
        set_backend("fused")
    with warnings.catch_warnings(), Calls() as calls:
        warnings.simplefilter("error")
        set_backend("fused")
        run_every_op()
    assert get_backend() == "fused" and calls.made == []
    assert {row.reason for row in backend_report()} == {"no compiler was there"}


def test_missing_extension_warns_at_the_first_op(missing):
    selection._current = "fused"
    with pytest.warns(UserWarning, match="no compiler was there") as caught:
        run_every_op()
        run_every_op()
    assert len(caught) == 1


def test_missing_extension_is_no_news_to_the_reference(missing):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with backend("reference"):
            run_every_op()


def test_other_devices_run_the_reference_and_warn_once(fused):
    selection._warned.clear()
    x = torch.ones(4, 6, device="meta")
    with pytest.warns(UserWarning, match="no meta kernels in this version") as caught:
        assert bias_gelu(x).is_meta and bias_gelu(x).is_meta
    assert len(caught) == 1


def on_a_gpu(dtype=torch.float32, width=64) -> SimpleNamespace:
    """As far as the choice of a backend looks at a tensor."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(5, width))


@pytest.fixture
def no_memory_of_gpus(fused):
    """Kernels on a GPU are looked for anew, and again after the test."""
    known = dict(selection._on_gpu)
    selection._on_gpu.clear()
    selection._warned.clear()
    yield
    selection._on_gpu.clear()
    selection._on_gpu.update(known)


def test_ops_without_a_kernel_on_a_gpu_warn_once_each_and_say_why(no_memory_of_gpus, monkeypatch):
    monkeypatch.setattr(selection.kernels, "unavailable_reason", lambda: "Triton is not installed")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    with pytest.warns(UserWarning) as caught:
        assert not any(selection.use_fused(op, on_a_gpu()) for op in OPS for _ in range(2))
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == len(OPS)
    assert "smartcs: attention runs on the PyTorch reference on this GPU, which is slower: Triton is not" in messages[2]
    assert "symmetric_kl runs on the PyTorch reference on this GPU, which is slower: the extension was" in messages[-1]
    reasons = {row.op: row for row in backend_report("cuda")}
    assert {row.backend for row in reasons.values()} == {"reference"}
    assert reasons["embedding"].reason == "Triton is not installed" and "cuBLAS" in reasons["linear"].reason


def test_kernels_on_a_gpu_are_registered_once(no_memory_of_gpus, monkeypatch):
    asked = []
    monkeypatch.setattr(selection.kernels, "unavailable_reason", lambda: None)
    monkeypatch.setattr(selection.kernels, "register", lambda op, key: asked.append((op, key)) or object())
    monkeypatch.setattr(
        torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: name.endswith("adamw_step")
    )
    assert all(selection.use_fused("attention", on_a_gpu()) for _ in range(3)) and asked == [("attention", "CUDA")]
    assert selection.use_fused("adamw", on_a_gpu()) and selection.use_fused("attention", on_a_gpu(torch.float16))
    assert not selection.use_fused("attention", on_a_gpu(torch.float64))
    for op, width in (("attention", 128), ("embedding", 4096), ("add_layer_norm", 4096)):
        assert selection.use_fused(op, on_a_gpu(width=width)) and not selection.use_fused(op, on_a_gpu(width=width + 1))
    assert selection.use_fused("bias_gelu", on_a_gpu(width=10**6))
    rows = {row.op: row for row in backend_report("cuda")}
    assert (rows["attention"].backend, rows["attention"].reason) == ("fused", "Triton kernel")
    assert (rows["adamw"].backend, rows["adamw"].reason) == ("fused", "CUDA C++ kernel")
    assert rows["perturb"].backend == "reference"


def test_triton_kernels_that_cannot_be_imported_fall_back(no_memory_of_gpus, monkeypatch):
    def failing(op, key):
        raise ImportError("no module named attention")

    monkeypatch.setattr(selection.kernels, "unavailable_reason", lambda: None)
    monkeypatch.setattr(selection.kernels, "register", failing)
    with pytest.warns(UserWarning, match="its Triton kernels cannot be imported"):
        assert not selection.use_fused("attention", on_a_gpu())


@pytest.mark.parametrize(("value", "expected"), [(None, "fused"), ("fused", "fused"), ("reference", "reference")])
def test_environment(monkeypatch, value, expected):
    monkeypatch.delenv("SMARTCS_BACKEND", raising=False)
    if value is not None:
        monkeypatch.setenv("SMARTCS_BACKEND", value)
    assert selection._initial() == expected


def test_environment_with_an_unknown_name(monkeypatch):
    monkeypatch.setenv("SMARTCS_BACKEND", "triton")
    with pytest.raises(ValueError, match="backend: got 'triton', expected one of fused, reference"):
        selection._initial()


def test_environment_selects_the_reference_at_import():
    """SMARTCS_BACKEND=reference: nothing compiled is loaded, and that is not worth a warning."""
    code = (
        "import torch, smartcs\n"
        "from smartcs.ops.backend import backend_report\n"
        "smartcs.ops.bias_gelu(torch.ones(2, 3))\n"
        "print(smartcs.get_backend(), {row.reason for row in backend_report()})\n"
        "print(hasattr(torch.ops.smartcs, 'bias_gelu_fwd'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        env={**os.environ, "SMARTCS_BACKEND": "reference"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["reference {'selected'}", "False", ""]
