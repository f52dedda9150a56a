"""Ctrl-C and SIGTERM as a request to stop soon instead of an exception anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether a signal has asked to stop, and which."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


class Stopped(Exception):
    """A signal has asked to stop; raised by a run for itself, to leave its loops."""


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block the first SIGINT or SIGTERM sets the request; a second one acts as it did before.

    A signal that is ignored stays ignored (a background job's SIGINT). Outside the main thread, where Python cannot
    handle signals, nothing is changed and nothing requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    previous = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
