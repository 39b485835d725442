"""Command-line interface: `main` runs the `envariant` command."""

from collections.abc import Sequence

from envariant.cli.interrupts import interruptible
from envariant.core.machine import limit_threads

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one `envariant` command.

    The exit code is 2 for invalid input and for system errors, such as a full disk. It is 130 after Ctrl-C
    and 143 after SIGTERM.

    Args:
        arguments: Command-line arguments. Default: the arguments of the process.
    """
    with interruptible(arguments):
        limit_threads()
        # Imported here, because imports take a while and may be interrupted too.
        from envariant.cli.app import main as run

        run(arguments)
