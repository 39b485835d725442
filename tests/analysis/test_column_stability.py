"""Slopes that are known beforehand come out; a column that turns is named and one that does not is not."""

import numpy as np
import pytest
import torch

from envariant.analysis.column_stability import stability
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.tasks import Binary, Multiclass, Regression

COLUMNS = {"same": slice(0, 1), "turned": slice(1, 2), "weak": slice(2, 3), "color": slice(3, 6)}


def drawn(rows=400, seed=0, turn=1.0, task=None, color=False):
    rng = np.random.default_rng(seed)
    parts = []
    for k, name in enumerate("abcd"):
        x = rng.normal(size=(rows, 6))
        shade = rng.integers(3, size=rows)
        x[:, 3:] = shade[:, None] == np.arange(3)
        sign = -turn if k == 3 else 1.0
        y = x[:, 0] + sign * x[:, 1] + rng.normal(size=rows)
        if color:
            y += 3 * (shade == (2 if k == 3 else 0))
        if isinstance(task, Binary):
            y = (y > np.median(y)).astype(float)
        if isinstance(task, Multiclass):
            y = np.digitize(y, np.quantile(y, [1 / 3, 2 / 3]))
        parts.append(Environment(name, torch.from_numpy(x), torch.from_numpy(y)))
    return EnvironmentSet("known", tuple(parts), task or Regression())


def test_slopes_are_those_of_the_model():
    found = {c.column: c for c in stability(drawn(rows=20_000), COLUMNS)}
    scale = np.sqrt(3)  # of the target within each environment
    for name, truth in found["same"].slopes.items():
        assert truth == pytest.approx(1 / scale, abs=5 * found["same"].errors[name])
    assert found["turned"].slopes["a"] == pytest.approx(1 / scale, abs=0.03)
    assert found["turned"].slopes["d"] == pytest.approx(-1 / scale, abs=0.03)


@pytest.mark.parametrize("task", [Regression(), Binary(), Multiclass(3)])
def test_the_column_that_turns_comes_first_and_no_other_is_named(task):
    found = stability(drawn(task=task), COLUMNS)
    assert found[0].column == "turned"
    assert found[0].kind == "turns"
    assert [c.kind for c in found[1:]] == ["stable"] * 3


def test_a_category_that_means_something_else_elsewhere_is_found():
    found = {c.column: c for c in stability(drawn(color=True, turn=-1.0), COLUMNS)}
    assert found["color"].kind == "turns"
    assert not found["turned"].unstable


def test_where_nothing_turns_false_alarms_are_as_rare_as_said():
    alarms = sum(
        any(c.unstable for c in stability(drawn(rows=100, seed=seed, turn=-1.0), COLUMNS))
        for seed in range(100)
    )
    # 5 % of tables, Holm over four columns; 12 of 100 is four standard errors above.
    assert alarms <= 12


def test_a_column_that_varies_nowhere_or_in_one_place_only_is_no_trouble():
    one = drawn()
    parts = []
    for k, e in enumerate(one.environments):
        inputs = e.inputs.clone()
        inputs[:, 2] = 1.0 if k else torch.linspace(0, 1, len(e))
        inputs[:, 0] = 5.0
        parts.append(Environment(e.name, inputs, e.targets))
    found = {c.column: c for c in stability(EnvironmentSet("flat", tuple(parts), Regression()), COLUMNS)}
    assert not found["same"].unstable
    assert not found["weak"].unstable
    assert all(np.isnan(slope) for slope in found["same"].slopes.values())


def test_rows_that_come_in_pairs_are_no_unstable_category():
    # A woman and her husband, one after the other: in every other row the target is nearly always the same.
    rng = np.random.default_rng(0)
    parts = []
    for k, name in enumerate("abc"):
        kind = np.repeat(rng.integers(3, size=60), 2)
        y = np.tile([0.0, 1.0], 60)
        # In some pairs of one kind, another one in each place, he stands before her.
        turned = np.repeat(rng.random(60) < 0.5, 2) & (kind == k)
        y = np.where(turned, 1 - y, y)
        inputs = torch.from_numpy((kind[:, None] == np.arange(3)).astype(float))
        parts.append(Environment(name, inputs, torch.from_numpy(y)))
    (found,) = stability(EnvironmentSet("pairs", tuple(parts), Binary()), {"kind": slice(0, 3)})
    assert not found.unstable


def test_a_rare_column_in_one_place_raises_no_false_alarm():
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        parts = []
        for name, rows, often in (("a", 1000, 0.3), ("b", 1000, 0.3), ("c", 1000, 0.3), ("d", 100, 0.02)):
            x = (rng.random((rows, 1)) < often).astype(np.float32)
            y = (rng.random(rows) < 0.4).astype(np.float32)
            parts.append(Environment(name, torch.from_numpy(x), torch.from_numpy(y)))
        found = stability(EnvironmentSet("rare", tuple(parts), Binary()), {"rare": slice(0, 1)})
        alarms += found[0].unstable
    assert alarms <= 12
