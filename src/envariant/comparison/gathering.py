"""Collect the results of a comparison from the store of its study."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.comparison.cells import ModelScores, in_order, make_cells
from envariant.comparison.results import ORDINARY, ColumnImportance, ComparisonResults, ScoredRows
from envariant.comparison.uncertainty import score_of_rows
from envariant.core import metrics
from envariant.core.errors import EnvariantError
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.data.tables.columns import Column
from envariant.data.tables.table import Table
from envariant.studies.permutation_importance import weighted_name
from envariant.studies.selection import Invariance, SelectedRun, SelectionResult, select
from envariant.studies.study import Study
from envariant.training.history import FULL, REPLACED, SHUFFLED, SUBSAMPLE
from envariant.training.option_text import text_of
from envariant.training.store import Predictions, Store


@final
class _ScoreKey(NamedTuple):
    """Run, step, environment and other columns that identify one recorded score."""

    run: int
    step: int
    environment: str
    role: str
    kind: str
    column: str


Scores = Mapping[_ScoreKey, float]


def gather(
    store: Store, study: Study, tasks: Mapping[str, Task], metric: Metric, table: Table
) -> ComparisonResults:
    """Collect the results of all finished runs.

    Args:
        store: Store of the study, which may contain runs of larger studies.
        study: Study whose results are collected; methods, trials and replicas outside this study are ignored.
        tasks: Prediction task by test environment.
        metric: Metric of the scores.
        table: Table of the study.

    Raises:
        EnvariantError: If no run of an ordinary method is finished.
    """
    runs = store.table()
    labels = [text_of(algorithm) for algorithm in study.algorithms]
    requested = runs["data"].isin(list(study.sources)) & runs["algorithm"].isin(labels)
    runs = runs[requested & (runs["trial"] < study.n_trials) & (runs["replica"] < study.replicas)]
    selected = select(runs, Invariance())
    missing = _missing(selected)
    chosen = [(each, each.choice) for each in selected if isinstance(each.choice, SelectedRun)]
    if not any(each.algorithm in ORDINARY for each, _ in chosen):
        raise EnvariantError(
            f"compare: no run of an ordinary method has finished ({missing[0]}); repeat the call with a "
            f"larger budget"
        )
    history = store.history(sorted({choice.run for _, choice in chosen}))
    scores = _scores_by_run(history, metric.name if table.sample_weight is None else weighted_name(metric))
    stored = {choice.run: store.predictions(choice.run) for _, choice in chosen}

    def recorded(choice: SelectedRun, name: str, role: str) -> float | None:
        return scores.get(_ScoreKey(choice.run, choice.step, name, role, FULL, ""))

    models = _models(chosen, stored, tasks, recorded, table)
    methods = list(dict.fromkeys(each.algorithm for each, _ in chosen))
    baseline = choose_baseline(
        {m: {n: models[m, n].id_scores for n in tasks if (m, n) in models} for m in methods if m in ORDINARY},
        metric,
    )
    groups, weights = (_by_environment(table, column) for column in (table.group, table.sample_weight))
    return ComparisonResults(
        metric,
        tuple(tasks),
        make_cells(models, methods, tasks, metric, baseline, groups=groups, weights=weights),
        _importance(chosen, scores, metric),
        {method: _most_frequent(c.trial for e, c in chosen if e.algorithm == method) for method in methods},
        missing,
        max(len(model.ood) for model in models.values()),
        baseline,
        _second_results(chosen, stored, tasks, metric, baseline, table),
        networks={name: each for name, each in store.networks().items() if name in methods},
        rows={
            key: ScoredRows(
                tuple(in_order(model.validation)),
                tuple(in_order(model.predictions)),
                tuple(model.others[k] for k in sorted(model.predictions)),
            )
            for key, model in models.items()
        },
    )


Chosen = Sequence[tuple[SelectionResult, SelectedRun]]
StoredPredictions = Mapping[int, Mapping[tuple[str, str], Predictions]]


def _models(
    chosen: Chosen,
    stored: StoredPredictions,
    tasks: Mapping[str, Task],
    score_of: Callable[[SelectedRun, str, str], float | None],
    table: Table,
) -> dict[tuple[str, str], ModelScores]:
    """Return the scores and predictions of the selected runs, by method and environment."""
    models: dict[tuple[str, str], ModelScores] = {}
    for each, choice in chosen:
        judged = {*each.test_environments, *table.in_domain_environments(each.test_environments)}
        for name in (name for name in tasks if name in judged):
            role = "test" if name in each.test_environments else "validation"
            score = score_of(choice, name, role)
            if score is None:
                continue
            model = models.setdefault((each.algorithm, name), ModelScores())
            own = stored[choice.run].get((name, role))
            if role == "validation":
                model.id.setdefault(each.replica, []).append(score)
            else:
                model.ood[each.replica] = score
                trained = {e: p for (e, r), p in stored[choice.run].items() if r == "validation"}
                model.others.setdefault(each.replica, trained)
            if own is not None:
                # The validation rows of a replica are the same in all folds.
                (model.validation if role == "validation" else model.predictions).setdefault(
                    each.replica, own
                )
    return models


def _second_results(
    chosen: Chosen, stored: StoredPredictions, tasks: Mapping[str, Task], metric: Metric, baseline: str,
    table: Table,
) -> ComparisonResults | None:  # fmt: skip
    """Return results in log loss, or in AUROC if the metric is log loss; None for regression."""
    if metric.for_regression:
        return None
    second = metrics.METRICS["AUROC" if metric.name == "log loss" else "log loss"]
    groups, weights = (_by_environment(table, column) for column in (table.group, table.sample_weight))

    def computed(choice: SelectedRun, name: str, role: str) -> float | None:
        own = stored[choice.run].get((name, role))
        # In-domain scores of the second metric are not reported, so they need no weights.
        weight = weights.get(name) if role == "test" else None
        value = np.nan if own is None else score_of_rows(tasks[name], second, own, weights=weight)
        return value if np.isfinite(value) else None

    models = _models(chosen, stored, tasks, computed, table)
    methods = list(dict.fromkeys(method for method, _ in models))
    if baseline not in methods:
        return None
    cells = make_cells(models, methods, tasks, second, baseline, groups=groups, weights=weights)
    return ComparisonResults(second, tuple(tasks), cells, {}, {}, (), 1, baseline)


def choose_baseline(scores: Mapping[str, Mapping[str, Sequence[float]]], metric: Metric) -> str:
    """Choose the simplest ordinary method whose in-domain score is within one standard error of the best.

    Ordinary methods are those in `ORDINARY`, the simplest first. Their scores are averaged over environments.
    The standard error is that of the mean difference between a method and the best method; scores are paired
    by environment and replica. This is the one-standard-error rule (Breiman et al. 1984).

    Args:
        scores: In-domain scores of all replicas, by method and environment. A method is ignored if another
            method has scores in more environments.
        metric: Metric of the scores.
    """
    # Scores of few validation rows may be undefined, such as the AUROC of one class.
    scores = {m: {name: values for name, values in own.items() if values} for m, own in scores.items()}
    most = max(len(own) for own in scores.values())
    complete = {m: own for m, own in scores.items() if len(own) == most}
    order = [m for m in ORDINARY if m in complete]
    if not most:
        return order[0]
    means = {m: float(np.mean([np.mean(values) for values in complete[m].values()])) for m in order}
    best = max(order, key=lambda m: metric.sign * means[m])
    for method in order:
        differences = [
            metric.gain(a, b)
            for name, values in complete[best].items()
            for a, b in zip(values, complete[method].get(name, ()), strict=False)
        ]
        error = (
            float(np.std(differences, ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
        )
        if metric.gain(means[best], means[method]) <= error:
            return method
    return best


def _scores_by_run(history: pd.DataFrame, metric: str) -> Scores:
    """Return a metric's recorded values by key. Only this function depends on the columns of the history."""
    rows = history[history["metric"] == metric].dropna(subset=["value"])
    keys = rows[list(_ScoreKey._fields)].itertuples(index=False, name=None)
    return dict(zip(map(_ScoreKey._make, keys), rows["value"].astype(float), strict=True))


def _missing(selected: Sequence[SelectionResult]) -> tuple[str, ...]:
    """Return one line per algorithm and reason why no run was selected."""
    reasons: dict[tuple[str, str], dict[tuple[str, ...], None]] = {}
    for each in selected:
        if not isinstance(each.choice, SelectedRun):
            reasons.setdefault((each.algorithm, each.choice.reason), {})[each.test_environments] = None
    lines: list[str] = []
    for (algorithm, reason), folds in reasons.items():
        names = "; ".join(", ".join(fold) or "none" for fold in list(folds)[:3])
        more = f" and {len(folds) - 3} more" if len(folds) > 3 else ""
        lines.append(f"{algorithm}, test environments {names}{more}: {reason}")
    return tuple(lines)


def _most_frequent(trials: Iterable[int]) -> int:
    """Return the most frequent trial; ties go to the lowest trial number."""
    counts = Counter(trials)
    return min(counts, key=lambda trial: (-counts[trial], trial))


def _by_environment(table: Table, column: Column | None) -> dict[str, NDArray[Any]]:
    """Return the values of a column by environment; empty if the table has no such column."""
    codes = table.environment.values
    return {} if column is None else {n: column.values[codes == k] for k, n in enumerate(table.environments)}


def _importance(chosen: Chosen, scores: Scores, metric: Metric) -> dict[str, dict[str, ColumnImportance]]:
    """Return column importances by method and column, averaged over the selected models."""
    method_of = {(choice.run, choice.step): each.algorithm for each, choice in chosen}
    losses: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key, score in scores.items():
        method = method_of.get((key.run, key.step))
        unchanged = scores.get(key._replace(kind=SUBSAMPLE, column=""))
        if method is None or unchanged is None or key.kind not in (SHUFFLED, REPLACED):
            continue
        by_kind = losses.setdefault((method, key.column), {"validation": [], "test": [], REPLACED: []})
        by_kind[REPLACED if key.kind == REPLACED else key.role].append(metric.gain(unchanged, score))
    importance: dict[str, dict[str, ColumnImportance]] = {}
    for (method, column), by_kind in losses.items():
        means = [float(np.mean(values)) if values else math.nan for values in by_kind.values()]
        importance.setdefault(method, {})[column] = ColumnImportance(*means)
    return importance
