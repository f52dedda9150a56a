"""Making the next items of an iterator in a background thread while the present one is used."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")

_LOOK = 1.0  # seconds between two looks at whether the thread is alive


class WorkerError(RuntimeError):
    """The thread that makes the items has been ended from outside."""


class Prefetcher(Iterator[Item], Generic[Item]):
    """The items of an iterable in its own order, each made in a background thread before it is asked for.

    An error of the iterable is raised where its item would have come, after all items before it. The thread ends with
    the iterable, when `close` is called, when the prefetcher is dropped, and when the process ends. It shares
    the cores with the threads that compute, as do threads that making an item starts: numpy's indexing starts none,
    tokenizers encode a batch on all cores unless TOKENIZERS_PARALLELISM=false or RAYON_NUM_THREADS limits them.

    Args:
        items: what is iterated in the thread, and nowhere else from now on.
        ahead: items that may be ready or in the making, at least 1; this bounds their memory.

    Raises:
        ValueError: `ahead` is out of range.
        RuntimeError: the next item is asked for in a fork of the process, where the thread is not.
        WorkerError: the next item is asked for and will not come.
    """

    def __init__(self, items: Iterable[Item], ahead: int = 2) -> None:
        if ahead < 1:
            raise ValueError(f"Prefetcher: ahead is {ahead}, expected at least 1")
        self._ready: SimpleQueue[tuple[Item] | BaseException] = SimpleQueue()
        # A semaphore, in C: the threading module's costs more than making a small batch.
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(ahead):
            self._room.put(None)
        stop = threading.Event()
        # Not a method: a thread that held the prefetcher would keep it from ever being dropped. A daemon: the process
        # waits for other threads before it gives finalizers their turn.
        thread = threading.Thread(
            target=_make, args=(items, self._ready, self._room, stop), name="smartcs-prefetch", daemon=True
        )
        thread.start()
        self._process, self._thread = os.getpid(), thread
        self._finalizer = weakref.finalize(self, _end, thread, self._room, stop)

    def __next__(self) -> Item:
        if not self._finalizer.alive:
            raise StopIteration
        if os.getpid() != self._process:
            raise RuntimeError(
                f"Prefetcher: its thread is in process {self._process}, expected no call from {os.getpid()}, a fork"
            )
        item = self._wait()
        if isinstance(item, tuple):
            self._room.put(None)
            return item[0]
        self.close()
        if not isinstance(item, Exception):  # SystemExit or the like, which is not this thread's
            raise WorkerError(f"the thread that prepares batches has been ended by {type(item).__name__}") from item
        raise item

    def _wait(self) -> tuple[Item] | BaseException:
        while True:
            try:
                return self._ready.get(timeout=_LOOK)
            except Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    return WorkerError("the thread that prepares batches has died")

    def close(self) -> None:
        """Stops the thread and waits for it; there are no more items then. May be called again."""
        self._finalizer()


def _make(
    items: Iterable[Item],
    ready: SimpleQueue[tuple[Item] | BaseException],
    room: SimpleQueue[None],
    stop: threading.Event,
) -> None:
    try:
        iterator = iter(items)
        while True:
            room.get()
            if stop.is_set():
                return
            ready.put((next(iterator),))
    except BaseException as error:  # StopIteration among them
        ready.put(error)


def _end(thread: threading.Thread, room: SimpleQueue[None], stop: threading.Event) -> None:
    stop.set()
    room.put(None)
    if thread is not threading.current_thread():  # which may drop the last reference
        thread.join()
