"""Closed-form estimators by name: in training, studies and saved models, for every task they support."""

import numpy as np
import pandas as pd
import pytest
import torch

from envariant import EnvironmentSet, closed_forms, train
from envariant.comparison import protocol
from envariant.core.errors import EnvariantError
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.predictors import PREDICTORS, ClosedForm, FittedLinear, predictor
from envariant.testing import check_predictor

NAMES = [name for name in PREDICTORS if hasattr(closed_forms, PREDICTORS[name])]
FOR_CLASSES = {"anchor-regression": ("binary", "multiclass"), "icp": ("binary",)}


def confounded(seed=0, rows=300):
    """Four environments with a cause and an effect of the target, both shifted in mean and variance."""
    rng = np.random.default_rng(seed)
    site = np.repeat([*"abcd"], rows)
    shift = np.repeat([[0.0, 0], [3, -2], [-3, 1], [1, 4]], rows, axis=0)
    scale = np.repeat([[0.5, 0.5], [2, 1], [1, 2], [3, 3]], rows, axis=0)
    noise = shift + scale * rng.normal(size=shift.shape)
    y = 2 * noise[:, 0] + rng.normal(size=len(site))
    return np.column_stack([noise[:, 0], y + noise[:, 1]]), y, site


def test_every_closed_form_with_predictions_has_a_name():
    assert set(NAMES) == {"anchor-regression", "tsls", "icp", "drig", "causal-dantzig"}


@pytest.mark.parametrize("name", NAMES)
def test_predictors_with_names_pass_the_checks_of_their_tasks(name):
    if name in ("anchor-regression", "icp"):
        check_predictor(name, ("regression", *FOR_CLASSES[name]))
    inputs, y, site = confounded()
    sample = EnvironmentSet.from_arrays(inputs, y, site)
    fitted = predictor(name).fit(sample, 0)
    assert isinstance(fitted, FittedLinear)
    estimator = getattr(closed_forms, PREDICTORS[name])()
    own = np.concatenate([each.inputs.numpy() for each in sample.environments])
    targets = np.concatenate([each.targets.numpy() for each in sample.environments])
    estimator.fit(own, targets, environments=site)
    expected = estimator.predict(own[:50])
    logits = fitted.logits(sample.environments[0].inputs[:50])
    assert logits.numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOR_CLASSES])
def test_regression_methods_refuse_classes(name):
    inputs, y, site = confounded()
    sample = EnvironmentSet.from_arrays(inputs, (y > 0).astype(int), site)
    with pytest.raises(EnvariantError, match=rf"^{name}: needs numeric targets, .* use anchor-regression$"):
        predictor(name).fit(sample, 0)


def test_compare_says_which_methods_do_not_apply_to_classes():
    inputs, y, site = confounded(rows=60)
    table = pd.DataFrame(inputs, columns=["cause", "effect"]).assign(site=site)
    table["high"] = y > 20 * np.random.default_rng(0).normal(size=len(y))
    source = TableSource(tables.read(table, "high", "site"), "sites")
    planned = protocol.plan(source, "sites", ("linear", "drig", "anchor-regression"), None, 1, 1, 0, {})
    assert planned.not_applicable == ("drig needs numeric targets",)
    assert planned.study.algorithms == ("linear", "anchor-regression")


def test_classes_without_training_rows_are_never_predicted():
    inputs, y, site = confounded()
    sample = EnvironmentSet.from_arrays(inputs, np.digitize(y, [-1, 1]), site)
    parts = tuple(e.select((e.targets != 1).nonzero().flatten()) for e in sample.environments)
    fitted = ClosedForm("anchor-regression").fit(EnvironmentSet("without", parts, sample.task), 0)
    assert set(fitted.logits(torch.from_numpy(inputs).float()).argmax(dim=1).tolist()) == {0, 2}


def test_causal_methods_ignore_the_effect_and_generalize():
    inputs, y, site = confounded()
    sample = EnvironmentSet.from_arrays(inputs, y, site)
    for name, tolerance in (("icp", 1e-12), ("causal-dantzig", 0.15), ("drig", 0.3)):
        fitted = predictor(name).fit(sample, 0)
        assert abs(float(fitted.weight[1, 0])) < tolerance, name


def test_names_are_accepted_by_train_and_settings_in_a_string_are_explained():
    inputs, y, site = confounded(rows=60)
    sample = EnvironmentSet.from_arrays(inputs, y, site)
    result = train(sample, "anchor-regression", test_environments=["d"], progress=False)
    assert {row.environment for row in result.rows} >= {"a", "d"}
    with pytest.raises(EnvariantError, match=r"pass an object, as in AnchorRegressor\(…\)"):
        train(sample, "anchor-regression(gamma=3)", test_environments=["d"])
