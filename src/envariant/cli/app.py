"""The command-line application: one file a command, nothing heavy imported before a command runs.

Results go to standard output, progress and remarks to standard error. What a user can mend is one line
and exit code 2; anything else keeps its traceback, because it is a bug.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError
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
from envariant.core.errors import EnvariantError

app = App(
    name="envariant",
    help="Train models on data that comes in environments, and tell honestly whether they hold.",
    version=lambda: version("envariant"),
    help_format="plaintext",
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 if it went well, 2 if the input was wrong, 130 if interrupted."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (EnvariantError, CycloptsError) as error:
        errors.print(f"envariant: {error}", markup=False, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("envariant: interrupted; what --out has stored goes on with the same command")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough.
        sys.stderr.close()
        sys.exit(0)
