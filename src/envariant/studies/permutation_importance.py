"""Measurements of a study that training does not make: other metrics, column importance and predictions.

Permutation importance compares logits of networks and fitted predictors on unchanged rows and on rows with
one column changed (Breiman 2001, §10; Fisher, Rudin, Dominici 2019).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.metrics import Metric
from envariant.training.history import FULL, REPLACED, SHUFFLED, SUBSAMPLE, HistoryRow
from envariant.training.replica_stack import Change
from envariant.training.store import Predictions

# Rows per environment with stored predictions, and rows per environment for column importance.
_STORED_ROWS = 1_000
_CHANGED_ROWS = 500


class Predict(Protocol):
    """Function that returns the logits of all models of a job."""

    def __call__(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets of each model, `[models, rows, …]`.

        Args:
            name: Name of the environment in the sample.
            rows: Indices of rows in the environment. Default: all rows.
            change: Function applied to the inputs. Default: unchanged inputs.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class StudyMeasurements:
    """Measurements of runs in validation and test environments.

    Attributes:
        sample: Environments of the first run; names, sizes and task are the same for all.
        roles: Role of each environment, by name in the sample.
        metric: Metric used to compare runs.
        columns: Range of inputs of each table column, by name; empty if inputs are not tabular.
        store_predictions: Whether predictions are stored and permutation importance is measured.
    """

    sample: EnvironmentSet
    roles: Mapping[str, str]
    metric: Metric
    columns: Mapping[str, slice]
    store_predictions: bool

    @property
    def untrained(self) -> list[Environment]:
        """Validation and test environments."""
        return [self.sample[name] for name, role in self.roles.items() if role != "train"]

    def scores(self, predict: Predict, runs: Sequence[int], step: int) -> list[HistoryRow]:
        """Return the metric on all rows; empty for the task's default metric, which training measures."""
        if self.metric.name == self.sample.task.metric:
            return []
        return [row for each in self.untrained for row in self._rows(predict, runs, step, each, FULL)]

    def importance(self, predict: Predict, runs: Sequence[int], step: int) -> list[HistoryRow]:
        """Return the metric with each column shuffled, and in test environments also with it replaced.

        Shuffling within an environment removes the column's information about individual rows. Replacing it
        by values from training environments also removes its information about the test environment.
        """
        generator = torch.Generator().manual_seed(0)
        rows: list[HistoryRow] = []
        for each in self.untrained if self.store_predictions else []:
            some = _evenly(len(each), _CHANGED_ROWS)
            rows += self._rows(predict, runs, step, each, SUBSAMPLE, "", some)
            order = torch.randperm(len(some), generator=generator)
            for column, place in self.columns.items():
                rows += self._rows(predict, runs, step, each, SHUFFLED, column, some, _shuffled(place, order))
                if self.roles[each.name] == "test":
                    values = self._training_values(place, len(some), generator)
                    rows += self._rows(
                        predict, runs, step, each, REPLACED, column, some, _replaced(place, values)
                    )
        return rows

    def predictions(self, predict: Predict, runs: Sequence[int]) -> dict[int, tuple[Predictions, ...]]:
        """Return each run's predictions for up to 1,000 rows per environment, the same rows in all runs."""
        stored: dict[int, list[Predictions]] = {run: [] for run in runs}
        for each in self.untrained if self.store_predictions else []:
            size = len(each)
            logits, targets = (
                part.float().cpu().numpy() for part in predict(each.name, _evenly(size, _STORED_ROWS))
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
        column: str = "",
        rows: Tensor | None = None,
        change: Change | None = None,
    ) -> list[HistoryRow]:
        name, task = environment.name, self.sample.task
        logits, targets = (part.cpu().numpy() for part in predict(name, rows, change))
        values = (self.metric.compute(task, z, y) for z, y in zip(logits, targets, strict=True))
        place, role, metric = environment.origin or name, self.roles[name], self.metric.name
        return [
            HistoryRow(run, step, place, role, metric, value, kind, column)
            for run, value in zip(runs, values, strict=True)
            if np.isfinite(value)
        ]

    def _training_values(self, place: slice, count: int, generator: torch.Generator) -> Tensor:
        """Sample values of a column from training environments, each environment with equal probability."""
        training = [each for each in self.sample.environments if self.roles[each.name] == "train"]
        owners = torch.randint(len(training), (count,), generator=generator)
        values = torch.empty(count, place.stop - place.start)
        for k, environment in enumerate(training):
            own = owners == k
            index = torch.randint(len(environment), (int(own.sum()),), generator=generator)
            values[own] = environment.rows(index)[0][:, place]
        return values


def _evenly(size: int, most: int) -> Tensor:
    """Return evenly spaced row indices, not more than `most`."""
    return torch.linspace(0, size - 1, min(size, most)).round().long()


def _shuffled(place: slice, order: Tensor) -> Change:
    def change(inputs: Tensor) -> Tensor:
        changed = inputs.clone()
        changed[..., place] = inputs[..., order.to(inputs.device), place]
        return changed

    return change


def _replaced(place: slice, values: Tensor) -> Change:
    def change(inputs: Tensor) -> Tensor:
        changed = inputs.clone()
        changed[..., place] = values.to(inputs.device)
        return changed

    return change
