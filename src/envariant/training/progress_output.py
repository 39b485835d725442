"""Progress output: a bar on a terminal (package `rich`), HTML in a notebook, or lines in a log file.

A background thread writes to notebooks and log files, so that they are updated even during steps of many
minutes.
"""

import html
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from threading import Event, Thread
from typing import Any, Final, final

from rich.progress import Progress, ProgressColumn, TaskID

from envariant.core.console import SafeConsole

LINE_EVERY_S: Final = 30.0
"""Seconds between two lines in a log file."""
_NOTEBOOK_EVERY_S: Final = 1.0
_LONGEST_JOIN_S: Final = 5.0

Clock = Callable[[], float]


@final
@dataclass(frozen=True)
class _Task:
    """State of one bar."""

    label: str
    total: float
    completed: float = 0.0
    note: str = ""


class Bars(ABC):
    """Base class of progress outputs, which show one bar per task."""

    @abstractmethod
    def add(self, label: str, total: float) -> int:
        """Add a bar and return its number."""

    @abstractmethod
    def update(self, task: int, completed: float | None = None, note: str | None = None) -> None:
        """Change the state of a bar.

        Args:
            task: Number of the bar.
            completed: Completed units. Default: unchanged.
            note: Text after the bar. Default: unchanged.
        """

    @abstractmethod
    def remove(self, task: int) -> None:
        """Remove a bar."""


@final
class TerminalBars(Bars):
    """Progress bars on a terminal.

    Args:
        bars: A `rich.progress.Progress` display with a custom field "scores", which shows text.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def add(self, label: str, total: float) -> int:
        return int(self._bars.add_task(label, total=total, scores=""))

    def update(self, task: int, completed: float | None = None, note: str | None = None) -> None:
        fields: dict[str, Any] = {} if note is None else {"scores": note}
        self._bars.update(TaskID(task), completed=completed, **fields)

    def remove(self, task: int) -> None:
        self._bars.remove_task(TaskID(task))


@final
class NoBars(Bars):
    """Progress output that shows nothing."""

    def add(self, label: str, total: float) -> int:
        return 0

    def update(self, task: int, completed: float | None = None, note: str | None = None) -> None: ...

    def remove(self, task: int) -> None: ...


class _TickedBars(Bars):
    """Bars that are written at regular intervals, by `tick`.

    Args:
        unit: Unit of the bars, such as "steps".
        clock: Function that returns the current time in seconds.
    """

    def __init__(self, unit: str, clock: Clock) -> None:
        self._unit, self._clock, self._began = unit, clock, clock()
        self._tasks: dict[int, _Task] = {}

    def add(self, label: str, total: float) -> int:
        number = max(self._tasks, default=-1) + 1
        self._tasks[number] = _Task(label, total)
        return number

    def update(self, task: int, completed: float | None = None, note: str | None = None) -> None:
        changes = {"completed": completed, "note": note}
        known: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
        self._tasks[task] = replace(self._tasks[task], **known)

    def remove(self, task: int) -> None:
        del self._tasks[task]

    @abstractmethod
    def tick(self) -> None:
        """Write the current state."""

    @abstractmethod
    def close(self) -> None:
        """Write the final state."""

    def text(self, task: _Task) -> str:
        """Return the state of a bar as a line: completed and total units, elapsed and remaining time."""
        elapsed, done = self._clock() - self._began, task.completed
        remaining = elapsed * (task.total - done) / done if done > 0 else None
        left = "" if remaining is None else f", about {duration(remaining)} left"
        note = f"; {task.note}" if task.note else ""
        count = f"{done:,.1f}".removesuffix(".0")
        return f"{task.label}: {count}/{task.total:,.0f} {self._unit}, {duration(elapsed)}{left}{note}"


@final
class LogBars(_TickedBars):
    """Progress output for log files: lines on standard error, written at regular intervals.

    Args:
        unit: Unit of the bars, such as "steps".
        clock: Function that returns the current time in seconds.
        console: Console to print to. Default: standard error.
    """

    def __init__(self, unit: str, clock: Clock, console: SafeConsole | None = None) -> None:
        super().__init__(unit, clock)
        self._console = console or SafeConsole(stderr=True, soft_wrap=True)

    def tick(self) -> None:
        for task in list(self._tasks.values()):
            self._console.print(self.text(task))

    def close(self) -> None:
        """Do nothing, because the caller reports the final result."""


@final
class NotebookBars(_TickedBars):
    """Progress bars in the output of a notebook cell, first shown after one update interval."""

    def __init__(self, unit: str, clock: Clock) -> None:
        super().__init__(unit, clock)
        self._display: Any = import_module("IPython.display")
        self._handle: Any = None

    def tick(self) -> None:
        lines = [
            f'<div><progress value="{task.completed:.3f}" max="{task.total:.0f}"></progress> '
            f"{html.escape(self.text(task))}</div>"
            for task in list(self._tasks.values())
        ]
        content = self._display.HTML("".join(lines))
        if self._handle is None:
            self._handle = self._display.display(content, display_id=True)
        else:
            self._handle.update(content)

    def close(self) -> None:
        if self._handle is not None:
            self.tick()


@contextmanager
def shown(
    columns: tuple[ProgressColumn, ...],
    unit: str,
    show: bool | None,
    refresh: Callable[[], None] = lambda: None,
) -> Generator[Bars]:
    """Show progress in the form that suits the output: a terminal, a notebook or a log file.

    Args:
        columns: Columns of the bar on a terminal.
        unit: Unit of the bars, such as "steps".
        show: Whether to show progress. Default: a bar on a terminal or in a notebook, else a line every
            `LINE_EVERY_S` seconds.
        refresh: Function called before every update of a notebook or log file, in a background thread.
    """
    if show is False:
        yield NoBars()
    elif in_notebook():
        with _ticking(NotebookBars(unit, time.monotonic), _NOTEBOOK_EVERY_S, refresh) as bars:
            yield bars
    elif show or sys.stderr.isatty():
        with Progress(*columns, console=SafeConsole(stderr=True)) as bars:
            yield TerminalBars(bars)
    else:
        with _ticking(LogBars(unit, time.monotonic), LINE_EVERY_S, refresh) as bars:
            yield bars


@contextmanager
def _ticking(bars: _TickedBars, every: float, refresh: Callable[[], None]) -> Generator[Bars]:
    is_over = Event()

    def write() -> None:
        refresh()
        bars.tick()

    thread = Thread(target=tick_until, args=(is_over.wait, every, write), daemon=True)
    thread.start()
    try:
        yield bars
    finally:
        is_over.set()
        # A file system that does not answer must not keep the program from ending.
        thread.join(_LONGEST_JOIN_S)
        bars.close()


def tick_until(is_over: Callable[[float], bool], every: float, tick: Callable[[], None]) -> None:
    """Call a function at regular intervals until `is_over` returns True.

    Args:
        is_over: Function that waits for at most the given number of seconds, and returns whether the work
            whose progress is shown is over.
        every: Interval in seconds.
        tick: Function to call at each interval.
    """
    while not is_over(every):
        tick()


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def duration(seconds: float) -> str:
    """Format a duration, such as "2 h 5 min" or "40 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
