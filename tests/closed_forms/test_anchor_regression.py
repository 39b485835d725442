"""Anchor regression and K-class: published identities, figures of table T, theory of the worst case."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from envariant.closed_forms import AnchorClassifier, AnchorRegressor, KClassRegressor, gamma_of_quantile
from envariant.core.errors import EnvariantError
from tests.closed_forms.table_t import E, X, Y


@pytest.mark.parametrize(
    ("gamma", "coefficients", "intercept"),
    [
        (0, [1.1223009066, 0.2409293876], -0.2444487511),
        (0.5, [1.2028108134, 0.1893225917], -0.1845329995),
        (1, [1.2214347502, 0.1661622765], -0.1590297775),
        (4, [1.2492690312, 0.1048214379], -0.0931851102),
        (100, [1.2722858519, 0.0269592338], -0.0105809085),
    ],
)
def test_coefficients_of_table_t(gamma, coefficients, intercept):
    fitted = AnchorRegressor(gamma).fit(X, Y, environments=E)
    assert fitted.coef_ == pytest.approx(coefficients, abs=6e-11)
    assert fitted.intercept_ == pytest.approx(intercept, abs=6e-11)


def test_risks_of_table_t_are_means_of_squares_within_and_between_environments():
    fitted = AnchorRegressor(4).fit(X, Y, environments=E)
    assert fitted.within_risk_ == pytest.approx(0.1775692066, abs=6e-11)
    assert fitted.between_risk_ == pytest.approx(0.0084372142, abs=6e-11)
    residuals = Y - fitted.predict(X)
    assert fitted.within_risk_ + fitted.between_risk_ == pytest.approx(np.square(residuals).mean())


def test_k_class_of_table_t():
    assert KClassRegressor(0.75).fit(X, Y, environments=E).coef_ == pytest.approx(
        [1.2492690312, 0.1048214379], abs=6e-11
    )
    assert KClassRegressor().fit(X, Y, environments=E).coef_ == pytest.approx(
        [1.2738592863, 0.0210322524], abs=6e-11
    )
    one = X[:, :1]
    assert KClassRegressor("tsls").fit(one, Y, environments=E).coef_ == pytest.approx(
        [1.2851588877], abs=6e-11
    )
    liml = KClassRegressor("liml").fit(one, Y, environments=E)
    assert liml.kappa_ == pytest.approx(1.0016044456, abs=6e-11)
    assert liml.coef_ == pytest.approx([1.2848611997], abs=6e-11)
    fuller = KClassRegressor("fuller").fit(one, Y, environments=E)
    assert fuller.kappa_ == pytest.approx(liml.kappa_ - 1 / (24 - 2))
    # Two columns and two instruments: LIML is two-stage least squares.
    assert KClassRegressor("liml").fit(X, Y, environments=E).kappa_ == pytest.approx(1, abs=1e-12)


def test_quantiles_of_the_chi_squared_distribution():
    levels = (0.9, 0.95, 0.99)
    known = [2.7055434541, 3.8414588207, 6.6348966010]
    assert [gamma_of_quantile(level) for level in levels] == pytest.approx(known, abs=6e-11)
    assert gamma_of_quantile(0.9544997361) == pytest.approx(4, abs=1e-8)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 50))
def test_closed_form_equals_generic_identities(seed, gamma):
    """Environments equal indicator anchors, K-class equals anchor regression, and the gradient is zero."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, 60)
    codes[:4] = range(4)
    shift = rng.normal(size=(4, 3))[codes]
    x = shift + rng.normal(size=(60, 3))
    y = x @ [1.0, -1, 0.5] + rng.normal(size=60) + shift[:, 0]
    fitted = AnchorRegressor(gamma).fit(x, y, environments=codes)
    indicators = (codes[:, None] == np.arange(4)).astype(float)
    by_columns = AnchorRegressor(gamma).fit(x, y, anchors=indicators)
    assert by_columns.coef_ == pytest.approx(fitted.coef_, abs=1e-9)
    if gamma >= 1:
        k_class = KClassRegressor((gamma - 1) / gamma).fit(x, y, environments=codes)
        assert k_class.coef_ == pytest.approx(fitted.coef_, abs=1e-8)
    centered, r = x - x.mean(axis=0), y - fitted.predict(x)
    projection = indicators @ np.linalg.pinv(indicators)
    gradient = centered.T @ (r + (gamma - 1) * (projection @ r))
    assert gradient == pytest.approx(np.zeros(3), abs=1e-8 * (1 + gamma) * 60)


def test_least_squares_and_ridge_are_special_cases():
    assert AnchorRegressor(1).fit(X, Y, environments=E).coef_ == pytest.approx(
        LinearRegression().fit(X, Y).coef_
    )
    ridge = AnchorRegressor(1, alpha=3).fit(X, Y, environments=E)
    assert ridge.coef_ == pytest.approx(Ridge(3).fit(X, Y).coef_)


def test_largest_risk_over_shifts_is_attained_and_smallest_at_the_same_gamma():
    """Worst case over mean shifts v with vvᵀ ⪯ γ E[AAᵀ] (theorem 1), in a model with a hidden confounder."""
    rng = np.random.default_rng(0)
    n, gamma = 200_000, 6.0

    def rows(anchor):
        hidden = rng.normal(size=n)
        x = anchor + hidden + rng.normal(size=n)
        return np.column_stack([x, x + 2 * hidden + 0.5 * anchor])  # The anchor also shifts y.

    train = rows(anchor := rng.normal(size=n))
    fits = {g: AnchorRegressor(g).fit(train[:, :1], train[:, 1], anchors=anchor) for g in (1.0, gamma, 50.0)}
    # E[v²] = γ E[A²] = γ: the largest shift in either direction.
    test = rows(np.sqrt(gamma) * rng.choice([-1, 1], n))
    worst = {g: np.square(test[:, 1] - f.predict(test[:, :1])).mean() for g, f in fits.items()}
    for g, fitted in fits.items():
        assert worst[g] == pytest.approx(fitted.within_risk_ + gamma * fitted.between_risk_, rel=0.02), g
    assert worst[gamma] == min(worst.values())
    assert worst[1.0] > 1.1 * worst[gamma]
    # The quantile over anchors of the conditional risk, with γ = χ²₁(0.95).
    fitted, level = fits[gamma], 0.95
    slope = np.sqrt(fitted.between_risk_)
    risks = fitted.within_risk_ + np.square(slope * anchor)
    promised = fitted.within_risk_ + gamma_of_quantile(level) * fitted.between_risk_
    assert np.quantile(risks, level) == pytest.approx(promised, rel=0.02)


def test_two_stage_least_squares_finds_causal_effects_despite_confounding():
    rng = np.random.default_rng(1)
    site = rng.integers(0, 6, 20_000)
    hidden = rng.normal(size=20_000)
    x = rng.normal(size=(6, 2))[site] * 2 + hidden[:, None] + rng.normal(size=(20_000, 2))
    y = x @ [1.0, -2.0] + 3 * hidden
    assert abs(LinearRegression().fit(x, y).coef_ - [1, -2]).max() > 0.2
    for kappa in ("tsls", "liml", "fuller"):
        fitted = KClassRegressor(kappa).fit(x, y, environments=site)
        assert fitted.coef_ == pytest.approx([1, -2], abs=0.05)
        assert fitted.n_instruments_ == 5


def moved_marker(rows=400, seed=0):
    rng = np.random.default_rng(seed)
    site = np.repeat(["north", "south", "east"], rows)
    x = rng.normal(size=3 * rows)
    y = (x + rng.normal(size=3 * rows) > 0).astype(int)
    marker = y + np.repeat([-1.5, 0.0, 1.5], rows) + 0.7 * rng.normal(size=3 * rows)
    return np.column_stack([x, marker]), y, site


def test_classifier_with_gamma_1_is_logistic_regression():
    inputs, y, site = moved_marker()
    for labels in (y, y + (inputs[:, 0] > 1)):
        fitted = AnchorClassifier(1, alpha=2).fit(inputs, labels, environments=site)
        scaler = StandardScaler().fit(inputs)
        two = len(np.unique(labels)) == 2
        # Two coefficient vectors ±w/2 have the penalty α/2 · ‖w‖²/2.
        expected = LogisticRegression(C=1.0 if two else 0.5, tol=1e-9, max_iter=1000)
        expected.fit(scaler.transform(inputs), labels)
        assert fitted.predict_proba(inputs) == pytest.approx(
            expected.predict_proba(scaler.transform(inputs)), abs=1e-4
        )


def test_classifier_minimizes_the_stated_objective():
    inputs, y, site = moved_marker(60)
    gamma, alpha = 9.0, 0.5
    fitted = AnchorClassifier(gamma, alpha=alpha).fit(inputs, y, environments=site)
    indicators = (site[:, None] == np.unique(site)).astype(float)
    projection = indicators @ np.linalg.pinv(indicators) - 1 / len(y)
    scaler = StandardScaler().fit(inputs)
    z = scaler.transform(inputs)

    def objective(weights):
        logits = z @ weights[1:] + weights[0]
        r = y - 1 / (1 + np.exp(-logits))
        loss = np.logaddexp(0, logits) - y * logits
        penalty = (gamma - 1) / 2 * np.square(projection @ r).sum()
        return loss.sum() + penalty + alpha / 4 * np.square(weights[1:]).sum()

    slope = fitted.coef_[0] * scaler.scale_
    best = np.append(fitted.intercept_ + fitted.coef_[0] @ scaler.mean_, slope)
    for direction in np.random.default_rng(0).normal(size=(20, 3)):
        assert objective(best + 1e-3 * direction) > objective(best) - 1e-9
    gradient = [(objective(best + 1e-5 * e) - objective(best - 1e-5 * e)) / 2e-5 for e in np.eye(3)]
    assert gradient == pytest.approx([0, 0, 0], abs=1e-3)


def test_classifier_relies_less_on_a_column_that_shifts_between_sites():
    inputs, y, site = moved_marker()
    ratios = []
    for gamma in (1, 10, 1000):
        x, marker = AnchorClassifier(gamma).fit(inputs, y, environments=site).coef_[0]
        ratios.append(marker / x)
    assert ratios[0] > 1.5 * ratios[1] > 0
    assert abs(ratios[2]) < 0.1


def test_classes_keep_their_labels_and_three_classes_have_probabilities():
    inputs, y, site = moved_marker()
    labels = np.array(["low", "mid", "top"])[y + (inputs[:, 0] > 1)]
    fitted = AnchorClassifier().fit(inputs, labels, environments=site)
    assert fitted.classes_.tolist() == ["low", "mid", "top"]
    assert fitted.score(inputs, labels) > 0.7  # The most frequent class has about half of the rows.
    probabilities = fitted.predict_proba(inputs)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(y)))
    assert fitted.coef_.shape == (3, 2)
    assert set(fitted.predict(inputs)) == {"low", "mid", "top"}


def test_names_of_columns_select_environments_and_anchors():
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(site=E, year=E * 2.0)
    by_name = AnchorRegressor().fit(frame.drop(columns="year"), Y, environments="site")
    assert by_name.coef_ == pytest.approx(AnchorRegressor().fit(X, Y, environments=E).coef_)
    assert by_name.environments_.tolist() == ["0", "1", "2"]
    assert by_name.predict(frame[["a", "b", "site"]]) == pytest.approx(by_name.predict(frame[["a", "b"]]))
    by_year = AnchorRegressor().fit(frame.drop(columns="site"), Y, anchors="year")
    assert by_year.coef_ == pytest.approx(AnchorRegressor().fit(X, Y, anchors=E).coef_)
    assert by_year.predict(frame[["a", "b", "year"]]) == pytest.approx(by_year.predict(frame[["a", "b"]]))
    assert by_year.feature_names_in_.tolist() == ["a", "b"]


def test_collinear_and_constant_columns_do_not_change_predictions():
    more = np.column_stack([X, X[:, 0] * 2, np.ones(24)])
    fitted = AnchorRegressor(4).fit(more, Y, environments=E)
    assert fitted.predict(more) == pytest.approx(AnchorRegressor(4).fit(X, Y, environments=E).predict(X))


def test_gaussian_quantile_uses_one_degree_of_freedom():
    assert gamma_of_quantile(0.5) == pytest.approx(stats.norm.ppf(0.75) ** 2)


FRAME = pd.DataFrame(X, columns=["a", "b"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AnchorRegressor(-1).fit(X, Y, environments=E), r"AnchorRegressor: gamma must be a number of at least 0, got -1"),
        (lambda: AnchorRegressor(np.inf).fit(X, Y, environments=E), r"gamma must be a number of at least 0, got inf"),
        (lambda: AnchorRegressor(alpha="big").fit(X, Y, environments=E), r"alpha must be a number of at least 0, got 'big'"),
        (lambda: AnchorClassifier(0.5).fit(X, Y > 0, environments=E), r"AnchorClassifier: gamma must be a number of at least 1, got 0.5"),
        (lambda: AnchorRegressor().fit(X, Y, environments=E[:5]), r"must hold one label per row; got 5 labels for 24 rows"),
        (lambda: AnchorRegressor().fit(X, Y, environments=["a"] * 24), r"needs at least 2 environments, but 'environments' contains 1"),
        (lambda: AnchorRegressor().fit(X, Y, environments=[None] * 24), r"environments are missing in 24 of 24 rows"),
        (lambda: AnchorRegressor().fit(X, Y, environments="site"), r"is a column name, but X is of type ndarray"),
        (lambda: AnchorRegressor().fit(FRAME, Y, environments="c"), r"unknown column 'c'"),
        (lambda: AnchorRegressor().fit(FRAME, Y, anchors="A"), r"AnchorRegressor: anchors: unknown column 'A'; did you mean 'a'\?"),
        (lambda: AnchorRegressor().fit(X, Y, anchors=["a"]), r"are column names, but X is of type ndarray"),
        (lambda: AnchorRegressor().fit(X, Y, environments=E, anchors=E), r"got both environments and anchors; pass one"),
        (lambda: AnchorRegressor().fit(X, Y, anchors=np.ones(24)), r"anchors are constant; pass columns that vary"),
        (lambda: AnchorRegressor().fit(X, Y, anchors=np.ones(5)), r"anchors must have the shape \[24, columns\], got \[5\]"),
        (lambda: AnchorRegressor().fit(X, Y, anchors=np.full(24, np.nan)), r"anchors must be finite numbers"),
        (lambda: AnchorRegressor().fit(X, Y, anchors=np.array([["u"]] * 24)), r"anchors must be numbers; pass labels as environments"),
        (lambda: AnchorClassifier().fit(X, np.ones(24, int), environments=E), r"at least two classes; got one class \(1\)"),
        (lambda: KClassRegressor("tlss").fit(X, Y, environments=E), r"unknown kappa 'tlss'; did you mean 'tsls'\?"),
        (lambda: KClassRegressor().fit(X, Y, environments=E > 0), r"2 columns need at least as many independent instruments, got 1"),
        (lambda: gamma_of_quantile(1.0), r"level must be between 0 and 1, got 1.0"),
    ],
)  # fmt: skip
def test_wrong_inputs_have_one_line_errors(call, message):
    with pytest.raises(EnvariantError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("estimator", [AnchorRegressor(), AnchorClassifier(), KClassRegressor()])
def test_without_environments_the_ordinary_fit_is_used_with_a_warning(estimator):
    target = Y if not isinstance(estimator, AnchorClassifier) else Y > 0
    with pytest.warns(UserWarning, match="needs environments, but fit received none, so .* was used instead"):
        fitted = estimator.fit(X, target)
    assert fitted.environments_.tolist() == ["all"]
    if target is Y:
        assert fitted.coef_ == pytest.approx(LinearRegression().fit(X, Y).coef_)
