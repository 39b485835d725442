"""Measure additional metrics, permutation importance and predictions of the runs of a study.

Permutation importance compares a model's scores before and after the values of one column are shuffled
(Breiman 2001, §10; Fisher, Rudin, Dominici 2019).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Protocol, final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.attributes import WEIGHT
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.training.column_change import ColumnChange
from envariant.training.history import FULL, REPLACED, SHUFFLED, SUBSAMPLE, HistoryRow
from envariant.training.replica_stack import Change
from envariant.training.store import Predictions

MOST_COLUMNS, MOST_ENVIRONMENTS = 50, 20
"""Largest numbers of columns (in a comparison) and of environments (per role) for column importance."""

# Rows per environment with stored predictions, and rows per environment for column importance.
_STORED_ROWS = 1_000
_CHANGED_ROWS = 500
# Largest number of stored logits per environment, and of inputs that are changed at a time.
_STORED_LOGITS = 50_000
_CHANGED_NUMBERS = 4_000_000


class Predict(Protocol):
    """Type of a function that returns the logits and targets of all models of a job in one environment."""

    def __call__(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets of each model, `[models, rows, …]`.

        Args:
            name: Name of the environment.
            rows: Indices of rows in the environment. Default: all rows.
            change: Function applied to the inputs before prediction. Default: unchanged inputs.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class StudyMeasurements:
    """Additional measurements of a study's runs: metrics, permutation importance and predictions.

    Attributes:
        sample: Environments of the first run; names, sizes and task are the same for all runs.
        roles: Role of each environment, by name: "train", "validation" or "test".
        metric: Metric used to compare the runs of the study.
        columns: Slice of the inputs that each table column occupies, by column name; empty if the data are
            not a table.
        store_predictions: Whether predictions are stored and permutation importance is measured.
    """

    sample: EnvironmentSet
    roles: Mapping[str, str]
    metric: Metric
    columns: Mapping[str, slice]
    store_predictions: bool

    @property
    def untrained(self) -> list[Environment]:
        """Validation and test environments, in the order of `roles`."""
        return [self.sample[name] for name, role in self.roles.items() if role != "train"]

    def scores(self, predict: Predict, runs: Sequence[int], step: int) -> list[HistoryRow]:
        """Return the values of `metric` in every validation and test environment.

        If `metric` is the default metric of the task, its values are left out, because training already
        records them. If `weighted` is True, the values weighted by sampling weights are always included.
        """
        kinds = [] if self.metric.name == self.sample.task.metric else [False]
        kinds += [True] if self.weighted else []
        return [
            row
            for weighted in kinds
            for each in self.untrained
            for row in self._rows(predict, runs, step, each, FULL, weighted=weighted)
        ]

    @property
    def weighted(self) -> bool:
        """Whether `metric` is also computed with sampling weights.

        True if predictions are stored and the rows have sampling weights.
        """
        return self.store_predictions and WEIGHT in self.sample.environments[0].attributes

    def importance(self, predict: Predict, runs: Sequence[int], step: int) -> list[HistoryRow]:
        """Return the metric before and after changing the values of one column at a time.

        It is measured on up to 500 rows each of up to 20 validation and 20 test environments. In all of them,
        each column is shuffled within the environment, which removes its information about individual rows.
        In test environments, each column is also replaced with values from training environments. This also
        removes its information about the test environment. The result is empty if `store_predictions` is
        False.
        """
        generator = torch.Generator().manual_seed(0)
        rows: list[HistoryRow] = []
        sample_rows = self._training_rows(generator)
        training = [each for each in self.sample.environments if self.roles[each.name] == "train"]

        @cache
        def pooled_inputs() -> Tensor:
            return torch.cat([each.inputs for each in training])

        @cache
        def pooled_frame() -> pd.DataFrame:
            return pd.concat([each.input_store.frame() for each in training], ignore_index=True)

        for each in self._some_untrained() if self.store_predictions else []:
            some = evenly_spaced(len(each), _CHANGED_ROWS)
            weighted = self.weighted
            rows += self._rows(predict, runs, step, each, SUBSAMPLE, ("",), some, weighted=weighted)
            order = torch.randperm(len(some), generator=generator)
            # Columns are changed several at a time, in limited memory.
            size = max(1, len(runs) * len(some) * math.prod(self.sample.input_shape))
            for names in _batches(list(self.columns), max(1, _CHANGED_NUMBERS // size)):
                places = [self.columns[name] for name in names]
                kinds: dict[str, list[Tensor | None]] = {SHUFFLED: [None] * len(names)}
                if self.roles[each.name] == "test":
                    kinds[REPLACED] = [sample_rows(len(some)) for _ in places]
                for kind, replacements in kinds.items():
                    change = ColumnChange(names, places, order, replacements, pooled_inputs, pooled_frame)
                    rows += self._rows(
                        predict, runs, step, each, kind, names, some, change, weighted=weighted
                    )
        return rows

    def _some_untrained(self) -> list[Environment]:
        """Return at most 20 validation and at most 20 test environments."""
        some: set[str] = set()
        for role in ("validation", "test"):
            names = [name for name, own in self.roles.items() if own == role]
            some |= {names[k] for k in evenly_spaced(len(names), MOST_ENVIRONMENTS).tolist()}
        return [each for each in self.untrained if each.name in some]

    def predictions(self, predict: Predict, runs: Sequence[int]) -> dict[int, tuple[Predictions, ...]]:
        """Return each run's predictions for up to 1,000 rows of every validation and test environment.

        All runs use the same rows. With more than 50 classes, predictions are returned for fewer rows. If
        `store_predictions` is False, no predictions are returned.
        """
        stored: dict[int, list[Predictions]] = {run: [] for run in runs}
        for each in self.untrained if self.store_predictions else []:
            size = len(each)
            logits, targets = (
                part.float().cpu().numpy() for part in predict(each.name, stored_rows(size, self.sample.task))
            )
            for run, z, y in zip(runs, logits, targets, strict=True):
                stored[run].append(Predictions(each.origin or each.name, self.roles[each.name], size, z, y))
        return {run: tuple(own) for run, own in stored.items()}

    def _rows(
        self,
        predict: Predict,
        runs: Sequence[int],
        step: int,
        environment: Environment,
        kind: str,
        columns: Sequence[str] = ("",),
        rows: Tensor | None = None,
        change: Change | None = None,
        *,
        weighted: bool = False,
    ) -> list[HistoryRow]:
        """Return history rows with the metric of every run, one row for each changed column."""
        name, task = environment.name, self.sample.task
        logits, targets = (part.cpu().numpy() for part in predict(name, rows, change))
        copies = logits.reshape(len(logits), len(columns), -1, *logits.shape[2:])
        place, role, metric = environment.origin or name, self.roles[name], self.metric.name
        weights: tuple[NDArray[np.float64], ...] = ()
        if weighted:
            own_weights = environment.attributes[WEIGHT]
            weights = ((own_weights if rows is None else own_weights[rows]).double().numpy(),)
            metric = weighted_name(self.metric)
        return [
            HistoryRow(run, step, place, role, metric, value, kind, column)
            for k, column in enumerate(columns)
            for run, own, y in zip(runs, copies, targets, strict=True)
            if np.isfinite(value := self.metric.compute(task, own[k], y, *weights))
        ]

    def _training_rows(self, generator: torch.Generator) -> Callable[[int], Tensor]:
        """Return a function that samples training rows; each environment is equally likely."""
        training = [each for each in self.sample.environments if self.roles[each.name] == "train"]
        ends = list(accumulate(len(each) for each in training))

        def sample_rows(count: int) -> Tensor:
            owners = torch.randint(len(training), (count,), generator=generator)
            counts = torch.bincount(owners, minlength=len(training)).tolist()
            index = [
                end - len(each) + torch.randint(len(each), (n,), generator=generator)
                for each, end, n in zip(training, ends, counts, strict=True)
                if n
            ]
            rows = torch.empty(count, dtype=torch.long)
            rows[torch.argsort(owners, stable=True)] = torch.cat(index)
            return rows

        return sample_rows


def weighted_name(metric: Metric) -> str:
    """Return the name under which a metric computed with sampling weights is stored."""
    return f"weighted {metric.name}"


def _batches(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]


def stored_rows(size: int, task: Task) -> Tensor:
    """Return the indices of the rows of an environment whose predictions are stored, at most 1,000.

    With more than 50 classes, there are fewer.
    """
    return evenly_spaced(size, min(_STORED_ROWS, max(1, _STORED_LOGITS // task.outputs)))


def evenly_spaced(size: int, most: int) -> Tensor:
    """Return the indices of at most `most` rows, evenly spaced among `size` rows."""
    return torch.linspace(0, size - 1, min(size, most)).round().long()
