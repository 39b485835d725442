"""Record a job of a store during training, so that the job can be resumed."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import final

from filelock import FileLock, Timeout

from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import remove_partial, writing
from envariant.training import checkpoint as checkpoints
from envariant.training.checkpoint import Checkpoint, ReplicaState
from envariant.training.engine import Evaluated, Stepped, is_done
from envariant.training.history import HistoryRow
from envariant.training.record import Record, conflict
from envariant.training.store.records import record_of_job
from envariant.training.store.rows import RunOutcome
from envariant.training.store.writer import Store

CHECKPOINT_INTERVAL_S = 10.0
"""Seconds between two checkpoints of a job."""


@final
class Recorder:
    """Recorder that stores the results of one job while the job is locked for this process.

    Args:
        store: Store of the job.
        job: ID of the job.
        lock: Acquired lock of the job.
        compared_in: Function that maps the record to a pair: the metric used to compare runs, and whether
            higher values are better. Default: the metric of the task.

    Attributes:
        record: Record of the job, as first stored; None if the job has not begun.
        rows: Values stored before the job was resumed, up to its last checkpoint.
        other_machine: Whether the job was begun with other versions, threads, device or precision, so that it
            cannot be resumed bit-identically.
    """

    def __init__(
        self,
        store: Store,
        job: int,
        lock: FileLock,
        compared_in: Callable[[Record], tuple[str, bool]] | None = None,
    ) -> None:
        self._store, self._job, self._compared_in = store, job, compared_in
        self._folder = store.checkpoints(job)
        self.record = record_of_job(store, job)
        self.rows: list[HistoryRow] = []
        self.other_machine = False
        self._saved = time.monotonic()
        self._lock = lock

    @classmethod
    def open(
        cls,
        store: Store,
        job: int,
        compared_in: Callable[[Record], tuple[str, bool]] | None = None,
    ) -> "Recorder | None":
        """Lock a job for this process; return None if another process trains it.

        Raises:
            EnvariantError: If the folder of the job cannot be written.
        """
        folder = store.checkpoints(job)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return None
            # A resumed job does not write all its files again.
            remove_partial(folder)
        return cls(store, job, lock, compared_in)

    def begin(self, record: Record) -> Sequence[Checkpoint]:
        """Store the record, or compare it with the stored record; return the checkpoints to resume from.

        Raises:
            EnvariantError: If the job was begun with other options, data or versions.
        """
        members = [stored.id for stored in self._store.members(self._job)]
        if self.record is None:
            # Left by a job of the same number in a store that was lost or replaced by a copy.
            checkpoints.clear(self._folder)
            metric, better = (
                self._compared_in(record) if self._compared_in else (record.metric, record.higher_is_better)
            )
            self._store.begin(self._job, record, metric, better)
            self.record = record
            return ()
        saved = checkpoints.load(self._folder, _warn)
        measured = {(row.replica, row.step) for row in self._store.history_rows(members)}
        # Replicas whose measurements are lost are trained again.
        saved = [
            each
            for each in saved
            if set(each.replicas) <= set(members)
            and all((number, each.reached(number)) in measured for number in each.replicas)
        ]
        stored = {number for each in saved for number in each.replicas}
        unfinished = stored != set(members) or not all(
            is_done(each, record.spec.steps or 0) for each in saved
        )
        if differing := conflict(self.record, record, unfinished=unfinished):
            self.other_machine = not conflict(self.record, record, unfinished=False)
            raise self._other_settings(differing)
        reached = {number: each.reached(number) for each in saved for number in each.replicas}
        self._store.discard_after(self._job, reached)
        self.rows = [
            row for row in self._store.history_rows(members) if row.step <= reached.get(row.replica, -1)
        ]
        return saved

    def raise_steps(self, record: Record) -> None:
        """Plan additional steps of the stored run if the requested run has more steps.

        Args:
            record: Record of the requested run, whose first steps equal the steps of the stored run.

        Raises:
            EnvariantError: If the job was begun with other options, data or versions.
        """
        before, now = (0 if each is None else each.spec.steps or 0 for each in (self.record, record))
        if self.record is None or before >= now:
            return
        raised = replace(self.record, spec=self.record.spec.but(steps=now))
        if differing := conflict(raised, record, unfinished=True):
            raise self._other_settings(differing)
        self._store.continue_job(self._job, record)
        self.record = record

    def _other_settings(self, differing: str) -> EnvariantError:
        return EnvariantError(
            f"{self._store.folder}: holds a run with other settings ({differing}); choose another folder"
        )

    def add(
        self, event: Stepped | Evaluated, rows: Iterable[HistoryRow] = (), outcomes: Sequence[RunOutcome] = ()
    ) -> None:
        """Store the values of an event, and save a checkpoint if one is due.

        Checkpoints are due when replicas finish and every `CHECKPOINT_INTERVAL_S` seconds.

        Args:
            event: Event of the engine.
            rows: Additional measurements to store.
            outcomes: Outcomes of finished runs. Default: outcomes without predictions.
        """
        if isinstance(event, Evaluated):
            if event.finished and not outcomes:
                outcomes = [
                    RunOutcome(number, state.failure, state.seconds)
                    for number, state in event.checkpoint().states().items()
                ]
            self._store.add((*event.rows, *rows), outcomes)
            if event.keep:
                checkpoints.save_kept(event.checkpoint(), self._folder)
        # Measurements first, so that those up to a checkpoint are always stored.
        done = isinstance(event, Evaluated) and event.finished
        if done or time.monotonic() - self._saved > CHECKPOINT_INTERVAL_S:
            checkpoints.save(event.checkpoint(), self._folder)
            self._saved = time.monotonic()

    def kept(self) -> dict[int, dict[int, ReplicaState]]:
        """Return the states saved by the option `keep` up to the last measurement, by step and replica."""
        return checkpoints.kept_states(self._folder, {(row.replica, row.step) for row in self.rows})

    def finish(self, error: str | None = None) -> None:
        """Mark the job as finished, and its unfinished runs as failed.

        Args:
            error: Reason why the unfinished runs failed. Default: "training ended early".
        """
        self._store.finish(self._job, error)

    def plan_again(self) -> None:
        """Discard the unfinished runs of the job, and plan them again for another job."""
        self._store.plan_again(self._job)

    def close(self) -> None:
        """Release the job's lock."""
        self._lock.release()


def _warn(error: EnvariantError) -> None:
    warnings.warn(str(error), EnvariantWarning, stacklevel=2)
