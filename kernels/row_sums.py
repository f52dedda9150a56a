"""Sums of the rows that share a key: the gradient of a table whose rows were looked up, without atomics.

The keys (one per row of x, C channels each) arrive sorted with their order, so equal ones are runs. A row of the result
is the sum over one run; rows whose key does not occur are not touched. Runs may be as short as one row (most words) and
as long as all of x (token types), so they are cut at fixed positions, into pieces of at most `PIECE`:

    1. one program per piece adds up its rows; where the piece is a whole run, that is the result,
    2. otherwise it is kept, and one program per run that was cut adds up the run's pieces.

A span of PIECE positions holds at most one piece that began before it and goes no further than its end (kept as 0), and
one that begins within it and goes on (kept as 1). Nothing depends on timing, so neither does a bit of the result; it
depends on a run's place among the sorted keys, which is where the cuts are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smartcs.ops.random import compute_dtype

from .rows import widened

PIECE = 32


def sum_by_key(tables: list[Tensor], keys: Tensor, order: Tensor, x: Tensor) -> None:
    """Writes row k of table i: the sum of the rows of x with keys[i] = k, for every key that occurs.

    Args:
        tables: 1 to 3 of (rows, C), dtype of x. Keys that are not rows of theirs are left out.
        keys: (len(tables), N) int64, each sorted.
        order: (len(tables), N) int64, the rows of x they belong to.
        x: (N, C), contiguous.
    """
    rows, columns = x.shape
    if rows == 0:
        return
    spans = triton.cdiv(rows, PIECE)
    block = min(256, max(16, triton.next_power_of_2(columns)))
    blocks = triton.cdiv(columns, block)
    kept = torch.empty((len(tables), spans, 2, columns), dtype=compute_dtype(x), device=x.device)
    results = [*tables, *tables[:1] * (3 - len(tables))]
    sizes = [table.shape[0] for table in results]
    shape = *sizes, rows, columns
    options = {"PIECE": PIECE, "ROWS": 8, "COLUMNS": block, "num_warps": 4}
    _pieces_kernel[(rows, blocks, len(tables))](*results, kept, keys, order, x, *shape, **options)
    if spans > 1:
        _join_kernel[(spans - 1, blocks, len(tables))](*results, kept, keys, *shape, **options)


@triton.jit
def _store(total, key, column, columns, table0_ptr, table1_ptr, table2_ptr, size0, size1, size2):
    """A row of this program's table, if the table has it."""
    which = tl.program_id(2)
    table_ptr, size = table0_ptr, size0
    if which == 1:
        table_ptr, size = table1_ptr, size1
    if which == 2:
        table_ptr, size = table2_ptr, size2
    limit = tl.where((key >= 0) & (key < size), columns, 0)
    tl.store(table_ptr + key * columns + column, total.to(table_ptr.dtype.element_ty), mask=column < limit)


@triton.jit(do_not_specialize=["rows", "size0", "size1", "size2"])
def _pieces_kernel(
    table0_ptr,  # (size, C) rows written
    table1_ptr,
    table2_ptr,
    kept_ptr,  # (tables, spans, 2, C) written where a run is cut
    keys_ptr,  # (tables, N) sorted
    order_ptr,  # (tables, N)
    x_ptr,  # (N, C)
    size0,
    size1,
    size2,
    rows,
    columns,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Program (p, c, i): the piece that begins at sorted position p, if one does.
    position = tl.program_id(0)
    which = tl.program_id(2).to(tl.int64)
    keys_ptr += which * rows
    key = tl.load(keys_ptr + position)
    begins = (position == 0) | (tl.load(keys_ptr + tl.maximum(position - 1, 0)) != key)
    if begins | (position % PIECE == 0):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        later = position + tl.arange(0, PIECE)
        inside = (later < rows) & (later // PIECE == position // PIECE)
        length = tl.sum(((tl.load(keys_ptr + later, mask=inside, other=0) == key) & inside).to(tl.int32), axis=0)
        sums = tl.zeros([ROWS, COLUMNS], kept_ptr.dtype.element_ty)
        for first in range(0, length, ROWS):
            step = first + tl.arange(0, ROWS)
            row = tl.load(order_ptr + which * rows + position + step, mask=step < length, other=0)
            wanted = (step < length)[:, None] & (column < columns)[None, :]
            sums += widened(tl.load(x_ptr + row[:, None] * columns + column[None, :], mask=wanted, other=0))
        total = tl.sum(sums, axis=0)
        end = position + length
        goes_on = (end < rows) & (tl.load(keys_ptr + tl.minimum(end, rows - 1)) == key)
        if begins & (goes_on == 0):
            _store(total, key, column, columns, table0_ptr, table1_ptr, table2_ptr, size0, size1, size2)
        else:
            spans = (rows + PIECE - 1) // PIECE
            slot = (which * spans + position // PIECE) * 2 + begins.to(tl.int64)
            tl.store(kept_ptr + slot * columns + column, total, mask=column < columns)


@triton.jit(do_not_specialize=["rows", "size0", "size1", "size2"])
def _join_kernel(
    table0_ptr,  # (size, C) rows written
    table1_ptr,
    table2_ptr,
    kept_ptr,  # (tables, spans, 2, C)
    keys_ptr,  # (tables, N) sorted
    size0,
    size1,
    size2,
    rows,
    columns,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Program (s, c, i): the run that begins in span s and goes on into the next, if one does.
    span = tl.program_id(0)
    which = tl.program_id(2).to(tl.int64)
    keys_ptr += which * rows
    key = tl.load(keys_ptr + (span + 1) * PIECE)
    begins = (span == 0) | (tl.load(keys_ptr + tl.maximum(span * PIECE - 1, 0)) != key)
    if begins & (tl.load(keys_ptr + (span + 1) * PIECE - 1) == key):
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        in_row = column < columns
        spans = (rows + PIECE - 1) // PIECE
        pieces_ptr = kept_ptr + which * spans * 2 * columns + column
        total = tl.load(pieces_ptr + (span * 2 + 1).to(tl.int64) * columns, mask=in_row, other=0)
        sums = tl.zeros([ROWS, COLUMNS], kept_ptr.dtype.element_ty)
        first = span + 1
        going = begins
        while going:
            step = first + tl.arange(0, ROWS)
            same = (step < spans) & (tl.load(keys_ptr + step * PIECE, mask=step < spans, other=0) == key)
            offset = (step * 2).to(tl.int64) * columns
            sums += tl.load(pieces_ptr[None, :] + offset[:, None], mask=same[:, None] & in_row[None, :], other=0)
            going = tl.sum(same.to(tl.int32), axis=0) == ROWS
            first += ROWS
        total += tl.sum(sums, axis=0)
        _store(total, key, column, columns, table0_ptr, table1_ptr, table2_ptr, size0, size1, size2)
