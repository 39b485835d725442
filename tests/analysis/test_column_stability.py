"""Estimated slopes equal known ones; a column that changes sign is found, and stable columns are not."""

import numpy as np
import pytest

from envariant.analysis.column_stability import measure_stability
from envariant.core.errors import EnvariantError

COLUMNS = {"same": slice(0, 1), "turned": slice(1, 2), "weak": slice(2, 3), "color": slice(3, 6)}


def stability(parts, columns=COLUMNS, n_classes=None):
    """Measure the stability of columns given as slices of the inputs of each environment."""
    inputs, targets = (np.concatenate([part[k] for part in parts.values()]) for k in (0, 1))
    names = np.repeat(list(parts), [len(y) for _, y in parts.values()])
    values = {name: inputs[:, place] for name, place in columns.items()}
    return measure_stability(values, targets, names, n_classes=n_classes)


def drawn(rows=400, seed=0, turn=1.0, task="regression", color=False):
    rng = np.random.default_rng(seed)
    parts = {}
    for k, name in enumerate("abcd"):
        x = rng.normal(size=(rows, 6))
        shade = rng.integers(3, size=rows)
        x[:, 3:] = shade[:, None] == np.arange(3)
        sign = -turn if k == 3 else 1.0
        y = x[:, 0] + sign * x[:, 1] + rng.normal(size=rows)
        if color:
            y += 3 * (shade == (2 if k == 3 else 0))
        if task == "binary":
            y = (y > np.median(y)).astype(float)
        if task == "multiclass":
            y = np.digitize(y, np.quantile(y, [1 / 3, 2 / 3]))
        parts[name] = x, y
    return parts


def test_slopes_are_those_of_the_generating_model():
    found = {c.column: c for c in stability(drawn(rows=20_000))}
    scale = np.sqrt(3)  # of the target within each environment
    for name, truth in found["same"].slopes.items():
        assert truth == pytest.approx(1 / scale, abs=5 * found["same"].errors[name])
    assert found["turned"].slopes["a"] == pytest.approx(1 / scale, abs=0.03)
    assert found["turned"].slopes["d"] == pytest.approx(-1 / scale, abs=0.03)


@pytest.mark.parametrize("task", ["regression", "binary", "multiclass"])
def test_only_the_column_that_changes_sign_is_unstable(task):
    found = stability(drawn(task=task), n_classes=3 if task == "multiclass" else None)
    assert found[0].column == "turned"
    assert found[0].kind == "changes sign"
    assert [c.kind for c in found[1:]] == ["stable"] * 3


def test_a_category_with_another_meaning_in_one_environment_is_found():
    found = {c.column: c for c in stability(drawn(color=True, turn=-1.0))}
    assert found["color"].kind == "changes sign"
    assert not found["turned"].unstable


def test_false_alarms_are_no_more_frequent_than_the_level():
    alarms = sum(
        any(c.unstable for c in stability(drawn(rows=100, seed=seed, turn=-1.0))) for seed in range(100)
    )
    # 5 % of tables, Holm over four columns; 12 of 100 is four standard errors above.
    assert alarms <= 12


def test_a_column_that_varies_in_at_most_one_environment_is_stable():
    parts = drawn()
    for k, (inputs, targets) in enumerate(parts.values()):
        inputs[:, 2] = 1.0 if k else np.linspace(0, 1, len(targets))
        inputs[:, 0] = 5.0
    found = {c.column: c for c in stability(parts)}
    assert not found["same"].unstable
    assert not found["weak"].unstable
    assert all(np.isnan(slope) for slope in found["same"].slopes.values())


def test_rows_in_pairs_do_not_make_a_category_unstable():
    # A woman and her husband, one after the other: in every other row the target is nearly always the same.
    rng = np.random.default_rng(0)
    parts = {}
    for k, name in enumerate("abc"):
        kind = np.repeat(rng.integers(3, size=60), 2)
        y = np.tile([0.0, 1.0], 60)
        # In some pairs of one kind, another one in each place, he stands before her.
        turned = np.repeat(rng.random(60) < 0.5, 2) & (kind == k)
        y = np.where(turned, 1 - y, y)
        parts[name] = (kind[:, None] == np.arange(3)).astype(float), y
    (found,) = stability(parts, {"kind": slice(0, 3)})
    assert not found.unstable


def test_a_column_that_is_rare_in_one_environment_raises_no_false_alarm():
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        parts = {}
        for name, rows, often in (("a", 1000, 0.3), ("b", 1000, 0.3), ("c", 1000, 0.3), ("d", 100, 0.02)):
            x = (rng.random((rows, 1)) < often).astype(np.float32)
            y = (rng.random(rows) < 0.4).astype(np.float32)
            parts[name] = x, y
        found = stability(parts, {"rare": slice(0, 1)})
        alarms += found[0].unstable
    assert alarms <= 12


def test_environments_keep_their_order_and_rows_may_come_in_any():
    parts = drawn(rows=200)
    inputs, targets = (np.concatenate([part[k] for part in parts.values()]) for k in (0, 1))
    names = np.repeat(["d", "a", "c", "b"], 200)
    (stable,) = measure_stability({"x": inputs[:, 0]}, targets, names)
    assert list(stable.slopes) == ["d", "a", "c", "b"]
    order = np.random.default_rng(0).permutation(800)
    (shuffled,) = measure_stability({"x": inputs[order, 0]}, targets[order], names[order])
    assert dict(shuffled.slopes) == pytest.approx(dict(stable.slopes))


def test_unequal_lengths_are_rejected():
    with pytest.raises(EnvariantError, match="'x' has 3 rows, but environments have 2"):
        measure_stability({"x": np.zeros(3)}, np.zeros(2), ["a", "b"])
