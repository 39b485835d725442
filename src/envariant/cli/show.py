"""Print the results of commands as tables and text."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from envariant.core.console import SafeConsole
from envariant.reporting import tables
from envariant.reporting.labels import title, verdict
from envariant.reporting.tables import TextTable
from envariant.training.result import TrainingResult


def print_table(table: TextTable) -> None:
    """Print a table and its notes on standard output."""
    console = _console()
    layout = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(table.header):
        layout.add_column(name, justify="right" if column else "left", overflow="fold")
    for row in table.rows:
        layout.add_row(*row)
    console.print(layout)
    for note in table.notes:
        console.print(note, style="dim")


def print_result(result: TrainingResult, out: Path | None) -> None:
    """Print the scores, verdict, failures, diagnoses and folder of one run."""
    print_table(tables.scores([result]))
    console = _console()
    console.print(f"\n{title(result)}: {verdict(result)}")
    for replica, reason in result.failures.items():
        console.print(f"replica {replica} stopped: {reason}", style="red")
    for replica, reason in result.stopped.items():
        console.print(f"replica {replica} {reason}", style="dim")
    if weights := result.kept_steps:
        console.print(f"weights: replica {weights}", style="dim")
    for diagnosis in result.diagnoses:
        console.print(str(diagnosis), style="yellow")
    settings = result.record.spec
    console.print(
        f"{settings.model}, {settings.steps} steps, {settings.precision}, {_execution(result)}"
        f"{result.seconds:.1f} s" + (f"; stored in {out}" if out else ""),
        style="dim",
    )


def exit_code(results: Sequence[TrainingResult]) -> int:
    """Return the exit code of a command: 1 if a run has no finished replica, else 0."""
    return 0 if all(result.finished for result in results) else 1


def _console() -> SafeConsole:
    # A pipe has no width; 160 columns avoid line breaks within table rows.
    width = None if sys.stdout.isatty() else 160
    return SafeConsole(width=width, soft_wrap=False)


def _execution(result: TrainingResult) -> str:
    execution = result.record.execution
    return f"stacks of {execution.group}, " if execution.mode == "stacked" else ""
