"""Ctrl-C while a command is still importing: one line and exit code 130, as later, instead of a traceback."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT


def end_on_interrupt() -> None:
    """Makes Ctrl-C end the process at once if it is ``python -m smartcs.COMMAND`` that imports smartcs."""
    # Python calls the program "-m" until it has imported the packages around the command's module.
    starting = sys.argv[:1] == ["-m"] and any(word.startswith("smartcs.") for word in sys.orig_argv)
    if starting and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def interrupt_as_usual() -> None:
    """Undoes `end_on_interrupt`: from here on Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    # Nothing has been done yet that would have to be undone.
    os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)
