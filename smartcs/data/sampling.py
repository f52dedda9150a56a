"""Which examples come next: endless shuffled index streams, and the three orders in which tasks take turns.

Everything follows from the seed, and the position is a few integers, so a run can be resumed exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class IndexStream:
    """An endless shuffled stream of the indices 0..size-1: every pass holds each index once.

    The order of a pass follows from (seed, name, number of the pass) alone, so the state is two integers.

    Args:
        name: the task; streams of the same seed and another name are independent.
        size: number of examples, at least 1.
        batch_size: indices per batch, at least 1; may exceed `size`.
        seed: a non-negative integer.

    Raises:
        ValueError: an argument is out of range; names the task.
    """

    def __init__(self, name: str, size: int, batch_size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"{name}: no examples to sample from, expected at least 1")
        if batch_size < 1:
            raise ValueError(f"{name}: batch size is {batch_size}, expected at least 1")
        if seed < 0:
            raise ValueError(f"{name}: seed is {seed}, expected a non-negative integer")
        self.name, self.size, self.batch_size, self.seed = name, size, batch_size, seed
        self._pass = 0
        self._position = 0
        self._order = self._shuffle(0)

    @property
    def batches_per_pass(self) -> int:
        """The fewest batches that give every example at least once."""
        return -(-self.size // self.batch_size)

    def next_batch(self) -> np.ndarray:
        """[batch_size] int64: the next indices; a batch at the end of a pass goes on into the next one."""
        parts = []
        missing = self.batch_size
        while missing:
            if self._position == self.size:
                self._pass += 1
                self._position = 0
                self._order = self._shuffle(self._pass)
            part = self._order[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands, JSON-able: its identity, the pass and the position in it, counted in examples."""
        return {**self._identity(), "pass": self._pass, "position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where the stream of `state` stood, whatever the size of its batches.

        Raises:
            ValueError: the state is of another stream (size or seed), incomplete or impossible.
        """
        identity = self._identity()
        _check_keys(self.name, state, {*identity, "pass", "position"})
        for key, expected in identity.items():
            if state[key] != expected:
                raise ValueError(f"{self.name}: the saved state has {key} {state[key]}, expected {expected}")
        if state["pass"] < 0 or not 0 <= state["position"] <= self.size:
            raise ValueError(
                f"{self.name}: the saved state has pass {state['pass']} and position {state['position']}, "
                f"expected pass 0 or later and position 0 to {self.size}"
            )
        self._pass, self._position = state["pass"], state["position"]
        self._order = self._shuffle(self._pass)

    def _identity(self) -> dict[str, int]:
        return {"size": self.size, "seed": self.seed}

    def _shuffle(self, number: int) -> np.ndarray:
        # crc32 and not hash(): Python salts the hash of strings in every process.
        generator = np.random.default_rng([self.seed, zlib.crc32(self.name.encode()), number])
        return generator.permutation(self.size)


class RoundRobinSampler:
    """One batch of each task in turn; an epoch is a fixed number of cycles.

    Args:
        sizes: number of examples per task; the order of the tasks is the order within a cycle.
        batch_sizes: batch size per task, the same tasks.
        seed: a non-negative integer; equal seeds give equal batches.
        cycles: cycles per epoch; by default the fewest that exhaust the smallest loader, that is the
            minimum over tasks of ceil(size / batch size).

    Raises:
        ValueError: no task, a task without examples or batch size, or a number out of range.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        *,
        seed: int,
        cycles: int | None = None,
    ) -> None:
        kind = type(self).__name__
        if not sizes:
            raise ValueError(f"{kind}: sizes names no task, expected at least one")
        _check_keys(f"{kind}: batch_sizes", batch_sizes, set(sizes))
        if cycles is not None and cycles < 1:
            raise ValueError(f"{kind}: cycles is {cycles}, expected at least 1")
        self._streams = [IndexStream(name, sizes[name], batch_sizes[name], seed) for name in sizes]
        self._seed = seed
        self.cycles = cycles or min(stream.batches_per_pass for stream in self._streams)
        self.epoch = 0
        self._step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, all tasks together."""
        return self.cycles * len(self._streams)

    @property
    def solo_steps(self) -> int:
        """Batches of the largest set alone that an epoch begins with: none."""
        return 0

    @property
    def position(self) -> int:
        """Batches of the present epoch handed out so far."""
        return self._step

    @property
    def epoch_over(self) -> bool:
        """Whether the present epoch has no batch left."""
        return self._step >= self.steps_per_epoch

    def expected_steps(self) -> dict[str, float]:
        """Batches of each task in an epoch."""
        steps = {stream.name: float(self.cycles) for stream in self._streams}
        steps[max(self._streams, key=lambda stream: stream.size).name] += self.solo_steps
        return steps

    def batches(self) -> Iterator[tuple[str, np.ndarray]]:
        """(task, [batch size] int64 indices) until the epoch ends; after `load_state_dict` its remainder.

        The state counts a batch as soon as it is handed out. The epoch ends, and the next one may begin,
        when this iterator is exhausted.
        """
        while self._step < self.steps_per_epoch:
            stream = self._streams[self._next_task(self._step)]
            self._step += 1
            yield stream.name, stream.next_batch()
        self._step = 0
        self.epoch += 1

    def _next_task(self, step: int) -> int:
        """Which task has the batch number `step` (from 0) of this epoch; follows from the arguments alone."""
        return step % len(self._streams)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, JSON-able."""
        return {
            "epoch": self.epoch,
            "step": self._step,
            "cycles": self.cycles,
            "streams": {stream.name: stream.state_dict() for stream in self._streams},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the sampler of `state` stood; `cycles` comes from the state too, batch sizes do not.

        Raises:
            ValueError: the state has other tasks, sizes or another seed, or is incomplete.
        """
        kind = type(self).__name__
        _check_keys(f"{kind}: saved state", state, {"epoch", "step", "cycles", "streams"})
        names = [stream.name for stream in self._streams]
        if list(state["streams"]) != names:
            raise ValueError(
                f"{kind}: the saved state has the tasks {', '.join(state['streams'])}, expected {', '.join(names)}"
            )
        for stream in self._streams:
            stream.load_state_dict(state["streams"][stream.name])
        self.epoch, self._step, self.cycles = state["epoch"], state["step"], state["cycles"]


class AnnealedDeterministicSampler(RoundRobinSampler):
    """The paper's "Stickland" baseline: the largest set alone for some steps, then round robin.

    "We deterministically cycle through the largest dataset (Quora) for a given number of training steps before
    incorporating the other two" (SMARTCS paper, section 5.2). The paper does not give the number. Its epochs take
    twice as long as the baseline's (figure 8), which is about what as many lone QQP batches as cycles give, in each
    epoch: the default.

    Args:
        sizes, batch_sizes, seed, cycles: as for `RoundRobinSampler`.
        solo_steps: batches of the largest set at the beginning of every epoch; as many as cycles when left out.

    Raises:
        ValueError: as `RoundRobinSampler`; also where `solo_steps` is negative.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        *,
        seed: int,
        cycles: int | None = None,
        solo_steps: int | None = None,
    ) -> None:
        super().__init__(sizes, batch_sizes, seed=seed, cycles=cycles)
        if solo_steps is not None and solo_steps < 0:
            raise ValueError(f"AnnealedDeterministicSampler: solo_steps is {solo_steps}, expected at least 0")
        self._solo_steps = solo_steps
        self._largest = max(range(len(self._streams)), key=lambda i: self._streams[i].size)

    @property
    def solo_steps(self) -> int:
        """Batches of the largest set alone that an epoch begins with."""
        return self.cycles if self._solo_steps is None else self._solo_steps

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, all tasks together."""
        return self.solo_steps + super().steps_per_epoch

    def _next_task(self, step: int) -> int:
        return self._largest if step < self.solo_steps else super()._next_task(step - self.solo_steps)


class AnnealedSampler(RoundRobinSampler):
    """Annealed sampling: in epoch e of E every batch is of task i with probability proportional to N_i ** a.

    a = 1 - 0.8 (e - 1) / (E - 1), so that sampling begins in proportion to the sets' sizes N and ends nearly evenly.
    An epoch has as many batches as one of round robin. Source: Stickland & Murray 2019, section 4.1.

    Args:
        sizes, batch_sizes, seed, cycles: as for `RoundRobinSampler`.
        epochs: E. From epoch E on, a stays at its last value; with E = 1 it is 1.

    Raises:
        ValueError: as `RoundRobinSampler`; also where `epochs` is below 1.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        batch_sizes: Mapping[str, int],
        *,
        seed: int,
        cycles: int | None = None,
        epochs: int,
    ) -> None:
        super().__init__(sizes, batch_sizes, seed=seed, cycles=cycles)
        if epochs < 1:
            raise ValueError(f"AnnealedSampler: epochs is {epochs}, expected at least 1")
        self.epochs = epochs
        self._drawn: tuple[int, np.ndarray] = (-1, np.zeros(0))

    @property
    def probabilities(self) -> np.ndarray:
        """[number of tasks] float64: how likely each task is in the current epoch."""
        progress = min(self.epoch, self.epochs - 1) / max(self.epochs - 1, 1)
        weights = np.array([stream.size for stream in self._streams], dtype=np.float64) ** (1 - 0.8 * progress)
        return weights / weights.sum()

    def expected_steps(self) -> dict[str, float]:
        """Batches of each task in the current epoch, on average."""
        names = [stream.name for stream in self._streams]
        return dict(zip(names, (self.probabilities * self.steps_per_epoch).tolist(), strict=True))

    def _next_task(self, step: int) -> int:
        if self._drawn[0] != self.epoch or step >= len(self._drawn[1]):
            generator = np.random.default_rng([self._seed, zlib.crc32(b"annealed"), self.epoch])
            tasks = generator.choice(len(self._streams), size=self.steps_per_epoch, p=self.probabilities)
            self._drawn = (self.epoch, tasks)
        return int(self._drawn[1][step])


def _check_keys(what: str, found: Mapping[str, Any], expected: set[str]) -> None:
    missing, unknown = sorted(expected - set(found)), sorted(set(found) - expected)
    if missing or unknown:
        problem = [f"lacks {', '.join(missing)}"] if missing else []
        problem += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        raise ValueError(f"{what} {' and '.join(problem)}, expected {', '.join(sorted(expected))}")
