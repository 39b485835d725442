"""Folder of a single run: a store with one job."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from envariant.core.errors import EnvariantError
from envariant.core.files import writing
from envariant.training import checkpoint as checkpoints
from envariant.training.checkpoint import Checkpoint, ReplicaState
from envariant.training.engine import Evaluated, Stepped
from envariant.training.history import HistoryRow, ordered
from envariant.training.record import Record
from envariant.training.store.reader import FILE
from envariant.training.store.recorder import Recorder
from envariant.training.store.records import record_of_job
from envariant.training.store.rows import PlannedRun, Trial
from envariant.training.store.writer import Store

_JOB = 1


@final
class SingleRun:
    """Folder of a single run; `begin` opens the folder and creates it if necessary.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: Store | None = None
        self._recorder: Recorder | None = None

    @property
    def record(self) -> Record | None:
        """Record of the stored run; None if training has not begun.

        Raises:
            EnvariantError: If the folder contains files other than a stored run.
        """
        if self._recorder is not None:
            return self._recorder.record
        if not self._is_stored():
            return None
        with Store(self._folder) as store:
            return record_of_job(store, _JOB)

    @property
    def rows(self) -> list[HistoryRow]:
        """Values stored before the run was resumed, up to the last checkpoint."""
        return [] if self._recorder is None else self._recorder.rows

    @property
    def kept(self) -> dict[int, dict[int, ReplicaState]]:
        """States saved by the option `keep` before the run was resumed, by step and replica."""
        return {} if self._recorder is None else self._recorder.kept()

    def begin(self, record: Record) -> Sequence[Checkpoint]:
        """Open the folder, and return the checkpoints to resume from.

        Raises:
            EnvariantError: If the folder cannot be written, contains another run, or is in use.
        """
        self._is_stored()
        store = self._store = Store.create(self._folder)
        if store.fact("study") is not None:
            raise EnvariantError(f"{self._folder}: holds a study; choose another folder")
        self._recorder = Recorder.open(store, _JOB)
        if self._recorder is None:
            raise EnvariantError(
                f"{self._folder}: another process is using this folder; wait for it, or choose another folder"
            )
        stored = store.members(_JOB)
        if not stored:
            spec = record.spec
            trial = Trial(0, dict(spec.hyperparameters), spec.to_dict()["learning_rate"])
            store.plan_job(
                [
                    PlannedRun(
                        spec.data, spec.test_environments or (), spec.algorithm, trial, k, "", record.identity
                    )
                    for k in range(spec.replicas)
                ]
            )
        elif len(stored) != record.spec.replicas:
            raise EnvariantError(
                f"{self._folder}: holds a run with other settings (it has {len(stored)} replicas, but "
                f"you asked for {record.spec.replicas}); choose another folder"
            )
        self._recorder.raise_steps(record)
        return self._recorder.begin(record)

    def add(self, event: Stepped | Evaluated) -> None:
        """Store the measurements of an event, and save a checkpoint if one is due."""
        if self._recorder is not None:
            self._recorder.add(event)

    def close(self) -> None:
        """Close the folder."""
        if self._recorder is not None:
            self._recorder.close()
        if self._store is not None:
            self._store.close()

    def _is_stored(self) -> bool:
        """Return whether the folder contains a stored run; raise an error if it contains only other files."""
        with writing(self._folder):
            if (self._folder / FILE).exists():
                return True
            if self._folder.exists():
                others = [p for p in self._folder.iterdir() if p.name != ".lock" and p.suffix != ".partial"]
                if others:
                    raise EnvariantError(
                        f"{self._folder}: is not empty and holds no run; choose another folder"
                    )
        return False


def load_run(
    folder: Path,
) -> tuple[Record, list[HistoryRow], dict[int, ReplicaState], dict[int, dict[int, ReplicaState]]]:
    """Read a stored run: record, measured values, last state of each replica, and states saved by `keep`.

    Args:
        folder: Folder of the run.

    Raises:
        EnvariantError: If the folder contains no run, or its files are damaged.
    """
    with Store(folder) as store:
        record = record_of_job(store, _JOB)
        if store.fact("study") is not None:
            raise EnvariantError(
                f"{folder} is a study of many runs, and its page is {folder}/report.html; "
                "give the folder of a single run"
            )
        if record is None:
            raise EnvariantError(f"{folder}: holds no run that has begun; give the folder of a run")
        members = [stored.id for stored in store.members(_JOB)]
        rows = store.history_rows(members)
        measured = {(row.replica, row.step) for row in rows}
        saved = checkpoints.load(store.checkpoints(_JOB))
        kept = checkpoints.kept_states(store.checkpoints(_JOB), measured)
    states = {
        number: state
        for each in saved
        if all((number, each.reached(number)) in measured for number in each.replicas)
        for number, state in each.states().items()
    }
    places = [(each.name, each.role) for each in record.environments]
    return record, ordered(rows, places), states, kept
