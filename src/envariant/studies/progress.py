"""Live progress of a sweep on a terminal."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from envariant.studies.executors.local import Told


@contextmanager
def watching(label: str, runs: int) -> Generator[Told]:
    """Hears of steps and draws how far all runs are, on standard error and on a terminal only.

    Args:
        label: what is being done.
        runs: that are left.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f}/{task.total:.0f} runs"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    reached: dict[int, float] = {}
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task(label, total=runs)

        def told(run: int, done: int, of: int) -> None:
            bars.advance(task, done / of - reached.get(run, 0.0))
            reached[run] = done / of

        yield told
