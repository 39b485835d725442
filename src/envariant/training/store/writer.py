"""Write a store: plan runs, assign them to jobs, and store their measurements.

A run is planned, running, done or failed. A job is a group of runs that train together. Each job is locked by
the process that trains it. When a process ends or is killed, another process can resume its job.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from filelock import FileLock

from envariant.core.errors import EnvariantError
from envariant.core.files import cannot_write, replacing, writing
from envariant.training.history import HistoryRow
from envariant.training.store.reader import (
    FILE,
    HISTORY_CODE,
    SCHEMA,
    SEALED,
    StoreReader,
    checksum,
    create_tables,
)
from envariant.training.store.rows import PlannedRun, RunOutcome


class WritableRecord(Protocol):
    """Record of a run; a protocol, because `Record` loads PyTorch."""

    @property
    def identity(self) -> str:
        """Hash of everything that determines the results of the run."""
        ...

    def to_json(self) -> str:
        """Return the record as JSON text."""
        ...


@final
class Store(StoreReader):
    """Store of runs in a folder, which can be read and written.

    Args:
        folder: Folder that contains the results of a run, a study or a comparison.
        verify: Whether to check the database for damage first; False saves time if it was just checked.

    Raises:
        EnvariantError: If the folder contains no runs, is damaged, or was written by an incompatible version.
    """

    @classmethod
    def create(cls, folder: Path) -> "Store":
        """Open the store in a folder; create the store if it does not exist.

        Raises:
            EnvariantError: If the folder cannot be written.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                if not (folder / FILE).exists():
                    _create(folder / FILE)
        return cls(folder)

    def set_fact(self, name: str, value: str) -> None:
        """Store a string, such as the declaration of the study, under the key `name`."""
        with self._transaction() as execute:
            execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    def plan(self, runs: Sequence[PlannedRun]) -> None:
        """Add planned runs; runs that are already stored are skipped.

        Raises:
            EnvariantError: If a run with the same data, test environments, algorithm, trial and replica is
                stored with other settings.
        """
        with self._transaction() as execute:
            # Read within the transaction, because another process may plan the same runs.
            known = dict(execute("SELECT slot, identity FROM runs"))
            for run in runs:
                if known.get(run.slot, run.identity) != run.identity:
                    raise EnvariantError(
                        f"{self.folder}: holds {run.algorithm}, trial {run.trial.number}, with other "
                        f"settings or hyperparameters; choose another folder"
                    )
                if run.slot not in known:
                    _insert(execute, run)

    def plan_job(self, runs: Sequence[PlannedRun]) -> None:
        """Add all replicas of one run as one job; the ID of each stored run is its replica number.

        Args:
            runs: Replicas of one run. The store must be empty.
        """
        with self._transaction() as execute:
            job = execute("INSERT INTO jobs DEFAULT VALUES").lastrowid
            for run in runs:
                number = _insert(execute, run)
                execute(
                    "UPDATE runs SET id = ?, job = ?, state = 'running' WHERE id = ?",
                    (-1 - run.replica, job, number),
                )
            execute("UPDATE runs SET id = -1 - id, checksum = NULL WHERE job = ?", (job,))

    def claim(
        self,
        among: int = 1,
        declares: Callable[[str, str], bool] = lambda data, algorithm: True,
        options: Sequence[str] = (),
    ) -> int | None:
        """Create a job from the earliest planned runs that can train together.

        The first run of the job is the earliest planned run that this process can train. Further runs have
        the same data, test environments and algorithm, and the same values of `options`.

        Args:
            among: Number of processes that share the work. A job takes at most the fraction 1 / `among` of
                all planned runs, rounded up. Jobs thus become smaller, and all processes end at about the
                same time.
            declares: Function that returns whether this process can train runs of a given data set and
                algorithm.
            options: Names of hyperparameters that must have the same value in all runs of a job.

        Returns:
            ID of the new job; None if no planned run can be trained by this process.
        """
        agreeing = ", ".join(f"json_extract(hyperparameters, '$.{name}')" for name in options)
        with self._transaction() as execute:
            planned = execute(
                f"SELECT data, test_set, algorithm, json_array({agreeing}) FROM runs "
                "WHERE state = 'planned' ORDER BY id"
            )
            first = next((row for row in planned if declares(row[0], row[2])), None)
            if first is None:
                return None
            job = execute("INSERT INTO jobs DEFAULT VALUES").lastrowid
            execute(
                "UPDATE runs SET state = 'running', job = ?, checksum = NULL "
                "WHERE id IN (SELECT id FROM runs WHERE state = 'planned' AND data = ? AND test_set = ? "
                f"AND algorithm = ? AND json_array({agreeing}) = ? ORDER BY id "
                "LIMIT (SELECT (COUNT(*) + ? - 1) / ? FROM runs WHERE state = 'planned'))",
                (job, *first, among, among),
            )
        return job

    def begin(self, job: int, record: WritableRecord, metric: str, higher_is_better: bool) -> None:
        """Store the record and the metric of a job, before its first step.

        Args:
            job: ID of the job.
            record: Record of the run.
            metric: Metric for comparing runs.
            higher_is_better: Whether higher values of `metric` are better.
        """
        with self._transaction() as execute:
            execute(
                "UPDATE jobs SET record = ?, metric = ?, higher_is_better = ?, checksum = NULL WHERE id = ?",
                (record.to_json(), metric, int(higher_is_better), job),
            )
            self._name(execute, metric)

    def continue_job(self, job: int, record: WritableRecord) -> None:
        """Replace the record of a job by a record with more steps, and mark the job's runs as running.

        Args:
            job: ID of the job.
            record: Record of the run with more steps.
        """
        with self._transaction() as execute:
            execute(
                "UPDATE jobs SET record = ?, done = 0, checksum = NULL WHERE id = ?", (record.to_json(), job)
            )
            execute(
                "UPDATE runs SET state = 'running', error = NULL, seconds = NULL, p_value = NULL, "
                "identity = ?, checksum = NULL WHERE job = ?",
                (record.identity, job),
            )

    def add(self, rows: Iterable[HistoryRow], outcomes: Iterable[RunOutcome] = ()) -> None:
        """Store measured values and outcomes; in `rows`, `HistoryRow.replica` is the ID of the run."""
        with self._transaction() as execute:
            stored = [
                (
                    row.replica,
                    row.step,
                    *(
                        self._name(execute, name)
                        for name in (row.environment, row.role, row.metric, row.kind, row.column)
                    ),
                    # SQLite has no NaN.
                    row.value if row.value == row.value else None,
                )
                for row in rows
            ]
            self._connection.executemany(INSERT_VALUE, stored)
            for outcome in outcomes:
                self._end(execute, outcome)

    def discard_after(self, job: int, reached: Mapping[int, int]) -> None:
        """Discard the values that a job's unfinished runs measured after their last checkpoint.

        Args:
            job: ID of the job.
            reached: Last step that was measured before the checkpoint, by run ID. For runs that are not
                listed, all measured values are discarded.
        """
        with self._transaction() as execute:
            for stored in self.members(job):
                execute(
                    "DELETE FROM history WHERE run = ? AND step > ? "
                    "AND (SELECT state FROM runs WHERE id = run) = 'running'",
                    (stored.id, reached.get(stored.id, -1)),
                )

    def finish(self, job: int, error: str | None = None) -> None:
        """Mark a job as finished, and its unfinished runs as failed.

        Args:
            job: ID of the job.
            error: Reason why the unfinished runs failed. Default: "training ended early".
        """
        with self._transaction() as execute:
            execute("UPDATE jobs SET done = 1, checksum = NULL WHERE id = ?", (job,))
            execute(
                "UPDATE runs SET state = 'failed', error = ?, checksum = NULL "
                "WHERE job = ? AND state = 'running'",
                (error or "training ended early", job),
            )

    def plan_again(self, job: int) -> None:
        """Mark a job as finished; discard its unfinished runs, and plan them again for another job."""
        with self._transaction() as execute:
            unfinished = execute("SELECT id FROM runs WHERE job = ? AND state = 'running'", (job,)).fetchall()
            _discard(execute, [run for (run,) in unfinished], planned=True)
            execute("UPDATE jobs SET done = 1, checksum = NULL WHERE id = ?", (job,))

    def forget(self, runs: Sequence[int], *, planned: bool) -> None:
        """Delete the results of runs, and either plan the runs again or delete them too.

        Args:
            runs: IDs of the runs.
            planned: Whether to plan the runs again.

        Raises:
            EnvariantError: If a run is unknown or running.
        """
        known = dict(self._rows("SELECT id, state FROM runs"))
        for run in runs:
            if run not in known:
                raise EnvariantError(f"{self.path}: holds no run {run}")
            if known[run] == "running":
                raise EnvariantError(f"run {run}: is running; wait for it, or stop the sweep first")
        with self._transaction() as execute:
            _discard(execute, runs, planned=planned)

    def _end(self, execute: Any, outcome: RunOutcome) -> None:
        state = "done" if outcome.error is None else "failed"
        execute(
            "UPDATE runs SET state = ?, error = ?, seconds = ?, p_value = ?, checksum = NULL WHERE id = ?",
            (state, outcome.error, outcome.seconds, outcome.p_value, outcome.id),
        )
        for each in outcome.predictions:
            names = (self._name(execute, name) for name in (each.environment, each.role))
            parts = (np.asarray(part, dtype="<f4").tobytes() for part in (each.targets, each.logits))
            execute(
                "INSERT OR REPLACE INTO predictions (run, environment, role, rows, targets, logits) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (outcome.id, *names, each.of, *parts),
            )

    def _name(self, execute: Any, name: str) -> int:
        if not self._names:
            self._names = dict(execute("SELECT name, id FROM names"))
        if name not in self._names:
            self._names[name] = execute("INSERT INTO names (name) VALUES (?)", (name,)).lastrowid
        return self._names[name]

    @contextmanager
    def _transaction(self) -> Generator[Any]:
        # Names added in a transaction are lost if it is rolled back, so the cache starts empty.
        self._names: dict[str, int] = {}
        with self.errors_as_envariant():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._seal()
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _seal(self) -> None:
        """Compute the checksums of all rows that the current transaction has changed."""
        execute = self._connection.execute
        for table in SEALED:
            changed = execute(f"SELECT rowid, * FROM {table} WHERE checksum IS NULL").fetchall()
            sums = [(checksum(row), number) for number, *row, _ in changed]
            self._connection.executemany(f"UPDATE {table} SET checksum = ? WHERE rowid = ?", sums)


INSERT_VALUE = (
    "INSERT OR REPLACE INTO history "
    f'SELECT run, step, environment, role, metric, kind, "column", value, value, {HISTORY_CODE} FROM '
    "(SELECT ? AS run, ? AS step, ? AS environment, ? AS role, ? AS metric, ? AS kind, "
    '? AS "column", ? AS value)'
)
"""Statement that stores a measured value, with its checksum."""


def _discard(execute: Any, runs: Sequence[int], *, planned: bool) -> None:
    """Delete the results of runs, and either plan the runs again or delete them too."""
    for run in runs:
        execute("DELETE FROM history WHERE run = ?", (run,))
        execute("DELETE FROM predictions WHERE run = ?", (run,))
        execute(
            "UPDATE runs SET state = 'planned', error = NULL, seconds = NULL, p_value = NULL, "
            "job = NULL, checksum = NULL WHERE id = ?"
            if planned
            else "DELETE FROM runs WHERE id = ?",
            (run,),
        )


def _test_set(execute: Any, names: Sequence[str]) -> int:
    """Return the ID of a set of test environments; add the set if it is new."""
    digest = hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=16).hexdigest()
    stored = execute("SELECT id FROM test_sets WHERE digest = ?", (digest,)).fetchone()
    if stored is not None:
        return stored[0]
    number = execute("INSERT INTO test_sets (digest) VALUES (?)", (digest,)).lastrowid
    for position, name in enumerate(names):
        execute(
            "INSERT INTO test_environments (test_set, position, name) VALUES (?, ?, ?)",
            (number, position, name),
        )
    return number


def _insert(execute: Any, run: PlannedRun) -> int:
    """Insert a planned run and return its ID."""
    return execute(
        "INSERT INTO runs (slot, identity, data, test_set, algorithm, trial, replica, hyperparameters, "
        "learning_rate) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            run.slot,
            run.identity,
            run.data,
            _test_set(execute, run.test_environments),
            run.algorithm,
            run.trial.number,
            run.replica,
            json.dumps(dict(run.trial.hyperparameters)),
            json.dumps(run.trial.learning_rate),
        ),
    ).lastrowid


def _create(path: Path) -> None:
    """Create the database file with all tables, under a temporary name until it is complete."""
    with replacing(path) as part:
        try:
            with closing(sqlite3.connect(part, isolation_level=None)) as connection:
                # No other files, which would stay behind or be missing after a full disk.
                connection.execute("PRAGMA journal_mode=MEMORY")
                create_tables(connection)
                schema = ("schema", str(SCHEMA))
                connection.execute("INSERT INTO facts VALUES (?, ?, ?)", (*schema, checksum(schema)))
        except sqlite3.Error as error:
            raise cannot_write(path, error) from None
