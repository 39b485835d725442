"""The check suite of scikit-learn for all closed-form estimators, metadata routing and documented examples."""

import doctest
from importlib import import_module

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from envariant import closed_forms
from envariant.closed_forms import (
    LEACE,
    AnchorClassifier,
    AnchorRegressor,
    CausalDantzig,
    DRIGRegressor,
    InvariantCausalClassifier,
    InvariantCausalPrediction,
    KClassRegressor,
)
from tests.closed_forms.table_t import E, X, Y

ESTIMATORS = [
    AnchorRegressor(),
    AnchorClassifier(),
    KClassRegressor(),
    InvariantCausalPrediction(),
    InvariantCausalClassifier(),
    DRIGRegressor(),
    CausalDantzig(),
    LEACE(),
]


@parametrize_with_checks(ESTIMATORS)
@pytest.mark.filterwarnings(
    "ignore:.*fit received none:UserWarning", "ignore::sklearn.exceptions.SkipTestWarning"
)
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


def test_every_estimator_is_checked():
    exported = {getattr(closed_forms, name) for name in closed_forms.__all__}
    assert {each for each in exported if hasattr(each, "fit")} == {type(each) for each in ESTIMATORS}


@pytest.mark.parametrize(
    "name", [n for n in closed_forms.__all__ if ">>>" in getattr(closed_forms, n).__doc__]
)
def test_documented_example(name):
    module = import_module(getattr(closed_forms, name).__module__)
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(getattr(closed_forms, name), name, module=module)
    assert doctest.DocTestRunner().run(example).failed == 0


def test_environments_are_routed_in_parameter_searches():
    with config_context(enable_metadata_routing=True):
        search = GridSearchCV(AnchorRegressor(), {"gamma": [1, 4]}, cv=LeaveOneGroupOut())
        search.fit(X, Y, environments=E, groups=E)
        assert search.best_params_["gamma"] in (1, 4)
        assert len(search.best_estimator_.environments_) == 3
        scores = cross_val_score(
            clone(search.best_estimator_),
            X,
            Y,
            cv=LeaveOneGroupOut(),
            params={"environments": E, "groups": E},
        )
    assert np.isfinite(scores).all()
