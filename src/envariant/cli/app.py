"""Command-line application: one file per command, which imports slow packages such as PyTorch only when run.

Results are written to standard output, progress and remarks to standard error. An invalid input gives one
line and exit code 2; any other exception is a bug and is shown with its traceback.
"""

import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from cyclopts import App, CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from rich.console import Console

from envariant.cli.algorithms import algorithms
from envariant.cli.compare import compare
from envariant.cli.data import data
from envariant.cli.demo import demo
from envariant.cli.predict import predict
from envariant.cli.report import report
from envariant.cli.reproduce import reproduce
from envariant.cli.runs import runs
from envariant.cli.sweep import sweep
from envariant.cli.train import train
from envariant.core.errors import EnvariantError, EnvariantWarning, shortened

app = App(
    name="envariant",
    help="Train models on data from several environments, and measure whether they hold in new ones.",
    version=lambda: version("envariant"),
    help_format="markdown",
)
app.command(demo)
app.command(compare)
app.command(train)
app.command(sweep)
app.command(predict)
app.command(runs)
app.command(report)
app.command(reproduce)
app.command(algorithms)
app.command(data)


@contextmanager
def _remarks_as_lines(errors: Console) -> Generator[None]:
    """Print each distinct `EnvariantWarning` once, as one line on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", EnvariantWarning)
        show_others, printed = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if not issubclass(category, EnvariantWarning):
                show_others(message, category, *place)
            elif str(message) not in printed:
                printed.add(str(message))
                errors.print(f"envariant: {message}", markup=False, style="yellow")

        warnings.showwarning = show
        yield


def _sentence(error: CycloptsError) -> str:
    """Return an error in the syntax of a command line as one sentence that says how to fix it."""
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
    """Run one command; exit with code 2 if the input is invalid and 130 if interrupted.

    Args:
        arguments: Command-line arguments. Default: the arguments of the process.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if "" in words:
            before = [word for word in words[: words.index("")] if word.startswith("-")]
            raise EnvariantError(
                f"{before[-1] if before else 'arguments'}: is empty; give a value or leave it out"
            )
        with _remarks_as_lines(errors):
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except (EnvariantError, CycloptsError) as error:
        message = _sentence(error) if isinstance(error, CycloptsError) else str(error)
        errors.print(f"envariant: {message}", markup=False, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("envariant: interrupted; the same command resumes what is stored in its output folder")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the pipe, such as `head`, has closed it.
        sys.stderr.close()
        sys.exit(0)
