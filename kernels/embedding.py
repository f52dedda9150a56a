"""embedding in Triton: word + position + token type, LayerNorm, dropout, one pass over memory in each direction.

    h = word[input_ids] + token_type[token_type_ids] + position[position_ids] (+ perturbation)
    y = m ((h - mean) rstd weight + bias)

    dh = rstd (g - mean(g) - xhat mean(g xhat)),  g = m dy weight,  xhat = (h - mean) rstd
    dperturbation = dh,  dweight = sum of m dy xhat,  dbias = sum of m dy  (over tokens),
    dword[k] = sum of dh over the tokens with word k, and so on

m is dropout's factor. A table's gradient is dense by its schema; of its rows those in use are written by a kernel (see
row_sums.py), the others by one fill with zeros. `embedding_rows` gives the rows in use alone.

An id that is not a row of its table cannot become an IndexError without waiting for the GPU. Nothing is read or written
out of bounds: the token's result is NaN, and the gradient leaves it out.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smartcs.ops.checks import check_device, check_dropout, check_ids
from smartcs.ops.random import compute_dtype

from .layer_norm_row import Tight, dropout_arguments, gradients, keep_factors, normalised, store_statistics, tile_of
from .philox import counted
from .row_sums import sum_by_key
from .rows import as_scalar, check_contiguous, check_operand, check_whole_rows, on_device_of, widened

_OP = "embedding"
_TIGHT: Tight = frozenset({(128, 2, False), (128, 4, False)})


def embedding_fwd(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y and h (T, C), mean and rstd (T,) of ids (T,), tables (rows, C) and parameters (C,)."""
    check_whole_rows(_OP, "word", word)
    tokens, columns = input_ids.numel(), word.shape[1]
    _check_ids(tokens, word, "word", input_ids, token_type_ids, position_ids)
    for name, table in (("token_type", token_type), ("position", position)):
        check_operand(_OP, name, table, (table.shape[0] if table.dim() else 0, columns), word, "word")
    check_operand(_OP, "weight", weight, (columns,), word, "word")
    check_operand(_OP, "bias", bias, (columns,), word, "word")
    if perturbation is not None:
        check_operand(_OP, "perturbation", perturbation, (tokens, columns), word, "the packed tokens and word")
    check_dropout(_OP, dropout_p, seed, stream, counter_offset, word)
    y = word.new_empty((tokens, columns))
    h = torch.empty_like(y)
    mean = torch.empty(tokens, dtype=compute_dtype(word), device=word.device)
    rstd = torch.empty_like(mean)
    if tokens > 0:
        options = tile_of(columns, word.dtype, 1024, _TIGHT)
        with on_device_of(word):
            _forward_kernel[(triton.cdiv(tokens, options["ROWS"]),)](
                y,
                h,
                mean,
                rstd,
                input_ids,
                token_type_ids,
                position_ids,
                word,
                token_type,
                position,
                weight,
                bias,
                word if perturbation is None else perturbation,
                word.shape[0],
                token_type.shape[0],
                position.shape[0],
                tokens,
                columns,
                eps,
                *dropout_arguments(dropout_p, seed, stream, counter_offset),
                PERTURBED=perturbation is not None,
                DROPOUT=dropout_p > 0,
                **options,
            )
    return y, h, mean, rstd


def embedding_bwd(
    grad_y: Tensor,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    words: int,
    token_types: int,
    positions: int,
    dropout_p: float,
    seed: int,
    stream: int,
    need_word: bool,
    need_token_type: bool,
    need_position: bool,
    parameter_grads: bool,
    need_perturbation: bool,
    counter_offset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the tables, weight, bias and perturbation; empty where not asked for."""
    check_whole_rows(_OP, "h", h)
    tokens, columns = h.shape
    _check_ids(tokens, h, "h", input_ids, token_type_ids, position_ids)
    dropout, sums = (dropout_p, seed, stream, counter_offset), 2 if parameter_grads else 0
    grad_h, _, found = gradients(_OP, grad_y, h, mean, rstd, weight, dropout, of_output=True, sums=sums)
    dweight, dbias = found or [h.new_empty(0) for _ in range(2)]
    with on_device_of(h):
        asked = (
            (need_word, words, input_ids),
            (need_token_type, token_types, token_type_ids),
            (need_position, positions, position_ids),
        )
        tables = [h.new_zeros((rows if need else 0, columns)) for need, rows, _ in asked]
        wanted = [(table, ids) for table, (need, _, ids) in zip(tables, asked, strict=True) if need]
        if wanted:
            # Stable: tokens with the same id stay in their order.
            keys, order = torch.sort(torch.stack([ids for _, ids in wanted]), dim=1, stable=True)
            sum_by_key([table for table, _ in wanted], keys, order, grad_h)
    grad_perturbation = grad_h if need_perturbation else h.new_empty((0, columns))
    return tables[0], tables[1], tables[2], dweight, dbias, grad_perturbation


def embedding_rows(grad_h: Tensor, ids: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The ids that occur, ascending, and the sums of their rows of grad_h: the bits of the dense gradient.

    How many they are is the result's shape, so this op waits for the GPU; nothing else here does.
    """
    check_whole_rows(_OP, "grad_h", grad_h)
    check_ids(_OP, "ids", ids, grad_h.shape[:1], "grad_h")
    check_device(_OP, "ids", ids, grad_h, "grad_h")
    with on_device_of(grad_h):
        keys, order = torch.sort(ids, stable=True)
        used, group = torch.unique_consecutive(keys, return_inverse=True)
        if used.numel() > 0:
            # What takes the gradient writes to these rows: they must exist.
            for outside in (row for row in used[[0, -1]].tolist() if not 0 <= row < rows):
                raise IndexError(f"{_OP}: ids contain {outside}, but their table has {rows} rows")
        sums = grad_h.new_empty((used.numel(), grad_h.shape[1]))
        sum_by_key([sums], group[None], order[None], grad_h)
    return used, sums


def _check_ids(tokens: int, like: Tensor, like_name: str, *ids: Tensor) -> None:
    for name, value in zip(("input_ids", "token_type_ids", "position_ids"), ids, strict=True):
        check_ids(_OP, name, value, (tokens,), "the packed tokens (T,)")
        check_device(_OP, name, value, like, like_name)
        check_contiguous(_OP, name, value)


@triton.jit
def _looked_up(table_ptr, ids_ptr, size, row, rows, column, columns, inside):
    """Rows of a table, zero where there is none, and whether there is one."""
    ids = tl.load(ids_ptr + row, mask=row < rows, other=0)
    known = (ids >= 0) & (ids < size)
    values = tl.load(table_ptr + ids[:, None] * columns + column[None, :], mask=inside & known[:, None], other=0)
    return widened(values), known


@triton.jit(do_not_specialize=["rows", "seed", "stream", "threshold"])
def _forward_kernel(
    y_ptr,  # (T, C) written
    h_ptr,  # (T, C) written
    mean_ptr,  # (T,) written
    rstd_ptr,  # (T,) written
    input_ids_ptr,  # (T,)
    token_type_ids_ptr,  # (T,)
    position_ids_ptr,  # (T,)
    word_ptr,  # (words, C)
    token_type_ptr,  # (token_types, C)
    position_ptr,  # (positions, C)
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    perturbation_ptr,  # (T, C)
    words,
    token_types,
    positions,
    rows,
    columns,
    eps: tl.float64,
    seed: tl.int64,
    stream: tl.int64,
    counter_offset_ptr,  # (2,) or None
    threshold: tl.int64,
    scale: tl.float64,
    PERTURBED: tl.constexpr,
    DROPOUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_row = column < columns
    inside = (row < rows)[:, None] & in_row[None, :]
    offset = row[:, None] * columns + column[None, :]
    h, known = _looked_up(word_ptr, input_ids_ptr, words, row, rows, column, columns, inside)
    values, also = _looked_up(token_type_ptr, token_type_ids_ptr, token_types, row, rows, column, columns, inside)
    h, known = h + values, known & also
    values, also = _looked_up(position_ptr, position_ids_ptr, positions, row, rows, column, columns, inside)
    h, known = h + values, known & also
    if PERTURBED:
        h += widened(tl.load(perturbation_ptr + offset, mask=inside, other=0))
    rounded = tl.where(known[:, None], h, float("nan")).to(h_ptr.dtype.element_ty)
    tl.store(h_ptr + offset, rounded, mask=inside)
    h = widened(rounded)  # the backward pass sees the stored h
    y, mean, rstd = normalised(h, inside, weight_ptr, bias_ptr, column, columns, as_scalar(eps, mean_ptr))
    if DROPOUT:
        stream, first_row = counted(stream, counter_offset_ptr, 1)
        y *= keep_factors(first_row + row.to(tl.uint32), seed, stream, threshold, as_scalar(scale, mean_ptr), BLOCK)
    tl.store(y_ptr + offset, y.to(y_ptr.dtype.element_ty), mask=inside)
    store_statistics(mean_ptr, rstd_ptr, mean, rstd, row, rows)
