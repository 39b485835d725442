"""Live progress of a sweep on a terminal."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from envariant.studies.executors.local import ProgressCallback
from envariant.studies.store import Store

# Seconds between two looks at the store.
_LOOK_EVERY = 1.0


@contextmanager
def watching(label: str, runs: int, folder: Path) -> Generator[ProgressCallback]:
    """Hears of steps and draws how far all runs are, on standard error and on a terminal only.

    Args:
        label: what is being done.
        runs: that are left.
        folder: of the study; runs that other processes train count there when they have ended.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f}/{task.total:.0f} runs"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    shown = sys.stderr.isatty()
    with Store(folder) as store, Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
        yield _Watch(bars, bars.add_task(label, total=runs), store).on_progress if shown else _unseen


@final
class _Watch:
    """What is known of the runs: how far those are that train here, and how many have ended anywhere."""

    def __init__(self, bars: Progress, task: TaskID, store: Store) -> None:
        self._bars, self._task, self._store = bars, task, store
        self._before, self._looked, self._ended = _ended(store), time.monotonic(), 0
        self._reached: dict[int, float] = {}
        self._own = 0.0

    def on_progress(self, run: int, done: int, of: int) -> None:
        self._own += done / of - self._reached.get(run, 0.0)
        self._reached[run] = done / of
        if time.monotonic() - self._looked > _LOOK_EVERY:
            # A run is in the store before it is said to have ended, and from now on counts there.
            self._ended, self._looked = _ended(self._store) - self._before, time.monotonic()
            self._reached = {run: share for run, share in self._reached.items() if share < 1}
            self._own = sum(self._reached.values())
        self._bars.update(self._task, completed=self._ended + self._own)


def _ended(store: Store) -> int:
    counts = store.counts()
    return counts["done"] + counts["failed"]


def _unseen(run: int, done: int, of: int) -> None:
    del run, done, of
