"""Find the table row of each stored prediction, and choose one replica's prediction for each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from envariant.comparison.baselines import Folds
from envariant.core.tasks import Regression
from envariant.data.tables.raw import TableStore
from envariant.data.tables.source import TableSource, task_of
from envariant.data.validation_split import held_out_rows
from envariant.studies.permutation_importance import evenly_spaced
from envariant.training.store import Predictions

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Scores:
    """One prediction per row, each by one of the replicas.

    Attributes:
        values: Logits `[rows]` or `[rows, classes]`; for regression, predictions in the target's unit.
        targets: Class indices, or targets in their unit, `[rows]`.
        rows: Position of each row in the table; None if unknown.
    """

    values: Array
    targets: Array
    rows: Rows | None

    @property
    def pair(self) -> tuple[Array, Array]:
        """Pair of `values` and `targets`."""
        return self.values, self.targets

    def losses(self, *, regression: bool) -> Array:
        """Return the log loss, or the squared error, of each row."""
        z, y = self.pair
        if regression:
            return np.square(y - z)
        if z.ndim == 1:
            return np.logaddexp(0.0, z) - y * z
        return np.asarray(logsumexp(z, axis=1)) - z[np.arange(len(y)), y.astype(np.int64)]


@final
@dataclass(frozen=True, eq=False)
class StoredRows:
    """Table and validation splits of a study, used to find the table row of each stored prediction.

    Attributes:
        source: Table of the study.
        folds: Groups of environments; the environments of a group are held out together.
        holdout_fraction: Share of rows used for validation in each training environment.
        seeds: Seed of each replica's data draw.
    """

    source: TableSource
    folds: Folds
    holdout_fraction: float
    seeds: Sequence[int]

    @cached_property
    def by_environment(self) -> Mapping[str, Rows]:
        """Positions of the rows of each environment in the table."""
        codes = self.source.table.environment.values
        return {name: np.flatnonzero(codes == k) for k, name in enumerate(self.source.table.environments)}

    @cached_property
    def groups(self) -> Rows | None:
        """Group index of each table row; None if the table has no groups."""
        group = self.source.table.group
        return None if group is None else np.unique(group.values, return_inverse=True)[1]

    def groups_of(self, *scores: Scores) -> tuple[Rows, ...] | None:
        """Return a tuple with one array per argument: the group index of each of its rows.

        The result is None, not a tuple, if the table has no groups or the rows of any argument are unknown.
        """
        return _values_of(self.groups, scores)

    def weights_of(self, *scores: Scores) -> tuple[Array, ...] | None:
        """Return a tuple with one array per argument: the case weight of each of its rows.

        The result is None, not a tuple, if the table has no weights or the rows of any argument are unknown.
        """
        weights = self.source.table.sample_weight
        return _values_of(None if weights is None else weights.values, scores)

    @property
    def regression(self) -> bool:
        """Whether targets are real-valued."""
        return self.source.table.task == "regression"

    def fold_of(self, environment: str) -> tuple[str, ...]:
        """Return the fold that holds out an environment."""
        return tuple(next(fold for fold in self.folds if environment in fold))

    def inputs(self, fold: Sequence[str]) -> Array:
        """Return the inputs of all table rows, encoded as in the runs of a fold.

        Rows that the fold does not use are NaN. The encoding is fitted on the fold's training rows.
        """
        sample = self.source.with_test_environments(tuple(fold)).sample(0)
        inputs: Array | None = None
        for each in sample.environments:
            arrays, store = each.inputs.numpy(), each.input_store
            assert isinstance(store, TableStore)
            inputs = (
                np.full((len(self.source.table), *arrays.shape[1:]), np.nan) if inputs is None else inputs
            )
            inputs[store.rows] = arrays
        assert inputs is not None
        return inputs

    def out_of_domain(self, environment: str, predictions: Sequence[Predictions]) -> Scores:
        """Return one out-of-domain prediction for each stored row of an environment.

        Replicas take turns: with n replicas, row k has the prediction of replica k modulo n.
        """
        scores = [self._scores(self.fold_of(environment), each) for each in predictions]
        values, targets = take_turns([each for each, _ in scores]), scores[0][1]
        of_all = self.by_environment[environment]
        return Scores(values, targets, of_all[evenly_spaced(len(of_all), len(targets)).numpy()])

    def in_domain(self, environment: str, predictions: Sequence[Predictions]) -> Scores | None:
        """Return one in-domain prediction for each validation row of an environment.

        If the rows of a replica's predictions cannot be found, all replicas' predictions are returned, and
        `rows` of the result is None. The result is None if there are no predictions.
        """
        table = self.source.table
        folds = [fold for fold in self.folds if environment in table.in_domain_environments(fold)]
        if not folds:
            return None
        found: list[Scores] = []
        for each in predictions:
            matches = ((fold, self._held_out(fold, environment, each)) for fold in folds)
            fold, rows = next(((f, r) for f, r in matches if r is not None), (folds[0], None))
            found.append(Scores(*self._scores(fold, each), rows))
        return _distinct(found)

    def training(self, environment: str, predictions: Sequence[Mapping[str, Predictions]]) -> Scores | None:
        """Return one prediction for each validation row of the training environments of a fold.

        The fold is the one that holds out `environment`. The result is None if there are no predictions, or
        if their rows cannot be found.
        """
        fold = self.fold_of(environment)
        found: list[Scores] = []
        for by_environment in predictions:
            for name, each in by_environment.items():
                rows = self._held_out(fold, name, each)
                if rows is None:
                    return None
                found.append(Scores(*self._scores(fold, each), rows))
        return _distinct(found)

    def _scores(self, fold: Sequence[str], stored: Predictions) -> tuple[Array, Array]:
        """Return stored predictions and targets in float64; for regression, in the target's unit."""
        values, targets = stored.logits.astype(np.float64), stored.targets.astype(np.float64)
        task = self._task(fold)
        if isinstance(task, Regression):
            values, targets = (part * task.scale + task.center for part in (values, targets))
        return values, targets

    def _held_out(self, fold: Sequence[str], environment: str, stored: Predictions) -> Rows | None:
        """Find the validation rows of stored predictions; None if the stored targets match no split."""
        task, targets = self._task(fold), self.source.table.targets()
        for seed in self.seeds:
            rows = self._splits(tuple(fold), seed)[environment]
            if len(rows) != stored.of:
                continue
            rows = rows[evenly_spaced(len(rows), len(stored.targets)).numpy()]
            own: Any = targets[rows]
            if isinstance(task, Regression):
                own = ((own - task.center) / task.scale).astype(np.float32)
            if np.array_equal(own.astype(np.float32), stored.targets):
                return rows
        return None

    def _splits(self, fold: tuple[str, ...], seed: int) -> Mapping[str, Rows]:
        """Return the validation rows of each training environment of a fold, for one data seed."""
        if (fold, seed) not in self._cache:
            training = self.source.table.training_rows(fold)
            rows = {name: own[training[own]] for name, own in self.by_environment.items()}
            sizes = {name: len(own) for name, own in rows.items() if len(own)}
            groups = {
                name: None if self.groups is None else torch.from_numpy(self.groups[rows[name]])
                for name in sizes
            }
            held_out = held_out_rows(sizes, self.holdout_fraction, seed, groups)
            self._cache[fold, seed] = {name: rows[name][index.numpy()] for name, index in held_out.items()}
        return self._cache[fold, seed]

    @cached_property
    def _cache(self) -> dict[tuple[tuple[str, ...], int], Mapping[str, Rows]]:
        return {}

    def _task(self, fold: Sequence[str]) -> Any:
        return task_of(self.source.table, self.source.table.training_rows(fold))


def take_turns(values: Sequence[Array]) -> Array:
    """Return one prediction per row: with n replicas, row k has the prediction of replica k modulo n.

    Args:
        values: Predictions of each replica for the same rows, `[rows]` or `[rows, classes]`.
    """
    chosen = values[0].copy()
    for k, each in enumerate(values):
        chosen[k :: len(values)] = each[k :: len(values)]
    return chosen


def _values_of(values: NDArray[Any] | None, scores: Sequence[Scores]) -> tuple[NDArray[Any], ...] | None:
    known = [each.rows for each in scores if each.rows is not None]
    return None if values is None or len(known) < len(scores) else tuple(values[rows] for rows in known)


def _distinct(found: Sequence[Scores]) -> Scores | None:
    """Concatenate predictions; use only the first prediction of each row if the rows are known."""
    if not found:
        return None
    values, targets = (np.concatenate(parts) for parts in zip(*(each.pair for each in found), strict=True))
    known = [each.rows for each in found if each.rows is not None]
    if len(known) < len(found):
        return Scores(values, targets, None)
    rows = np.concatenate(known)
    first = np.sort(np.unique(rows, return_index=True)[1])
    return Scores(values[first], targets[first], rows[first])
