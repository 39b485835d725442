"""Gradient-boosted trees, the usual baseline for tabular data.

The trees are fitted to the pooled rows of all training environments and ignore environment labels.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from pydantic import PositiveFloat

from envariant.core import specs
from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Regression
from envariant.predictors.base import FittedPredictor, Predictor, pooled, row_groups
from envariant.predictors.scikit_learn import fit_estimator

# With more rows, the number of trees is chosen on 10 % of the rows.
_EARLY_STOPPING = 1_000
_TREES, _MOST_TREES = 100, 300


@final
@dataclass(frozen=True)
class BoostedTrees(Predictor):
    """scikit-learn's histogram-based gradient boosting, which is inspired by LightGBM (Ke et al. 2017).

    A leaf has at least 20 training rows or, if there are fewer than 200 in total, at least a tenth of them.
    With more than 1,000 rows, early stopping chooses the number of trees, up to 300; otherwise, there are 100
    trees. If rows have groups, there are always 100 trees, because early stopping would split groups.

    Attributes:
        learning_rate: Factor by which the contribution of each tree is shrunk.
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
        _, targets, _ = pooled(environments)
        rows = len(targets)
        counts = np.array([rows]) if regression else np.unique(targets.numpy(), return_counts=True)[1]
        # Early stopping needs two rows of each class, and as many held-out rows as classes.
        early_stopping = rows > _EARLY_STOPPING and counts.min() > 1 and 10 * len(counts) <= rows
        early_stopping = early_stopping and row_groups(environments) is None
        settings: dict[str, Any] = {"early_stopping": bool(early_stopping)}
        estimator = kind(
            learning_rate=self.learning_rate,
            max_iter=_MOST_TREES if early_stopping else _TREES,
            min_samples_leaf=min(20, max(2, rows // 10)),
            random_state=seed,
            **settings,
        )
        return fit_estimator(self.name, estimator, environments)
