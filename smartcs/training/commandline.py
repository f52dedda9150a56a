"""What the commands share: errors as one line on stderr, and exit codes.

0: done. 1: training diverged, memory ran out, or reading or writing failed on the way. 2: something the user gave
cannot be used. 128 + signal number (130 for Ctrl-C): stopped, results so far are saved.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from smartcs._interrupt import INTERRUPTED, interrupt_as_usual
from smartcs.data.examples import DataError
from smartcs.data.prefetch import WorkerError
from smartcs.model.files import CheckpointError, ModelSourceError, first_line
from smartcs.training.distributed import PeerError
from smartcs.training.out_of_memory import OutOfMemory, is_out_of_memory
from smartcs.training.skipping import NonFiniteLossError


def run_command(command: Callable[[], int]) -> None:
    """Runs a command and exits with its code; the errors that users can cause end without a traceback."""
    warnings.showwarning = _show_warning
    interrupt_as_usual()
    try:
        code = command()
        sys.stdout.flush()
    except (DataError, CheckpointError, ModelSourceError, FileExistsError, PermissionError, UsageError) as error:
        code = _report(error, 2)
    except BrokenPipeError:
        code = 1  # the reader of a pipe, such as head, has seen enough
    except (NonFiniteLossError, OSError, OutOfMemory, PeerError, WorkerError) as error:
        code = _report(error, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        code = _report(f"out of memory ({first_line(error)})", 1)
    except KeyboardInterrupt:
        code = _report("interrupted", INTERRUPTED)
    try:
        sys.stdout.flush()
    except OSError:
        # What cannot be written has been reported; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


class UsageError(ValueError):
    """Arguments that do not make sense, alone or together."""


def _report(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)
