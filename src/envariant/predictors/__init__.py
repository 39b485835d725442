"""Predictors without gradient steps: linear models, boosted trees, baselines, scikit-learn estimators.

In studies, predictors are trained, stored, selected and reported in the same way as algorithms.
"""

from envariant.predictors.base import FittedPredictor, Predictor, UntrustedTypes
from envariant.predictors.boosted_trees import BoostedTrees
from envariant.predictors.elastic_net import ElasticNet
from envariant.predictors.linear import FittedLinear, Linear
from envariant.predictors.majority_class import FittedConstant, MajorityClass
from envariant.predictors.scikit_learn import FittedEstimator, ScikitLearn
from envariant.predictors.stable_columns import StableColumns
from envariant.predictors.trees import FittedTrees

PREDICTORS: dict[str, type[Predictor]] = {
    "linear": Linear,
    "elastic-net": ElasticNet,
    "boosted-trees": BoostedTrees,
    "stable-columns": StableColumns,
    "majority-class": MajorityClass,
}
"""Predictor classes by name. These names are accepted wherever algorithm names are."""

FORMATS: dict[str, type[FittedPredictor]] = {
    each.kind: each for each in (FittedLinear, FittedTrees, FittedConstant, FittedEstimator)
}
"""Fitted predictors that can be loaded from a saved model, by the name of their storage format."""


def predictor(requested: object) -> Predictor | None:
    """Convert a name or an estimator to a predictor; return None if this is not possible.

    Args:
        requested: Name of a predictor, `Predictor`, or estimator with the methods `fit` and `predict`.
    """
    if isinstance(requested, str):
        cls = PREDICTORS.get(requested)
        return None if cls is None else cls()
    if isinstance(requested, Predictor):
        return requested
    is_estimator = not isinstance(requested, type) and all(
        callable(getattr(requested, method, None)) for method in ("fit", "predict")
    )
    return ScikitLearn(requested) if is_estimator else None


__all__ = [
    "FORMATS",
    "PREDICTORS",
    "BoostedTrees",
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
]
