"""embedding: word + position + token type, LayerNorm, dropout.

    h = word[input_ids] + token_type[token_type_ids] + position[position_ids] (+ perturbation)
    y = m * ((h - mean) * rstd * weight + bias)

m is the dropout factor (0 with probability p, else 1 / (1 - p)), mean and rstd as in ``add_layer_norm``. Backward:
LayerNorm's with dy replaced by m * dy gives dh, which is the gradient of the perturbation; each table's gradient is dh
added up over the tokens that used a row, in their order.

Source: Devlin et al. 2018; perturbing the embeddings is SMART's (Jiang et al. 2019, arXiv 1911.03437). The mask is that
of ``smartcs.ops.random``: row = token, column = channel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import random
from .autograd import once_differentiable, parameter
from .backend import use_fused
from .checks import check_device, check_dropout, check_float, check_ids, check_like, check_number, check_tensor


def embedding(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    perturbation: Tensor | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int = 0,
    stream: int = 0,
    counter_offset: Tensor | None = None,
    sparse: bool = False,
) -> Tensor:
    """BERT's embedding layer on packed tokens.

    Args:
        input_ids, token_type_ids, position_ids: (T,) int64, rows of the three tables.
        word, token_type, position: (rows, C) tables, float32, float64 or bfloat16 (any floating dtype on the
            reference).
        weight, bias: (C,), LayerNorm's gain and shift.
        perturbation: (T, C) or None, added before LayerNorm; dtype and device of word.
        eps: Added to the variance.
        dropout_p: Probability of dropping an element of the result, 0 <= dropout_p < 1.
        seed, stream, counter_offset: Name the dropout mask, see ``smartcs.ops.random``.
        sparse: The gradient of word becomes a sparse COO tensor of the rows in use, ascending and without repetition on
            the fused backend, so that nothing of the table's size is written. It equals the dense one to the last bit.
            For word tables that are leaves of the graph; not within torch.compile, where it is dense all the same.

    Returns:
        (T, C), dtype of word.

    Raises:
        ValueError: a shape, device, dropout probability or eps is wrong.
        TypeError: ids are not int64, tables not floating point, or dtypes differ.
        IndexError: an id is not a row of its table.
    """
    check_float("embedding", "word", word)
    if word.dim() != 2 or word.shape[1] == 0:
        raise ValueError(f"embedding: word has shape {tuple(word.shape)}, expected (rows, C) with C > 0")
    columns = word.shape[1]
    check_tensor("embedding", "input_ids", input_ids)
    check_ids("embedding", "input_ids", input_ids, (input_ids.numel(),), "the packed tokens (T,)")
    for name, ids in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        check_ids("embedding", name, ids, input_ids.shape, "input_ids")
    for name, ids in (("input_ids", input_ids), ("token_type_ids", token_type_ids), ("position_ids", position_ids)):
        check_device("embedding", name, ids, word, "word")
    for name, table in (("token_type", token_type), ("position", position)):
        check_float("embedding", name, table)
        if table.dim() != 2 or table.shape[1] != columns:
            raise ValueError(
                f"embedding: {name} has shape {tuple(table.shape)}, expected (rows, {columns}) to match word"
            )
        check_like("embedding", name, table, table.shape, word, "word")
    check_like("embedding", "weight", weight, (columns,), word, "word")
    check_like("embedding", "bias", bias, (columns,), word, "word")
    if perturbation is not None:
        shape = (input_ids.shape[0], columns)
        check_like("embedding", "perturbation", perturbation, shape, word, "the packed tokens and word")
    check_number("embedding", "eps", eps)
    if not eps >= 0:
        raise ValueError(f"embedding: eps is {eps}, expected eps >= 0")
    check_dropout("embedding", dropout_p, seed, stream, counter_offset, word)
    sparse = sparse and not torch.compiler.is_compiling()
    implementation = _Embedding.apply if use_fused("embedding", word) else embedding_reference
    tables = parameter(word), parameter(token_type), parameter(position)
    tensors = input_ids, token_type_ids, position_ids, *tables, parameter(weight), parameter(bias)
    return implementation(*tensors, perturbation, eps, dropout_p, seed, stream, counter_offset, sparse)


def embedding_reference(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    token_type: Tensor,
    position: Tensor,
    weight: Tensor,
    bias: Tensor,
    perturbation: Tensor | None,
    eps: float,
    dropout_p: float,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
    sparse: bool = False,
) -> Tensor:
    """The formulas in plain PyTorch."""
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_rows("input_ids", input_ids, word)
        _check_rows("token_type_ids", token_type_ids, token_type)
        _check_rows("position_ids", position_ids, position)
    dtype = random.compute_dtype(word)
    h = F.embedding(input_ids, word, sparse=sparse).to(dtype)
    h = h + F.embedding(token_type_ids, token_type).to(dtype) + F.embedding(position_ids, position).to(dtype)
    if perturbation is not None:
        h = h + perturbation.to(dtype)
    y = F.layer_norm(h, h.shape[-1:], weight.to(dtype), bias.to(dtype), eps)
    return random.dropout(y, dropout_p, seed=seed, stream=stream, counter_offset=counter_offset).to(word.dtype)


def _check_rows(name: str, ids: Tensor, table: Tensor) -> None:
    outside = ((ids < 0) | (ids >= table.shape[0])).nonzero()
    if outside.numel() > 0:
        t = int(outside[0])
        raise IndexError(f"embedding: {name}[{t}] is {int(ids[t])}, but its table has {table.shape[0]} rows")


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        word: Tensor,
        token_type: Tensor,
        position: Tensor,
        weight: Tensor,
        bias: Tensor,
        perturbation: Tensor | None,
        eps: float,
        dropout_p: float,
        seed: int,
        stream: int,
        counter_offset: Tensor | None,
        sparse: bool,
    ) -> Tensor:
        ids = [i.contiguous() for i in (input_ids, token_type_ids, position_ids)]
        tensors = [t.contiguous() for t in (word, token_type, position, weight, bias)]
        moved = None if perturbation is None else perturbation.contiguous()
        y, h, mean, rstd = torch.ops.smartcs.embedding_fwd(
            *ids, *tensors, moved, eps, dropout_p, seed, stream, counter_offset
        )
        ctx.save_for_backward(*ids, h, mean, rstd, tensors[3])
        ctx.rows = (word.shape[0], token_type.shape[0], position.shape[0])
        ctx.dropout, ctx.counter_offset = (dropout_p, seed, stream), counter_offset
        ctx.sparse = sparse
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *ids, h, mean, rstd, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:9]
        # A sparse gradient is made of dh, which is the perturbation's.
        rows_only = ctx.sparse and wanted[0]
        needs = wanted[0] and not rows_only, *wanted[1:3], wanted[3] or wanted[4], wanted[5] or rows_only
        grads = torch.ops.smartcs.embedding_bwd(
            grad_y.contiguous(), *ids, h, mean, rstd, weight, *ctx.rows, *ctx.dropout, *needs, ctx.counter_offset
        )
        used = [grad if need else None for grad, need in zip(grads, wanted, strict=True)]
        if rows_only:
            rows, sums = torch.ops.smartcs.embedding_rows(grads[5], ids[0], ctx.rows[0])
            size = ctx.rows[0], sums.shape[1]
            used[0] = torch.sparse_coo_tensor(rows[None], sums, size, is_coalesced=True, check_invariants=False)
        return None, None, None, *used, *(None,) * 6


def register_fakes() -> None:
    """Shapes and dtypes of the raw ops' results, for torch.compile and opcheck."""

    @torch.library.register_fake("smartcs::embedding_fwd")
    def _(input_ids, types, positions, word, type_table, position_table, weight, bias, *rest):  # type: ignore[no-untyped-def]
        y = word.new_empty((input_ids.shape[0], word.shape[1]))
        stats = word.new_empty(input_ids.shape[0], dtype=random.compute_dtype(word))
        return y, torch.empty_like(y), stats, torch.empty_like(stats)

    @torch.library.register_fake("smartcs::embedding_bwd")
    def _(dy, ids, types, positions, h, mean, rstd, weight, *rest):  # type: ignore[no-untyped-def]
        rows, needed, parameter_grads, need_perturbation = rest[:3], rest[6:9], rest[9], rest[10]
        tables = [h.new_empty((n if need else 0, h.shape[1])) for n, need in zip(rows, needed, strict=True)]
        norm = [h.new_empty(h.shape[1] if parameter_grads else 0) for _ in range(2)]
        return *tables, *norm, h.new_empty((h.shape[0] if need_perturbation else 0, h.shape[1]))

    @torch.library.register_fake("smartcs::embedding_rows")
    def _(grad_h, ids, rows):  # type: ignore[no-untyped-def]
        used = torch.library.get_ctx().new_dynamic_size()
        return ids.new_empty(used), grad_h.new_empty((used, grad_h.shape[1]))
