"""The ops one after the other under torch.compile(fullgraph=True), as in a layer of the model."""

import shutil
from dataclasses import replace

import pytest
import torch
from op_harness import Problem, check_compiled, check_results, evaluate, integers, normal, offsets

from smartcs.ops import add_layer_norm, attention, bias_gelu, embedding, linear, symmetric_kl


def layer(ids, cu_seqlens, tables, norm, bias, input_bias, qkv, inner, max_seqlen, dropout_p, seed, stream):
    """Every op once. None gets one tensor twice: torch 2.13 does not trace that through an autograd.Function."""
    dropout = {"dropout_p": dropout_p, "seed": seed, "stream": stream}
    x = embedding(*ids.unbind(), *tables.unbind(), norm, bias, **dropout)
    heads = linear(x, qkv).reshape(x.shape[0], 3, 2, x.shape[1] // 2)
    context = attention(heads, cu_seqlens, max_seqlen, **dropout).flatten(1)
    x = add_layer_norm(context, x, norm, bias, input_bias=input_bias, **dropout)
    return symmetric_kl(linear(bias_gelu(linear(x, inner)), inner.T), x, reduction="none")


def problem(lengths, seed, stream) -> Problem:
    tokens, columns = sum(lengths), 12
    tensors = {
        "ids": integers(20, 3, tokens, seed=1),
        "cu_seqlens": offsets(lengths),
        "tables": normal(3, 20, columns, seed=2),
        "norm": normal(columns, seed=3),
        "bias": normal(columns, seed=4),
        "input_bias": normal(columns, seed=5),
        "qkv": normal(3 * columns, columns, seed=6),
        "inner": normal(16, columns, seed=7),
        "grad_y": normal(tokens, seed=8),
    }
    kinds = {"y": "statistic"} | {name: "summed gradient" for name in tensors if tensors[name].is_floating_point()}
    del kinds["grad_y"]
    settings = {"max_seqlen": max(lengths), "dropout_p": 0.2, "seed": seed, "stream": stream}
    return Problem(layer, tensors, kinds, settings)


def test_every_op(fused):
    check_compiled([problem([5, 9 + i, 2], 2**40 + i, (i + 2) << 16) for i in range(4)])


def test_inductor(fused):
    """Through code generation, which may sum in another order than eager does."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor compiles C++, and no compiler is on PATH")
    p = problem([5, 9, 2], 2**40, 2 << 16)
    compiled = torch.compile(layer, fullgraph=True, backend="inductor")
    values = p.rounded(torch.float32)
    check_results(p, torch.float32, evaluate(replace(p, op=compiled), values, "fused"))


def test_compiles_where_the_extension_is_missing(monkeypatch):
    """The warning that says so cannot be traced; it must not be met."""
    monkeypatch.setattr("smartcs.ops.backend.extension_status", lambda: (False, "not there"))
    monkeypatch.setattr("smartcs.ops.backend._warned", set())
    torch._dynamo.reset()
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="eager")
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    torch.testing.assert_close(compiled(x), torch.nn.functional.gelu(x))
