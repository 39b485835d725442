"""Live progress on a terminal: replicas, steps, remaining time and the newest score of every environment."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from envariant.training.engine import Evaluated, Stepped


class Watcher(Protocol):
    """Something that looks at the engine's events."""

    def __call__(self, event: Stepped | Evaluated) -> None: ...

    def preparing(self, replica: int, done: int, of: int) -> None:
        """So many steps were made before that replica's first."""
        ...


@final
class _Display:
    def __init__(self, bars: Progress, task: TaskID, steps: int, metric: str) -> None:
        self._bars, self._task, self._steps, self._metric = bars, task, steps, metric
        self._done: dict[tuple[int, ...], int] = {}
        self._before: TaskID | None = None

    def preparing(self, replica: int, done: int, of: int) -> None:
        if self._before is None:
            self._before = self._bars.add_task("before the first step", total=of, scores=f"replica {replica}")
        self._bars.update(self._before, completed=done, scores=f"replica {replica}")
        if done >= of:
            self._bars.remove_task(self._before)
            self._before = None

    def __call__(self, event: Stepped | Evaluated) -> None:
        reached = event.step
        if isinstance(event, Evaluated):
            newest = max((row.replica for row in event.rows), default=None)
            scores = [row for row in event.rows if row.metric == self._metric and row.replica == newest]
            text = "  ".join(f"{row.environment} {row.value:.3f}" for row in scores)
            if text:
                self._bars.update(self._task, scores=f"replica {newest}: {text}")
            if event.finished:
                # Replicas that stopped early have no steps left.
                reached = self._steps
        self._done[event.replicas] = reached * len(event.replicas)
        self._bars.update(self._task, completed=sum(self._done.values()))


@contextmanager
def watching(label: str, replicas: int, steps: int, metric: str, show: bool | None) -> Generator[Watcher]:
    """A watcher that draws on standard error.

    Args:
        label: what is being done.
        replicas: how many there are.
        steps: of each.
        metric: whose newest values are shown.
        show: None shows on a terminal only.
    """
    console = Console(stderr=True)
    visible = sys.stderr.isatty() if show is None else show
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[scores]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, disable=not visible) as bars:
        task = bars.add_task(label, total=replicas * steps, scores="")
        yield _Display(bars, task, steps, metric)
