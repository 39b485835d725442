"""Temperature scaling of classification scores, cross-validated over environments."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from envariant.analysis._logistic import checked_scores, logistic_loss
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

# Range of the slope 1 / T.
_SLOPES = (0.05, 20.0)


def fit_temperature(scores: ArrayLike, targets: ArrayLike, environments: ArrayLike) -> float:
    """Return the temperature T that calibrates logits z / T in new environments; 1 if scaling does not help.

    T minimizes the mean log loss over environments, which have equal weight (Guo et al. 2017). In
    leave-one-environment-out validation, the mean log loss must improve by more than one standard error;
    otherwise, 1 is returned. Temperature scaling changes probabilities, but not predicted classes.

    Args:
        scores: Logits `[rows]` or `[rows, classes]`, each by a model not trained on the row's environment.
        targets: Class indices from 0, `[rows]`.
        environments: Environment of each row, `[rows]`.

    Raises:
        EnvariantError: If lengths differ, values are not finite, or targets are not class indices.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> z, hospital = rng.normal(size=2000), np.repeat(["A", "B", "C", "D"], 500)
        >>> y = (z + rng.logistic(size=2000) > 0).astype(int)
        >>> fit_temperature(z, y, hospital), round(fit_temperature(3 * z, y, hospital))
        (1.0, 3)
    """
    z, y, _ = checked_scores("fit_temperature", scores, targets)
    names, codes = np.unique(np.asarray(environments), return_inverse=True)
    if len(codes) != len(z):
        raise EnvariantError(f"fit_temperature: got {len(z)} scores, but environments for {len(codes)} rows")
    weights = 1 / np.bincount(codes)[codes]
    gains: list[float] = []
    for k in range(len(names) if len(names) > 1 else 0):
        own, others = codes == k, codes != k
        slope = _best_slope(z[others], y[others], weights[others])
        before, after = (float(logistic_loss(b * z[own], y[own]).mean()) for b in (1.0, slope))
        gains.append(before - after)
    error = float(np.std(gains, ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return 1 / _best_slope(z, y, weights) if gains and np.mean(gains) > error else 1.0


def _best_slope(z: Array, y: Array, weights: Array) -> float:
    """Return the factor for the logits that minimizes the weighted log loss (a convex problem)."""

    def loss(slope: float) -> float:
        return float(weights @ logistic_loss(slope * z, y))

    result: Any = optimize.minimize_scalar(loss, bounds=_SLOPES, method="bounded", options={"xatol": 1e-4})
    return float(result.x)
