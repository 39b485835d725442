"""The test of invariance: right as often as it says where there is none to find, and sharp where there is."""

import numpy as np
import pytest
from scipy import stats

from envariant.analysis.invariance_test import p_value
from envariant.core.tasks import Binary, Multiclass, Regression


def environments(rng, task, flips, rows=400, width=3):
    """A score that says the same in each environment but for a flip of its sign."""
    scores, targets = [], []
    for flip in flips:
        if isinstance(task, Multiclass):
            z = rng.normal(size=(rows, width))
            noise = rng.gumbel(size=z.shape)
            targets.append((z * flip + noise).argmax(axis=1).astype(float))
        else:
            z = rng.normal(size=rows)
            if isinstance(task, Binary):
                targets.append((rng.random(rows) < 1 / (1 + np.exp(-flip * z))).astype(float))
            else:
                targets.append(flip * z + rng.normal(size=rows))
        scores.append(z)
    return scores, targets


@pytest.mark.parametrize("task", [Binary(), Multiclass(3), Regression()], ids=lambda t: t.name)
def test_where_nothing_differs_p_values_are_uniform(task):
    found = [p_value(task, *environments(np.random.default_rng(k), task, (1, 1))) for k in range(120)]
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert np.mean(np.array(found) < 0.05) < 0.12


@pytest.mark.parametrize("task", [Binary(), Multiclass(3), Regression()], ids=lambda t: t.name)
def test_a_relation_that_turns_round_is_found(task):
    rng = np.random.default_rng(0)
    assert p_value(task, *environments(rng, task, (1, -1))) < 1e-20
    assert p_value(task, *environments(rng, task, (1, 0.3), rows=3000)) < 1e-6


def test_other_base_rates_under_one_score_are_found():
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=500) for _ in range(2)]
    targets = [(rng.random(500) < share).astype(float) for share in (0.3, 0.6)]
    assert p_value(Binary(), scores, targets) < 1e-8


def test_the_binary_ratio_is_that_of_one_regression_an_environment():
    """Twice the gain in log-likelihood, by a plain Newton iteration, against chi squared with 2 degrees."""
    scores, targets = environments(np.random.default_rng(2), Binary(), (1, 0.5))

    def best(z, y):
        design, b = np.column_stack([np.ones(len(z)), z]), np.zeros(2)
        for _ in range(50):
            p = 1 / (1 + np.exp(-design @ b))
            b += np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, design.T @ (y - p))
        p = 1 / (1 + np.exp(-design @ b))
        return np.sum(y * np.log(p) + (1 - y) * np.log(1 - p))

    gain = sum(best(z, y) for z, y in zip(scores, targets, strict=True)) - best(
        np.concatenate(scores), np.concatenate(targets)
    )
    assert p_value(Binary(), scores, targets) == pytest.approx(stats.chi2.sf(2 * gain, 2), rel=1e-3)


def test_what_cannot_be_told_is_not_rejected():
    z, y = environments(np.random.default_rng(2), Binary(), (1, 1))
    assert p_value(Binary(), z[:1], y[:1]) == 1.0
    still = [np.zeros(400), np.zeros(400)]
    assert p_value(Binary(), still, [y[0], y[0]]) == pytest.approx(1.0)
    assert p_value(Binary(), z, [np.ones(400), np.ones(400)]) == 1.0


def test_the_scale_of_a_score_does_not_matter():
    z, y = environments(np.random.default_rng(2), Binary(), (1, 0.6))
    usual = p_value(Binary(), z, y)
    assert p_value(Binary(), [1e-4 * v + 3 for v in z], y) == pytest.approx(usual, rel=1e-3)
    assert 0 <= p_value(Binary(), [1e8 * v for v in z], y) <= 1


def test_separable_classes_end_and_give_a_number():
    z = [np.linspace(-1, 1, 50), np.linspace(-1, 1, 50)]
    found = p_value(Binary(), z, [(v > 0).astype(float) for v in z])
    assert found == pytest.approx(1.0, abs=0.05)
