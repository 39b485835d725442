"""What is known of a study: one SQLite file, written as results come, by one process or several.

A run is planned, running, done or failed. Runs that train together are a batch; a batch belongs to whoever
holds its lock, which a killed process lets go of, so that the next one goes on where it stopped.
"""

import json
import sqlite3
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
from filelock import FileLock

from envariant.core.errors import EnvariantError
from envariant.studies.permutation_importance import Answers
from envariant.studies.study import Run, Study, Trial, of
from envariant.training.history import HistoryRow

SCHEMA = 2
FILE = "study.sqlite"
STATES = ("planned", "running", "done", "failed")

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, data TEXT NOT NULL, test_environments TEXT NOT NULL,
    algorithm TEXT NOT NULL, trial INTEGER NOT NULL, replica INTEGER NOT NULL,
    hyperparameters TEXT NOT NULL, learning_rate REAL NOT NULL, state TEXT NOT NULL DEFAULT 'planned',
    error TEXT, seconds REAL, p_value REAL, batch INTEGER
);
CREATE INDEX IF NOT EXISTS runs_of_state ON runs (state, data, test_environments, algorithm);
CREATE INDEX IF NOT EXISTS runs_of_batch ON runs (batch);
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY, execution TEXT, metric TEXT, higher_is_better INTEGER, roles TEXT,
    provenance TEXT, done INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS history (
    run INTEGER NOT NULL, step INTEGER NOT NULL, environment INTEGER NOT NULL, split INTEGER NOT NULL,
    metric INTEGER NOT NULL, value REAL, PRIMARY KEY (run, step, environment, metric)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    run INTEGER NOT NULL, environment INTEGER NOT NULL, rows INTEGER NOT NULL, targets BLOB NOT NULL,
    logits BLOB NOT NULL, PRIMARY KEY (run, environment)
) WITHOUT ROWID;
"""


@final
@dataclass(frozen=True)
class Stored:
    """A run as it is stored.

    Attributes:
        id: its number in the study.
        run: what it is.
    """

    id: int
    run: Run


@final
@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        id: of the run.
        error: why it failed; None if it did not.
        seconds: it took.
        p_value: of the test of invariance on held-out rows; None where there is none.
        answers: on some rows of every environment that it did not train on.
    """

    id: int
    error: str | None
    seconds: float
    p_value: float | None
    answers: tuple[Answers, ...] = field(default=(), repr=False)


@final
@dataclass(frozen=True)
class Facts:
    """What is known of a batch once it is under way.

    Attributes:
        execution: how its runs are executed, as JSON.
        metric: of the task.
        higher_is_better: of the metric.
        roles: by environment.
        provenance: versions, hardware and command.
    """

    execution: Mapping[str, Any]
    metric: str
    higher_is_better: bool
    roles: Mapping[str, str]
    provenance: Mapping[str, Any]


@final
class Store:
    """A study's file, open.

    Args:
        folder: of the study.

    Raises:
        EnvariantError: there is none, it is damaged, or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE
        if not self.path.exists():
            raise EnvariantError(f"{folder}: holds no study; `envariant sweep --out {folder}` begins one")
        self._connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
        with self.errors_as_envariant():
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            found = self._connection.execute("SELECT value FROM facts WHERE name = 'schema'").fetchone()
        if found is None or found[0] != str(SCHEMA):
            raise EnvariantError(f"{self.path}: is of another version of envariant ({found and found[0]})")

    @classmethod
    def begin(cls, folder: Path, study: Study) -> "Store":
        """Opens the study in a folder, or begins it; runs that are not there yet are planned.

        Raises:
            EnvariantError: the folder cannot be written, or holds runs made under other settings.
        """
        runs = study.runs()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                if not (folder / FILE).exists():
                    _make(folder / FILE)
        except (OSError, sqlite3.Error) as error:
            raise EnvariantError(f"{folder}: cannot hold a study ({error}); choose another folder") from None
        store = cls(folder)
        store._plan(study, runs)
        return store

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def study(self) -> Study:
        """As it was declared last."""
        return of(json.loads(self._fact("study")), str(self.path))

    def counts(self) -> dict[str, int]:
        """Runs by state."""
        found = dict(self._rows("SELECT state, COUNT(*) FROM runs GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def listing(self) -> pd.DataFrame:
        """A line a run: what it is, its state and why it failed."""
        with self.errors_as_envariant():
            return pd.read_sql_query(
                "SELECT id, data, test_environments, algorithm, trial, replica, state, error, seconds, p_value, "
                "hyperparameters, learning_rate FROM runs ORDER BY id",
                self._connection,
            )

    def history(self, runs: Sequence[int] | None = None) -> pd.DataFrame:
        """Measured numbers: run, step, environment, split, metric, value; of some runs or of all."""
        where = "" if runs is None else f"WHERE run IN ({', '.join(str(int(run)) for run in runs)})"
        with self.errors_as_envariant():
            return pd.read_sql_query(
                "SELECT run, step, e.name AS environment, s.name AS split, m.name AS metric, value "
                "FROM history JOIN names e ON e.id = environment JOIN names s ON s.id = split "
                f"JOIN names m ON m.id = metric {where} ORDER BY run, step, e.name, m.name",
                self._connection,
            )

    def answers(self, run: int) -> dict[str, Answers]:
        """What a run that is done says of some rows of each environment that it did not train on, by name."""
        found: dict[str, Answers] = {}
        for name, rows, targets, logits in self._rows(
            "SELECT n.name, rows, targets, logits FROM answers JOIN names n ON n.id = environment "
            "WHERE run = ? ORDER BY environment",
            (run,),
        ):
            y, z = (np.frombuffer(part, dtype="<f4") for part in (targets, logits))
            found[name] = Answers(name, rows, z if len(z) == len(y) else z.reshape(len(y), -1), y)
        return found

    def table(self) -> pd.DataFrame:
        """What selection looks at: a line for every run and step that was measured, and for runs without.

        Columns: run, data, test_environments, algorithm, trial, replica, state, error, p_value, metric,
        higher_is_better, step, validation (mean of the task's metric over held-out rows of the training
        environments), test and test_worst (over the environments that are held out), and tests (of each of
        them by name, as JSON).
        """
        ids = dict(self._rows("SELECT name, id FROM names"))
        # What was measured is grouped by itself, in the order in which it lies on the disk: runs' texts
        # carried along would cost as much again.
        with self.errors_as_envariant():
            runs = pd.read_sql_query(
                "SELECT runs.id AS run, data, test_environments, algorithm, trial, replica, state, error, p_value, "
                "b.metric, higher_is_better FROM runs LEFT JOIN batches b ON b.id = runs.batch ORDER BY run",
                self._connection,
            )
            measured = [
                pd.read_sql_query(
                    "SELECT run, :name AS metric, step, "
                    "AVG(value) FILTER (WHERE split = :validation) AS validation, "
                    "AVG(value) FILTER (WHERE split = :test) AS test, "
                    "MIN(value) FILTER (WHERE split = :test) AS lowest, "
                    "MAX(value) FILTER (WHERE split = :test) AS highest, "
                    "json_group_object(e.name, value) FILTER (WHERE split = :test) AS tests "
                    "FROM history h JOIN names e ON e.id = h.environment "
                    "WHERE metric = :metric GROUP BY run, step ORDER BY run, step",
                    self._connection,
                    params={"name": name, "metric": ids[name]}
                    | {key: ids.get(key, -1) for key in ("validation", "test")},
                )
                for name in runs["metric"].dropna().unique()
            ]
        nothing = (
            runs[["run", "metric"]]
            .head(0)
            .assign(step=0, validation=0.0, test=0.0, lowest=0.0, highest=0.0, tests="")
        )
        found = runs.merge(pd.concat(measured or [nothing]), "left", ["run", "metric"])
        numbers = ["validation", "test", "lowest", "highest", "p_value"]
        found[numbers] = found[numbers].astype(float)
        better = found["higher_is_better"].fillna(1).astype(bool)
        found["test_worst"] = found["lowest"].where(better, found["highest"])
        return found.drop(columns=["lowest", "highest"])

    def provenance(self, run: int) -> dict[str, Any]:
        """Where a run was made: versions, hardware, command; empty before it is under way."""
        found = self._rows(
            "SELECT provenance FROM batches b JOIN runs r ON r.batch = b.id WHERE r.id = ?", (run,)
        )
        return json.loads(found[0][0]) if found and found[0][0] else {}

    def facts(self, batch: int) -> Facts | None:
        """What is known of a batch; None before it is under way."""
        found = self._rows(
            "SELECT execution, metric, higher_is_better, roles, provenance FROM batches WHERE id = ?",
            (batch,),
        )
        if not found or found[0][0] is None:
            return None
        execution, metric, better, roles, provenance = found[0]
        return Facts(json.loads(execution), metric, bool(better), json.loads(roles), json.loads(provenance))

    def unfinished(self) -> tuple[int, ...]:
        """Batches that were begun and not brought to their end."""
        return tuple(batch for (batch,) in self._rows("SELECT id FROM batches WHERE done = 0 ORDER BY id"))

    def members(self, batch: int) -> tuple[Stored, ...]:
        """The runs of a batch, in the order in which they train."""
        return tuple(
            map(_stored, self._rows(f"SELECT {_COLUMNS} FROM runs WHERE batch = ? ORDER BY id", (batch,)))
        )

    def claim(self, among: int = 1) -> int | None:
        """Makes a batch of planned runs that train as one, the earliest first; None if none is planned.

        Args:
            among: how many processes share the work. A batch holds at most one part in so many of what is
                planned yet, so that batches grow smaller and all end at about the same time.
        """
        with self._writing() as write:
            first = write(
                "SELECT data, test_environments, algorithm FROM runs WHERE state = 'planned' ORDER BY id LIMIT 1"
            ).fetchone()
            if first is None:
                return None
            batch = write("INSERT INTO batches DEFAULT VALUES").lastrowid
            write(
                "UPDATE runs SET state = 'running', batch = ? WHERE id IN (SELECT id FROM runs WHERE "
                "state = 'planned' AND data = ? AND test_environments = ? AND algorithm = ? ORDER BY id LIMIT "
                "(SELECT (COUNT(*) + ? - 1) / ? FROM runs WHERE state = 'planned'))",
                (batch, *first, among, among),
            )
        return batch

    def under_way(self, batch: int, facts: Facts) -> None:
        """Stores what is known of a batch now that it trains."""
        with self._writing() as write:
            write(
                "UPDATE batches SET execution = ?, metric = ?, higher_is_better = ?, roles = ?, "
                "provenance = ? WHERE id = ?",
                (
                    json.dumps(facts.execution),
                    facts.metric,
                    int(facts.higher_is_better),
                    json.dumps(facts.roles),
                    json.dumps(facts.provenance),
                    batch,
                ),
            )
            self._name(write, facts.metric)

    def add(self, rows: Iterable[HistoryRow], outcomes: Iterable[Outcome] = ()) -> None:
        """Stores what was measured, a row's replica being its run's number, and how runs ended."""
        with self._writing() as write:
            measured = [
                (
                    row.replica,
                    row.step,
                    self._name(write, row.environment),
                    self._name(write, row.split),
                    self._name(write, row.metric),
                    # SQLite has no NaN.
                    row.value if row.value == row.value else None,
                )
                for row in rows
            ]
            self._connection.executemany("INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?, ?)", measured)
            for outcome in outcomes:
                write(
                    "UPDATE runs SET state = ?, error = ?, seconds = ?, p_value = ? WHERE id = ?",
                    (
                        "done" if outcome.error is None else "failed",
                        outcome.error,
                        outcome.seconds,
                        outcome.p_value,
                        outcome.id,
                    ),
                )
                for said in outcome.answers:
                    place = self._name(write, said.environment)
                    parts = (np.asarray(part, dtype="<f4").tobytes() for part in (said.targets, said.logits))
                    write(
                        "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
                        (outcome.id, place, said.of, *parts),
                    )

    def keep(self, batch: int, reached: Mapping[int, int]) -> None:
        """Of the runs of a batch that have not ended, keeps what was measured up to the step reached."""
        with self._writing() as write:
            for stored in self.members(batch):
                write(
                    "DELETE FROM history WHERE run = ? AND step > ? "
                    "AND (SELECT state FROM runs WHERE id = run) = 'running'",
                    (stored.id, reached.get(stored.id, -1)),
                )

    def finish(self, batch: int, error: str | None = None) -> None:
        """A batch is at its end; what of it has not ended is failed for that reason."""
        with self._writing() as write:
            write("UPDATE batches SET done = 1 WHERE id = ?", (batch,))
            write(
                "UPDATE runs SET state = 'failed', error = ? WHERE batch = ? AND state = 'running'",
                (error or "it did not come to its end", batch),
            )

    def forget(self, runs: Sequence[int], *, planned: bool) -> None:
        """Forgets what runs have measured; they are planned anew, or no longer there.

        Raises:
            EnvariantError: one is unknown or is training.
        """
        known = dict(self._rows("SELECT id, state FROM runs"))
        for run in runs:
            if run not in known:
                raise EnvariantError(f"{self.path}: holds no run {run}")
            if known[run] == "running":
                raise EnvariantError(f"run {run}: is training; wait for it, or stop the sweep first")
        with self._writing() as write:
            for run in runs:
                write("DELETE FROM history WHERE run = ?", (run,))
                write("DELETE FROM answers WHERE run = ?", (run,))
                write(
                    "UPDATE runs SET state = 'planned', error = NULL, seconds = NULL, p_value = NULL, "
                    "batch = NULL WHERE id = ?"
                    if planned
                    else "DELETE FROM runs WHERE id = ?",
                    (run,),
                )

    def _plan(self, study: Study, runs: Sequence[Run]) -> None:
        """Writes runs down that are not there yet; what is there must be what would be planned now."""
        known = {
            key: (json.loads(held), rate)
            for key, held, rate in self._rows("SELECT key, hyperparameters, learning_rate FROM runs")
        }
        for run in runs:
            there = known.get(run.key)
            now = (json.loads(json.dumps(dict(run.trial.hyperparameters))), run.trial.learning_rate)
            if there is not None and there != now:
                raise EnvariantError(
                    f"{self.folder}: holds {run.algorithm}, trial {run.trial.number}, with other "
                    f"hyperparameters; a study keeps its seed, rate span and ranges: choose another folder"
                )
        if known and (differs := _difference(self.study, study)):
            raise EnvariantError(f"{self.folder}: holds runs made with {differs}; choose another folder")
        with self._writing() as write:
            write("INSERT OR REPLACE INTO facts VALUES ('study', ?)", (json.dumps(study.to_dict()),))
            self._connection.executemany(
                "INSERT OR IGNORE INTO runs (key, data, test_environments, algorithm, trial, replica, hyperparameters, "
                "learning_rate) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        run.key,
                        run.data,
                        json.dumps(run.test_environments),
                        run.algorithm,
                        run.trial.number,
                        run.replica,
                        json.dumps(dict(run.trial.hyperparameters)),
                        run.trial.learning_rate,
                    )
                    for run in runs
                    if run.key not in known
                ],
            )

    def _name(self, write: Any, name: str) -> int:
        found = self._names.get(name)
        if found is None:
            write("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
            found = self._names[name] = write("SELECT id FROM names WHERE name = ?", (name,)).fetchone()[0]
        return found

    def _fact(self, name: str) -> str:
        return self._rows("SELECT value FROM facts WHERE name = ?", (name,))[0][0]

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.errors_as_envariant():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Generator[Any]:
        """One transaction: all of it or nothing."""
        # Names that a transaction brings are gone if it is.
        self._names: dict[str, int] = {}
        with self.errors_as_envariant():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
            except BaseException:
                # A full disk has ended the transaction already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def errors_as_envariant(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise EnvariantError(
                f"{self.path}: {error}; no finished run is lost by this: free some space, or restore the "
                f"file from a copy, and give the same command again"
            ) from None


def _make(path: Path) -> None:
    """A new file, whole from the moment it is there: whoever looks for it finds tables in it."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(partial, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_TABLES)
        connection.execute("INSERT INTO facts VALUES ('schema', ?)", (str(SCHEMA),))
    partial.replace(path)


def _difference(before: Study, now: Study) -> str:
    """What all runs of a study share, where another study has it otherwise; empty where they agree."""
    for key in ("settings", "seed", "holdout_fraction", "metric", "store_predictions"):
        there, here = getattr(before, key), getattr(now, key)
        if there != here:
            return f"{key} {there!r}, not {here!r}"
    return ""


_COLUMNS = "id, data, test_environments, algorithm, trial, hyperparameters, learning_rate, replica"


def _stored(row: tuple[Any, ...]) -> Stored:
    number, data, test_environments, algorithm, trial, hyperparameters, rate, replica = row
    return Stored(
        number,
        Run(
            data,
            tuple(json.loads(test_environments)),
            algorithm,
            Trial(trial, json.loads(hyperparameters), rate),
            replica,
        ),
    )
