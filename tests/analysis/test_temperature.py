"""Temperature against a grid search, and the choice of none without a gain in environments left out."""

import numpy as np
import pytest
from scipy.special import log_softmax

from envariant.analysis.temperature import fit_temperature
from envariant.core.errors import EnvariantError

SITES = np.repeat(["a", "b", "c", "d"], [100, 200, 300, 400])


def logits(seed=0, classes=3, factor=1.0):
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(1000, classes)) * 1.5
    y = (z + draw.gumbel(size=z.shape)).argmax(axis=1)
    return factor * z, y


@pytest.mark.parametrize("factor", [0.4, 2.5])
@pytest.mark.parametrize("classes", [2, 3])
def test_temperature_is_that_of_a_grid(factor, classes):
    z, y = logits(classes=classes, factor=factor)
    grid = np.linspace(0.2, 4, 381)
    losses = []
    for t in grid:
        rows = -log_softmax(z / t, axis=1)[np.arange(len(y)), y]
        losses.append(np.mean([rows[site == SITES].mean() for site in "abcd"]))
    assert fit_temperature(z, y, SITES) == pytest.approx(grid[np.argmin(losses)], abs=0.011)


def test_two_classes_as_one_logit_or_two_columns_are_the_same():
    z, y = logits(classes=2, factor=3)
    assert fit_temperature(z, y, SITES) == pytest.approx(fit_temperature(z[:, 1] - z[:, 0], y, SITES))


def test_no_temperature_without_a_gain_in_environments_left_out():
    z, y = logits(seed=1)
    assert fit_temperature(z, y, SITES) == 1.0
    assert fit_temperature(3 * z, y, np.repeat("a", 1000)) == 1.0
    # Overconfident in one environment and underconfident in another.
    factors = np.where(SITES == "d", 3.0, 0.5)[:, None]
    assert fit_temperature(factors * z, y, SITES) == 1.0


def test_lengths_must_agree():
    with pytest.raises(EnvariantError, match="fit_temperature: got 2 scores, but environments for 3 rows"):
        fit_temperature([0.0, 1.0], [0, 1], [0, 1, 2])
