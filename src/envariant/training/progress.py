"""Progress bars for single runs and studies, on standard error."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from envariant.core.console import SafeConsole
from envariant.training.engine import Evaluated, Stepped
from envariant.training.run import Event, Started
from envariant.training.store import Store

ProgressCallback = Callable[[int, int, int], None]
"""Callback with the number of a replica or run, the number of steps made and the total number of steps."""

# Seconds between two queries of the store.
_LOOK_EVERY = 1.0


@final
class RunProgress:
    """Progress bar of one run: steps, remaining time and the latest score in each environment.

    Args:
        bars: Progress display of rich, in which the bar is shown.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._steps, self._metric = 1, ""
        self._done: dict[tuple[int, ...], int] = {}
        self._pretraining: TaskID | None = None

    def pretraining(self, replica: int, done: int, of: int) -> None:
        """Show that `done` of `of` pretraining steps of a replica are completed."""
        if self._pretraining is None:
            self._pretraining = self._bars.add_task("pretraining", total=of, scores="")
        self._bars.update(self._pretraining, completed=done, scores=f"replica {replica}")
        if done >= of:
            self._bars.remove_task(self._pretraining)
            self._pretraining = None

    def __call__(self, event: Event) -> None:
        """Update the progress bar after an event of the run."""
        if isinstance(event, Started):
            spec = event.record.spec
            self._steps, self._metric = spec.steps or 1, event.record.metric
            label = f"{spec.algorithm} on {spec.data}"
            self._task = self._bars.add_task(label, total=spec.replicas * self._steps, scores="")
        elif self._task is not None:
            self._show(self._task, event)

    def _show(self, task: TaskID, event: Stepped | Evaluated) -> None:
        reached = min(event.step, self._steps)
        if isinstance(event, Evaluated):
            newest = max((row.replica for row in event.rows), default=None)
            scores = [row for row in event.rows if row.metric == self._metric and row.replica == newest]
            text = "  ".join(f"{row.environment} {row.value:.3f}" for row in scores)
            if text:
                self._bars.update(task, scores=f"replica {newest}: {text}")
            if event.finished:
                # Diverged replicas count as complete.
                reached = self._steps
        self._done[event.replicas] = reached * len(event.replicas)
        self._bars.update(task, completed=sum(self._done.values()))


@contextmanager
def show_run(show: bool | None) -> Generator[RunProgress]:
    """Show the progress of one run.

    Args:
        show: Whether to show progress. Default: only on a terminal.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[scores]}", style="dim", markup=False),
    )
    visible = sys.stderr.isatty() if show is None else show
    with Progress(*columns, console=SafeConsole(stderr=True), disable=not visible) as bars:
        yield RunProgress(bars)


@contextmanager
def show_sweep(label: str, runs: int, folder: Path) -> Generator[ProgressCallback]:
    """Show the progress of all runs of a study, on a terminal only.

    Args:
        label: Name of the study.
        runs: Number of remaining runs.
        folder: Folder of the study. Runs of other processes are counted when they have ended.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f}/{task.total:.0f} runs"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    visible = sys.stderr.isatty()
    with (
        Store(folder, verify=False) as store,
        Progress(*columns, console=SafeConsole(stderr=True), disable=not visible) as bars,
    ):
        yield _SweepProgress(bars, bars.add_task(label, total=runs), store) if visible else ignore


@final
class _SweepProgress:
    """Progress bar of a study, with the steps of this process and the finished runs of all processes."""

    def __init__(self, bars: Progress, task: TaskID, store: Store) -> None:
        self._bars, self._task, self._store = bars, task, store
        self._before, self._looked, self._ended = _ended(store), time.monotonic(), 0
        self._reached: dict[int, float] = {}
        self._own = 0.0

    def __call__(self, run: int, done: int, of: int) -> None:
        self._own += done / of - self._reached.get(run, 0.0)
        self._reached[run] = done / of
        if time.monotonic() - self._looked > _LOOK_EVERY:
            # A run is stored before its last step is reported, so finished runs are counted from the store.
            self._ended, self._looked = _ended(self._store) - self._before, time.monotonic()
            self._reached = {run: share for run, share in self._reached.items() if share < 1}
            self._own = sum(self._reached.values())
        self._bars.update(self._task, completed=self._ended + self._own)


def ignore(run: int, done: int, of: int) -> None:
    """Do nothing; default for callbacks that report progress."""
    del run, done, of


def _ended(store: Store) -> int:
    counts = store.counts()
    return counts["done"] + counts["failed"]
