"""The precision mode: who sees it, for how long, and what a machine without fast bf16 products runs instead."""

import threading

import pytest
import torch

import smartcs
import smartcs.ops.precision as mode
from smartcs.ops import activation_dtype, linear
from smartcs.ops.precision import arithmetic, get_precision, precision, set_precision

X, WEIGHT = torch.full((2, 3), 1.001), torch.ones(4, 3)


def rounds() -> bool:
    """Whether a product made now rounds its operands."""
    return bool((linear(X, WEIGHT) == 3.0).all())


def test_the_default_is_fp32(either):
    assert get_precision() == "fp32" and not rounds()


def test_ends_with_its_block_also_after_an_error(either):
    with pytest.raises(KeyError), precision("bf16"):
        assert get_precision() == "bf16" and rounds()
        with precision("fp32"):
            assert not rounds()
        assert rounds()
        raise KeyError
    assert not rounds()


def test_set_precision_stays(either):
    try:
        smartcs.set_precision("bf16")
        assert smartcs.get_precision() == "bf16" and rounds()
    finally:
        smartcs.set_precision("fp32")
    assert not rounds()


def test_other_threads_are_not_concerned(either):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(rounds()))
    with precision("bf16"):
        thread.start()
        thread.join()
        assert rounds()
    assert seen == [False]


def test_the_backward_pass_follows_the_forward_pass(either):
    weight = torch.full((4, 3), 1.001, requires_grad=True)
    x = X.clone().requires_grad_()
    with precision("bf16"):
        y = linear(x, weight)
    y.sum().backward()
    assert (x.grad == 4).all() and (weight.grad == 2).all()
    with precision("bf16"):
        torch.autograd.backward(linear(x, weight).sum())
    x.grad = None
    y = linear(x, weight)
    with precision("bf16"):
        y.sum().backward()
    assert (x.grad > 4.003).all()


@pytest.mark.parametrize("name", ["fp16", "", None])
def test_unknown_names(name):
    with pytest.raises(ValueError, match=f"precision: got {name!r}, expected one of fp32, bf16"):
        set_precision(name)
    assert get_precision() == "fp32"


def test_compiled(either):
    """A compiled function is compiled again in the other mode, not reused; the block may be within it, too."""
    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")

    def inside(x, weight):
        with precision("bf16"):
            return linear(x, weight)

    for _ in range(2):
        assert (compiled(X, WEIGHT) > 3.002).all()
        with precision("bf16"):
            assert (compiled(X, WEIGHT) == 3).all()
    assert (torch.compile(inside, fullgraph=True, backend="aot_eager")(X, WEIGHT) == 3).all()
    assert (compiled(X, WEIGHT) > 3.002).all()


def test_storage_is_bfloat16_for_float32_weights_in_bf16_mode_alone():
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    assert [activation_dtype(torch.zeros(1, dtype=dtype)) for dtype in dtypes] == list(dtypes)
    with precision("bf16"):
        found = [activation_dtype(torch.zeros(1, dtype=dtype)) for dtype in dtypes]
    assert found == [torch.float64, torch.bfloat16, torch.float16, torch.bfloat16]


def test_what_runs_where_products_are_fast(fused, monkeypatch):
    monkeypatch.setattr(mode, "bf16_products", lambda: "amx")
    assert arithmetic("bf16") == ("bf16", "amx", "")
    assert str(arithmetic("bf16")) == "bf16 products by amx"
    assert arithmetic("fp32") == ("fp32", torch.ops.smartcs.linear_library(), "")


def test_what_runs_where_there_are_none(fused, monkeypatch):
    monkeypatch.setattr(mode, "bf16_products", lambda: "none: this CPU has no such instructions")
    found = arithmetic("bf16")
    assert found == ("fp32", torch.ops.smartcs.linear_library(), "this CPU has no such instructions")
    assert found.notice.endswith("running in fp32, this machine has no fast bf16 products: " + found.reason)
    assert arithmetic("fp32").reason == ""
    with precision("bf16"):  # the mode itself is what it says, by the reference
        assert rounds()


def test_what_runs_without_the_extension(monkeypatch):
    monkeypatch.setattr(mode, "extension_status", lambda: (False, "not built"))
    with smartcs.backend("fused"):
        assert arithmetic("bf16") == ("fp32", "reference", "not built")


def test_the_reference_backend_rounds_anywhere(reference):
    assert arithmetic("bf16") == ("bf16", "reference", "")
    assert arithmetic("fp32") == ("fp32", "reference", "")


def test_this_machine_says_what_it_has(fused):
    assert mode.bf16_products().split(":")[0] in ("amx", "avx512_bf16", "none")
    assert mode.has_bf16_products() == ("none" not in mode.bf16_products())
