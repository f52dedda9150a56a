"""Ctrl-C and SIGTERM as a request to stop soon instead of an exception anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from smartcs.training.distributed import Ranks


class StopRequest:
    """Whether a signal has asked to stop, and which: of several ranks, any of them as of their last exchange.

    Args:
        ranks: the processes that stop together.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks = Ranks() if ranks is None else ranks

    @property
    def signal(self) -> int | None:
        """The signal's number."""
        return self._ranks.signal

    def ask(self, number: int) -> None:
        """Asks to stop, as the signal of this number does."""
        self._ranks.ask_to_stop(number)

    def __bool__(self) -> bool:
        return self.signal is not None


class Stopped(Exception):
    """A signal has asked to stop; raised by a run for itself, to leave its loops."""


@contextmanager
def stop_on_signals(ranks: Ranks | None = None) -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM sets the request; a second one acts as it did before.

    Of several `ranks` every one gets the signal, some more than once: by itself, and by torchrun, which also ends in
    half a minute what does not. They ignore the second.

    A signal that is ignored stays ignored (a background job's SIGINT). Outside the main thread, where Python cannot
    handle signals, nothing is changed and nothing requested.
    """
    request = StopRequest(ranks)
    alone = ranks is None or ranks.size == 1
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        request.ask(number)
        if alone:
            restore()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
