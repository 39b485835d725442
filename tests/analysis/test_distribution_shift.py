"""Constructed shifts: none, new inputs, new targets for equal inputs, new target frequencies."""

import json

import numpy as np
import pytest
import torch

from envariant import published
from envariant.analysis import distribution_shift
from envariant.analysis.distribution_shift import measure_shift, shift_integrals
from envariant.cli import main
from envariant.comparison.data_summary import pairwise_shifts
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.data import colored_digits


def pair(first, second, rows=1500, **options):
    generator = torch.Generator().manual_seed(0)
    sides = []
    for name, make in (("a", first), ("b", second)):
        x = torch.randn(rows, 3, generator=generator)
        noise = torch.randn(rows, generator=generator)
        inputs, targets = make(x, noise)
        sides.append({name: (inputs.numpy(), targets.numpy())})
    return measure_shift(*sides, n_trials=2, **options)


def usual(x, noise):
    return x, (x[:, 0] + 0.5 * noise > 0).float()


def joint(marginal, given_z):
    """Return the density of (y, z), `[classes, points]`, from P(z) and P(y = 0 | z)."""
    p, p0 = np.array(marginal), np.array(given_z)
    return np.stack([p * p0, p * (1 - p0)])


def test_integrals_are_those_of_both_definitions():
    p = joint([0.5, 0.3, 0.2, 0.0], [0.9, 0.4, 0.5, 0.0])
    q = joint([0.2, 0.3, 0.0, 0.5], [0.6, 0.7, 0.0, 0.2])
    disjoint = np.array([False, False, True, True])
    old = shift_integrals(p, q, np.ones(4), disjoint, legacy=True)
    new = shift_integrals(p, q, np.ones(4), disjoint)
    assert old == pytest.approx((0.35, 0.1848683298))
    assert new == pytest.approx((0.35, 0.0345789128))
    # Both shifts and the change of P(z) on the common support are the squared Hellinger distance of (y, z).
    root = np.sqrt(p.sum(axis=0)) - np.sqrt(q.sum(axis=0))
    total = ((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2
    assert sum(new) + (root[~disjoint] ** 2).sum() / 2 == pytest.approx(total) == pytest.approx(0.4183511467)


def test_points_drawn_from_a_density_are_weighted_by_it():
    p, q = joint([0.4, 0.2, 0.4], [0.9, 0.4, 0.5]), joint([0.1, 0.3, 0.6], [0.6, 0.7, 0.2])
    draws = np.array([0, 0, 0, 1, 1, 2])
    share = np.bincount(draws) / len(draws)
    weights, none = 1 / (len(draws) * share[draws]), np.zeros(3, dtype=bool)
    drawn = shift_integrals(p[:, draws], q[:, draws], weights, none[draws])
    assert drawn == pytest.approx(shift_integrals(p, q, np.ones(3), none))


@pytest.mark.parametrize(("table", "legacy"), [("ood_bench_original", True), ("ood_bench_plus", False)])
def test_the_color_of_colored_mnist_has_the_published_theoretical_shift(table, legacy):
    trained, new = joint([0.5, 0.5], [0.85, 0.15]), joint([0.5, 0.5], [0.1, 0.9])
    found = shift_integrals(trained, new, np.ones(2), np.zeros(2, dtype=bool), legacy=legacy)
    theory = published.table(table).rows["Colored MNIST, z = colour alone"].mean
    assert found == pytest.approx(theory)


def test_equal_distributions_have_no_shift():
    found = pair(usual, usual)
    assert found.diversity.mean < 0.05
    assert found.correlation.mean < 0.04
    assert found.kind == "neither"
    assert found.label.mean < 0.05
    assert found.covariate.mean < 0.1


def test_new_inputs_are_diversity_shift():
    found = pair(usual, lambda x, noise: (x + 8, (x[:, 0] + 0.5 * noise > 0).float()))
    assert found.diversity.mean > 0.7
    assert found.correlation.mean < 0.1
    assert found.covariate.mean > 0.9
    assert found.kind == "diversity"


def test_a_column_that_changes_sign_is_correlation_shift():
    def made(sign):
        def make(x, noise):
            shape = (x[:, 0] > 0).float()
            y = torch.where(
                torch.rand(len(x), generator=torch.Generator().manual_seed(1)) < 0.75, shape, 1 - shape
            )
            color = torch.where(noise < 1.0, 2 * y - 1, 1 - 2 * y) * sign
            return torch.stack([x[:, 0], color + 0.1 * x[:, 1]], dim=1), y

        return make

    assert pair(made(1), made(-1), legacy=True).correlation.mean > 0.4
    found = pair(made(1), made(-1))
    assert found.correlation.mean > 0.2
    assert found.diversity.mean < 0.1
    assert found.kind == "correlation"


def test_different_target_frequencies_are_label_shift():
    def shares(low):
        def make(x, noise):
            return x, (torch.rand(len(x), generator=torch.Generator().manual_seed(2)) < low).float()

        return make

    assert pair(shares(0.2), shares(0.6)).label.mean == pytest.approx(0.4, abs=0.05)


def test_several_classes_and_real_targets_have_shifts():
    many = pair(lambda x, noise: (x, x.argmax(dim=1)), lambda x, noise: (x, (-x).argmax(dim=1)))
    assert 0 <= many.correlation.mean <= 1
    real = pair(
        lambda x, noise: (x, x[:, 0] + noise), lambda x, noise: (x, x[:, 0] + noise + 3), regression=True
    )
    assert real.label.mean > 0.5


def test_shifts_are_reproducible_and_cover_all_pairs():
    found = pairwise_shifts(colored_digits(), n_trials=1)
    assert [(s.first, s.second) for s in found] == [
        ("flip-0.2 + flip-0.1", "flip-0.9"),
        ("flip-0.2", "flip-0.1"),
    ]
    assert found == pairwise_shifts(colored_digits(), n_trials=1)


def test_too_few_rows_environments_or_trials_are_rejected():
    few = Environment("a", torch.zeros(9, 2), torch.zeros(9))
    other = Environment("b", torch.zeros(9, 2), torch.zeros(9))
    with pytest.raises(EnvariantError, match="must have at least 40 rows; the environments are 'a' and 'b'"):
        pairwise_shifts(EnvironmentSet("few", (few, other), Binary(), test=("b",)))
    with pytest.raises(EnvariantError, match="shift needs at least two environments, got one"):
        pairwise_shifts(EnvironmentSet("one", (few,), Binary()))
    with pytest.raises(EnvariantError, match="n_trials must be at least 1, got 0"):
        pairwise_shifts(EnvironmentSet("few", (few, other), Binary()), n_trials=0)
    with pytest.raises(EnvariantError, match="n_trials must be at least 1, got 0"):
        measure_shift({}, {}, n_trials=0)


def test_the_command_prints_the_kind_of_shift(capsys):
    main(["data", "shift", "colored-digits", "--n-trials", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["shifts"][0]["kind"] in ("correlation", "both")
    assert set(found["shifts"][0]) >= {"diversity", "correlation", "label", "covariate"}
    assert not found["shifts"][0]["legacy"]
    main(["data", "shift", "colored-digits", "--n-trials", "1", "--legacy"])
    assert "OoD-Bench, Ye et al. 2022" in " ".join(capsys.readouterr().out.split())


def test_many_classes_need_no_more_computations(monkeypatch):
    calls = []
    kernels = distribution_shift._kernels
    monkeypatch.setattr(distribution_shift, "_kernels", lambda *a: calls.append(1) or kernels(*a))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2_000, 2)), np.arange(2_000)
    counts = []
    for n_classes in (2, 200):
        calls.clear()
        distribution_shift.measure_shift({"a": (x[0], y % n_classes)}, {"b": (x[1], y % n_classes)})
        counts.append(len(calls))
    # One call per group and class was slow with hundreds of classes.
    assert counts[0] == counts[1] < 2 * 200
