"""The counter-based random numbers of ``smartcs.ops.random`` in Triton: Philox 4x32-10, the same bits.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

One evaluation of the generator, counter c of a row, gives the bits of four columns: word w of it, w < 4, belongs to

    column 64 b + 16 w + l,  where c = 16 b + l, l < 16.

A kernel that wants its columns in ascending order has to move words between threads, or to evaluate the generator once
per column and throw three words away. Few need that order: a softmax, a sum or a mean is the same in any. They take
the columns as the generator gives them, position t being word t % 4 of counter t // 4:

    position t  is  column 64 (t // 64) + 16 (t % 4) + (t % 64) // 4

so that 64 positions from a multiple of 64 are the 64 columns from there. `column_at` is this map, and
`bits_in_order` draws for consecutive positions.
"""

import triton
import triton.language as tl


@triton.jit
def philox_4x32(c0, c1, c2, c3, k0, k1):
    """The four words of the counter (c0, c1, c2, c3) under the key (k0, k1), all uint32 and broadcast together."""
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        low0, low1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def counted(stream, offset_ptr, rows_each):
    """The numbers of a stream and of its first row, by what is in device memory, if anything is."""
    first = 0
    if offset_ptr is not None:
        stream += tl.load(offset_ptr)
        first = tl.load(offset_ptr + 1).to(tl.uint32) * rows_each
    return stream, first


@triton.jit
def random_words(row, counter, seed, stream):
    """The four words of `counter` of `row`, which are broadcast together; seed and stream are integers."""
    # Widened first: a shift by 32 of the 32-bit integer that a small seed arrives as is undefined.
    seed, stream = seed.to(tl.uint64), stream.to(tl.uint64)
    # In the shape of all words from the start: products of the generator are of two of its words each.
    zero = row.to(tl.uint32) * 0 + counter.to(tl.uint32) * 0
    return philox_4x32(
        counter.to(tl.uint32) + zero,
        row.to(tl.uint32) + zero,
        stream.to(tl.uint32) + zero,
        (stream >> 32).to(tl.uint32) + zero,
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def column_at(position):
    """The column whose bits `bits_in_order` gives at a position."""
    return position // 64 * 64 + position % 4 * 16 + position % 64 // 4


@triton.jit
def positions(columns):
    """How many positions from 0 on hold all of the first `columns` columns: never fewer than there are."""
    return columns // 64 * 64 + tl.minimum(columns % 64 * 4, 64)


@triton.jit
def bits_in_order(rows, first, seed, stream, COUNT: tl.constexpr):
    """Bits of rows (N,) at positions first to first + COUNT - 1: (N, COUNT) uint32.

    first is a multiple of 4, COUNT a power of two of at least 4.
    """
    counters = first // 4 + tl.arange(0, COUNT // 4)
    w0, w1, w2, w3 = random_words(rows[:, None], counters[None, :], seed, stream)
    # The last two axes are words 0 1 / 2 3: neighbours in registers, so that flattening them moves nothing.
    return tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(rows.shape[0], COUNT)
