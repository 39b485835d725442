"""End a command with a one-line message after Ctrl-C or SIGTERM."""

import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Generator[None]:
    """Exit with a one-line message and code 130 after Ctrl-C, or code 143 after SIGTERM.

    Both signals raise `KeyboardInterrupt` in the block, so that open files and processes are closed.
    """
    previous = None
    # Only the main thread may set handlers.
    if threading.current_thread() is threading.main_thread():
        previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt as interruption:
        number = int(interruption.args[0]) if interruption.args else signal.SIGINT
        sys.stderr.write(
            "envariant: interrupted; the same command resumes what is stored in its output folder\n"
        )
        sys.exit(128 + number)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _stop(number: int, frame: Any) -> None:
    del frame
    raise KeyboardInterrupt(number)
