"""How results look on a terminal: tables for people, one JSON object for programs."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from envariant.reporting import tables
from envariant.reporting.labels import title, verdict
from envariant.reporting.tables import TextTable
from envariant.training.result import TrainingResult


def print_json(value: Any) -> None:
    """One JSON object on standard output; a number that is not finite becomes null."""
    sys.stdout.write(json.dumps(tables.finite(value), indent=2, allow_nan=False) + "\n")


def print_table(table: TextTable) -> None:
    """A table and its notes on standard output."""
    console = _console()
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(table.header):
        drawn.add_column(name, justify="right" if column else "left", overflow="fold")
    for line in table.lines:
        drawn.add_row(*line)
    console.print(drawn)
    for note in table.notes:
        console.print(note, style="dim")


def print_result(result: TrainingResult, out: Path | None) -> None:
    """One run: its scores, a sentence, what failed, and where it is stored."""
    print_table(tables.scores([result]))
    console = _console()
    console.print(f"\n{title(result)}: {verdict(result)}")
    for replica, reason in result.failures.items():
        console.print(f"replica {replica} stopped: {reason}", style="red")
    for diagnosis in result.diagnoses:
        console.print(str(diagnosis), style="yellow")
    settings = result.record.spec
    console.print(
        f"{settings.model}, {settings.steps} steps, {settings.precision}, {_execution(result)}"
        f"{result.seconds:.1f} s" + (f"; stored in {out}" if out else ""),
        style="dim",
    )


def exit_code(results: Sequence[TrainingResult]) -> int:
    """0, or 1 if of some run no replica finished."""
    return 0 if all(result.finished for result in results) else 1


def print_lines(lines: Sequence[str]) -> None:
    """Plain lines on standard output."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _console() -> Console:
    # A pipe has no width: give it one in which tables keep their lines.
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False, markup=False, soft_wrap=False)


def _execution(result: TrainingResult) -> str:
    execution = result.record.execution
    return f"in stacks of {execution.group}, " if execution.mode == "stacked" else ""
