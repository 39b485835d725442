"""Groups of rows, such as patients: never split, and resampled as a whole."""

import numpy as np
import pandas as pd
import pytest
import torch

import envariant
from envariant.analysis.calibration import measure_calibration, split_drop
from envariant.analysis.disde import measure_disde
from envariant.analysis.few_labels import gain_from_labels
from envariant.comparison import causes
from envariant.comparison.stored_rows import Scores, StoredRows
from envariant.comparison.uncertainty import row_standard_error, standard_error
from envariant.core.errors import EnvariantError
from envariant.core.metrics import METRICS
from envariant.core.tasks import Binary
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import load, read
from envariant.data.validation_split import SUFFIX, ValidationSplit, held_out_rows
from envariant.predictors import linear
from envariant.training.store import Predictions

SITES = ("north", "east", "south")


def visits(patients=30, seed=0):
    """Return a table with one to five visits per patient; some patients were in two hospitals."""
    rng, parts = np.random.default_rng(seed), []
    for k, site in enumerate(SITES):
        # The last three patients of a site are the first three of the next.
        who = np.repeat(np.arange(patients) + k * (patients - 3), rng.integers(1, 6, patients))
        x = rng.normal(size=(len(who), 2)) + who[:, None] / patients
        y = (x.sum(1) + rng.logistic(size=len(who)) > 1).astype(int)
        parts.append(pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "patient": who, "y": y, "site": site}))
    return pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0, ignore_index=True)


@pytest.fixture(scope="module")
def table():
    with pytest.warns(UserWarning, match="84 groups, 6 of them in several environments: their rows are left"):
        return read(visits(), "y", "site", min_rows=5, group="patient")


def test_no_group_is_on_both_sides_of_any_split(table):
    assert [column.name for column in table.columns] == ["a", "b"]
    for test in SITES:
        source = ValidationSplit(TableSource(table).with_test_environments((test,)), 0.2, (test,))
        for seed in range(3):
            sample = source.sample(seed)
            by_role = {"train": set(), "validation": set(), "test": set()}
            for name, role in sample.roles((test,)).items():
                by_role[role] |= set(sample[name].attributes["row_group"].tolist())
            for first, second in ("train", "validation"), ("train", "test"), ("validation", "test"):
                assert not by_role[first] & by_role[second], (test, first, second)
            for name in set(SITES) - {test}:
                parts = len(sample[name + SUFFIX]), len(sample[name])
                assert 0.1 < parts[0] / sum(parts) < 0.3


def test_future_of_known_groups_is_predicted_if_environments_are_ordered():
    frame = visits().assign(site=lambda f: f["site"].map({"north": 2001, "east": 2002, "south": 2003}))
    with pytest.warns(
        UserWarning,
        match="6 of them in several environments: their earlier rows are used to predict their later rows",
    ):
        ordered = read(frame, "y", "site", min_rows=5, group="patient", ordered=True)
    assert ordered.training_rows(("2002",)).sum() == (frame["site"] == 2001).sum()


def test_rows_of_the_splits_are_found_again(table):
    source = TableSource(table)
    stored = StoredRows(source, tuple((s,) for s in SITES), 0.2, (5,))
    sample = ValidationSplit(source.with_test_environments(("east",)), 0.2, ("east",)).sample(5)
    for name in ("north", "south"):
        held = sample[name + SUFFIX]
        own = Predictions(name, "validation", len(held), np.zeros(len(held)), held.targets.numpy())
        rows = stored._held_out(("east",), name, own)
        assert np.array_equal(stored.groups[rows], held.attributes["row_group"].numpy())


def test_folds_of_the_strength_keep_groups_together():
    groups = np.random.default_rng(0).integers(20, size=200)
    fold = linear._folds_of_groups(groups, 5, np.random.default_rng(1))
    assert {len(set(fold[groups == g])) for g in range(20)} == {1}
    assert set(fold) == set(range(5))


def test_strength_is_larger_if_copies_of_rows_cannot_be_in_other_folds():
    """Copies of a row in other folds favor models that remember rows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 30)), rng.integers(2, size=40)
    who, x, y = np.repeat(np.arange(40), 5), np.repeat(x, 5, axis=0), np.repeat(y, 5)
    sizes = []
    for groups in (None, who):
        fitted = linear.fit_linear(Binary(), x, y, None, 0, groups=groups)
        sizes.append(float(fitted.weight.norm()))
    assert sizes[1] < sizes[0] / 5
    y = y + rng.normal(size=40).repeat(5)
    from envariant.core.tasks import Regression

    sizes = [
        float(linear.fit_linear(Regression(), x, y, None, 0, groups=g).weight.norm()) for g in (None, who)
    ]
    assert sizes[1] < sizes[0]


def scored(z, y):
    return [Predictions("e", "test", len(y), z.astype(np.float32), y.astype(np.float32))]


@pytest.mark.parametrize("metric", ["accuracy", "AUROC", "log loss"])
def test_intervals_of_repeated_rows_are_those_of_the_rows(metric):
    rng = np.random.default_rng(0)
    z = rng.normal(size=300)
    y = (z + rng.logistic(size=300) > 0).astype(int)
    who, z5, y5 = np.repeat(np.arange(300), 5), np.repeat(z, 5), np.repeat(y, 5)
    single = row_standard_error(Binary(), METRICS[metric], scored(z, y))
    grouped = row_standard_error(Binary(), METRICS[metric], scored(z5, y5), groups=who)
    ignored = row_standard_error(Binary(), METRICS[metric], scored(z5, y5))
    assert grouped == pytest.approx(single, rel=0.2)
    assert ignored == pytest.approx(single / np.sqrt(5), rel=0.2)
    assert standard_error(z5, who) == pytest.approx(standard_error(z), rel=1e-9)
    # The same rows on a stored subset: 250 of 1,500.
    part = [Predictions("e", "test", 1500, z5[::6].astype(np.float32), y5[::6].astype(np.float32))]
    assert row_standard_error(Binary(), METRICS[metric], part, groups=who) == pytest.approx(single, rel=0.25)


def test_intervals_of_the_parts_of_a_drop_resample_groups():
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(2, 200)), rng.logistic(size=(2, 200))
    y = (z + np.array([[0], [1]]) + noise > 0).astype(int)
    who, many = np.repeat(np.arange(200), 5), [np.repeat(part, 5, axis=1) for part in (z, y)]
    once = split_drop((z[0], y[0]), (z[1], y[1])).loss.total
    pair = [(many[0][k], many[1][k]) for k in (0, 1)]
    grouped = split_drop(*pair, groups=(who, who)).loss.total
    ignored = split_drop(*pair).loss.total
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.2)
    assert ignored.high - ignored.low < 0.6 * (once.high - once.low)


@pytest.mark.parametrize("regression", [False, True])
def test_errors_of_the_bias_and_of_disde_are_those_of_groups(regression):
    rng = np.random.default_rng(0)
    z, noise = rng.normal(size=(2, 300)), rng.logistic(size=(2, 300))
    y = z + np.array([[0], [1]]) + noise
    y = y if regression else (y > 0).astype(int)
    who, (z5, y5) = np.repeat(np.arange(300), 5), (np.repeat(part, 5, axis=1) for part in (z, y))
    once = split_drop((z[0], y[0]), (z[1], y[1]), regression=regression).calibration
    pair = [(z5[k], y5[k]) for k in (0, 1)]
    grouped = split_drop(*pair, groups=(who, who), regression=regression).calibration
    assert grouped.bias_errors == pytest.approx(once.bias_errors, rel=0.01)
    assert measure_calibration(*pair[1], regression=regression).bias_errors[0] < 0.5 * once.bias_errors[0]
    sides = [(each[k][:, None], (each[k] - other[k]) ** 2) for each, other in ((z5, y5),) for k in (0, 1)]
    single = measure_disde(*((x[::5], loss[::5]) for x, loss in sides))
    clustered = measure_disde(*sides, groups=(who, who))
    assert clustered.errors == pytest.approx(single.errors, rel=0.15)
    assert clustered.changed_relation.mean == pytest.approx(single.changed_relation.mean, abs=0.02)
    assert measure_disde(*sides).errors[1] < 0.6 * single.errors[1]
    resampled = measure_disde(*sides, groups=(who, who), n_resamples=30).errors[1]
    expected = measure_disde(*((x[::5], loss[::5]) for x, loss in sides), n_resamples=30).errors[1]
    assert resampled == pytest.approx(expected, rel=0.4)
    with pytest.raises(EnvariantError, match="each need at least 5 groups; got 300 and 3"):
        measure_disde(*sides, groups=(who, who % 3))


def test_causes_use_the_groups_of_the_table(monkeypatch):
    with pytest.warns(UserWarning, match="in several environments"):
        source = TableSource(read(visits(), "y", "site", min_rows=5, group="patient"))
    stored = StoredRows(source, tuple((s,) for s in SITES), 0.2, (5,))
    rows, inputs = (np.flatnonzero(source.table.environment.values == k) for k in (0, 1)), np.zeros((999, 1))
    z = np.random.default_rng(0).normal(size=999)
    north, east = (Scores(z[each], source.table.targets()[each], each) for each in rows)
    given = []
    monkeypatch.setattr(causes, "measure_disde", lambda *_, groups, **__: given.append(groups))
    causes._decomposition(inputs, north, east, 3, stored, 0)
    assert [each.tolist() for each in given[0]] == [stored.groups[s.rows].tolist() for s in (north, east)]
    alone, _ = causes._calibration(stored, None, east, 0)
    both, _ = causes._calibration(stored, north, east, 0)
    assert alone.bias_errors == both.bias_errors
    assert alone.bias_errors != measure_calibration(*east.pair).bias_errors


@pytest.mark.filterwarnings("ignore::envariant.core.errors.EnvariantWarning")
def test_comparison_says_that_expected_scores_are_not_computed():
    results = envariant.compare(
        visits(), target="y", environment="site", group="patient", min_rows=5,
        algorithms=[], n_trials=1, replicas=1, steps=2,
    ).results  # fmt: skip
    assert "expected scores: not computed, because rows of a group are not independent" in results.missing
    assert not results.expected.by_environment


def test_labeled_groups_are_not_evaluated(monkeypatch):
    from envariant.analysis import few_labels

    rng = np.random.default_rng(0)
    z, who = rng.normal(size=120), rng.permutation(np.repeat(np.arange(40), 3))
    y = (z + 2 + rng.logistic(size=120) > 0).astype(int)
    seen = []
    whole = few_labels._without_labeled_groups

    def watched(labeled, group, n_groups):
        rest = whole(labeled, group, n_groups)
        seen.append((labeled, rest))
        return rest

    monkeypatch.setattr(few_labels, "_without_labeled_groups", watched)
    gains = gain_from_labels(z, y, sizes=[20, 110], groups=who)
    assert [gain.n_labels for gain in gains] == [20, 20]
    labeled, rest = seen[0]
    for row in range(len(labeled)):
        assert labeled[row].sum() == 20
        assert not set(who[labeled[row] > 0]) & set(who[rest[row] > 0])
        assert rest[row].sum() == pytest.approx(1)


def test_wrong_groups_are_errors(table, tmp_path):
    frame = visits().astype({"patient": float})
    frame.loc[3, "patient"] = np.nan
    with pytest.raises(
        EnvariantError, match="the grouping column 'patient' has no value in 1 row; every row needs a group"
    ):
        read(frame, "y", "site", min_rows=5, group="patient")
    panel = visits().assign(patient=lambda f: np.arange(len(f)) % 2)
    with pytest.warns(UserWarning, match="2 of them in several environments"):
        source = TableSource(read(panel, "y", "site", min_rows=5, group="patient"))
    with pytest.raises(EnvariantError, match="every patient has rows in north"):
        source.with_test_environments(("north",)).sample(0)
    one = {"a": torch.zeros(10, dtype=torch.int64)}
    assert len(held_out_rows({"a": 10}, 0.2, 0, one)["a"]) in (0, 10)
    table.write(tmp_path)
    again = load(tmp_path)
    assert again.group.name == "patient"
    assert again.fingerprint == table.fingerprint != read(visits(), "y", "site", min_rows=5).fingerprint
