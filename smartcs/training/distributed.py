"""Several processes train one model, as torchrun starts them: which of them this is, and what they agree on.

Every process ("rank") holds the whole model and takes a slice of each batch; gradients are averaged by torch's
DistributedDataParallel. Whatever decides how the run goes on (is a loss finite, has a signal come) is exchanged, so
that all ranks decide alike and nobody waits for one that has left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")


class PeerError(RuntimeError):
    """Another process of the run has ended; it says why itself."""


class Exchange:
    """Numbers on their way to the other ranks, see `Ranks.exchange`."""

    def __init__(self, ranks: Ranks, numbers: Sequence[float]) -> None:
        self._ranks, self._mine, self._work = ranks, list(numbers), None
        if ranks.size > 1:
            mine = torch.tensor([float(ranks.asked), *numbers], dtype=torch.float64)
            self._all = [torch.empty_like(mine) for _ in range(ranks.size)]
            with noticing():
                self._work = dist.all_gather(self._all, mine, async_op=True)

    def wait(self) -> list[list[float]]:
        """The numbers of every rank, the same list on each."""
        if self._work is None:
            return [self._mine]
        with noticing():
            self._work.wait()
        rows = [row.tolist() for row in self._all]
        if self._ranks.signal is None:
            self._ranks.signal = int(max(row[0] for row in rows)) or None
        return [row[1:] for row in rows]


class Ranks:
    """The processes of a run, and this one's place among them; the default is a process alone.

    Attributes:
        rank: 0 to size - 1; the first writes files and messages.
        size: how many there are.
        asked: number of a signal that has come to this process, or 0; goes to all with the next exchange.
        signal: what any of them had been asked as of the last exchange, so the same on all of them; or None.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.asked = 0
        self.signal: int | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def console(self, console: Console | None) -> Console:
        """Where this process's messages go: the first one's to `console`, stdout if None."""
        if not self.is_first:
            return Console(quiet=True)
        return Console() if console is None else console

    def exchange(self, numbers: Sequence[float] = ()) -> Exchange:
        """Begins to send these numbers to all ranks; every rank must call it, with as many. On the host, whatever the
        device, so nothing waits for a GPU.
        """
        return Exchange(self, numbers)

    def ask_to_stop(self, signal: int) -> None:
        """Notes a signal; alone, a process agrees with itself at once."""
        self.asked = signal
        if self.size == 1:
            self.signal = signal

    def rounds(self, items: Sequence[Result]) -> Iterator[tuple[list[Result], int]]:
        """Deals the items out: per round this rank's one, or none, and how many items are dealt by then.

        Every rank sees as many rounds, and ends each with an exchange, so that all learn of a signal together.
        """
        for begin in range(0, len(items), self.size):
            yield list(items[begin + self.rank : begin + self.rank + 1]), min(begin + self.size, len(items))

    def sum(self, tensor: Tensor) -> Tensor:
        """In place, the sum over all ranks, the same bits on each: added up in their order."""
        if self.size > 1:
            all_of_them = [torch.empty_like(tensor) for _ in range(self.size)]
            with noticing():
                dist.all_gather(all_of_them, tensor)
            tensor.copy_(torch.stack(all_of_them).sum(dim=0))
        return tensor

    def from_first(self, make: Callable[[], Result]) -> Result:
        """What `make` returns on the first rank, on all. It must be picklable; small, it goes by the host.

        Raises:
            PeerError: on the other ranks, where it raised on the first.
        """
        if self.size == 1:
            return make()
        made: list[Any] = [None, False]
        try:
            if self.is_first:
                made = [make(), True]
        finally:
            with noticing():
                dist.broadcast_object_list(made, src=0)
        if not made[1]:
            raise PeerError("the first process of the run could not go on")
        result: Result = made[0]
        return result

    @torch.no_grad()
    def copy_first(self, module: nn.Module) -> None:
        """Gives the module, on all ranks, the first one's parameters and buffers."""
        if self.size > 1:
            with noticing():
                for tensor in (*module.parameters(), *module.buffers()):
                    dist.broadcast(tensor, src=0)

    def averaging(self, module: nn.Module) -> nn.Module:
        """The module, the gradients of whose results' backward pass are the means over all ranks.

        What a pass does not use keeps the gradient it had on every rank, None: other tasks' heads are left alone.
        A word table with `sparse` set has sparse gradients on all ranks, so that only the rows in use are sent.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)


ALONE = Ranks()


def without_averaging(module: object, wanted: bool = True) -> AbstractContextManager[object]:
    """Within the block `module`, of `Ranks.averaging`, only adds this rank's gradients up."""
    return module.no_sync() if wanted and isinstance(module, DistributedDataParallel) else nullcontext()


@contextmanager
def noticing() -> Iterator[None]:
    """Tells the end of another process from this one's own errors."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, PeerError) or not _of_a_peer(error):
            raise
        raise PeerError(f"another process of the run has ended or does not answer: {error}") from error


def _of_a_peer(error: RuntimeError) -> bool:
    """Whether it is torch's about a collective operation; gloo's have no class of their own."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)
