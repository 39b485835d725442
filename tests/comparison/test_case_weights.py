"""Case weights: a row of weight 2 counts as two rows, in training and in scores."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from envariant.analysis.calibration import split_drop
from envariant.comparison import protocol
from envariant.comparison.baselines import baseline_scores
from envariant.comparison.causes import _levels
from envariant.comparison.gathering import gather
from envariant.comparison.uncertainty import row_standard_error, score_of_rows
from envariant.core.metrics import METRICS
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read
from envariant.predictors import linear
from envariant.studies import Store
from envariant.studies.executors import local
from envariant.studies.study import begin
from envariant.training.store import Predictions

TASKS = {"binary": Binary(), "multiclass": Multiclass(3), "regression": Regression()}


def scored(kind, rows=80, seed=0):
    """Return logits, targets and whole-number weights, some of them 0."""
    rng = np.random.default_rng(seed)
    w = rng.integers(0, 4, rows)
    # Scores have ties.
    z = rng.normal(size=(rows, 3) if kind == "multiclass" else rows).round(1)
    y = (
        rng.normal(size=rows)
        if kind == "regression"
        else rng.integers(TASKS[kind].outputs + (kind == "binary"), size=rows)
    )
    return z.astype(np.float32), y.astype(np.int64 if kind == "multiclass" else np.float32), w


@pytest.mark.parametrize("kind", TASKS)
def test_whole_number_weights_equal_repeated_rows_in_every_metric(kind):
    z, y, w = scored(kind)
    many = np.repeat(z, w, axis=0), np.repeat(y, w)
    for metric in METRICS.values():
        if isinstance(TASKS[kind], metric.tasks):
            weighted = metric.compute(TASKS[kind], z, y, w.astype(float))
            assert weighted == pytest.approx(metric.compute(TASKS[kind], *many), abs=1e-6), metric.name


def test_weighted_metrics_are_those_of_scikit_learn():
    z, y, w = scored("binary")
    w = w + 0.5
    p = 1 / (1 + np.exp(-z.astype(float)))
    assert METRICS["AUROC"].compute(Binary(), z, y, w) == pytest.approx(roc_auc_score(y, z, sample_weight=w))
    assert METRICS["log loss"].compute(Binary(), z, y, w) == pytest.approx(
        log_loss(y, p, sample_weight=w), rel=1e-5
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_whole_number_weights_equal_repeated_rows_in_linear_fits(classes):
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(90, 4)), rng.integers(classes, size=90), rng.integers(1, 4, 90)
    many = np.repeat(x, w, axis=0), np.repeat(y, w)
    weighted = linear._fit_logistic(x, y, w.astype(float), 0.1)
    repeated = linear._fit_logistic(*many, np.ones(w.sum()), 0.1)
    for a, b in zip(weighted, repeated, strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert all(
        np.allclose(a, b)
        for a, b in zip(
            linear._standardization(x, w), linear._standardization(many[0], np.ones(w.sum())), strict=True
        )
    )


def test_whole_number_weights_equal_repeated_rows_in_ridge_regression():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(200, 3)), rng.integers(1, 4, 200)
    y, who = x @ [1.0, 0.5, 0.0] + rng.normal(size=200), np.arange(200)
    weighted = linear.fit_linear(Regression(), x, y, w.astype(float), 0, groups=who)
    repeated = linear.fit_linear(
        Regression(), np.repeat(x, w, axis=0), np.repeat(y, w), None, 0, groups=np.repeat(who, w)
    )
    assert np.allclose(weighted.weight, repeated.weight, atol=0.02)
    equal = linear.fit_linear(Regression(), x, y, None, 0)
    assert not np.allclose(weighted.weight, equal.weight, atol=0.02)


def table_of(rows=40):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3 * rows, 2))
    y = (x[:, 0] + rng.logistic(size=len(x)) > 0).astype(int)
    site = np.repeat(["a", "b", "c"], rows)
    frame = pd.DataFrame(
        {"x": x[:, 0], "z": x[:, 1], "y": y, "site": site, "w": rng.integers(0, 4, len(x)) * 1.0}
    )
    return read(frame, "y", "site", min_rows=5, sample_weight="w")


def test_scores_of_a_comparison_are_weighted(tmp_path):
    source = TableSource(table_of(), "table")
    plan = protocol.plan(source, "weighted", ("linear",), "accuracy", 1, 1, 0, {})
    begin(tmp_path, plan.study).close()
    local.sweep(tmp_path, plan.study, execution="sequential")
    with Store(tmp_path) as store:
        results = gather(store, plan.study, plan.tasks, plan.metric, source.table)
    for k, name in enumerate(source.table.environments):
        (own,) = results.rows["linear", name].out_of_domain
        w = source.table.sample_weight.values[source.table.environment.values == k]
        expected = accuracy_score(own.targets, own.logits > 0, sample_weight=w)
        assert results.cells["linear"][name].ood_score.mean == pytest.approx(expected)
        assert expected != pytest.approx(accuracy_score(own.targets, own.logits > 0))
        assert results.second.cells["linear"][name].ood_score.mean == pytest.approx(
            log_loss(own.targets, 1 / (1 + np.exp(-own.logits.astype(float))), sample_weight=w), rel=1e-5
        )


def test_constant_baseline_and_levels_are_weighted():
    table = table_of()
    w, y, codes = table.sample_weight.values, table.targets(), table.environment.values
    own = codes == 0
    shares = np.average(y[~own], weights=w[~own])
    found = baseline_scores(table, Binary(), METRICS["accuracy"], [("a",), ("b",), ("c",)])
    assert found["a"] == pytest.approx(np.average(y[own] == (shares > 0.5), weights=w[own]))
    assert _levels(table, np.flatnonzero(own))[1] == pytest.approx(np.average(y[own], weights=w[own]))


def test_intervals_and_parts_of_a_drop_use_the_weights():
    z, y, w = scored("binary", rows=300)
    own = Predictions("e", "test", 300, z, y)
    accuracy = METRICS["accuracy"]
    assert score_of_rows(Binary(), accuracy, own, weights=w.astype(float)) == pytest.approx(
        accuracy_score(y, z > 0, sample_weight=w)
    )
    # Without rows of weight 0, the standard error is that of the other rows.
    only = (w > 0).astype(float)
    part = Predictions("e", "test", int(only.sum()), z[w > 0], y[w > 0])
    errors = (
        row_standard_error(Binary(), accuracy, [own], weights=only),
        row_standard_error(Binary(), accuracy, [part]),
    )
    assert errors[0] == pytest.approx(errors[1], rel=0.25)
    sides = (z[:150], y[:150].astype(int)), (z[150:], y[150:].astype(int))
    weighted = split_drop(*sides, sample_weight=(w[:150], w[150:])).error_rate
    losses = ((z > 0) != y).astype(float)
    expected = np.average(losses[150:], weights=w[150:]) - np.average(losses[:150], weights=w[:150])
    assert weighted.total.mean == pytest.approx(expected)
