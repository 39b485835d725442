"""Predictors without gradient steps: linear models, boosted trees, baselines, scikit-learn estimators.

In studies, predictors are trained, stored, selected and reported in the same way as algorithms. Classes of
predictors are imported on first use, because they load SciPy or scikit-learn, which networks do not need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from envariant.predictors.base import FittedPredictor, Predictor, UntrustedTypes

if TYPE_CHECKING:
    from envariant.predictors.boosted_trees import BoostedTrees
    from envariant.predictors.closed_forms import ClosedForm
    from envariant.predictors.elastic_net import ElasticNet
    from envariant.predictors.linear import FittedLinear, Linear
    from envariant.predictors.majority_class import MajorityClass
    from envariant.predictors.scikit_learn import ScikitLearn
    from envariant.predictors.stable_columns import StableColumns

_MODULES = {
    "BoostedTrees": "boosted_trees",
    "ClosedForm": "closed_forms",
    "ElasticNet": "elastic_net",
    "FittedConstant": "majority_class",
    "FittedEstimator": "scikit_learn",
    "FittedLinear": "linear",
    "FittedTrees": "trees",
    "Linear": "linear",
    "MajorityClass": "majority_class",
    "ScikitLearn": "scikit_learn",
    "StableColumns": "stable_columns",
}

PREDICTORS = {
    "linear": "Linear",
    "elastic-net": "ElasticNet",
    "boosted-trees": "BoostedTrees",
    "stable-columns": "StableColumns",
    "majority-class": "MajorityClass",
    "anchor-regression": "AnchorRegressor",
    "tsls": "KClassRegressor",
    "icp": "InvariantCausalPrediction",
    "drig": "DRIGRegressor",
    "causal-dantzig": "CausalDantzig",
}
"""Class names by name of the predictor. Names of predictors are accepted wherever algorithm names are.

Classes that are not in this package are estimators of `envariant.closed_forms`.
"""

FORMATS = {
    "linear": "FittedLinear",
    "trees": "FittedTrees",
    "constant": "FittedConstant",
    "estimator": "FittedEstimator",
}
"""Class names of fitted predictors that can be saved, by `kind`, the name of their storage format."""


def predictor(requested: object) -> Predictor | None:
    """Convert a name or an estimator to a predictor; return None if this is not possible.

    Args:
        requested: Name of a predictor, `Predictor`, or estimator with the methods `fit` and `predict`.
    """
    if isinstance(requested, str):
        if requested not in PREDICTORS:
            return None
        own = PREDICTORS[requested] in _MODULES
        return _class(PREDICTORS[requested])() if own else _class("ClosedForm")(requested)
    if isinstance(requested, Predictor):
        return requested
    is_estimator = not isinstance(requested, type) and all(
        callable(getattr(requested, method, None)) for method in ("fit", "predict")
    )
    return _class("ScikitLearn")(requested) if is_estimator else None


def stored_format(kind: str) -> type[FittedPredictor] | None:
    """Return the class of fitted predictors with a storage format; None if the format is unknown."""
    return _class(FORMATS[kind]) if kind in FORMATS else None


def _class(name: str) -> Any:
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _class(name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = [
    "FORMATS",
    "PREDICTORS",
    "BoostedTrees",
    "ClosedForm",
    "ElasticNet",
    "FittedLinear",
    "FittedPredictor",
    "Linear",
    "MajorityClass",
    "Predictor",
    "ScikitLearn",
    "StableColumns",
    "UntrustedTypes",
    "predictor",
    "stored_format",
]
