"""What PyTorch's own functions move for what a kernel of smartcs does: the calls of eager BERT, counted as ours are.

Biases that eager's product adds are left out of what follows it. Attention is `scaled_dot_product_attention` on the
batch padded to its longest sentence, with a mask; everything else is counted on packed tokens, to eager's advantage.
bf16 products are autocast's. Called within `gpu_record.fake`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_kernels import FLOAT, Launch, launches
from gpu_record import Call, Spec, recorded
from torch import Tensor
from torch.nn import functional

_DROPOUT = 0.1


def replaced(call: Call, lengths: Sequence[int]) -> list[Launch]:
    """The kernels of the eager calls; none for operators that are torch's anyway.

    Args:
        lengths: tokens of the batch's sequences, without a row that fills it up.
    """
    found = _REPLACED.get(call.name)
    return [] if found is None else found(call, lengths)


def _tensor(spec: Spec, grad: bool = False) -> Tensor:
    return torch.empty(spec.shape, dtype=spec.dtype, requires_grad=grad)


def _kernels(function: Callable[[], object]) -> list[Launch]:
    return [launch for call in recorded(function) for launch in launches(call, ())]


def _phases(forward: Callable[..., Tensor], *leaves: Spec, grads: Sequence[bool] = (), backward: bool) -> list[Launch]:
    """Of a function of tensors: its forward pass, or its backward pass to the leaves that want a gradient."""
    tensors = [
        _tensor(leaf, backward and grad) for leaf, grad in zip(leaves, grads or [True] * len(leaves), strict=True)
    ]
    if not backward:
        return _kernels(lambda: forward(*tensors))
    y = forward(*tensors)
    grad_y, wanted = torch.empty_like(y), [t for t in tensors if t.requires_grad]
    return _kernels(lambda: torch.autograd.grad(y, wanted, grad_y))


def _drop(x: Tensor, p: float) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if p > 0 else x


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight, bias)


def _add_layer_norm(call: Call, lengths: Sequence[int]) -> list[Launch]:
    p, (weight,), backward = call.arguments["dropout_p"], call.specs("weight"), call.name.endswith("_bwd")
    rows = call.specs("h" if backward else "x")[0]
    sums = backward and call.arguments["parameter_grads"]

    def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _norm(residual + _drop(x, p), weight, bias)

    found = _phases(forward, rows, rows, weight, weight, grads=(True, True, sums, sums), backward=backward)
    return found + (_bias_gradient(rows) if sums else [])


def _bias_gradient(rows: Spec) -> list[Launch]:
    return _kernels(lambda: _tensor(rows).sum(0))


def _bias_gelu(call: Call, lengths: Sequence[int]) -> list[Launch]:
    backward = call.name.endswith("_bwd")
    (x,) = call.specs("x")
    found = _phases(functional.gelu, x, backward=backward)
    return found + (_bias_gradient(x) if backward and call.arguments["bias_grad"] else [])


def _embedding(call: Call, lengths: Sequence[int]) -> list[Launch]:
    backward, p = call.name.endswith("_bwd"), call.arguments["dropout_p"]
    ids = [_tensor(spec) for spec in call.specs("input_ids", "token_type_ids", "position_ids")]
    (weight,) = call.specs("weight")
    moved = call.results[5] if backward else next(iter(call.specs("perturbation")), None)
    perturbed = moved is not None and moved.numel > 0
    if backward:
        columns = weight.shape[0]
        sizes = [call.arguments[name] for name in ("words", "token_types", "positions")]
        tables = [Spec((size, columns), (columns, 1), weight.dtype) for size in sizes]
        wanted = [call.arguments[f"need_{name}"] for name in ("word", "token_type", "position")]
        wanted += [call.arguments["parameter_grads"]] * 2 + [True] * perturbed
    else:
        tables, wanted = call.specs("word", "token_type", "position"), [True] * (5 + perturbed)

    def forward(word: Tensor, kind: Tensor, place: Tensor, weight: Tensor, bias: Tensor, *moved: Tensor) -> Tensor:
        found = [functional.embedding(i, table) for i, table in zip(ids, (word, kind, place), strict=True)]
        total = found[0] + found[1] + found[2]
        return _drop(_norm(total + moved[0] if moved else total, weight, bias), p)

    leaves = [*tables, weight, weight, *([moved] if moved is not None and perturbed else [])]
    return _phases(forward, *leaves, grads=wanted, backward=backward)


def _attention(call: Call, lengths: Sequence[int]) -> list[Launch]:
    (qkv,) = call.specs("qkv")
    _, _, heads, head_size = qkv.shape
    longest = max(lengths)
    padded = len(lengths) * longest * heads * head_size * qkv.dtype.itemsize
    statistics, mask = len(lengths) * heads * longest * FLOAT, len(lengths) * longest * qkv.dtype.itemsize
    product = 2 * len(lengths) * longest * longest * heads * head_size
    rate = "bf16" if qkv.dtype.itemsize == 2 else "fp32"
    if call.name.endswith("_fwd"):
        return [Launch("sdpa", 4 * padded + statistics + mask, 2 * product, rate)]
    delta = Launch("sdpa_backward delta", 2 * padded + statistics)
    # q, k, v, dout in; dq, dk, dv out.
    return [delta, Launch("sdpa_backward", 7 * padded + 2 * statistics + mask, 5 * product, rate)]


def _linear(call: Call, lengths: Sequence[int]) -> list[Launch]:
    backward = call.name.endswith("_bwd")
    low = torch.bfloat16
    if backward:
        (grad_y,) = call.specs("grad_y")
        inputs, outputs = call.arguments["inputs"], call.arguments["outputs"]
        needs = tuple(call.arguments[f"need_{name}"] for name in ("x", "weight", "bias"))
        x_dtype, gelu, bias = call.arguments["grad_x_dtype"], bool(call.specs("z")), needs[2]
        rows = grad_y.shape[0]
    else:
        (x,), outputs = call.specs("x"), call.arguments["outputs"]
        (rows, inputs), x_dtype = x.shape, x.dtype
        gelu, bias, needs = call.arguments["gelu"], bool(call.specs("bias")), (True, True, True)
    weight = Spec((outputs, inputs), (inputs, 1), torch.float32)
    vector = Spec((outputs,), (1,), torch.float32)
    packed: list[Tensor] = []

    def forward(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        # Autocast keeps the weights' casts for the step: they are pack_weight's.
        low_weight, *low_bias = packed or [t.to(low) for t in (weight, *bias)]
        y = functional.linear(x.to(low), low_weight, *low_bias)
        return functional.gelu(y) if gelu else y

    leaves = [Spec((rows, inputs), (inputs, 1), x_dtype), weight, *([vector] if bias else [])]
    if not backward:
        packed += [_tensor(leaf).to(low) for leaf in leaves[1:]]
    return _phases(forward, *leaves, grads=needs[: len(leaves)], backward=backward)


def _pack(call: Call, lengths: Sequence[int]) -> list[Launch]:
    (weight,) = call.specs("weight")
    return _kernels(lambda: _tensor(weight).to(torch.bfloat16))


def _noise(call: Call, lengths: Sequence[int]) -> list[Launch]:
    (like,) = call.specs("like")
    return _kernels(lambda: torch.randn_like(_tensor(like)) * 1e-5)


def _step(call: Call, lengths: Sequence[int]) -> list[Launch]:
    """mt-dnn's, without the statistics."""
    v, g = (_tensor(spec) for spec in call.specs("v", "g"))

    def step() -> Tensor:
        moved = v + g * 1e-3
        return moved / (moved.abs().amax(-1, keepdim=True) + 1e-6)

    return _kernels(step)


def _symmetric_kl(call: Call, lengths: Sequence[int]) -> list[Launch]:
    a, b = call.specs("a", "b")
    backward = call.name.endswith("_bwd")
    needs = (call.arguments["need_a"], call.arguments["need_b"]) if backward else (True, True)

    def forward(a: Tensor, b: Tensor) -> Tensor:
        p, q = functional.log_softmax(a, -1), functional.log_softmax(b, -1)
        return ((p.exp() - q.exp()) * (p - q)).sum(-1)

    return _phases(forward, a, b, grads=needs, backward=backward)


def _adamw(call: Call, lengths: Sequence[int]) -> list[Launch]:
    """torch.nn.utils.clip_grad_norm_, torch.optim.AdamW without weight decay, and the anchor's lerp: all foreach."""
    grads = [_tensor(spec) for spec in call.specs("grads")]
    parameters, first, second = ([torch.empty_like(g) for g in grads] for _ in range(3))
    moved, followed = ([_tensor(spec) for spec in call.specs("anchors")] for _ in range(2))
    ones: list[Any] = [1.0] * len(grads)

    def step() -> None:
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, 0.5)
        torch._foreach_lerp_(first, grads, 0.1)
        torch._foreach_mul_(second, 0.999)
        torch._foreach_addcmul_(second, grads, grads, 0.001)
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, ones)
        torch._foreach_add_(root, 1e-6)
        torch._foreach_addcdiv_(parameters, first, root, ones)
        if moved:
            torch._foreach_lerp_(moved, followed, 0.01)

    return _kernels(step)


_REPLACED: dict[str, Callable[[Call, Sequence[int]], list[Launch]]] = {
    f"smartcs::{name}": function
    for function, names in (
        (_add_layer_norm, ("add_layer_norm_fwd", "add_layer_norm_bwd")),
        (_bias_gelu, ("bias_gelu_fwd", "bias_gelu_bwd")),
        (_embedding, ("embedding_fwd", "embedding_bwd")),
        (_attention, ("attention_fwd", "attention_bwd")),
        (_linear, ("linear_bf16_fwd", "linear_bf16_bwd")),
        (_pack, ("pack_weight",)),
        (_noise, ("perturb_noise",)),
        (_step, ("perturb_step",)),
        (_symmetric_kl, ("symmetric_kl_fwd", "symmetric_kl_bwd")),
        (_adamw, ("adamw_step",)),
    )
    for name in names
}
