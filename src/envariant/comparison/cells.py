"""Score methods in environments: means over replicas with intervals, and gains over a baseline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from envariant.analysis import statistics
from envariant.analysis.statistics import Interval
from envariant.comparison.results import Cell
from envariant.comparison.uncertainty import mean_interval, p_value, row_standard_error
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.training.store import Predictions


@final
@dataclass(frozen=True)
class ModelScores:
    """Scores and predictions of one method's selected models in one environment.

    Every attribute is a mapping whose keys are replica indices.

    Attributes:
        ood: Out-of-domain score.
        predictions: Out-of-domain predictions; all replicas predict the same rows.
        validation: In-domain predictions, from the first fold that trains on the environment.
        others: Predictions on validation rows of the training environments, by training environment.
        id: In-domain scores, one for each fold that trains on the environment.
    """

    ood: dict[int, float] = field(default_factory=dict[int, float])
    predictions: dict[int, Predictions] = field(default_factory=dict[int, Predictions])
    validation: dict[int, Predictions] = field(default_factory=dict[int, Predictions])
    others: dict[int, dict[str, Predictions]] = field(default_factory=dict[int, dict[str, Predictions]])
    id: dict[int, list[float]] = field(default_factory=dict[int, list[float]])

    @property
    def id_scores(self) -> list[float]:
        """Mean in-domain score of each replica, in the order of the replicas."""
        return [float(np.mean(self.id[replica])) for replica in sorted(self.id)]


def make_cells(
    models: Mapping[tuple[str, str], ModelScores],
    methods: Sequence[str],
    tasks: Mapping[str, Task],
    metric: Metric,
    baseline: str,
    *,
    groups: Mapping[str, NDArray[Any]],
    weights: Mapping[str, NDArray[Any]],
    given_models: bool = False,
) -> dict[str, dict[str, Cell]]:
    """Return scores with intervals, and gains over the baseline, by method and environment.

    P-values of gains are Holm-corrected over all methods and environments. Combinations without a score are
    absent.

    Args:
        models: Scores and predictions by method and environment.
        methods: Names of the methods, in order.
        tasks: Prediction task by environment.
        metric: Metric of the scores.
        baseline: Name of the method with which all others are compared.
        groups: Group of each row by environment; whole groups are resampled. Empty: rows are independent.
        weights: Case weight of each row by environment; empty for equal weights.
        given_models: Whether a single replica is the model of interest itself; see `half_width`.
    """
    cells: dict[str, dict[str, Cell]] = {}
    gains: dict[tuple[str, str], tuple[Interval, float]] = {}
    for method in methods:
        for name, task in tasks.items():
            own, reference = models.get((method, name)), models.get((baseline, name))
            if own is None or not own.ood:
                continue
            rows: dict[str, Any] = {"groups": groups.get(name), "weights": weights.get(name)}
            row_error = row_standard_error(task, metric, in_order(own.predictions), **rows)
            id_score = statistics.interval(own.id_scores)
            cells.setdefault(method, {})[name] = Cell(
                mean_interval(list(own.ood.values()), row_error, given_model=given_models),
                id_score,
                ood_values=own.ood,
            )
            if reference is None or method == baseline:
                continue
            if common := sorted(own.ood.keys() & reference.ood):
                differences = [metric.gain(own.ood[k], reference.ood[k]) for k in common]
                both = own.predictions.keys() & reference.predictions.keys()
                first, second = (in_order(side.predictions, both) for side in (own, reference))
                row_error = row_standard_error(task, metric, first, second, **rows)
                gains[method, name] = (
                    mean_interval(differences, row_error, given_model=given_models),
                    p_value(differences, row_error, given_model=given_models),
                )
    corrected = statistics.holm([p for _, p in gains.values()])
    for ((method, name), (gain, _)), p in zip(gains.items(), corrected, strict=True):
        cells[method][name] = replace(cells[method][name], gain=gain, p_value=p)
    return cells


def in_order(
    predictions: Mapping[int, Predictions], replicas: Iterable[int] | None = None
) -> list[Predictions]:
    """Return the predictions of the given replicas (default: all), in the order of the replicas."""
    return [predictions[k] for k in sorted(predictions if replicas is None else replicas)]
