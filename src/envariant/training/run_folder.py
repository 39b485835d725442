"""A run on disk: `run.json`, `history.csv` and `checkpoints/`, written as results come.

A second call with the same settings goes on where the first stopped, whether it was killed or done; with
other settings it refuses, so that nothing already computed is lost.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from envariant.core.errors import EnvariantError
from envariant.training import checkpoint as checkpoints
from envariant.training import history, record
from envariant.training.checkpoint import Checkpoint
from envariant.training.engine import Evaluated, Stepped, is_done
from envariant.training.execution import Execution
from envariant.training.history import HistoryRow
from envariant.training.record import Record

_OTHER = {"data": "other data", "model": "another model"}
# Seconds between two checkpoints.
CHECKPOINT_INTERVAL_S = 10.0


@final
class RunFolder:
    """One run's folder, open for writing.

    Args:
        path: created if missing.
        wanted: the run that is to be stored there.

    Attributes:
        record: what the run is: as it was first stored, if it goes on.
        rows: history that is already there and still holds.
        resume: the checkpoints of the groups of replicas that have one.

    Raises:
        EnvariantError: the folder cannot be written, or holds another run.
    """

    def __init__(self, path: Path, wanted: Record) -> None:
        self._path = path
        self.record = wanted
        self.rows: list[HistoryRow] = []
        self.resume: list[Checkpoint] = []
        self._saved = time.monotonic()
        self._lock = FileLock(path / ".lock")
        prepare(path)
        with errors_as_envariant(path):
            self._lock.acquire(timeout=0)
            if (path / "run.json").exists():
                self._continue(wanted)
            else:
                record.write(wanted, path / "run.json")
                history.write(path / "history.csv", [])
            self._history = (path / "history.csv").open("a", encoding="utf-8", newline="")

    def store(self, event: Stepped | Evaluated) -> None:
        """Writes what was measured, and the replicas' state if they are done or some seconds have passed."""
        measured = isinstance(event, Evaluated)
        done = measured and event.finished
        if not measured and time.monotonic() - self._saved <= CHECKPOINT_INTERVAL_S:
            return
        with errors_as_envariant(self._path):
            if measured:
                history.append(self._history, event.rows)
            if done or time.monotonic() - self._saved > CHECKPOINT_INTERVAL_S:
                checkpoints.save(event.checkpoint(), self._path / "checkpoints")
                self._saved = time.monotonic()

    def close(self) -> None:
        """Closes the history file and lets others have the folder."""
        self._history.close()
        self._lock.release()

    def _continue(self, wanted: Record) -> None:
        self.record, rows, self.resume = load(self._path)
        steps = wanted.settings.steps
        stored = {number for saved in self.resume for number in saved.replicas}
        unfinished = len(stored) < wanted.settings.replicas or not all(
            is_done(saved, steps) for saved in self.resume
        )
        if difference := _difference(self.record, wanted, unfinished=unfinished):
            raise EnvariantError(
                f"{self._path}: holds a run with other settings ({difference}); choose another folder"
            )
        # Rows measured after the last checkpoint will be measured again.
        reached = {number: saved.reached(number) for saved in self.resume for number in saved.replicas}
        self.rows = [row for row in rows if row.step <= reached.get(row.replica, -1)]
        if unfinished:
            history.write(self._path / "history.csv", self.rows)


@contextmanager
def errors_as_envariant(path: Path) -> Generator[None]:
    """Turns what the disk says into one line."""
    try:
        yield
    except Timeout:
        raise EnvariantError(f"{path}: another process is training into it; choose another folder") from None
    except OSError as error:
        raise EnvariantError(
            f"{path}: cannot be written ({error.strerror or error}); choose another folder with --out"
        ) from None


def load(path: Path) -> tuple[Record, list[HistoryRow], list[Checkpoint]]:
    """A stored run: what it was, what was measured, and the state of its replicas so far.

    Raises:
        EnvariantError: the folder holds no run, or a damaged one.
    """
    stored = record.read(path / "run.json")
    try:
        rows = history.read(path / "history.csv")
    except FileNotFoundError:
        rows = []
    except ValueError:
        raise EnvariantError(f"{path / 'history.csv'}: is damaged; train the run again") from None
    measured = {(row.replica, row.step) for row in rows}
    found = [
        saved
        for saved in checkpoints.load(path / "checkpoints")
        # A checkpoint whose measurements are lost is no use: those replicas are trained again.
        if all((number, saved.reached(number)) in measured for number in saved.replicas)
    ]
    return stored, rows, found


def prepare(path: Path) -> Execution | None:
    """Makes the folder if there is none; how the run stored there is executed, None if there is none yet.

    Raises:
        EnvariantError: the folder cannot be made, holds other things, or a damaged run.
    """
    with errors_as_envariant(path):
        path.mkdir(parents=True, exist_ok=True)
        if (path / "run.json").exists():
            return record.read(path / "run.json").execution
        if any(p.name != ".lock" and p.suffix != ".partial" for p in path.iterdir()):
            raise EnvariantError(f"{path}: is not empty and holds no run; choose another folder")
    return None


def _difference(stored: Record, wanted: Record, *, unfinished: bool) -> str:
    """The first setting that differs, in words; empty where none does."""
    before, context = asdict(stored.settings), asdict(wanted.settings)
    if unfinished:
        # What went on under another version would not be the run that was begun.
        before |= stored.versions
        context |= wanted.versions
    decides_nothing = {"source", "changed"} | (set() if unfinished else {"device", "threads", "precision"})
    for key, value in context.items():
        if key not in decides_nothing and _plain(before.get(key)) != _plain(value):
            return f"{key} {_plain(before.get(key))}, not {_plain(value)}"
    for what, digest in wanted.fingerprints.items():
        if stored.fingerprints.get(what) != digest:
            return f"{_OTHER[what]} under the same name"
    return ""


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
