"""LEACE: figures of table T, erasure on the fitting rows, least change, pipelines, and wrong inputs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline

from envariant import EnvironmentSet
from envariant.closed_forms import LEACE, AnchorRegressor
from envariant.closed_forms.leace import erase, shrinkage_weight
from envariant.core.errors import EnvariantError
from envariant.predictors import ScikitLearn
from tests.closed_forms.table_t import ROWS, E, X, Y

Z = (E == 2).astype(float)


def test_matrix_of_table_t():
    fitted = LEACE().fit(ROWS, concepts=Z)
    expected = [
        [0.6455607758, 0.5086955280, -0.4904286337],
        [0.0148094383, 0.9787453122, 0.0204914471],
        [-0.4511942214, 0.6475594883, 0.3756939120],
    ]
    assert fitted.matrix_ == pytest.approx(np.array(expected), abs=6e-11)
    erased = fitted.transform(ROWS)
    assert erased[0] == pytest.approx([-1.1277625712, -0.7863051850, -1.2172353622], abs=6e-11)
    assert np.cov(ROWS.T).trace() == pytest.approx(16.0099637681, abs=6e-11)
    assert np.cov(erased.T).trace() == pytest.approx(12.1440247586, abs=6e-11)
    assert np.square(erased - ROWS).sum(axis=1).mean() == pytest.approx(3.7048582174, abs=6e-11)
    orthogonal = LEACE(orthogonal=True).fit(ROWS, concepts=Z)
    assert orthogonal.matrix_[0] == pytest.approx([0.6186444941, 0.0159340741, -0.4854581231], abs=6e-11)


def test_singular_values_and_shrinkage_of_table_t():
    covariance = np.cov(ROWS.T)
    cross = (ROWS - ROWS.mean(axis=0)).T @ (Z - Z.mean())[:, None] / 23
    assert erase(covariance, cross)[1] == pytest.approx([0.4285019950], abs=6e-11)
    biased = covariance * 23 / 24
    a = shrinkage_weight(biased, 24)
    assert a == pytest.approx(0.9040478248, abs=6e-11)
    shrunk = a * biased + (1 - a) * biased.trace() / 3 * np.eye(3)
    assert erase(shrunk, cross)[1] == pytest.approx([0.4147519457], abs=6e-11)
    fitted = LEACE(shrinkage=True).fit(ROWS, concepts=Z)
    assert fitted.matrix_ == pytest.approx(erase(shrunk, cross)[0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.booleans())
def test_no_linear_model_predicts_the_environment_and_no_smaller_change_does_that(seed, n, shrinkage):
    rng = np.random.default_rng(seed)
    site = rng.integers(0, n, 120)
    site[:n] = range(n)
    x = rng.normal(size=(120, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=(n, 6))[site]
    fitted = LEACE(shrinkage=shrinkage).fit(x, environments=site)
    erased = fitted.transform(x)
    indicators = (site[:, None] == np.arange(n)).astype(float)
    assert LinearRegression().fit(erased, indicators).score(erased, indicators) < 1e-9
    assert fitted.rank_ == n - 1
    assert fitted.transform(erased) == pytest.approx(erased, abs=1e-8)  # A projection.
    orthogonal = LEACE(orthogonal=True).fit(x, environments=site).transform(x)
    if not shrinkage:
        assert np.square(erased - x).sum() <= np.square(orthogonal - x).sum() * (1 + 1e-9)


def test_units_do_not_matter_and_rare_environments_are_erased():
    rng = np.random.default_rng(0)
    site = np.where(np.arange(20_000) < 3, "rare", "common")
    x = rng.normal(size=(20_000, 2)) + 5 * (site == "rare")[:, None]
    erased = LEACE().fit(x, environments=site).transform(x)
    means = [erased[site == name].mean(axis=0) for name in ("rare", "common")]
    assert means[0] == pytest.approx(means[1], abs=1e-9)
    scaled = LEACE().fit(x * [1, 1000], environments=site).transform(x * [1, 1000])
    assert scaled / [1, 1000] == pytest.approx(erased, abs=1e-8)
    coded = LEACE().fit(x, concepts=100.0 * (site == "rare")).transform(x)
    assert coded == pytest.approx(erased, abs=1e-8)


def test_as_many_environments_as_features_leave_nothing():
    fitted = LEACE().fit(X, environments=E)
    assert fitted.rank_ == 2
    assert np.ptp(fitted.transform(X), axis=0) == pytest.approx([0, 0], abs=1e-9)


def test_new_rows_need_no_environment_column():
    frame = pd.DataFrame(ROWS, columns=[*"abc"]).assign(site=E)
    fitted = LEACE().fit(frame, environments="site")
    assert fitted.transform(frame) == pytest.approx(fitted.transform(frame[[*"abc"]]))
    assert fitted.get_feature_names_out().tolist() == [*"abc"]


def test_pipeline_in_a_study_receives_the_environments_in_every_step():
    rng = np.random.default_rng(0)
    site = np.repeat([*"abc"], 80)
    x = rng.normal(size=(240, 5)) + np.repeat([0.0, 1, 4], 80)[:, None]
    y = x[:, 0] + rng.normal(size=240)
    sample = EnvironmentSet.from_arrays(x, y, site)
    rows = np.concatenate([each.inputs.numpy() for each in sample.environments])
    targets = np.concatenate([each.targets.numpy() for each in sample.environments])
    fitted = ScikitLearn(make_pipeline(LEACE(), AnchorRegressor(1))).fit(sample, 0)
    erased = LEACE().fit(rows, environments=site).transform(rows)
    by_hand = LinearRegression().fit(erased, targets)
    expected = by_hand.predict(erased)
    logits = fitted.logits(sample.environments[0].inputs).numpy()
    assert logits == pytest.approx(expected[:80], abs=1e-4)
    assert fitted.estimator[0].environments_.tolist() == ["1", "2", "3"]


def test_erased_features_do_not_predict_the_site_of_new_rows():
    rng = np.random.default_rng(1)
    site = rng.integers(0, 2, 4000)
    x = rng.normal(size=(4000, 4)) + site[:, None]
    train, new = slice(2000), slice(2000, 4000)
    erased = LEACE().fit(x[train], environments=site[train]).transform(x)
    assert LogisticRegression().fit(x[train], site[train]).score(x[new], site[new]) > 0.8
    assert LogisticRegression().fit(erased[train], site[train]).score(erased[new], site[new]) < 0.56


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LEACE().fit(X, environments=E, concepts=E), r"LEACE: got both environments and concepts; pass one of them"),
        (lambda: LEACE().fit(X, concepts=[*"abcd"] * 6), r"concepts must be numbers; pass labels as environments"),
        (lambda: LEACE().fit(X, concepts=E[:3]), r"concepts must have the shape \[24, columns\], got \[3\]"),
        (lambda: LEACE().fit(X, concepts=Y * np.nan), r"concepts must be finite numbers"),
        (lambda: LEACE(tolerance=-1).fit(X, concepts=E), r"tolerance must be a number of at least 0, got -1"),
    ],
)  # fmt: skip
def test_wrong_inputs_have_one_line_errors(call, message):
    with pytest.raises(EnvariantError, match=message):
        call()


def test_without_environments_features_stay_unchanged_with_a_warning():
    with pytest.warns(UserWarning, match="so features were left unchanged"):
        fitted = LEACE().fit(X)
    assert fitted.transform(X) == pytest.approx(X)
