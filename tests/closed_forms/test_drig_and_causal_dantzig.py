"""DRIG and causal Dantzig: figures of table T, population examples, robustness, and refusals."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from envariant.closed_forms import AnchorRegressor, CausalDantzig, DRIGRegressor
from envariant.closed_forms.base import second_moments
from envariant.closed_forms.causal_dantzig import fit_causal_dantzig
from envariant.closed_forms.drig import solve_drig
from envariant.core.errors import EnvariantError
from tests.closed_forms.table_t import E, X, Y


@pytest.mark.parametrize(
    ("gamma", "coefficients"),
    [
        (0, [0.2515987195, 0.7568259891]),
        (1, [1.2693791988, 0.1119864477]),
        (2, [1.3253127318, 0.0830327983]),
        (10, [1.3754128580, 0.0580054436]),
    ],
)
def test_drig_of_table_t(gamma, coefficients):
    fitted = DRIGRegressor(gamma, reference=0).fit(X, Y, environments=E)
    assert fitted.coef_ == pytest.approx(coefficients, abs=6e-11)
    # Environment 0 has the smallest variance, so it is the reference by default.
    default = DRIGRegressor(gamma, weights="equal").fit(X, Y, environments=E)
    assert default.reference_ == "0"
    assert default.coef_ == pytest.approx(coefficients, abs=6e-11)


def test_drig_of_table_t_without_centering():
    coefficients = solve_drig(*second_moments(X, Y, E), np.full(3, 1 / 3), gamma=2)
    assert coefficients == pytest.approx([1.3194188112, 0.1011311209], abs=6e-11)


@pytest.mark.parametrize(
    ("mean", "covariance", "causal_limit", "expected"),
    [
        ((0.5, 0.1), (1, 0.1), None, (2.2121212121, 2.3538461538, 2.5)),
        ((0.5, 0.0), (1, 0.0), 2.0, (2.1212121212, 2.3076923077, 2.5)),
    ],
)
def test_drig_of_the_population_examples(mean, covariance, causal_limit, expected):
    """X ← noise, Y = 2X + noise, with correlated noise; one environment shifts mean and covariance of noise."""
    (mx, my), (sxx, sxy) = mean, covariance
    gram = np.array([[[1.0]], [[1 + sxx + mx**2]]])
    cross = 2 * gram[:, 0] + np.array([[0.5], [0.5 + sxy + mx * my]])
    half = np.array([0.5, 0.5])
    solved = [solve_drig(gram, cross, half, gamma).item() for gamma in (5, 1, 0)]
    assert solved == pytest.approx(expected, abs=6e-11)
    if causal_limit is not None:
        assert solve_drig(gram, cross, half, 1e9).item() == pytest.approx(causal_limit)


def variance_shifts(seed, rows=4000, strength=3.0):
    """Confounded rows whose environments change the variance of x, not its mean."""
    rng = np.random.default_rng(seed)
    scale = np.repeat([1.0, strength], rows)
    hidden = rng.normal(size=2 * rows)
    x = hidden + scale * rng.normal(size=2 * rows)
    return x[:, None], x + hidden + 0.5 * rng.normal(size=2 * rows), np.repeat([0, 1], rows)


def test_drig_is_robust_to_variances_where_anchor_regression_is_not():
    inputs, y, site = variance_shifts(0)
    test_inputs, test_y, test_site = variance_shifts(1, strength=8.0)
    far = test_site == 1

    def risk(estimator):
        fitted = estimator.fit(inputs, y, environments=site)
        return np.square(test_y - fitted.predict(test_inputs))[far].mean()

    drig, pooled = risk(DRIGRegressor(10, reference=0)), risk(AnchorRegressor(1))
    assert drig < 0.95 * pooled
    assert risk(AnchorRegressor(10)) == pytest.approx(pooled, rel=0.02)


def test_risk_of_drig_is_smallest_at_the_strength_of_the_shift():
    """Theory: the test risk at strength γ is R_0 + γ Σ w (R_e − R_0), which b(γ) minimizes."""
    inputs, y, site = variance_shifts(2, rows=50_000)
    gamma, moments = 6.0, second_moments(inputs, y, site)
    # Shift the extra variance of environment 1, half of the rows, by the factor γ: 1 + γ/2 (9 − 1).
    test_inputs, test_y, test_site = variance_shifts(3, rows=50_000, strength=np.sqrt(1 + gamma / 2 * 8))
    risks = {
        g: np.square(test_y - test_inputs @ solve_drig(*moments, np.array([0.5, 0.5]), g))[
            test_site == 1
        ].mean()
        for g in (1.0, gamma, 100.0)
    }
    fitted = solve_drig(*moments, np.array([0.5, 0.5]), gamma)
    by_environment = [np.square(y - inputs @ fitted)[site == e].mean() for e in (0, 1)]
    assert risks[gamma] == pytest.approx(
        by_environment[0] + gamma / 2 * (by_environment[1] - by_environment[0]), rel=0.03
    )
    assert risks[gamma] <= min(risks.values()) * 1.001


def test_a_strength_without_a_minimum_is_refused_with_the_largest_allowed_one():
    inputs, y, site = variance_shifts(0)
    with pytest.raises(EnvariantError, match="gamma=5 is too large, so there is no minimum") as caught:
        DRIGRegressor(5, reference=1).fit(inputs, y, environments=site)
    largest = float(str(caught.value).split("gamma below ")[1].split(",")[0])
    assert DRIGRegressor(0.95 * largest, reference=1).fit(inputs, y, environments=site).coef_.shape == (1,)
    with pytest.raises(EnvariantError, match="too large"):
        DRIGRegressor(1.05 * largest, reference=1).fit(inputs, y, environments=site)


@pytest.mark.parametrize(
    ("environment", "coefficients", "errors"),
    [
        (0, [1.3829664088, 0.0699254492], [0.0635686265, 0.0616918760]),
        (1, [1.3560766322, -0.0485009953], [0.1725762130, 0.0851014220]),
        (2, [-6.2410132073, -18.5189806070], None),
    ],
)
def test_causal_dantzig_of_table_t_against_the_rest(environment, coefficients, errors):
    fitted, own_errors = fit_causal_dantzig(X, Y, (environment == E).astype(int))
    assert fitted == pytest.approx(coefficients, rel=1e-9)
    if errors is None:
        assert own_errors == pytest.approx([646, 1560], rel=1e-3)
    else:
        assert own_errors == pytest.approx(errors, abs=6e-11)


def test_causal_dantzig_of_table_t_with_two_and_three_environments():
    assert fit_causal_dantzig(X[:16], Y[:16], E[:16])[0] == pytest.approx(
        [1.3257414614, 0.0290206067], abs=6e-11
    )
    assert fit_causal_dantzig(X, Y, E)[0] == pytest.approx([1.3703087768, 0.0095874701], abs=6e-11)


def test_the_near_singular_comparison_of_table_t_is_refused():
    message = "CausalDantzig: the environments differ too little to identify every coefficient"
    with pytest.raises(EnvariantError, match=message):
        CausalDantzig(fit_intercept=False).fit(X, Y, environments=E == 2)
    fitted = CausalDantzig(fit_intercept=False).fit(X, Y, environments=E == 0)
    assert fitted.coef_ == pytest.approx([1.3829664088, 0.0699254492], abs=6e-11)


def test_environments_without_shifts_are_refused_about_always():
    accepted = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(200, 2))
        try:
            CausalDantzig().fit(x, x[:, 0] + rng.normal(size=200), environments=np.arange(200) % 4)
            accepted += 1
        except EnvariantError:
            pass
    assert accepted <= 9  # The level is 0.05.


@pytest.mark.parametrize("sites", [2, 5])
def test_intervals_of_causal_dantzig_cover_confounded_effects(sites):
    """Fast version of benchmarks/closed_forms.py; least squares is far off."""
    covered, seeds, true = 0, 60, np.array([1.0, -1.0])
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        site = rng.integers(0, sites, 800 * sites)
        hidden = rng.normal(size=len(site))
        scale = np.column_stack([np.linspace(1, 4, sites), np.linspace(4, 1, sites)])[site]
        x = 5 + hidden[:, None] + scale * rng.normal(size=(len(site), 2))
        y = 7 + x @ true + 2 * hidden
        fitted = CausalDantzig(alpha=0.1).fit(x, y, environments=site)
        low, high = fitted.intervals_.T
        covered += int(((low <= true) & (true <= high)).sum())
    assert abs(LinearRegression().fit(x, y).coef_ - true).max() > 0.1
    assert 0.9 - 4 * 0.03 < covered / (2 * seeds) <= 1
    assert fitted.intercept_ == pytest.approx(7, abs=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DRIGRegressor(-1).fit(X, Y, environments=E), r"DRIGRegressor: gamma must be a number of at least 0, got -1"),
        (lambda: DRIGRegressor(reference="3").fit(X, Y, environments=E), r"DRIGRegressor: unknown reference '3'; known: 0, 1, 2"),
        (lambda: DRIGRegressor(weights="row").fit(X, Y, environments=E), r"unknown weights 'row'; did you mean 'rows'\?"),
        (lambda: CausalDantzig(alpha=0).fit(X, Y, environments=E), r"CausalDantzig: alpha must be between 0 and 1, got 0"),
    ],
)  # fmt: skip
def test_wrong_inputs_have_one_line_errors(call, message):
    with pytest.raises(EnvariantError, match=message):
        call()


def test_reference_is_a_label_of_any_type():
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(year=2019.0 + E)
    fitted = DRIGRegressor(reference=2019).fit(frame, Y, environments="year")
    assert fitted.reference_ == "2019"
    assert fitted.coef_ == pytest.approx(DRIGRegressor(reference=0).fit(X, Y, environments=E).coef_)


@pytest.mark.parametrize("estimator", [DRIGRegressor(), CausalDantzig()])
def test_without_environments_least_squares_is_used_with_a_warning(estimator):
    with pytest.warns(UserWarning, match="so ordinary least squares was used instead"):
        fitted = estimator.fit(X, Y)
    least_squares = LinearRegression().fit(X, Y)
    assert fitted.coef_ == pytest.approx(least_squares.coef_)
    assert fitted.intercept_ == pytest.approx(least_squares.intercept_)
