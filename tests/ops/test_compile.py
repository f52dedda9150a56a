"""The ops one after the other under torch.compile(fullgraph=True), as in a layer of the model."""

import shutil

import pytest
from op_harness import Problem, check_compiled, integers, normal, offsets

from smartcs.ops import add_layer_norm, attention, bias_gelu, embedding, linear, symmetric_kl


def layer(ids, cu_seqlens, tables, norm, bias, input_bias, qkv, inner, max_seqlen, dropout_p, seed, stream):
    """Every op once; the loss is that of a clean pass against one with dropout.

    No op gets one tensor twice: torch 2.13 does not trace that through an autograd.Function.
    """
    losses = []
    for p in (0.0, dropout_p):
        dropout = {"dropout_p": p, "seed": seed, "stream": stream}
        x = embedding(*ids.unbind(), *tables.unbind(), norm, bias, **dropout)
        heads = linear(x, qkv).reshape(x.shape[0], 3, 2, x.shape[1] // 2)
        context = attention(heads, cu_seqlens, max_seqlen, **dropout).flatten(1)
        x = add_layer_norm(context, x, norm, bias, input_bias=input_bias, **dropout)
        losses.append(linear(bias_gelu(linear(x, inner)), inner.T))
    return symmetric_kl(*losses)


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
        "grad_y": normal(seed=8),
    }
    kinds = {"y": "statistic"} | {name: "summed gradient" for name in tensors if tensors[name].is_floating_point()}
    del kinds["grad_y"]
    settings = {"max_seqlen": max(lengths), "dropout_p": 0.2, "seed": seed, "stream": stream}
    return Problem(layer, tensors, kinds, settings)


PROBLEMS = [problem([5, 9 + i, 2], 2**40 + i, (i + 2) << 16) for i in range(4)]


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_layer(fused, compiler):
    if compiler == "inductor" and not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor compiles C++, and no compiler is on PATH")
    check_compiled(PROBLEMS, compiler=compiler)
