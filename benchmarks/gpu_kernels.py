"""What every operator of a step is on a GPU: kernels, the bytes each moves and the floating-point operations it does.

Bytes count a kernel's operands once each, as if what it reads twice came from a cache the second time. Operations are
those of matrix products and attention; no other kernel is bound by its arithmetic. An operator that is not listed is an
error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from gpu_record import Call, Spec

FLOAT, LONG = 4, 8  # bytes
ROWS_PER_PARTIAL = 8  # kernels/rows.py
PIECE = 32  # kernels/row_sums.py
WHOLE_KEYS = 64  # kernels/tiles.py: 16-bit keys that one block holds
ADAMW_TENSORS = 432  # csrc/cuda/adamw.cuh
# How many kernels torch's functions are on small inputs is assumed, here and in _SEVERAL and _index_put.
SORT = 4  # values copied, places numbered, sorted in one block, places gathered
# Of (tensors, chunks) one launch of torch's _foreach_ functions takes at most, by the number of lists.
FOREACH_TENSORS, FOREACH_CHUNKS, FOREACH_CHUNK = (110, 64, 48, 36, 30), 320, 65536


class Launch(NamedTuple):
    """One kernel. `rate`: "bf16" or "fp32", what its products multiply."""

    kernel: str
    bytes: int
    operations: int = 0
    rate: str = "fp32"


class UnknownOperator(Exception):
    """An operator that the model has no formula for."""


def size(specs: Sequence[Spec]) -> int:
    return sum(spec.bytes for spec in specs)


def rate_of(dtype: torch.dtype) -> str:
    return "bf16" if dtype.itemsize == 2 else "fp32"


# No kernel: memory alone, or the host's.
_NONE = {
    "prim::device", "profiler::_record_function_enter_new", "profiler::_record_function_exit", "aten::empty",
    "aten::new_empty", "aten::scalar_tensor",
}  # fmt: skip
# One kernel that reads its arguments and writes its results.
_ONE = {
    "aten::abs", "aten::add", "aten::add_", "aten::all", "aten::amax", "aten::bitwise_and", "aten::clamp",
    "aten::clone", "aten::cumsum", "aten::div", "aten::div_", "aten::eq", "aten::exp", "aten::gelu",
    "aten::gelu_backward", "aten::gt", "aten::index", "aten::index_select", "aten::linalg_vector_norm", "aten::lt",
    "aten::_log_softmax", "aten::_log_softmax_backward_data", "aten::mse_loss_backward", "aten::mul",
    "aten::native_dropout", "aten::native_dropout_backward", "aten::native_layer_norm", "aten::ne", "aten::neg",
    "aten::nll_loss_forward", "aten::relu", "aten::sigmoid", "aten::stack", "aten::sub", "aten::sum", "aten::tanh",
    "aten::tanh_backward", "aten::threshold_backward", "aten::_to_copy", "aten::where",
}  # fmt: skip
# One kernel that only writes.
_FILL = {
    "aten::arange", "aten::new_zeros", "aten::ones", "aten::ones_like", "aten::randn_like", "aten::zeros_like",
}  # fmt: skip
# Several kernels of torch's: each name with its kernels. Theirs are small; bytes are arguments and results once each.
_SEVERAL = {
    "aten::binary_cross_entropy_with_logits": ("rsub", "mul", "log_sigmoid", "sub", "mean"),
    "aten::mse_loss": ("square", "mean"),
    "aten::nll_loss_backward": ("zero", "scatter"),
    "aten::slice_backward": ("zero", "copy"),
    "aten::repeat_interleave": ("cumsum", "repeat"),
}


def launches(call: Call, lengths: Sequence[int]) -> list[Launch]:
    """The kernels of one operator, in order.

    Args:
        lengths: tokens of the batch's sequences, which attention's operations depend on.

    Raises:
        UnknownOperator: there is no formula for it.
    """
    name = call.name
    if name in _FORMULAS:
        return _FORMULAS[name](call)
    if name in _ATTENTION:
        return _ATTENTION[name](call, lengths)
    if call.is_view or name in _NONE:
        return []
    if name.startswith("aten::_foreach_"):
        return _foreach(call)
    short = name.removeprefix("aten::")
    if name in _ONE:
        return [Launch(short, size(call.specs()) + size(_made(call)))]
    if name in _FILL:
        return [Launch(short, size(call.results))]
    if name in _SEVERAL:
        parts = _SEVERAL[name]
        return [Launch(f"{short} {part}", (size(call.specs()) + size(_made(call))) // len(parts)) for part in parts]
    raise UnknownOperator(
        f"{name}{tuple(spec.shape for spec in call.specs())}: no formula in benchmarks/gpu_kernels.py"
    )


def _made(call: Call) -> list[Spec]:
    """What is written: the results, which for an operator in place are arguments."""
    return call.results or call.specs(*call.written)


def product(kernel: str, a: Spec, b: Spec, result: Spec, extra: int = 0) -> Launch:
    """a (m, k) times b (k, n)."""
    (m, k), n = a.shape, b.shape[1]
    return Launch(kernel, a.bytes + b.bytes + result.bytes + extra, 2 * m * n * k, rate_of(a.dtype))


def _mm(call: Call) -> list[Launch]:
    a, b = call.specs("self", "mat2")
    return [product("product", a, b, call.results[0])]


def _addmm(call: Call) -> list[Launch]:
    bias, a, b = call.specs("self", "mat1", "mat2")
    return [product("product", a, b, call.results[0], bias.bytes)]


def _matrix(rows: int, columns: int, dtype: torch.dtype) -> Spec:
    return Spec((rows, columns), (columns, 1), dtype)


def partials(rows: int, columns: int, sums: int) -> int:
    """Bytes of the partial sums over rows."""
    return sums * math.ceil(rows / ROWS_PER_PARTIAL) * columns * FLOAT


def _with_sums(kernel: str, moved: int, rows: int, columns: int, sums: int) -> list[Launch]:
    """A kernel over rows, and the one that adds up its partial sums if it makes any."""
    between = partials(rows, columns, sums)
    first = Launch(kernel, moved + between)
    return [first, Launch("sum_partials", between + sums * columns * FLOAT)] if sums else [first]


def _in_out(call: Call) -> list[Launch]:
    """symmetric_kl, perturb_step, forward passes: one kernel that reads and writes everything."""
    return [Launch(call.name.removeprefix("smartcs::"), size(call.specs()) + size(call.results))]


def _noise(call: Call) -> list[Launch]:
    return [Launch("perturb_noise", size(call.results))]


def _add_layer_norm_bwd(call: Call) -> list[Launch]:
    dx, dresidual, *_ = call.results
    rows, columns = dresidual.shape
    moved = size(call.specs()) + dx.bytes + dresidual.bytes
    return _with_sums("add_layer_norm_bwd", moved, rows, columns, 3 if call.arguments["parameter_grads"] else 0)


def _bias_gelu_bwd(call: Call) -> list[Launch]:
    dx, _ = call.results
    moved = size(call.specs()) + dx.bytes
    return _with_sums("bias_gelu_bwd", moved, *dx.shape, 1 if call.arguments["bias_grad"] else 0)


def _embedding_fwd(call: Call) -> list[Launch]:
    y = call.results[0]
    tokens, columns = y.shape
    tables = call.specs("word", "token_type", "position")
    looked_up = sum(min(tokens, table.shape[0]) for table in tables) * columns * y.dtype.itemsize
    others = [spec for name in call.arguments if name not in ("word", "token_type", "position")
              for spec in call.specs(name)]  # fmt: skip
    return [Launch("embedding_fwd", looked_up + size(others) + size(call.results))]


def _embedding_bwd(call: Call) -> list[Launch]:
    (h,) = call.specs("h")
    tokens, columns = h.shape
    read = size(call.specs("grad_y", "h", "mean", "rstd", "weight", "counter_offset"))
    found = _with_sums("embedding_bwd", read + h.bytes, tokens, columns, 2 if call.arguments["parameter_grads"] else 0)
    tables = [table for table in call.results[:3] if table.numel]
    if not tables:
        return found
    ids, spans = len(tables) * tokens * LONG, math.ceil(tokens / PIECE)
    kept = len(tables) * spans * 2 * columns * FLOAT
    used = sum(min(tokens, table.shape[0]) for table in tables) * columns * FLOAT
    found += [Launch("zeros", table.bytes) for table in call.results[:3] if table.numel]
    found += [Launch("stack", 2 * ids), *(Launch("sort", 2 * ids) for _ in range(SORT))]
    found.append(Launch("sum_by_key pieces", 2 * ids + len(tables) * h.bytes + kept + used))
    return [*found, Launch("sum_by_key join", kept + ids // PIECE)] if spans > 1 else found


def _pack(call: Call) -> list[Launch]:
    weight = call.specs("weight")[0]
    return [Launch("pack_weight", weight.bytes + weight.bytes // 2)]


def _linear_bf16_fwd(call: Call) -> list[Launch]:
    (x,), outputs, bias = call.specs("x"), call.arguments["outputs"], call.specs("bias")
    rows, inputs = x.shape
    low, y, z = _matrix(rows, inputs, torch.bfloat16), call.results[0], call.results[2]
    followed = bool(bias) or call.arguments["gelu"]
    result = _matrix(rows, outputs, torch.float32 if followed else y.dtype)
    found = _summed_product(low, _matrix(inputs, outputs, torch.bfloat16), result)
    if x.dtype != torch.bfloat16:
        found.insert(0, Launch("linear_bf16 cast", x.bytes + low.bytes))
    if followed:
        found.append(Launch("linear_bf16 epilogue", result.bytes + size(bias) + y.bytes + z.bytes))
    return found


def _summed_product(a: Spec, b: Spec, result: Spec) -> list[Launch]:
    """Into float32, and from there into bfloat16 where that is wanted."""
    if result.dtype != torch.bfloat16:
        return [product("linear_bf16 product", a, b, result)]
    wide = _matrix(*result.shape, torch.float32)
    return [product("linear_bf16 product", a, b, wide), Launch("linear_bf16 cast", wide.bytes + result.bytes)]


def _linear_bf16_bwd(call: Call) -> list[Launch]:
    (grad_y,), z = call.specs("grad_y"), call.specs("z")
    rows, outputs = grad_y.shape
    inputs = call.arguments["inputs"]
    low = torch.bfloat16
    dz, dx, dw = _matrix(rows, outputs, low), call.results[0], call.results[1]
    found = []
    if z or grad_y.dtype != low or call.arguments["need_bias"]:
        moved, sums = grad_y.bytes + size(z) + dz.bytes, 1 if call.arguments["need_bias"] else 0
        found += _with_sums("linear_bf16 gradient", moved, rows, outputs, sums)
    if call.arguments["need_x"]:
        found += _summed_product(dz, _matrix(outputs, inputs, low), dx)
    if call.arguments["need_weight"]:
        found += _summed_product(_matrix(outputs, rows, low), _matrix(rows, inputs, low), dw)
    return found


def _adamw(call: Call) -> list[Launch]:
    parameters, anchors = call.specs("params"), call.specs("anchors")
    # theta and both moments in and out, the gradient in: of what has a gradient, 7 times its bytes.
    updated = size(call.specs("grads"))
    still = size(parameters) - updated if anchors else 0  # read where an anchor moves
    copies = size(call.specs("packed"))
    each = math.ceil(len(parameters) / ADAMW_TENSORS)
    kernels = {
        "begin": updated,
        "update": 7 * updated + still + 2 * size(anchors) + copies,
    }
    return [Launch(f"adamw {kernel}", moved // each) for kernel, moved in kernels.items() for _ in range(each)]


def is_whole(dtype: torch.dtype, length: int) -> bool:
    """Whether one kernel does a sentence's backward pass of attention: `_whole` in kernels/attention.py."""
    return dtype.itemsize == 2 and length // 64 * 64 + min(length % 64 * 4, 64) <= WHOLE_KEYS


def _pairs(lengths: Sequence[int], qkv: Spec) -> int:
    """Operations of one product of attention: queries times keys."""
    _, _, heads, head_size = qkv.shape
    return 2 * heads * head_size * sum(n * n for n in lengths)


def _attention_fwd(call: Call, lengths: Sequence[int]) -> list[Launch]:
    (qkv,) = call.specs("qkv")
    moved = size(call.specs()) + size(call.results)
    return [Launch("attention_fwd", moved, 2 * _pairs(lengths, qkv), rate_of(qkv.dtype))]


def _attention_bwd(call: Call, lengths: Sequence[int]) -> list[Launch]:
    (qkv,), (lse,), tokens = call.specs("qkv"), call.specs("lse"), sum(lengths)
    rate, read, third, statistics = rate_of(qkv.dtype), size(call.specs()), qkv.bytes // 3, 2 * lse.bytes
    long = [n for n in lengths if not is_whole(qkv.dtype, n)]
    # A whole sentence takes s, dp, dv, dk and dq; another s, dp, dv and dk, and before that s and dp twice and dq.
    keys = 5 * _pairs(lengths, qkv) - _pairs(long, qkv)
    if is_whole(qkv.dtype, min(qkv.shape[0], call.arguments["max_seqlen"])):
        return [Launch("attention_bwd keys", read + qkv.bytes, keys, rate)]
    of_long, less = (count * sum(long) // tokens for count in (read + third + statistics, third - statistics))
    queries = Launch("attention_bwd queries", of_long, 5 * _pairs(long, qkv), rate)
    return [queries, Launch("attention_bwd keys", read + qkv.bytes - less, keys, rate)]


def _index_put(call: Call) -> list[Launch]:
    # Adds rows in the order of a sort of their numbers, in place: fake tensors show the copy that a GPU does not make.
    rows, ids = size(call.specs("values")), size(call.specs("indices"))
    small = [Launch(f"index_put {part}", 2 * ids) for part in ("wrap", "scale", "divide", "number", "sort")]
    return [*small, Launch("index_put add", 3 * rows + 2 * ids)]


def _scatter(call: Call) -> list[Launch]:
    return [Launch("scatter_", 2 * size(call.specs("index")))]


def _layer_norm_bwd(call: Call) -> list[Launch]:
    return [Launch("native_layer_norm_backward x", size(call.specs()) + call.results[0].bytes),
            Launch("native_layer_norm_backward weight", size(call.specs()) + size(call.results[1:]))]  # fmt: skip


def _embedding_dense_bwd(call: Call) -> list[Launch]:
    grad, ids, table = *call.specs("grad_output", "indices"), call.results[0]
    sort = [Launch("embedding_dense_backward sort", 2 * ids.bytes) for _ in range(SORT)]
    return [Launch("zeros", table.bytes), *sort, Launch("embedding_dense_backward", 3 * grad.bytes + 2 * ids.bytes)]


def _embedding(call: Call) -> list[Launch]:
    made = call.results[0]
    looked_up = min(call.specs("weight")[0].bytes, made.bytes)
    return [Launch("embedding", looked_up + size(call.specs("indices")) + made.bytes)]


def _foreach(call: Call) -> list[Launch]:
    lists = [call.specs(name) for name in call.arguments if isinstance(call.arguments[name], list | tuple)]
    lists = [specs for specs in lists if specs]
    made = call.results or call.specs(*call.written)
    # Named operators in place write the first list; the others make another.
    depth, first = min(len(lists) + (not call.written), len(FOREACH_TENSORS)), lists[0]
    chunks = sum(math.ceil(spec.numel / FOREACH_CHUNK) for spec in first)
    count = max(math.ceil(len(first) / FOREACH_TENSORS[depth - 1]), math.ceil(chunks / FOREACH_CHUNKS))
    return [Launch(call.name.removeprefix("aten::"), (size(call.specs()) + size(made)) // count) for _ in range(count)]


_FORMULAS: dict[str, Callable[[Call], list[Launch]]] = {
    "aten::mm": _mm,
    "aten::addmm": _addmm,
    "aten::index_put": _index_put,
    "aten::scatter_": _scatter,
    "aten::native_layer_norm_backward": _layer_norm_bwd,
    "aten::embedding_dense_backward": _embedding_dense_bwd,
    "aten::embedding": _embedding,
    "smartcs::add_layer_norm_fwd": _in_out,
    "smartcs::add_layer_norm_bwd": _add_layer_norm_bwd,
    "smartcs::bias_gelu_fwd": _in_out,
    "smartcs::bias_gelu_bwd": _bias_gelu_bwd,
    "smartcs::embedding_fwd": _embedding_fwd,
    "smartcs::embedding_bwd": _embedding_bwd,
    "smartcs::pack_weight": _pack,
    "smartcs::linear_bf16_fwd": _linear_bf16_fwd,
    "smartcs::linear_bf16_bwd": _linear_bf16_bwd,
    "smartcs::perturb_noise": _noise,
    "smartcs::perturb_step": _in_out,
    "smartcs::symmetric_kl_fwd": _in_out,
    "smartcs::symmetric_kl_bwd": _in_out,
    "smartcs::adamw_step": _adamw,
}
_ATTENTION: dict[str, Callable[[Call, Sequence[int]], list[Launch]]] = {
    "smartcs::attention_fwd": _attention_fwd,
    "smartcs::attention_bwd": _attention_bwd,
}
