"""A run on disk: `run.json`, `history.csv` and `checkpoints/`, written as results come.

A second call with the same settings goes on where the first stopped, whether it was killed or done; with
other settings it refuses, so that nothing already computed is lost.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import final

from envariant.errors import EnvariantError
from envariant.training import checkpoint as checkpoints
from envariant.training import history, record
from envariant.training.checkpoint import Checkpoint
from envariant.training.engine import Evaluated
from envariant.training.history import HistoryRow
from envariant.training.record import Record

# Seconds between two checkpoints of a replica: what a kill may cost.
_PATIENCE = 10.0


@final
class RunFolder:
    """One run's folder, open for writing.

    Args:
        path: created if missing.
        wanted: the run that is to be stored there.

    Attributes:
        record: what the run is: as it was first stored, if it goes on.
        rows: history that is already there and still holds.
        resume: the checkpoint of each replica that has one.

    Raises:
        EnvariantError: the folder cannot be written, or holds another run.
    """

    def __init__(self, path: Path, wanted: Record) -> None:
        self._path = path
        self.record = wanted
        self.rows: list[HistoryRow] = []
        self.resume: dict[int, Checkpoint] = {}
        self._saved = time.monotonic()
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "run.json").exists():
                self._continue(wanted)
            elif any(path.iterdir()):
                raise EnvariantError(f"{path}: is not empty and holds no run; choose another folder")
            record.write(self.record, path / "run.json")
            history.write(path / "history.csv", self.rows)
            self._history = (path / "history.csv").open("a", encoding="utf-8", newline="")
        except OSError as error:
            raise EnvariantError(
                f"{path}: cannot be written ({error.strerror or error}); choose another folder with --out"
            ) from None

    def store(self, event: Evaluated) -> None:
        """Writes what was measured, and the replica's state if it is done or some seconds have passed."""
        history.append(self._history, event.rows)
        if event.finished or time.monotonic() - self._saved > _PATIENCE:
            checkpoints.save(event.checkpoint, self._path / "checkpoints")
            self._saved = time.monotonic()

    def close(self) -> None:
        """Closes the history file."""
        self._history.close()

    def _continue(self, wanted: Record) -> None:
        self.record, rows, self.resume = load(self._path)
        steps = wanted.settings.steps
        unfinished = [k for k in range(wanted.settings.replicas) if k not in self.resume] or [
            k for k, saved in self.resume.items() if saved.step < steps and saved.failure is None
        ]
        if difference := _difference(self.record, wanted, same_versions=bool(unfinished)):
            raise EnvariantError(
                f"{self._path}: holds a run with other settings ({difference}); choose another folder"
            )
        # Rows measured after the last checkpoint will be measured again.
        reached = {number: found.step for number, found in self.resume.items()}
        self.rows = [row for row in rows if row.step <= reached.get(row.replica, -1)]


def load(path: Path) -> tuple[Record, list[HistoryRow], dict[int, Checkpoint]]:
    """A stored run: what it was, what was measured, and the state of each replica so far.

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
    found = {
        number: saved
        for number in range(stored.settings.replicas)
        if (saved := checkpoints.load(path / "checkpoints", number)) is not None
    }
    return stored, rows, found


def _difference(stored: Record, wanted: Record, *, same_versions: bool) -> str:
    """The first setting that differs, in words; empty where none does."""
    before, now = asdict(stored.settings), asdict(wanted.settings)
    if same_versions:
        # What goes on under another version would not be the run that was begun.
        before |= {"torch": stored.versions["torch"]}
        now |= {"torch": wanted.versions["torch"]}
    for key, value in now.items():
        # JSON has no tuples, and where the defaults came from decides nothing.
        if key != "source" and _plain(before[key]) != _plain(value):
            return f"{key} {_plain(before[key])}, not {_plain(value)}"
    return "" if stored.fingerprint == wanted.fingerprint else "other data under the same name"


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
