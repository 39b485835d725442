"""Command-line application, with one file per command.

Commands import slow packages such as PyTorch only when they run. Results are written to standard output;
progress and remarks are written to standard error. Invalid input is reported in one line, with exit code 2.
Any other exception is a bug and is shown with its traceback.
"""

import os
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from envariant.cli.adapt import adapt
from envariant.cli.algorithms import algorithms
from envariant.cli.compare import compare
from envariant.cli.data import data
from envariant.cli.demo import demo
from envariant.cli.evaluate import evaluate
from envariant.cli.predict import predict
from envariant.cli.report import report
from envariant.cli.reproduce import reproduce
from envariant.cli.runs import runs
from envariant.cli.soup import soup
from envariant.cli.sweep import sweep
from envariant.cli.train import train
from envariant.core.console import SafeConsole, safe_output
from envariant.core.errors import EnvariantError, EnvariantWarning, shortened

app = App(
    name="envariant",
    help="Train models on data from several environments, and measure whether they hold in new ones.",
    version=lambda: version("envariant"),
    help_format="markdown",
    # An interruption ends the command with a line that says how to resume (`envariant.cli.main`).
    suppress_keyboard_interrupt=False,
)
app.command(demo)
app.command(compare)
app.command(train)
app.command(sweep)
app.command(soup)
app.command(evaluate)
app.command(predict)
app.command(adapt)
app.command(runs)
app.command(report)
app.command(reproduce)
app.command(algorithms)
app.command(data)


@contextmanager
def _remarks_as_lines(errors: SafeConsole) -> Generator[None]:
    """Print each distinct `EnvariantWarning` once, as one line on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", EnvariantWarning)
        show_others, printed = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, EnvariantWarning):
                show_others(message, category, *place)
            elif str(message) not in printed:
                printed.add(str(message))
                errors.print(f"envariant: {message}", style="yellow")

        warnings.showwarning = show
        yield


def _sentence(error: CycloptsError) -> str:
    """Convert an error in the command's syntax to one sentence that says how to fix it."""
    command = " ".join(("envariant", *(error.command_chain or ())))
    match error:
        case UnusedCliTokensError(unused_tokens=[first, *_]):
            return f"unexpected argument '{shortened(first)}'; {command} --help lists the arguments"
        case RepeatArgumentError():
            return f"{error.token.keyword} is given twice; give it once"
        case MissingArgumentError(argument=argument) if argument is not None:
            name = error.keyword or next((t.keyword for t in argument.tokens if t.keyword), argument.name)
            return f"{name}: needs a value; see {command} --help"
        case UnknownOptionError():
            return f"{shortened(str(error), 200).rstrip('.')}; {command} --help lists the options"
        case CoercionError(token=token, argument=argument) if isinstance(error.__cause__, EnvariantError):
            # Raised by a converter of `options`.
            name = (token and token.keyword) or (argument.name.lstrip("-").upper() if argument else "value")
            return f"{name}: {error.__cause__}"
        case _:
            return shortened(str(error), 300)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with code 2 if the input is invalid or there is a system error.

    Args:
        arguments: Command-line arguments. Default: the arguments of the process.
    """
    errors = SafeConsole(stderr=True, soft_wrap=True)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _check_working_directory()
        if "" in words:
            before = [word for word in words[: words.index("")] if word.startswith("-")]
            raise EnvariantError(
                f"{before[-1]}: its value is empty; give a value or omit the option"
                if before
                else "arguments: one argument is empty; give it a value or remove it"
            )
        with safe_output(), _remarks_as_lines(errors):
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
    except (EnvariantError, CycloptsError) as error:
        message = _sentence(error) if isinstance(error, CycloptsError) else str(error)
        errors.print(f"envariant: {message}", style="red")
        sys.exit(2)
    except BrokenPipeError:
        # The reader of the pipe, such as `head`, has closed it.
        _discard_output()
        sys.exit(0)
    except OSError as error:
        reason = error.strerror or str(error)
        place = error.filename if error.filename is not None else "output"
        problem = EnvariantError(f"{place}: {reason}; check the disk and its free space")
        errors.print(f"envariant: {problem}", style="red")
        _discard_output()
        sys.exit(2)


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise EnvariantError("the working directory was deleted; change to another folder") from None


def _discard_output() -> None:
    """Discard output that cannot be written; otherwise, Python would try to write it at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
