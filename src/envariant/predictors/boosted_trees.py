"""Gradient-boosted trees, the usual baseline for tables.

They are fitted to the pooled rows of all training environments and ignore environment labels.
"""

from dataclasses import dataclass
from typing import final

from pydantic import PositiveFloat

from envariant.core import specs
from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Regression
from envariant.predictors.base import FittedPredictor, Predictor
from envariant.predictors.scikit_learn import fit_estimator


@final
@dataclass(frozen=True)
class BoostedTrees(Predictor):
    """Histogram-based gradient boosting with scikit-learn's defaults (Ke et al. 2017, LightGBM).

    Attributes:
        learning_rate: Shrinkage of each tree.
        name: Name shown in tables.
    """

    learning_rate: PositiveFloat = 0.1
    name: str = "boosted-trees"

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        # Loaded when first fitted: networks do not need scikit-learn.
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        regression = isinstance(environments.task, Regression)
        kind = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
        estimator = kind(learning_rate=self.learning_rate, random_state=seed)
        return fit_estimator(self.name, estimator, environments)
