"""Score decoded predictions in every environment and group, with the functions that `compare` uses."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from envariant.analysis.calibration import Calibration, measure_calibration
from envariant.analysis.invariance_test import assess_invariance
from envariant.analysis.statistics import Interval
from envariant.comparison.cells import ModelScores, make_cells
from envariant.comparison.metric_choice import prevalence_matters
from envariant.comparison.results import Cell
from envariant.comparison.stored_rows import take_turns
from envariant.comparison.subgroups import FEWEST_ROWS, PooledRows, SubgroupScore, score_subgroups
from envariant.comparison.uncertainty import score_of_rows
from envariant.core import metrics
from envariant.core.errors import EnvariantError
from envariant.core.metrics import Metric
from envariant.core.tasks import Regression
from envariant.evaluation.containers import Ids
from envariant.evaluation.decoding import Decoded
from envariant.evaluation.results import EvaluationResults
from envariant.studies.permutation_importance import stored_rows
from envariant.training.store import Predictions

Array = NDArray[Any]

# Metrics of predicted labels; all others need probabilities.
_OF_LABELS = ("accuracy", "balanced accuracy")
_ALL_ROWS = "all rows"


@final
@dataclass(frozen=True, eq=False)
class EvaluatedRows:
    """Decoded predictions, and the environment and other properties of each row.

    Attributes:
        decoded: Predictions as logits, and targets.
        environments: Environment of each row.
        groups: Name of each row's group, `[rows]`, by attribute; "" for rows without a value.
        clusters: Index of the cluster of each row, such as the patient; None if rows are independent.
        weights: Case weight of each row; None for equal weights.
    """

    decoded: Decoded
    environments: Ids
    groups: Mapping[str, Array]
    clusters: NDArray[np.int64] | None
    weights: NDArray[np.float64] | None

    @cached_property
    def rows_of(self) -> Mapping[str, NDArray[np.int64]]:
        """Indices of the rows of each environment."""
        codes, names = self.environments.codes, self.environments.names
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(names)))
        return dict(zip(names, np.split(order, ends[:-1]), strict=True))

    @cached_property
    def one_per_row(self) -> Mapping[str, Array]:
        """Logits of each model, `[rows]` or `[rows, classes]`; replicas take turns."""
        return {m: take_turns([own[k] for k in sorted(own)]) for m, own in self.decoded.logits.items()}

    def roles(self, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, Array]]:
        """Return the clusters and weights of the given rows, in the form that `make_cells` takes."""
        values = {"groups": self.clusters, "weights": self.weights}
        return {
            role: {} if each is None else {name: each[own] for name, own in rows.items()}
            for role, each in values.items()
        }


def choose_metric(name: str | None, rows: EvaluatedRows) -> Metric:
    """Return the metric with the given name, or the default metric.

    The default is that of `compare`: RMSE for regression, AUROC if class shares would dominate the accuracy,
    otherwise accuracy. For predicted labels, balanced accuracy replaces AUROC.

    Raises:
        EnvariantError: If the metric is unknown, or does not apply to the predictions.
    """
    decoded = rows.decoded
    labels = decoded.kind == "labels"
    if name is None and isinstance(decoded.task, Regression):
        name = "RMSE"
    if name is None:
        matters = prevalence_matters(decoded.targets, rows.environments.codes)
        name = ("balanced accuracy" if labels else "AUROC") if matters else "accuracy"
    metric = metrics.metric(name, decoded.task)
    if labels and metric.name not in _OF_LABELS:
        raise EnvariantError(
            f"evaluate: {metric.name} needs probabilities, but predictions are labels; give probabilities, "
            f"or choose accuracy or balanced accuracy"
        )
    return metric


def score(rows: EvaluatedRows, metric: Metric) -> EvaluationResults:
    """Score all models in every environment and group.

    Raises:
        EnvariantError: If the metric is undefined in every environment.
    """
    decoded = rows.decoded
    overall = _cells(rows, metric, {_ALL_ROWS: np.arange(len(rows.environments))})
    cells = _cells(rows, metric, rows.rows_of)
    if any(not own for own in cells.values()):
        raise EnvariantError(
            f"evaluate: {metric.name} is undefined in every environment (with a single class, for example); "
            f"choose another metric"
        )
    return EvaluationResults(
        metric,
        decoded.task.name,
        decoded.classes,
        decoded.kind,
        {name: len(own) for name, own in rows.rows_of.items()},
        cells,
        {model: own[_ALL_ROWS] for model, own in overall.items()},
        {
            model: assess_invariance(
                z, decoded.targets, rows.environments.codes, regression=isinstance(decoded.task, Regression)
            )
            for model, z in rows.one_per_row.items()
        },
        {model: _calibration(rows, model) for model in decoded.logits},
        tuple(each for model in decoded.logits for each in _groups(rows, metric, model)),
    )


def _cells(
    rows: EvaluatedRows, metric: Metric, parts: Mapping[str, NDArray[np.int64]]
) -> dict[str, dict[str, Cell]]:
    """Return the score and gain of every model on each part of the rows, without undefined scores.

    Parts of fewer than 20 rows have neither interval nor gain.
    """
    models = {
        (model, name): _scores(rows, metric, model, name, own)
        for model in rows.decoded.logits
        for name, own in parts.items()
    }
    models = {key: each for key, each in models.items() if each.ood}
    methods, large = (
        list(rows.decoded.logits),
        {n: own for n, own in parts.items() if len(own) >= FEWEST_ROWS},
    )
    tasks = dict.fromkeys(large, rows.decoded.task)
    tested = make_cells(
        models, methods, tasks, metric, methods[0], given_models=True, **rows.roles(large)
    )  # fmt: skip
    cells: dict[str, dict[str, Cell]] = {model: {} for model in methods}
    for model in methods:
        for name in parts:
            if (cell := tested.get(model, {}).get(name)) is not None:
                certain = cell.ood_score.low == cell.ood_score.high
                cells[model][name] = replace(cell, ood_score=_unknown(cell.ood_score)) if certain else cell
            elif (own := models.get((model, name))) is not None:
                mean = float(np.mean(list(own.ood.values())))
                nothing = Interval(math.nan, math.nan, math.nan, 0)
                interval = _unknown(Interval(mean, mean, mean, len(own.ood)))
                cells[model][name] = Cell(interval, nothing, ood_values=own.ood)
    return cells


def _unknown(interval: Interval) -> Interval:
    """Return the interval without known ends: few or equal rows tell nothing about the sampling of rows."""
    return Interval(interval.mean, -math.inf, math.inf, interval.count)


def _scores(
    rows: EvaluatedRows, metric: Metric, model: str, name: str, own: NDArray[np.int64]
) -> ModelScores:
    """Return the defined scores of a model's replicas on some rows, and the predictions to be resampled."""
    task, weights = rows.decoded.task, None if rows.weights is None else rows.weights[own]
    stored = own[stored_rows(len(own), task).numpy()]
    result = ModelScores()
    for replica, logits in rows.decoded.logits[model].items():
        everything = Predictions(name, "test", len(own), logits[own], rows.decoded.targets[own])
        value = score_of_rows(task, metric, everything, weights=weights)
        if math.isfinite(value):
            result.ood[replica] = value
            result.predictions[replica] = Predictions(
                name, "test", len(own), logits[stored], rows.decoded.targets[stored]
            )
    return result


def _calibration(rows: EvaluatedRows, model: str) -> dict[str, Calibration]:
    """Return the calibration of a model in each environment of at least 20 rows, in the target's unit."""
    decoded, calibration = rows.decoded, dict[str, Calibration]()
    if decoded.kind == "labels":
        return {}
    task = decoded.task
    regression = isinstance(task, Regression)
    scale, center = (task.scale, task.center) if isinstance(task, Regression) else (1.0, 0.0)
    for name, own in rows.rows_of.items():
        if len(own) < FEWEST_ROWS:
            continue
        z, y = (each[own] * scale + center for each in (rows.one_per_row[model], decoded.targets))
        clusters = None if rows.clusters is None else rows.clusters[own]
        with suppress(EnvariantError):
            calibration[name] = measure_calibration(z, y, regression=regression, groups=clusters)
    return calibration


def _groups(rows: EvaluatedRows, metric: Metric, model: str) -> list[SubgroupScore]:
    """Return the scores of a model in all groups."""
    decoded = rows.decoded
    pooled = PooledRows(
        rows.one_per_row[model], decoded.targets, rows.clusters, rows.weights, decoded.task, metric
    )
    return score_subgroups(pooled, rows.groups, model)
