"""Data source for tables. The encoding of columns is fitted on the training environments only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core import specs
from envariant.core.display import Summary
from envariant.core.environments import ROW_GROUP, WEIGHT, DefaultSettings, Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, listed, unknown_name
from envariant.core.tasks import Binary, Multiclass, Regression, Task
from envariant.data.base import SpecSource
from envariant.data.tables.encoding import Encoder, fit
from envariant.data.tables.raw import TableStore
from envariant.data.tables.table import FILE, Table, load, read, read_with_texts

NAME = "table"
"""Registered name of table sources."""

_SETTINGS = ("task", "exclude", "sample_weight", "min_rows", "encoding", "missing_values")
# Rows of each environment in a batch, unless there are so many environments that a step would be slow.
_BATCH = 128
_STEP_ROWS = 4_096
_FEWEST = 8

STEPS = 400
"""Default number of optimizer updates of a run on a table."""

# With a penalty from the first step on, a network learns nothing.
_SWITCH = STEPS // 4
_DEFAULT_HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "irm": {"coefficient": f"step(1, 100, at={_SWITCH})"},
    "vrex": {"coefficient": f"step(1, 100, at={_SWITCH})"},
}


@final
@dataclass(frozen=True, eq=False, repr=False)
class TableSource(SpecSource):
    """Data source for a table, such as `table("patients.csv", target=died, environment=hospital)`.

    Attributes:
        table: Table with typed columns, target and environments.
        label: Name of the data source.
        test: Names of the test environments. The encoding is fitted on the other environments only.
    """

    base: ClassVar[str] = NAME
    table: Table
    label: str = "table"
    test: tuple[str, ...] = ()
    _sampled: list[tuple[Encoder, EnvironmentSet]] = field(default_factory=list[Any], repr=False)

    @classmethod
    def from_spec(cls, spec: specs.Spec, folder: Path | None = None) -> "TableSource":
        if len(spec.positional) != 1 or not isinstance(spec.positional[0], str) or "path" in spec.keywords:
            example = f"{NAME}('patients.csv', target=died, environment=hospital)"
            raise EnvariantError(f"{NAME}: needs the path of a file first, as in {example}")
        return source(spec.positional[0], **spec.keywords)

    @property
    def name(self) -> str:
        return self.label

    def identity(self) -> str:
        settings = {"test": self.test} if self.test else {}
        return str(specs.Spec(self.base, (self.table.fingerprint,), settings))

    def with_test_environments(self, test: Sequence[str] | None) -> "TableSource":
        names = self.test if test is None else tuple(test)
        return self if names == self.test else _shared_source(self.table, self.label, names)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return DefaultSettings(
            _DEFAULT_HYPERPARAMETERS.get(algorithm, {}),
            model="mlp(hidden=(32, 32))",
            steps=STEPS,
            learning_rate=3e-3,
            batch_size=batch_size(len(self.table.environments_until(self.test))),
            source="the library's defaults for tables",
        )

    def sample(self, seed: int) -> EnvironmentSet:
        return self._encoded()[1]

    @property
    def columns(self) -> Mapping[str, slice]:
        return self.encoder.slices

    @property
    def encoder(self) -> Encoder:
        """Encoder that converts columns to network inputs, fitted on the training environments."""
        return self._encoded()[0]

    @property
    def task(self) -> Task:
        """Prediction task of the table.

        Real-valued targets are standardized by the mean and standard deviation of the training environments.
        """
        return self.sample(0).task

    def _display(self) -> Summary:
        facts = {**self.table.summary().facts, "log": "", "test environments": ", ".join(self.test)}
        return Summary(f"TableSource '{self.label}'", facts)

    def _encoded(self) -> tuple[Encoder, EnvironmentSet]:
        if not self._sampled:
            self._sampled.append(_encoded(self.table, self.label, self.test))
        return self._sampled[0]


def batch_size(n_environments: int) -> int:
    """Return the default number of rows per environment in a batch."""
    return max(_FEWEST, min(_BATCH, _STEP_ROWS // n_environments))


# All runs of a study use the same environments; the last two sets are cached in memory.
@lru_cache(maxsize=2)
def _shared_source(table: Table, label: str, test: tuple[str, ...]) -> TableSource:
    return TableSource(table, label, test)


def task_of(table: Table, training: NDArray[np.bool_]) -> Task:
    """Return the prediction task of a table.

    Args:
        table: Table with the target.
        training: Mask of the training rows, `[rows]`. Real-valued targets are standardized by the mean and
            standard deviation in these rows.
    """
    if table.task != "regression":
        return Binary() if table.task == "binary" else Multiclass(max(2, len(table.classes)))
    targets = table.targets()[training]
    return Regression(scale=float(targets.std()) or 1.0, center=float(targets.mean()))


def _encoded(table: Table, label: str, test: tuple[str, ...]) -> tuple[Encoder, EnvironmentSet]:
    for name in test:
        if name not in table.environments:
            raise unknown_name("environment", name, table.environments, where=label)
    codes = table.environment.values
    training = table.training_rows(test)
    if not training.any():
        lost = "" if table.group is None else f" (every {table.group.name} has rows in {listed(list(test))})"
        raise EnvariantError(f"{label}: all environments are held out; none is left to train on{lost}")
    encoder = fit((column.rows(training) for column in table.columns), codes[training])
    if not encoder.columns:
        raise EnvariantError(f"{label}: no column varies in the training environments; add a column")
    targets = table.targets()
    task = task_of(table, training)
    if isinstance(task, Regression):
        targets = ((targets - task.center) / task.scale).astype(np.float32)
    attributes = _attributes(table)
    visible = training | np.isin(codes, [table.environments.index(name) for name in test])
    order = np.flatnonzero(visible)[np.argsort(codes[visible], kind="stable")]
    present, starts = np.unique(codes[order], return_index=True)
    environments = [
        # One environment at a time, so that only one copy of the inputs is in memory.
        Environment(
            name,
            TableStore(
                torch.from_numpy(
                    encoder.encode({column.name: column.rows(rows) for column in table.columns})
                ),
                table,
                rows,
            ),
            torch.from_numpy(targets[rows]),
            {name: values[torch.from_numpy(rows)] for name, values in attributes.items()},
        )
        for name, rows in zip(
            (table.environments[code] for code in present), np.split(order, starts[1:]), strict=True
        )
    ]
    return encoder, EnvironmentSet(label, tuple(environments), task, test=test, classes=table.classes)


def _attributes(table: Table) -> dict[str, Tensor]:
    """Return the sample weights and group numbers of all rows, if the table has any."""
    attributes: dict[str, Tensor] = {}
    if table.sample_weight is not None:
        attributes[WEIGHT] = torch.from_numpy(table.sample_weight.values)
    if table.group is not None:
        attributes[ROW_GROUP] = torch.from_numpy(np.unique(table.group.values, return_inverse=True)[1])
    return attributes


def source(
    path: str,
    target: str | None = None,
    environment: str | None = None,
    *,
    only_texts: bool = False,
    **settings: Any,
) -> TableSource:
    """Create a table's data source from a specification such as `table("a.csv", target=y, environment=e)`.

    Args:
        path: Path of a file, or of a folder written by `Table.write`.
        target: Name of the column to predict; not needed for a table written by `Table.write`.
        environment: Name of the environment column; not needed for a table written by `Table.write`.
        only_texts: Whether columns of free text, later replaced by features, may be the only inputs.
        settings: Arguments of `read`: `task`, `exclude`, `sample_weight`, `min_rows`, `encoding` and
            `missing_values`.

    Raises:
        EnvariantError: If the table cannot be read, or a setting is unknown.
    """
    location = Path(path)
    if target is None and environment is None and location.is_dir():
        stored = location / FILE
        table = _loaded(location.absolute(), stored.stat().st_mtime_ns if stored.exists() else 0)
        return _shared_source(table, str(specs.Spec(NAME, (path,))), ())
    if target is None or environment is None:
        raise EnvariantError(f"table: set target=… and environment=… to the names of two columns of '{path}'")
    for key in settings:
        if key not in _SETTINGS:
            raise unknown_name("setting", key, ("target", "environment", *_SETTINGS), where="table")
    roles: Mapping[str, Any] = {"target": target, "environment": environment}
    label = str(specs.Spec(NAME, (path,), {**roles, **settings}))
    reader = read_with_texts if only_texts else read
    return TableSource(reader(path, target, environment, **settings), label)


@lru_cache(maxsize=2)
def _loaded(folder: Path, modified: int) -> Table:
    return load(folder)
