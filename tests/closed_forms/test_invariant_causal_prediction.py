"""Invariant causal prediction: figures of table T, guarantees in models with known parents, failure modes."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression

from envariant.closed_forms import (
    InvariantCausalClassifier,
    InvariantCausalPrediction,
    find_causal_subsets,
)
from envariant.closed_forms.residual_tests import compare_with_the_rest
from envariant.core.errors import EnvariantError, EnvariantWarning
from tests.closed_forms.table_t import E, X, Y

labels = E

P_VALUES = {  # by factor: E − 1, E
    "comparisons": [0.00065879608, 0.4308944911, 1.142125235e-6, 0.1772932851],
    "environments": [0.00098819412, 0.6463417366, 1.713187853e-6, 0.2659399276],
}


@pytest.mark.parametrize("correction", P_VALUES)
def test_p_values_of_table_t(correction):
    found = find_causal_subsets(X, Y, E, correction=correction)
    assert list(found.p_values) == [(), (0,), (1,), (0, 1)]
    assert list(found.p_values.values()) == pytest.approx(P_VALUES[correction], rel=1e-8)


def test_smallest_p_value_of_table_t_is_the_variance_in_environment_1():
    residuals = Y - LinearRegression().fit(X[:, :1], Y).predict(X[:, :1])
    by_environment = [residuals[labels == e] for e in range(3)]
    means, squares = ([f(r) for r in by_environment] for f in (np.mean, lambda r: np.square(r).mean()))
    p_t, p_f = compare_with_the_rest(np.array(means), np.array(squares), [8, 8, 8])
    assert p_f.argmin() == 1
    assert min(p_t.min(), p_f.min()) == pytest.approx(0.10772362, abs=5e-9)


def test_sets_intervals_and_column_p_values_of_table_t():
    fitted = InvariantCausalPrediction(correction="comparisons").fit(X, Y, environments=E)
    assert fitted.accepted_sets_ == ((0,), (0, 1))
    assert fitted.parents_ == (0,)
    assert fitted.defining_sets_ == ((0,),)
    summary = fitted.summary()
    intervals = summary[["low", "high"]].to_numpy()
    expected = np.array([[1.0579926815, 1.5446552125], [0, 0.2715177385]])
    assert intervals == pytest.approx(expected, abs=6e-11)
    assert summary.p_value.to_numpy() == pytest.approx([0.00065879608, 0.4308944911], rel=1e-8)
    assert summary.parent.tolist() == [True, False]
    assert fitted.predict(X) == pytest.approx(LinearRegression().fit(X[:, :1], Y).predict(X[:, :1]))


def test_tests_of_residuals_equal_scipy_with_unequal_environments():
    rng = np.random.default_rng(0)
    parts = [rng.normal(0.3 * e, 1 + e, n) for e, n in enumerate((5, 17, 40))]
    means, squares = np.array([p.mean() for p in parts]), np.array([np.square(p).mean() for p in parts])
    p_t, p_f = compare_with_the_rest(means, squares, [5, 17, 40])
    for e, inside in enumerate(parts):
        outside = np.concatenate([p for k, p in enumerate(parts) if k != e])
        assert p_t[e] == pytest.approx(stats.ttest_ind(inside, outside, equal_var=False).pvalue)
        tail = stats.f.sf(inside.var(ddof=1) / outside.var(ddof=1), len(inside) - 1, len(outside) - 1)
        assert p_f[e] == pytest.approx(2 * min(tail, 1 - tail))


def test_exact_test_equals_the_quadratic_form_of_prediction_errors():
    """D = d'(I + X_e (X'X)⁻¹ X_e')⁻¹ d / (n_e s²) for predictions d of the model fitted outside e."""
    found = find_causal_subsets(X, Y, E, test="exact")
    for subset, p in found.p_values.items():
        design = np.column_stack([np.ones(24), X[:, subset]])
        smallest = 1.0
        for e in range(3):
            a, b = design[labels == e], design[labels != e]
            beta, rss, *_ = np.linalg.lstsq(b, Y[labels != e], rcond=None)
            free = 16 - design.shape[1]
            error = Y[labels == e] - a @ beta
            spread = np.eye(8) + a @ np.linalg.inv(b.T @ b) @ a.T
            f = error @ np.linalg.solve(spread, error) / (8 * rss[0] / free)
            smallest = min(smallest, stats.f.sf(f, 8, free))
        assert p == pytest.approx(min(1, 3 * smallest))


def linear_sem(seed, rows=150):
    """Columns root, two parents and a child of the target; the second parent has effect −1, the first 1."""
    rng = np.random.default_rng(seed)
    site = np.repeat([0, 1, 2], rows)
    moved = 1.5 * rng.normal(size=(3, 4))[site]
    noise = moved + rng.uniform(0.5, 2, size=(3, 4))[site] * rng.normal(size=(3 * rows, 4))
    first = noise[:, 0] + noise[:, 1]
    y = first - noise[:, 2] + rng.normal(size=3 * rows)
    return np.column_stack([noise[:, 0], first, noise[:, 2], y + noise[:, 3]]), y, site


def test_defining_sets_when_two_columns_are_interchangeable():
    rng = np.random.default_rng(0)
    site = np.repeat([0, 1], 300)
    cause = 3 * site + rng.normal(size=600)
    # The first two columns are copies of the cause, so sets with either of them are invariant.
    inputs = np.column_stack([cause, cause + 1e-6 * rng.normal(size=600), rng.normal(size=600)])
    fitted = InvariantCausalPrediction().fit(inputs, 2 * cause + rng.normal(size=600), environments=site)
    assert fitted.parents_ == ()
    assert fitted.defining_sets_ == ((0, 1),)
    assert "there is a causal parent in each of: 0 or 1." in fitted.conclusion()


def test_a_rejected_model_gives_no_answer():
    inputs, y, site = linear_sem(0)
    moved = y + np.array([0, 3, -3])[site] * (1 + inputs[:, 2])  # The environments act on the target.
    estimator = InvariantCausalPrediction()
    with pytest.warns(EnvariantWarning, match="the model is rejected and there is no answer"):
        fitted = estimator.fit(inputs, moved, environments=site)
    assert fitted.parents_ is None
    assert fitted.accepted_sets_ == fitted.defining_sets_ == ()
    assert fitted.summary()[["low", "high"]].isna().all(axis=None)
    assert (fitted.summary().p_value == 1).all()
    assert np.ptp(fitted.predict(inputs)) == 0


def test_without_shifts_the_empty_set_is_accepted_and_nothing_is_claimed():
    inputs, y, _ = linear_sem(0)
    site = np.arange(len(y)) % 3
    fitted = InvariantCausalPrediction().fit(inputs, y, environments=site)
    assert fitted.parents_ == ()
    assert () in fitted.accepted_sets_
    assert "The empty set is invariant at level 0.05" in fitted.conclusion()
    assert fitted.predict(inputs) == pytest.approx(np.full(len(y), y.mean()))


def test_columns_are_preselected_and_named():
    inputs, y, site = linear_sem(3, rows=300)
    noise = np.random.default_rng(0).normal(size=(len(y), 12))
    frame = pd.DataFrame(np.column_stack([noise, inputs]), columns=[*(f"n{k}" for k in range(12)), *"rpqc"])
    fitted = InvariantCausalPrediction(max_columns=4).fit(frame.assign(site=site), y, environments="site")
    assert len(fitted.subsets_.tested) == 4
    assert fitted.parents_ == ("p", "q")
    summary = fitted.summary()
    assert summary.loc["n0", ["low", "high"]].isna().all()
    assert summary.loc["n0", "p_value"] == 1
    assert "Causal parents at level 0.05: p, q." in fitted.conclusion()
    # The level of the fit, whatever parameters are set for the next one.
    assert "at level 0.05" in fitted.set_params(alpha=0.2).conclusion()


def test_p_values_of_the_binary_test_are_those_of_its_definition():
    rng = np.random.default_rng(4)
    site = np.repeat([0, 1, 2], (100, 150, 200))
    x = site + rng.normal(size=450)
    y = (x + rng.logistic(size=450) > 0).astype(float)
    found = find_causal_subsets(x[:, None], y, site, binary=True, correction="comparisons")
    r = y - y.mean()
    smallest = min(stats.ttest_ind(r[site == e], r[site != e], equal_var=False).pvalue for e in range(3))
    assert found.p_values[()] == pytest.approx(min(1, 2 * smallest))
    assert found.p_values[()] < 1e-6
    assert found.parents == (0,)


def test_binary_test_keeps_its_level():
    """The true set is rejected in at most α of the samples."""
    rejected, seeds = 0, 60
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        site = np.repeat([0, 1, 2], 100)
        x = site + rng.normal(size=300)
        y = (x - 1 + rng.logistic(size=300) > 0).astype(float)
        rejected += find_causal_subsets(x[:, None], y, site, binary=True, alpha=0.1).p_values[(0,)] <= 0.1
    assert rejected <= stats.binom.isf(0.001, seeds, 0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InvariantCausalPrediction(alpha=1.5).fit(X, Y, environments=E), r"alpha must be between 0 and 1, got 1.5"),
        (lambda: InvariantCausalPrediction(test="exakt").fit(X, Y, environments=E), r"unknown test 'exakt'; did you mean 'exact'\?"),
        (lambda: InvariantCausalPrediction(correction="E").fit(X, Y, environments=E), r"unknown correction 'E'; known: comparisons, environments"),
        (lambda: InvariantCausalPrediction(max_columns=40).fit(X, Y, environments=E), r"max_columns must be an integer from 1 to 15"),
        (lambda: InvariantCausalPrediction().fit(X, Y, environments=[0] * 22 + [1] * 2), r"every environment needs at least 3 rows, but '1' has 2"),
        (lambda: InvariantCausalClassifier().fit(X, E, environments=E), r"Only binary classification is supported; y has 3 classes"),
    ],
)  # fmt: skip
def test_wrong_inputs_have_one_line_errors(call, message):
    with pytest.raises(EnvariantError, match=message):
        call()


def test_classifier_predicts_with_the_logistic_regression_on_the_parents():
    rng = np.random.default_rng(1)
    site = np.repeat(["a", "b", "c"], 400)
    shift = np.repeat([0.0, 1.0, 2.0], 400)
    cause = shift + rng.normal(size=1200)
    y = np.where(cause + rng.logistic(size=1200) > 0, "yes", "no")
    effect = (y == "yes") - shift + rng.normal(size=1200)
    fitted = InvariantCausalClassifier().fit(np.column_stack([cause, effect]), y, environments=site)
    assert fitted.parents_ == (0,)
    assert fitted.coef_[0, 1] == 0
    assert fitted.coef_[0, 0] == pytest.approx(1, abs=0.2)
    probabilities = fitted.predict_proba(np.column_stack([cause, effect]))
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(1200))
    assert (fitted.predict(np.column_stack([cause, effect])) == y).mean() > 0.7
