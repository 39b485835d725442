"""Show the progress of single runs and studies on a terminal, in a notebook or in a log file."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import final

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from envariant.core.errors import EnvariantError
from envariant.training.engine import Evaluated, Stepped
from envariant.training.progress_output import Bars, TerminalBars, shown
from envariant.training.run import Event, Started
from envariant.training.store import Store

ProgressCallback = Callable[[int, int, int], None]
"""Callback with the index of a replica or run, the number of completed steps and the number of all steps."""

# Largest number of environments whose scores are shown.
_MOST_SCORES = 3
# Seconds between two queries of the store.
_LOOK_EVERY = 1.0


@final
class RunProgress:
    """Progress bar of one run: steps, remaining time and the latest score in each environment.

    Args:
        bars: Progress output that displays the bar.
    """

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: int | None = None
        self._steps, self._metric = 1, ""
        self._done: dict[tuple[int, ...], int] = {}
        self._pretraining: int | None = None

    def pretraining(self, replica: int, done: int, of: int) -> None:
        """Show that a replica has completed `done` of its `of` pretraining steps."""
        if self._pretraining is None:
            self._pretraining = self._bars.add("pretraining", of)
        self._bars.update(self._pretraining, done, f"replica {replica}")
        if done >= of:
            self._bars.remove(self._pretraining)
            self._pretraining = None

    def __call__(self, event: Event) -> None:
        """Update the progress bar after an event of the run."""
        if isinstance(event, Started):
            spec = event.record.spec
            self._steps, self._metric = spec.steps or 1, event.record.metric
            label = f"{spec.algorithm} on {spec.data}"
            self._task = self._bars.add(label, spec.replicas * self._steps)
        elif self._task is not None:
            self._show(self._task, event)

    def _show(self, task: int, event: Stepped | Evaluated) -> None:
        reached = min(event.step, self._steps)
        if isinstance(event, Evaluated):
            newest = max((row.replica for row in event.rows), default=None)
            scores = [row for row in event.rows if row.metric == self._metric and row.replica == newest]
            text = "  ".join(f"{row.environment} {row.value:.3f}" for row in scores)
            if text:
                self._bars.update(task, note=f"replica {newest}: {text}")
            if event.finished:
                # Diverged replicas count as complete.
                reached = self._steps
        self._done[event.replicas] = reached * len(event.replicas)
        self._bars.update(task, sum(self._done.values()))


@contextmanager
def show_run(show: bool | None) -> Generator[RunProgress]:
    """Show the progress of one run.

    Args:
        show: Whether to show progress. Default: a bar on a terminal or in a notebook, else a line every 30
            seconds.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[scores]}", style="dim", markup=False),
    )
    with shown(columns, "steps", show) as bars:
        yield RunProgress(bars)


@contextmanager
def show_sweep(label: str, runs: int, folder: Path, show: bool | None = None) -> Generator[ProgressCallback]:
    """Show the progress of all runs of a study.

    Args:
        label: Name of the study.
        runs: Number of remaining runs.
        folder: Folder of the study. Runs of other processes are included when they have ended.
        show: Whether to show progress. Default: a bar on a terminal or in a notebook, else a line every 30
            seconds.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.1f}/{task.total:.0f} runs"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[scores]}", style="dim", markup=False),
    )
    with Store(folder, verify=False) as store:
        progress = SweepProgress(store)

        def refresh() -> None:
            # While the store cannot be read, the numbers of the last look stay.
            with suppress(EnvariantError), Store(folder, verify=False) as other:
                progress.look(other)

        with shown(columns, "runs", show, refresh) as bars:
            progress.show(bars, bars.add(label, runs))
            yield progress


@final
class SweepProgress:
    """Progress of a study: steps of this process, and runs finished by all processes.

    Args:
        store: Store of the study, opened in the calling thread.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._before = store, store.counts()
        self._looked, self._ended = time.monotonic(), 0
        self._reached: dict[int, float] = {}
        self._own = 0.0
        self._bar: tuple[Bars, int] | None = None
        self._lock = Lock()

    def show(self, bars: Bars, task: int) -> None:
        """Show the progress in a bar from now on."""
        self._bar = bars, task

    def __call__(self, run: int, done: int, of: int) -> None:
        """Count a step of this process."""
        with self._lock:
            self._own += done / of - self._reached.get(run, 0.0)
            self._reached[run] = done / of
            # A background thread looks for the other outputs.
            on_terminal = self._bar is not None and isinstance(self._bar[0], TerminalBars)
            is_due = on_terminal and time.monotonic() - self._looked > _LOOK_EVERY
        if is_due:
            self.look(self._store)
        else:
            self._update()

    def look(self, store: Store) -> None:
        """Count the finished runs of all processes.

        Args:
            store: Store of the study, opened in the calling thread.
        """
        counts = store.counts()
        ended = sum(counts[state] - self._before[state] for state in ("done", "failed"))
        with self._lock:
            # A run is stored before its last step is reported, so finished runs are counted from the store.
            self._ended, self._looked = ended, time.monotonic()
            self._reached = {run: share for run, share in self._reached.items() if share < 1}
            self._own = sum(self._reached.values())
        failed = counts["failed"] - self._before["failed"]
        notes = (f"{failed} failed" if failed else "", _scores_text(store) if ended else "")
        self._update("; ".join(filter(None, notes)) or None)

    def _update(self, note: str | None = None) -> None:
        if self._bar is not None:
            bars, task = self._bar
            bars.update(task, self._ended + self._own, note)


def _scores_text(store: Store) -> str:
    """Return algorithm and test scores of the run that finished last; "" if it has no scores."""
    newest = store.newest_scores()
    if newest is None:
        return ""
    algorithm, metric, scores = newest
    some = [f"{name} {value:.3f}" for name, value in islice(scores.items(), _MOST_SCORES)]
    return f"{algorithm}, {metric}: {', '.join(some)}"


def ignore(run: int, done: int, of: int) -> None:
    """Do nothing; default for callbacks that report progress."""
    del run, done, of
