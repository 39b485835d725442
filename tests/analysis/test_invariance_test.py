"""The invariance test has its nominal level without a change and high power with one."""

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from envariant.analysis.invariance_test import assess_invariance
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass, Regression


def p_value(task, scores, targets):
    """Return the p-value of scores and targets given per environment."""
    names = np.repeat(np.arange(len(targets)), [len(y) for y in targets])
    arrays = np.concatenate(scores), np.concatenate(targets)
    return assess_invariance(*arrays, names, regression=isinstance(task, Regression)).p_value


def environments(rng, task, flips, rows=400, width=3):
    """Return a score with the same relation to the target in each environment except for its sign."""
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
def test_p_values_are_uniform_without_a_difference(task):
    p = [p_value(task, *environments(np.random.default_rng(k), task, (1, 1))) for k in range(120)]
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert np.mean(np.array(p) < 0.05) < 0.12


@pytest.mark.parametrize("task", [Binary(), Multiclass(3), Regression()], ids=lambda t: t.name)
def test_a_relation_that_changes_sign_is_detected(task):
    rng = np.random.default_rng(0)
    assert p_value(task, *environments(rng, task, (1, -1))) < 1e-20
    assert p_value(task, *environments(rng, task, (1, 0.3), rows=3000)) < 1e-6


def test_different_base_rates_at_equal_scores_are_detected():
    rng = np.random.default_rng(1)
    scores = [rng.normal(size=500) for _ in range(2)]
    targets = [(rng.random(500) < share).astype(float) for share in (0.3, 0.6)]
    assert p_value(Binary(), scores, targets) < 1e-8


def test_the_binary_statistic_is_the_likelihood_ratio():
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


def test_untestable_inputs_have_p_value_one():
    z, y = environments(np.random.default_rng(2), Binary(), (1, 1))
    assert p_value(Binary(), z[:1], y[:1]) == 1.0
    still = [np.zeros(400), np.zeros(400)]
    assert p_value(Binary(), still, [y[0], y[0]]) == pytest.approx(1.0)
    assert p_value(Binary(), z, [np.ones(400), np.ones(400)]) == 1.0


def test_the_scale_of_a_score_is_irrelevant():
    z, y = environments(np.random.default_rng(2), Binary(), (1, 0.6))
    usual = p_value(Binary(), z, y)
    assert p_value(Binary(), [1e-4 * v + 3 for v in z], y) == pytest.approx(usual, rel=1e-3)
    assert 0 <= p_value(Binary(), [1e8 * v for v in z], y) <= 1


def test_statistics_equal_those_of_regressions_fitted_one_by_one():
    """Against scikit-learn, with groups of different sizes and a class that is absent from one of them."""
    rng = np.random.default_rng(5)
    names = np.repeat(np.arange(4), (60, 25, 200, 110))
    scores = rng.normal(size=(len(names), 3))
    targets = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    targets[(names == 1) & (targets == 2)] = 0

    def likelihood(rows):
        x = (scores - scores[:, -1:])[rows, :2]
        model = LogisticRegression(C=1e6, tol=1e-10, max_iter=5000).fit(x, targets[rows])
        picked = np.searchsorted(model.classes_, targets[rows])
        return model.predict_log_proba(x)[np.arange(rows.sum()), picked].sum()

    expected = 2 * (sum(likelihood(names == k) for k in range(4)) - likelihood(names >= 0))
    assert assess_invariance(scores, targets, names).statistic == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("rows", "classes"), [(400, 10), (16, 4), (4, 3)])
def test_many_classes_are_pooled_to_as_many_as_rows_allow(rows, classes):
    rng = np.random.default_rng(6)
    scores = rng.normal(size=(6 * rows, 40))
    targets = (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    test = assess_invariance(scores, targets, np.arange(6 * rows) % 6)
    assert test.degrees_of_freedom == (5 * classes * (classes - 1),)
    assert test.p_value > 1e-4


def test_pooled_classes_still_show_a_change():
    rng = np.random.default_rng(7)
    scores, targets = environments(rng, Multiclass(30), (1, -1), rows=2000, width=30)
    assert p_value(Multiclass(30), scores, targets) < 1e-20
    unchanged = [
        p_value(Multiclass(30), *environments(rng, Multiclass(30), (1, 1), width=30)) for _ in range(40)
    ]
    assert stats.kstest(unchanged, "uniform").pvalue > 0.001


def test_separable_classes_give_a_finite_result():
    z = [np.linspace(-1, 1, 50), np.linspace(-1, 1, 50)]
    p = p_value(Binary(), z, [(v > 0).astype(float) for v in z])
    assert p == pytest.approx(1.0, abs=0.05)


def test_the_result_names_statistic_and_degrees_of_freedom():
    rng = np.random.default_rng(3)
    scores, names = rng.normal(size=(90, 3)), np.repeat(["a", "b", "c"], 30)
    test = assess_invariance(scores, rng.integers(3, size=90), names)
    assert test.degrees_of_freedom == (12,)
    assert test.p_value == pytest.approx(stats.chi2.sf(test.statistic, 12))
    test = assess_invariance(scores[:, 0], rng.normal(size=90), names, regression=True)
    assert test.degrees_of_freedom == (4, 84)
    assert test.p_value == pytest.approx(stats.f.sf(test.statistic, 4, 84))


def test_the_order_of_rows_is_irrelevant():
    z, y = environments(np.random.default_rng(4), Binary(), (1, 0.5))
    z, y, names = np.concatenate(z), np.concatenate(y), np.repeat(["a", "b"], 400)
    order = np.random.default_rng(5).permutation(800)
    shuffled = assess_invariance(z[order], y[order], names[order])
    assert shuffled.p_value == pytest.approx(assess_invariance(z, y, names).p_value, rel=1e-6)


def test_unequal_lengths_are_rejected():
    with pytest.raises(EnvariantError, match="must have equal lengths; got 3, 3 and 2"):
        assess_invariance(np.zeros(3), np.zeros(3), ["a", "b"])
