"""Predictors without gradient steps: boosted trees, majority-class baseline, scikit-learn estimators.

Studies train, store, select and report predictors in the same way as algorithms.
"""

from envariant.predictors.base import FittedPredictor, Predictor
from envariant.predictors.boosted_trees import BoostedTrees
from envariant.predictors.majority_class import MajorityClass
from envariant.predictors.scikit_learn import ScikitLearn

PREDICTORS: dict[str, type[Predictor]] = {"boosted-trees": BoostedTrees, "majority-class": MajorityClass}
"""Predictor classes by name. These names are accepted wherever names of algorithms are."""


def predictor(requested: object) -> Predictor | None:
    """Return the predictor specified by a name or an object, or None if there is no such predictor.

    Args:
        requested: Name, predictor or scikit-learn estimator. All other values give None.
    """
    if isinstance(requested, str):
        cls = PREDICTORS.get(requested)
        return None if cls is None else cls()
    if isinstance(requested, Predictor):
        return requested
    is_estimator = not isinstance(requested, type) and all(
        callable(getattr(requested, method, None)) for method in ("fit", "predict", "get_params")
    )
    return ScikitLearn(requested) if is_estimator else None


__all__ = [
    "PREDICTORS",
    "BoostedTrees",
    "FittedPredictor",
    "MajorityClass",
    "Predictor",
    "ScikitLearn",
    "predictor",
]
