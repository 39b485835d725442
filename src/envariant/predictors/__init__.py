"""Predictors that are fitted as a whole: boosted trees, the majority class, any scikit-learn estimator.

They are named, trained, stored, selected and reported as algorithms are.
"""

from envariant.predictors.base import FittedPredictor, Predictor
from envariant.predictors.boosted_trees import BoostedTrees
from envariant.predictors.majority_class import MajorityClass
from envariant.predictors.scikit_learn import ScikitLearn

PREDICTORS: dict[str, type[Predictor]] = {"boosted-trees": BoostedTrees, "majority-class": MajorityClass}
"""Predictors by the name that stands among algorithms."""


def predictor(requested: object) -> Predictor | None:
    """Return the predictor that a name or an object stands for; None if it is no predictor.

    Args:
        requested: A name, a predictor or a scikit-learn estimator, or anything else.
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
