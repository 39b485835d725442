"""Distances against a second implementation, and the rate of flags at its nominal level."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from envariant.analysis.input_density import MOST_DISTANCES, fit_density
from envariant.core.errors import EnvariantError


def rows(draw, n=100, sites=4, seed=0):
    """Return inputs, one-hot columns included, and environments with different means."""
    means = np.random.default_rng(seed).normal(size=(sites, 3)) * 2
    codes = np.repeat(np.arange(sites), n)
    mix = np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 2.0]])
    x = means[codes] + draw.normal(size=(len(codes), 3)) @ mix
    color = np.eye(3)[draw.choice(3, size=len(codes), p=[0.6, 0.35, 0.05])]
    return np.column_stack([x, color]), codes


def test_distances_are_mahalanobis_distances_to_the_nearest_mean():
    x, codes = rows(np.random.default_rng(0))
    means = np.stack([x[codes == k].mean(axis=0) for k in range(4)])
    covariance = LedoitWolf(assume_centered=True).fit(x - means[codes]).covariance_
    inverse = np.linalg.inv(covariance + 1e-6 * np.trace(covariance) / 6 * np.eye(6))
    expected = [min(mahalanobis(row, mean, inverse) for mean in means) for row in x[:20]]
    np.testing.assert_allclose(fit_density(x, codes).measure(x[:20]), expected, rtol=1e-6)


@pytest.mark.parametrize("level", [0.01, 0.05])
def test_rows_of_the_training_environments_are_flagged_at_the_nominal_level(level):
    shares = []
    for seed in range(30):
        draw = np.random.default_rng(seed)
        density = fit_density(*rows(draw))
        new, _ = rows(draw, 250)
        shares.append(np.mean(density.measure(new) > density.threshold(level)))
    assert np.mean(shares) == pytest.approx(level, rel=0.3)


def test_other_rows_are_flagged():
    draw = np.random.default_rng(0)
    x, codes = rows(draw)
    density = fit_density(x, codes)
    far, between, unknown = x[:1].copy(), x[:1].copy(), x[:1].copy()
    far[0, 0] += 30
    # Each value alone is usual, but not together.
    between[0, :2] = x[:, :2].mean(axis=0) + np.array([4.0, -4.0])
    unknown[0, 3:] = 0
    for row in (far, between, unknown):
        assert density.measure(row) > density.threshold(0.01)


def test_many_inputs_and_many_rows():
    draw = np.random.default_rng(0)
    x, codes = draw.normal(size=(400, 300)), np.arange(400) % 2
    wide = fit_density(x, codes)
    assert wide.whitening.shape == (300,)
    assert np.mean(wide.measure(draw.normal(size=(500, 300))) > wide.threshold(0.05)) < 0.12
    many = fit_density(draw.normal(size=(30_000, 2)), np.arange(30_000) % 3)
    assert len(many.distances) == MOST_DISTANCES
    assert (np.diff(many.distances) >= 0).all()


def test_constant_inputs_few_rows_and_wrong_inputs():
    density = fit_density(np.zeros((10, 2)), np.zeros(10))
    assert np.isfinite(density.measure(np.ones((1, 2)))).all()
    assert density.threshold(0.01) == np.inf
    for x, codes in ((np.zeros((1, 2)), [0]), (np.full((3, 1), np.nan), [0] * 3), (np.zeros((3, 1)), [0])):
        with pytest.raises(EnvariantError, match="fit_density: needs at least two rows"):
            fit_density(x, codes)
