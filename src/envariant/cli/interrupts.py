"""End a command with a one-line message after Ctrl-C or SIGTERM."""

import signal
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

# Commands that store what they have completed, so that the same command resumes.
_RESUMING = ("train", "sweep", "compare", "reproduce", "demo")


@contextmanager
def interruptible(arguments: Sequence[str] | None = None) -> Generator[None]:
    """Exit with a one-line message and code 130 after Ctrl-C, or code 143 after SIGTERM.

    Both signals raise `KeyboardInterrupt` inside the `with` block, so that open files and processes are
    closed.

    Args:
        arguments: Command-line arguments, the command first. Default: the arguments of the process.
    """
    previous = None
    # Only the main thread may set handlers.
    if threading.current_thread() is threading.main_thread():
        previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt as interruption:
        number = int(interruption.args[0]) if interruption.args else signal.SIGINT
        command = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        resumes = "; repeat the command to resume from the results in its output folder"
        sys.stderr.write(f"envariant: interrupted{resumes if command in _RESUMING else ''}\n")
        sys.exit(128 + number)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _stop(number: int, frame: Any) -> None:
    del frame
    raise KeyboardInterrupt(number)
