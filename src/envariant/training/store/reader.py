"""Read stored runs, with their measured values, predictions and records."""

import json
import os
import sqlite3
import zlib
from abc import ABC
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from envariant.core.errors import EnvariantError
from envariant.core.paths import check_file
from envariant.training.history import COLUMNS, FULL, HistoryRow
from envariant.training.store.rows import STATES, PlannedRun, Predictions, StoredRun, Trial

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 4
FILE = "runs.sqlite"

SEALED = ("facts", "runs", "test_sets", "test_environments", "jobs", "names", "predictions")
"""Tables whose rows end with a checksum."""

HISTORY_CODE = (
    'run * 1000003 + step * 10007 + environment * 1009 + role * 101 + metric * 31 + kind * 7 + "column"'
)
"""SQL expression for the checksum of a measured value's key: run, step, environment, metric and so on."""

_TYPES = {"INTEGER": (int,), "REAL": (int, float), "TEXT": (str,), "BLOB": (bytes,)}

_RUN = "id, data, test_set, algorithm, trial, hyperparameters, learning_rate, replica, identity"

_LISTED = (
    "id", "data", "test_environments", "algorithm", "trial", "replica", "state", "error", "seconds",
    "p_value", "hyperparameters", "learning_rate",
)  # fmt: skip

_HISTORY = (
    "SELECT run, step, e.name AS environment, r.name AS role, k.name AS kind, c.name AS column, "
    "m.name AS metric, value FROM history h JOIN names e ON e.id = h.environment "
    'JOIN names r ON r.id = h.role JOIN names k ON k.id = h.kind JOIN names c ON c.id = h."column" '
    "JOIN names m ON m.id = h.metric WHERE {} ORDER BY "
)


class StoreReader(ABC):  # noqa: B024
    """Reader of stored runs, and base class of `Store`, which can also write.

    Args:
        folder: Folder that contains the results of a run, a study or a comparison.
        verify: Whether to check the database for damage first; False saves time if it was just checked.

    Raises:
        EnvariantError: If the folder contains no runs, is damaged, or was written by an incompatible version.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder, self.path = folder, folder / FILE
        check_file(self.path, f"{folder}: holds no runs (no {FILE}); give the folder of a run or a study")
        self._connection, writable = _connect(self.path)
        try:
            with self.errors_as_envariant():
                # Do not call functions in the schema of an untrusted file.
                self._connection.execute("PRAGMA trusted_schema=OFF")
                if verify:
                    self._verify()
                if writable:
                    self._connection.execute("PRAGMA journal_mode=WAL")
                    self._connection.execute("PRAGMA synchronous=FULL")
        except BaseException:
            self.close()
            raise

    def _verify(self) -> None:
        """Raise an error if the file is damaged, or was not written by this version of envariant."""
        # A view or a trigger in an untrusted file could run forever, so no table is read before this check.
        if self._rows("SELECT 1 FROM sqlite_master WHERE type NOT IN ('table', 'index') LIMIT 1"):
            raise self._damaged("it holds views or triggers")
        schema = self.fact("schema")
        if schema != str(SCHEMA):
            raise EnvariantError(
                f"{self.path}: has schema {schema}, this version reads {SCHEMA}; choose another folder"
            )
        if self._rows(_TABLES) != _tables():
            raise self._damaged("tables were added or changed")
        # Finds damage to the structure, also to that of the indices, which `quick_check` leaves out.
        if (found := self._rows("PRAGMA integrity_check(1)")[0][0]) != "ok":
            raise self._damaged(str(found).splitlines()[-1])
        for table in SEALED:
            self._verify_rows(table)
        changed = f"copy IS NOT value OR code IS NOT {HISTORY_CODE} OR typeof(value) NOT IN ('real', 'null')"
        if self._rows(f"SELECT run FROM history WHERE {changed} LIMIT 1"):
            raise self._damaged("a measured value differs from its checksum")
        unnamed = " OR ".join(
            f'"{each}" NOT IN (SELECT id FROM names)'
            for each in ("environment", "role", "metric", "kind", "column")
        )
        if self._rows(f"SELECT run FROM history WHERE {unnamed} LIMIT 1"):
            raise self._damaged("a measured value has an unknown environment, role, metric, kind or column")
        self._check_runs()

    def _verify_rows(self, table: str) -> None:
        """Raise an error if a row of a table differs from its checksum."""
        columns = self._rows(f"PRAGMA table_info({table})")
        types = [
            (*_TYPES[kind], *(() if is_required else (type(None),)))
            for _, _, kind, is_required, *_ in columns
        ]
        for row in self._connection.execute(f"SELECT * FROM {table}"):
            if not all(map(isinstance, row, types)):
                raise self._damaged(f"a value of {table} has another type than its column")
            if row[-1] != checksum(row[:-1]):
                raise self._damaged(f"a row of {table} differs from its checksum")

    def _check_runs(self) -> None:
        """Raise an error if a run refers to unknown test environments, or its settings are not valid."""
        sets = self._test_sets()
        for test_set, state, hyperparameters, rate in self._rows(
            "SELECT test_set, state, hyperparameters, learning_rate FROM runs"
        ):
            if test_set not in sets or state not in STATES:
                raise self._damaged("a run has unknown test environments, or an unknown state")
            self.parse(hyperparameters, dict)
            self.parse(rate, int | float | str | None)

    def parse(self, text: str, kind: Any) -> Any:
        """Parse a stored JSON string.

        Raises:
            EnvariantError: If the string is not JSON, or its value is not of type `kind`.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise self._damaged("a stored text is not JSON") from None
        if not isinstance(value, kind):
            raise self._damaged("a stored value has another type than expected")
        return value

    def close(self) -> None:
        """Close the database file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fact(self, name: str) -> str | None:
        """Return the string that `set_fact` stored under `name`, such as "study"; None if there is none."""
        rows = self._rows("SELECT value FROM facts WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def declaration(self) -> dict[str, Any]:
        """Return the declaration of the study, in the format of `Study.to_dict`.

        Raises:
            EnvariantError: If the folder contains a single run instead of a study.
        """
        stored = self.fact("study")
        if stored is None:
            raise EnvariantError(f"{self.folder}: holds a single run and no study")
        return self.parse(stored, dict)

    def counts(self, declares: Callable[[str, str], bool] = lambda data, algorithm: True) -> dict[str, int]:
        """Return the number of runs in each state.

        Args:
            declares: Function that returns whether to count runs of a given data set and algorithm. Default:
                count all runs.
        """
        counts: dict[str, int] = dict.fromkeys(STATES, 0)
        for data, algorithm, state, count in self._rows(
            "SELECT data, algorithm, state, COUNT(*) FROM runs GROUP BY data, algorithm, state"
        ):
            counts[state] += count if declares(data, algorithm) else 0
        return counts

    def listing(self) -> "pd.DataFrame":
        """Return a table with one row per run: data, algorithm, hyperparameters, state, error and time."""
        import pandas as pd

        return pd.DataFrame.from_records(self.list_runs(), columns=_LISTED, coerce_float=True)

    def list_runs(self) -> list[dict[str, Any]]:
        """Return the rows of `listing` as dictionaries, without loading pandas."""
        sets = self._test_sets()
        columns = ", ".join(_LISTED).replace("test_environments", "test_set")
        rows = (
            dict(zip(_LISTED, values, strict=True))
            for values in self._rows(f"SELECT {columns} FROM runs ORDER BY id")
        )
        return [row | {"test_environments": sets[row["test_environments"]]} for row in rows]

    def history(self, runs: Sequence[int] | None = None) -> "pd.DataFrame":
        """Return a table of measured values: run, step, environment, role, kind, column, metric, value.

        Args:
            runs: IDs of the runs. Default: all runs.
        """
        return self._frame(
            _HISTORY.format(_among(runs)) + "run, step, e.name, r.name, m.name, k.name, c.name"
        )

    def history_rows(self, runs: Sequence[int]) -> list[HistoryRow]:
        """Return the measured values of runs, sorted by run, step and first occurrence of the metric."""
        measured = self._frame(_HISTORY.format(_among(runs)) + "run, step, h.metric")
        measured = measured.astype({"value": float}).rename(columns={"run": "replica"})
        return [HistoryRow(*values) for values in measured[list(COLUMNS)].itertuples(index=False, name=None)]

    def predictions(self, run: int) -> dict[tuple[str, str], Predictions]:
        """Return the stored predictions of a run, by pair of environment name and role."""
        stored: dict[tuple[str, str], Predictions] = {}
        for name, role, rows, targets, logits in self._rows(
            "SELECT e.name, r.name, rows, targets, logits FROM predictions "
            "JOIN names e ON e.id = environment JOIN names r ON r.id = role "
            "WHERE run = ? ORDER BY environment",
            (run,),
        ):
            try:
                y, z = (np.frombuffer(part, dtype="<f4") for part in (targets, logits))
                z = z if len(z) == len(y) else z.reshape(len(y), -1)
            except ValueError:
                raise self._damaged("predictions have another shape than their targets") from None
            stored[name, role] = Predictions(name, role, rows, z, y)
        return stored

    def newest_scores(self) -> tuple[str, str, dict[str, float]] | None:
        """Return algorithm, metric and test scores by environment of the last finished run, or None."""
        rows = self._rows(
            "SELECT runs.algorithm, m.name, e.name, AVG(value) FROM runs JOIN jobs j ON j.id = runs.job "
            "JOIN history h ON h.run = runs.id JOIN names m ON m.id = h.metric AND m.name = j.metric "
            "JOIN names e ON e.id = h.environment JOIN names r ON r.id = h.role "
            "JOIN names k ON k.id = h.kind "
            "WHERE runs.id = (SELECT MAX(id) FROM runs WHERE state = 'done') AND r.name = 'test' "
            "AND k.name = ? AND step = (SELECT MAX(step) FROM history WHERE run = runs.id) "
            "GROUP BY h.environment ORDER BY h.environment",
            (FULL,),
        )
        return (*rows[0][:2], {row[2]: row[3] for row in rows}) if rows else None

    def table(self) -> "pd.DataFrame":
        """Return the scores used for model selection: one row per run and evaluated step.

        Runs without evaluations have one row without scores. Columns: run, data, test_environments (tuple of
        names), algorithm, trial, replica, state, error, p_value, metric, higher_is_better, step, validation
        (mean of the metric over the validation sets of the training environments), test and test_worst (mean
        and worst over the test environments), and tests (scores by test environment, JSON).
        """
        import pandas as pd

        ids = dict(self._rows("SELECT name, id FROM names"))
        runs = self._frame(
            "SELECT runs.id AS run, data, test_set, algorithm, trial, replica, state, error, p_value, "
            "j.metric, higher_is_better FROM runs LEFT JOIN jobs j ON j.id = runs.job ORDER BY run"
        )
        # Measurements are grouped before the join, in the order of the file: a query that also returns the
        # texts of the runs takes twice as long.
        measured = [
            self._frame(
                "SELECT run, :name AS metric, step, "
                "AVG(value) FILTER (WHERE role = :validation) AS validation, "
                "AVG(value) FILTER (WHERE role = :test) AS test, "
                "MIN(value) FILTER (WHERE role = :test) AS lowest, "
                "MAX(value) FILTER (WHERE role = :test) AS highest, "
                "json_group_object(e.name, value) FILTER (WHERE role = :test) AS tests "
                "FROM history h JOIN names e ON e.id = h.environment "
                "WHERE metric = :metric AND kind = :kind GROUP BY run, step ORDER BY run, step",
                {"name": name, "metric": ids.get(name, -1), "kind": ids.get(FULL, -1)}
                | {key: ids.get(key, -1) for key in ("validation", "test")},
            )
            for name in runs["metric"].dropna().unique()
        ]
        nothing = runs[["run", "metric"]].head(0).assign(step=0, tests="")
        nothing = nothing.assign(validation=0.0, test=0.0, lowest=0.0, highest=0.0)
        table = runs.merge(pd.concat(measured or [nothing]), "left", ["run", "metric"])
        numbers = ["validation", "test", "lowest", "highest", "p_value"]
        table[numbers] = table[numbers].astype(float)
        better = table["higher_is_better"].fillna(1).astype(bool)
        table["test_worst"] = table["lowest"].where(better, table["highest"])
        return self._with_test_environments(table.drop(columns=["lowest", "highest"]))

    def record_text(self, job: int) -> str | None:
        """Return the JSON text of a job's record; None if the job has not begun."""
        rows = self._rows("SELECT record FROM jobs WHERE id = ?", (job,))
        return rows[0][0] if rows else None

    def jobs_of(self, runs: Sequence[int]) -> dict[int, int]:
        """Return the job ID of each run, by ID of the run; runs without a job are omitted."""
        rows = self._rows("SELECT id, job FROM runs WHERE job IS NOT NULL")
        return {run: job for run, job in rows if run in set(runs)}

    def networks(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the models of all started runs, by algorithm.

        Runs that use a predictor instead of a network are omitted.
        """
        rows = self._rows(
            "SELECT DISTINCT algorithm, json_extract(j.record, '$.spec.model') "
            "FROM runs JOIN jobs j ON j.id = runs.job "
            "WHERE json_extract(j.record, '$.fingerprints.model') IS NOT NULL ORDER BY runs.id"
        )
        return {name: tuple(model for other, model in rows if other == name) for name, _ in rows}

    def unfinished(self) -> tuple[int, ...]:
        """Return the IDs of unfinished jobs."""
        return tuple(job for (job,) in self._rows("SELECT id FROM jobs WHERE done = 0 ORDER BY id"))

    def members(self, job: int) -> tuple[StoredRun, ...]:
        """Return the runs of a job, in ascending order of their IDs."""
        sets = self._test_sets()
        rows = self._rows(f"SELECT {_RUN} FROM runs WHERE job = ? ORDER BY id", (job,))
        return tuple(_stored(row, sets) for row in rows)

    def checkpoints(self, job: int) -> Path:
        """Return the folder of a job's checkpoints."""
        return self.folder / "jobs" / f"{job:06d}"

    def _test_sets(self) -> dict[int, tuple[str, ...]]:
        sets: dict[int, tuple[str, ...]] = {i: () for (i,) in self._rows("SELECT id FROM test_sets")}
        for number, name in self._rows(
            "SELECT test_set, name FROM test_environments ORDER BY test_set, position"
        ):
            if number not in sets:
                raise self._damaged("a test environment belongs to an unknown set")
            sets[number] += (name,)
        return sets

    def _with_test_environments(self, table: "pd.DataFrame") -> "pd.DataFrame":
        """Replace the IDs of sets of test environments by the names of the environments."""
        import pandas as pd

        sets = self._test_sets()
        names = pd.Series([sets[number] for number in table["test_set"]], index=table.index, dtype=object)
        place = list(table.columns).index("test_set")
        table = table.drop(columns="test_set")
        table.insert(place, "test_environments", names)
        return table

    def _frame(self, query: str, values: Any = ()) -> "pd.DataFrame":
        import pandas as pd

        try:
            return pd.read_sql_query(query, self._connection, params=values)
        except (sqlite3.DatabaseError, pd.errors.DatabaseError) as error:
            raise self._failed(error.__cause__ or error) from None

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.errors_as_envariant():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def errors_as_envariant(self) -> Generator[None]:
        """Convert database errors to one-line errors with a remedy.

        Raises:
            EnvariantError: If the database reports an error.
        """
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._failed(error) from None

    def _failed(self, error: BaseException) -> EnvariantError:
        # The names of extended codes begin with that of the general one.
        kind = getattr(error, "sqlite_errorname", "").split("_")[1:2]
        if kind in (["FULL"], ["IOERR"]):
            remedy = "finished runs are not lost: free some space, or check the disk, and try again"
        elif kind in (["READONLY"], ["CANTOPEN"], ["PERM"]):
            remedy = "change its permissions and those of its folder, or copy the folder"
        elif kind in (["BUSY"], ["LOCKED"]):
            remedy = "another process has been writing for a minute; wait for it, or stop it"
        else:
            return self._damaged(str(error))
        return EnvariantError(f"{self.path}: {error}; {remedy}", retryable=True)

    def _damaged(self, reason: str) -> EnvariantError:
        return EnvariantError(
            f"{self.path}: is damaged ({reason}); restore it from a copy, or delete {self.folder} to train "
            f"its runs again",
            retryable=True,
        )


def checksum(values: Iterable[Any]) -> int:
    """Return the checksum of the values in a row."""
    return zlib.crc32(b"\0".join(v if isinstance(v, bytes) else str(v).encode() for v in values))


def create_tables(connection: sqlite3.Connection) -> None:
    """Create all tables and indices in an empty database."""
    schema = resources.files("envariant.training.store").joinpath("schema.sql").read_text(encoding="utf-8")
    connection.executescript(f"BEGIN; {schema} COMMIT;")


_TABLES = "SELECT name, sql FROM sqlite_master ORDER BY name"


def _tables() -> list[tuple[Any, ...]]:
    """Return the name and declaration of every table and index of a new store."""
    with closing(sqlite3.connect(":memory:")) as connection:
        create_tables(connection)
        return connection.execute(_TABLES).fetchall()


def _connect(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Return a connection to a database, and whether it can be written."""
    if writable := os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return sqlite3.connect(path, timeout=60.0, isolation_level=None), writable
    # SQLite adds files for locks. It can do without them if no process writes, because the file is complete.
    log = path.with_name(f"{path.name}-wal")
    how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    address = f"{path.absolute().as_uri()}?{how}"
    return sqlite3.connect(address, uri=True, timeout=60.0, isolation_level=None), writable


def _among(runs: Sequence[int] | None) -> str:
    return "TRUE" if runs is None else f"run IN ({', '.join(str(int(run)) for run in runs)})"


def _stored(row: tuple[Any, ...], sets: dict[int, tuple[str, ...]]) -> StoredRun:
    number, data, test_set, algorithm, trial, hyperparameters, rate, replica, identity = row
    own = Trial(trial, json.loads(hyperparameters), json.loads(rate))
    return StoredRun(number, PlannedRun(data, sets[test_set], algorithm, own, replica, identity=identity))
