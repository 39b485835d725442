"""Linear and logistic regression with an elastic-net penalty, whose strength and mix are cross-validated."""

import warnings
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Regression
from envariant.predictors.base import LIMIT, FittedPredictor, Predictor, pooled, row_groups
from envariant.predictors.linear import FittedLinear

_MIXES = (0.1, 0.5, 0.9)
_INVERSE_PENALTIES = tuple(10.0**k for k in range(-3, 3))
_FOLDS = 5


@final
@dataclass(frozen=True)
class ElasticNet(Predictor):
    """Linear or (multinomial) logistic regression with an elastic-net penalty on the pooled rows.

    The penalty is λ·(r·‖w‖₁ + ½(1 − r)·‖w‖²) with weights w of the standardized inputs (Zou & Hastie 2005).
    The strength λ and the mix r (0.1, 0.5 or 0.9) are chosen by 5-fold cross-validation of the squared error
    or the log loss; groups of rows are never split between folds. Fitting with scikit-learn takes 18 to 34
    times as long as for `linear`, so comparisons do not include this method by default.

    Attributes:
        name: Name shown in tables.
    """

    name: str = "elastic-net"

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.preprocessing import StandardScaler

        inputs, targets, weights = pooled(environments)
        w = np.ones(len(inputs)) if weights is None else weights.double().numpy()
        used, groups, task = w > 0, row_groups(environments), environments.task
        raw, y, w = inputs.double().numpy()[used], targets.numpy()[used], w[used] / w[used].mean()
        scaler: Any = StandardScaler().fit(raw, sample_weight=w)
        x = scaler.transform(raw)
        folds = _folds(y, None if groups is None else groups[used], seed, classes=task.chance is not None)
        with warnings.catch_warnings():
            # A path of penalties may stop short of convergence where the penalty is weak.
            warnings.simplefilter("ignore", ConvergenceWarning)
            if isinstance(task, Regression):
                coefficients, intercepts = _regression(x, y.astype(np.float64), w, folds)
            else:
                coefficients, intercepts = _classes(x, y.astype(np.int64), w, folds, task.outputs, seed)
        weight = coefficients / np.asarray(scaler.scale_)[:, None]
        return FittedLinear(torch.tensor(weight), torch.tensor(intercepts - scaler.mean_ @ weight))


def _folds(y: NDArray[Any], groups: NDArray[Any] | None, seed: int, *, classes: bool) -> list[Any]:
    """Return each fold's training and validation rows; groups stay whole, else classes are stratified."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    fewest = int(np.bincount(y.astype(np.int64)).max()) if classes else len(y)
    count = max(2, min(_FOLDS, fewest))
    with warnings.catch_warnings():
        # A class with fewer rows than folds is absent from some validation rows.
        warnings.simplefilter("ignore", UserWarning)
        if groups is not None and len(np.unique(groups)) >= 2:
            count = min(count, len(np.unique(groups)))
            return list(GroupKFold(count, shuffle=True, random_state=seed).split(y, y, groups))
        kind = StratifiedKFold if classes else KFold
        return list(kind(count, shuffle=True, random_state=seed).split(y, y))


def _regression(
    x: NDArray[Any], y: NDArray[Any], w: NDArray[Any], folds: list[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return coefficients, `[inputs, 1]`, and intercept, `[1]`."""
    from sklearn.linear_model import ElasticNetCV

    if not x.shape[1] or len(y) < 3 or not np.ptp(y):
        return np.zeros((x.shape[1], 1)), np.array([w @ y / w.sum()])
    search: Any = ElasticNetCV
    model = search(l1_ratio=list(_MIXES), cv=folds, max_iter=5_000).fit(x, y, sample_weight=w)
    return np.asarray(model.coef_)[:, None], np.array([float(model.intercept_)])


def _classes(
    x: NDArray[Any], y: NDArray[Any], w: NDArray[Any], folds: list[Any], outputs: int, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return coefficients, `[inputs, outputs]`, and intercepts, `[outputs]`."""
    from sklearn.linear_model import LogisticRegressionCV

    count = max(2, outputs)
    present = np.unique(y)
    weight, bias = np.zeros((x.shape[1], count)), np.full(count, -LIMIT)
    usable = [fold for fold in folds if len(np.unique(y[fold[0]])) == len(present)]
    if len(present) < 2 or not x.shape[1] or not usable:
        bias[present] = np.log(np.bincount(y, w, count)[present] / w.sum())
    else:
        search: Any = LogisticRegressionCV
        model = search(
            Cs=list(_INVERSE_PENALTIES),
            l1_ratios=list(_MIXES),
            cv=usable,
            scoring="neg_log_loss",
            solver="saga",
            max_iter=1_000,
            random_state=seed,
            use_legacy_attributes=False,
        ).fit(x, y, sample_weight=w)
        own, intercept = np.asarray(model.coef_).T, np.asarray(model.intercept_)
        if len(present) == 2:
            own, intercept = np.hstack([-own, own]) / 2, np.hstack([-intercept, intercept]) / 2
        weight[:, present], bias[present] = own, intercept
    if outputs > 1:
        return weight, bias
    return weight[:, 1:] - weight[:, :1], np.clip(bias[1:] - bias[:1], -LIMIT, LIMIT)
