"""Random numbers from counters: Philox 4x32-10, the same bits on every backend, device and thread count.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

A random matrix is named by ``(seed, stream)`` and element ``(row, column)`` of it is a pure function of the four: it
does not depend on the matrix's size, on the order of evaluation or on what was drawn before. In blocks of 64 columns,
column ``64 b + 16 w + l`` (w < 4, l < 16) is word ``w`` of the Philox output for

    counter = (16 b + l, row, low 32 bits of stream, high 32 bits),  key = (low 32 bits of seed, high 32 bits).

Streams and rows may be counted from elsewhere: a ``counter_offset``, int64 of shape (2,), is read on the device when an
op runs. Its first number is added to the stream, modulo 2**64: what is recorded once and run again, a CUDA graph, draws
other numbers each time. Its second, 0 <= r < 2**32, is how many tokens (in a task's head: examples) come before the
op's first, so that a part of a batch draws what it would within the whole. It is added to the row; where a token has
several rows, as it has H in attention, r times as many are. Rows are modulo 2**32.

(The order suits vector units: 16 neighbouring counters give 64 neighbouring columns without a shuffle.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_STREAM_BITS = 16  # sites per step, see DropoutKey.stream
_STEPS = 2**40  # further passes of a step count on from here, see DropoutKey.another


@dataclass(frozen=True)
class DropoutKey:
    """Names all dropout masks of one forward pass: the same key gives the same masks.

    Args:
        seed: The run's seed, 0 <= seed < 2**63.
        step: Counts forward passes, 0 <= step < 2**47. Passes that should share their masks share the step.
        counter_offset: (3,) int64 on the network's device, see the module: what is added to every stream, to the number
            of every token and of every example. `offset_of(step)` with step 0 here is that step.
    """

    seed: int
    step: int
    counter_offset: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"DropoutKey: seed is {self.seed}, expected 0 <= seed < 2**63")
        if not 0 <= self.step < 2 ** (63 - _STREAM_BITS):
            raise ValueError(f"DropoutKey: step is {self.step}, expected 0 <= step < 2**{63 - _STREAM_BITS}")
        offset = self.counter_offset
        if offset is not None and (offset.dtype != torch.int64 or offset.shape != (3,)):
            got = f"{offset.dtype} of shape {tuple(offset.shape)}"
            raise ValueError(f"DropoutKey: counter_offset is {got}, expected int64 of shape (3,)")

    @property
    def token_offset(self) -> Tensor | None:
        """The `counter_offset` of what has rows of tokens: the encoder, and SMART's noise."""
        return None if self.counter_offset is None else self.counter_offset[:2]

    @property
    def example_offset(self) -> Tensor | None:
        """The `counter_offset` of what has a row per sentence or pair: the heads."""
        return None if self.counter_offset is None else self.counter_offset[::2]

    def stream(self, site: int) -> int:
        """The stream of one place in the network where dropout is applied, 0 <= site < 2**16."""
        if not 0 <= site < 2**_STREAM_BITS:
            raise ValueError(f"DropoutKey.stream: site is {site}, expected 0 <= site < 2**{_STREAM_BITS}")
        return (self.step << _STREAM_BITS) | site

    def another(self, number: int) -> "DropoutKey":
        """The key of a further pass of the same step with masks of its own, 1 <= number < 2**7; step below 2**40."""
        if not 1 <= number < 2**7 or self.step >= _STEPS:
            raise ValueError(
                f"DropoutKey.another: number is {number} at step {self.step}, expected 1 <= number < 2**7 and "
                f"step < 2**{_STEPS.bit_length() - 1}"
            )
        return DropoutKey(self.seed, self.step + number * _STEPS, self.counter_offset)

    @staticmethod
    def offset_of(step: int, first_token: int = 0, first_example: int = 0) -> tuple[int, int, int]:
        """What a `counter_offset` must hold so that a key of step 0 is one of this step.

        Its batch then is the part of a larger one that begins at these, counted in what the encoder reads.
        """
        return step << _STREAM_BITS, first_token, first_example

    @staticmethod
    def draw() -> "DropoutKey":
        """A fresh key from torch's default generator, so that ``torch.manual_seed`` governs it."""
        seed, step = torch.randint(0, _STEPS, (2,), dtype=torch.int64).tolist()
        return DropoutKey(seed=seed, step=step)


def philox_4x32(counter: tuple[Tensor, ...], key: tuple[int, int], rounds: int = 10) -> tuple[Tensor, ...]:
    """Philox 4x32 on four broadcastable int64 tensors of values in [0, 2**32); returns four such tensors.

    int64 is torch's widest integer; a product of two 32-bit values wraps in it as unsigned arithmetic would, and the
    mask after the shift removes the sign.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((product1 >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((product0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = product1 & _MASK, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_bits(
    rows: Tensor,
    columns: int,
    *,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
    rows_each: int = 1,
) -> Tensor:
    """32 random bits for each element of the given rows.

    Args:
        rows: (N,) int64 row numbers, 0 <= row < 2**32; they need not be consecutive.
        columns: Number of columns, starting at column 0.
        counter_offset: (2,), see the module.
        rows_each: How many rows there are of each of what the second of these counts.

    Returns:
        (N, columns) int64 on ``rows.device``, values in [0, 2**32).
    """
    blocks = (columns + 63) // 64
    counters = torch.arange(blocks * 16, dtype=torch.int64, device=rows.device)
    number = torch.full_like(rows, stream)
    if counter_offset is not None:
        number = number + counter_offset[0]
        rows = (rows + counter_offset[1] * rows_each) & _MASK
    words = philox_4x32(
        (
            counters.expand(rows.numel(), -1),
            rows.reshape(-1, 1),
            (number & _MASK).reshape(-1, 1),
            ((number >> 32) & _MASK).reshape(-1, 1),
        ),
        (seed & _MASK, seed >> 32),
    )
    by_block = [word.reshape(rows.numel(), blocks, 1, 16) for word in words]
    return torch.cat(by_block, dim=2).reshape(rows.numel(), blocks * 64)[:, :columns]


def drop_threshold(p: float) -> int:
    """Dropout drops what has bits below this: p as a multiple of 2**-32, but never 0 or 1."""
    return min(max(round(p * 2**32), 1), 2**32 - 1)


def keep_factors(
    rows: Tensor,
    columns: int,
    p: float,
    *,
    seed: int,
    stream: int,
    counter_offset: Tensor | None = None,
    rows_each: int = 1,
    dtype: torch.dtype,
) -> Tensor:
    """Inverted dropout's factors: 1 / (1 - p) with probability 1 - p, else 0. Shape (N, columns), 0 < p < 1."""
    bits = random_bits(rows, columns, seed=seed, stream=stream, counter_offset=counter_offset, rows_each=rows_each)
    return (bits >= drop_threshold(p)).to(dtype) * (1.0 / (1.0 - p))


def dropout(x: Tensor, p: float, *, seed: int, stream: int, counter_offset: Tensor | None = None) -> Tensor:
    """Inverted dropout on x of shape (N, C), row n and column c keyed as above; x itself where p is 0."""
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p is {p}, expected 0 <= p < 1")
    if p == 0:
        return x
    rows = torch.arange(x.shape[0], dtype=torch.int64, device=x.device)
    factors = keep_factors(
        rows, x.shape[1], p, seed=seed, stream=stream, counter_offset=counter_offset, dtype=compute_dtype(x)
    )
    return x * factors.to(x.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What statistics and sums of x are computed in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
