"""A table as environments: its columns encoded by what is trained on, whichever environments are held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from envariant.core import specs
from envariant.core.environments import (
    WEIGHT,
    DefaultSettings,
    Environment,
    EnvironmentSet,
    EnvironmentSource,
)
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Binary, Multiclass, Regression, Task
from envariant.data.tables.encoding import Encoder, fit
from envariant.data.tables.table import Table, load, read

NAME = "table"
"""Of this kind of source, where data are named by a text."""

_SETTINGS = ("task", "exclude", "weights", "least", "encoding")
_BATCH = 128

STEPS = 400
"""Of each run."""
_LATE = STEPS // 4
_SUGGESTED: dict[str, dict[str, Any]] = {
    # A penalty from the first step on keeps a network from learning anything.
    "irm": {"coefficient": f"step(1, 100, at={_LATE})"},
    "vrex": {"coefficient": f"step(1, 100, at={_LATE})"},
}


@final
@dataclass(frozen=True, eq=False)
class TableSource(EnvironmentSource):
    """A table as environments; its columns are encoded by what the training environments hold.

    Attributes:
        table: the rows.
        label: what the source is called.
        test: names of the environments held out.
    """

    table: Table
    label: str = "table"
    test: tuple[str, ...] = ()
    _drawn: list[tuple[Encoder, EnvironmentSet]] = field(default_factory=list[Any], repr=False)

    @property
    def name(self) -> str:
        return self.label

    def identity(self) -> str:
        settings = {"test": self.test} if self.test else {}
        return str(specs.Spec(NAME, (self.table.fingerprint,), settings))

    def with_test_environments(self, test: Sequence[str] | None) -> "TableSource":
        names = self.test if test is None else tuple(test)
        return self if names == self.test else _held_out(self.table, self.label, names)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return DefaultSettings(
            _SUGGESTED.get(algorithm, {}),
            model="mlp(hidden=(32, 32))",
            steps=STEPS,
            learning_rate=3e-3,
            batch_size=_BATCH,
            source="the library's defaults for tables",
        )

    def sample(self, seed: int) -> EnvironmentSet:
        del seed
        return self._encoded()[1]

    @property
    def columns(self) -> Mapping[str, slice]:
        return self.encoder.places

    @property
    def encoder(self) -> Encoder:
        """How columns become inputs, fitted on the environments that are not held out."""
        return self._encoded()[0]

    @property
    def task(self) -> Task:
        """With the mean and spread of the training environments' targets, where they are real numbers."""
        return self.sample(0).task

    def _encoded(self) -> tuple[Encoder, EnvironmentSet]:
        if not self._drawn:
            self._drawn.append(_encoded(self.table, self.label, self.test))
        return self._drawn[0]


# Every run of a study asks for its environments; two sets at a time are kept.
@lru_cache(maxsize=2)
def _held_out(table: Table, label: str, test: tuple[str, ...]) -> TableSource:
    return TableSource(table, label, test)


def task_of(table: Table, trained: NDArray[np.bool_]) -> Task:
    """What is predicted; real targets in deviations of the rows that are trained on."""
    if table.task != "regression":
        return Binary() if table.task == "binary" else Multiclass(max(2, len(table.classes)))
    known = table.targets()[trained].astype(np.float64)
    return Regression(scale=float(known.std()) or 1.0, center=float(known.mean()))


def _encoded(table: Table, label: str, test: tuple[str, ...]) -> tuple[Encoder, EnvironmentSet]:
    for name in test:
        if name not in table.environments:
            raise unknown_name("environment", name, table.environments, where=label)
    codes = table.environment.values
    order = np.argsort(codes, kind="stable")
    trained = np.isin(codes, [k for k, name in enumerate(table.environments) if name not in test])
    if not trained.any():
        raise EnvariantError(f"{label}: all environments are held out; none is left to train on")
    encoder = fit(column.rows(trained) for column in table.columns)
    if not encoder.columns:
        raise EnvariantError(f"{label}: no column varies in the training environments")
    targets = table.targets()
    task = task_of(table, trained)
    if isinstance(task, Regression):
        targets = ((targets - task.center) / task.scale).astype(np.float32)
    ends = np.cumsum(np.bincount(codes, minlength=len(table.environments)))
    environments = [
        # One by one, so that inputs are in memory once.
        Environment(
            name,
            torch.from_numpy(encoder.encode({column.name: column.rows(rows) for column in table.columns})),
            torch.from_numpy(targets[rows]),
            {} if table.weights is None else {WEIGHT: torch.from_numpy(table.weights.values[rows])},
        )
        for name, rows in zip(table.environments, np.split(order, ends[:-1]), strict=True)
    ]
    return encoder, EnvironmentSet(label, tuple(environments), task, test=test, classes=table.classes)


def source(path: str, target: str | None = None, environment: str | None = None, **more: Any) -> TableSource:
    """The source that `table("patients.csv", target=died, environment=hospital)` names.

    Args:
        path: of a file, or of a folder that `Table.write` made.
        target: the name of the column to predict; a stored table knows its own.
        environment: the name of the column that says where a row came from; likewise.
        more: as for `read`.

    Raises:
        EnvariantError: the table cannot be read.
    """
    place = Path(path)
    if target is None and environment is None and place.is_dir():
        stamp = (place / "table.json").stat().st_mtime_ns if (place / "table.json").exists() else 0
        return _held_out(_loaded(place.absolute(), stamp), str(specs.Spec(NAME, (path,))), ())
    if target is None or environment is None:
        raise EnvariantError(f"table: '{path}' needs target=… and environment=…, the names of two columns")
    for key in more:
        if key not in _SETTINGS:
            raise unknown_name("setting", key, ("target", "environment", *_SETTINGS), where="table")
    keywords: Mapping[str, Any] = {"target": target, "environment": environment, **more}
    return TableSource(read(path, target, environment, **more), str(specs.Spec(NAME, (path,), keywords)))


@lru_cache(maxsize=2)
def _loaded(folder: Path, stamp: int) -> Table:
    del stamp
    return load(folder)
