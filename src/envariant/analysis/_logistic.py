"""Logistic regression with a fixed design matrix, fitted once for each of many sets of row weights."""

from typing import final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

_MAX_ITERATIONS = 100
_TOLERANCE = 1e-9
# Largest number of values in one temporary array.
_CHUNK = 2_000_000


@final
class LogisticFits:
    """Results of a logistic regression that was fitted once for each set of row weights.

    Attributes:
        coefficients: Coefficients β of each fit, `[weightings, p]`.
        information: Negative Hessian of the penalized log-likelihood of each fit, `[weightings, p, p]`.
    """

    def __init__(self, coefficients: Array, information: Array) -> None:
        self.coefficients, self.information = coefficients, information

    @property
    def errors(self) -> Array:
        """Standard errors of the coefficients, `[weightings, p]`."""
        return np.sqrt(np.diagonal(np.linalg.pinv(self.information), axis1=1, axis2=2))


def fit_logistic(
    design: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    offset: Array | float = 0.0,
    center: Array | None = None,
    precision: Array | float = 1e-8,
) -> LogisticFits:
    """Maximize Σ_i w_i log p(y_i) − ½ Σ_j λ_j (β_j − m_j)² by Newton's method.

    The maximization is over β, separately for each set of row weights w, with damped Newton steps. p(y_i) is
    the probability of the class of row i. Class c > 0 has logit offset[i, c−1] + Σ_j design[i, c−1, j] β_j;
    class 0 has logit 0.

    Args:
        design: Design matrix with p columns for each row and each class except the first, `[rows, classes −
            1, p]`.
        labels: Indicators (0 or 1) or shares of the classes except the first, `[rows, classes − 1]`.
        weights: Sets of row weights w, `[weightings, rows]`. Default: one set, with all weights 1.
        offset: Fixed part of the logits, `[rows, classes − 1]`.
        center: Mean m of the Gaussian prior, `[p]`. Default: zeros.
        precision: Precision λ of the prior, `[p]` or one number.
    """
    w = np.ones((1, len(design))) if weights is None else weights
    p = design.shape[2]
    prior_mean = np.zeros(p) if center is None else center
    prior_precision = np.broadcast_to(np.asarray(precision, dtype=np.float64), p)
    size = max(1, _CHUNK // max(1, design.shape[0] * design.shape[1] * p))
    parts = [
        _fit(design, labels, w[i : i + size], offset, prior_mean, prior_precision)
        for i in range(0, len(w), size)
    ]
    return LogisticFits(np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts]))


def logistic_loss(logits: Array, labels: Array) -> Array:
    """Return the logistic loss of each row, `[..., rows]`: −log of the probability of the true class.

    Args:
        logits: Logits relative to the first class, `[..., rows, classes − 1]`.
        labels: Indicators of the classes except the first, `[rows, classes − 1]`.
    """
    return _log_normalizer(logits) - (labels * logits).sum(-1)


def class_indicators(labels: NDArray[np.int64], n_classes: int) -> Array:
    """Return 0/1 indicators of all classes except the first, `[rows, classes − 1]`."""
    return (labels[:, None] == np.arange(1, n_classes)).astype(np.float64)


def checked_scores(
    where: str, scores: ArrayLike, targets: ArrayLike, *, regression: bool = False
) -> tuple[Array, Array, int]:
    """Check scores and targets, and convert them to matrices; also return the number of classes.

    For classification, logits become logits relative to the first class, and targets become 0/1 indicators of
    the other classes; both are `[rows, classes − 1]`. For regression, predictions and targets become
    `[rows, 1]`, and the number of classes is 0.

    Args:
        where: Name of the calling function, for error messages.
        scores: Logits `[rows]` or `[rows, classes]`, or predictions of real-valued targets `[rows]`.
        targets: Class indices from 0, or real-valued targets, `[rows]`.
        regression: Whether the targets are real-valued.

    Raises:
        EnvariantError: If there are no rows, lengths differ, values are not finite, or targets of
            classification are not class indices.
    """
    z, y = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if not len(y) or y.ndim != 1 or z.ndim not in (1, 2) or len(z) != len(y):
        raise EnvariantError(
            f"{where}: needs at least one target, and one row of scores per target; got shapes "
            f"{z.shape} and {y.shape}"
        )
    if not np.isfinite(z).all() or not np.isfinite(y.astype(np.float64)).all():
        raise EnvariantError(f"{where}: scores and targets must be finite")
    if regression:
        return z.reshape(len(y), -1)[:, :1], y.astype(np.float64)[:, None], 0
    columns = z[:, None] if z.ndim == 1 else z[:, 1:] - z[:, :1]
    n_classes = columns.shape[1] + 1
    codes = y.astype(np.int64)
    if (codes != y).any() or codes.min() < 0 or codes.max() >= n_classes:
        raise EnvariantError(f"{where}: targets must be class indices from 0 to {n_classes - 1}")
    return columns, class_indicators(codes, n_classes), n_classes


def recalibration_design(logits: Array) -> Array:
    """Return the design matrix of recalibration: one slope, and one intercept per class except the first."""
    intercepts = np.broadcast_to(np.eye(logits.shape[1]), (*logits.shape, logits.shape[1]))
    return np.concatenate([intercepts, logits[..., None]], axis=2)


def _log_normalizer(logits: Array) -> Array:
    if logits.shape[-1] == 1:
        return np.logaddexp(0.0, logits[..., 0])
    top = np.maximum(logits.max(axis=-1), 0.0)
    return top + np.log(np.exp(-top) + np.exp(logits - top[..., None]).sum(axis=-1))


def _fit(
    design: Array, labels: Array, w: Array, offset: Array | float, center: Array, precision: Array
) -> tuple[Array, Array]:
    """Return coefficients and information matrices for several sets of row weights; see `fit_logistic`."""
    n, k, p = design.shape
    flat = design.reshape(n * k, p)
    outer = (flat[:, :, None] * flat[:, None, :]).reshape(n * k, p * p)
    best, step = np.tile(center, (len(w), 1)), np.zeros((len(w), p))
    lowest, information = np.full(len(w), np.inf), np.zeros((len(w), p, p))
    for _ in range(_MAX_ITERATIONS):
        beta = best + step
        logits = (beta @ flat.T).reshape(len(w), n, k) + offset
        normalizer = _log_normalizer(logits)
        loss = (w * (normalizer - (labels * logits).sum(-1))).sum(-1)
        loss += 0.5 * (precision * np.square(beta - center)).sum(-1)
        better = loss <= lowest + 1e-12 * np.abs(loss)
        probability = np.exp(logits - normalizer[..., None])
        residual = (w[..., None] * (labels - probability)).reshape(len(w), n * k)
        gradient = residual @ flat - precision * (beta - center)
        curvature = probability * (1 - probability) if k == 1 else probability
        hessian = ((w[..., None] * curvature).reshape(len(w), n * k) @ outer).reshape(-1, p, p)
        if k > 1:
            mean = np.einsum("bnk,nkp->bnp", probability, design)
            hessian -= (mean * w[..., None]).transpose(0, 2, 1) @ mean
        hessian += np.diag(precision)
        direction = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        best = np.where(better[:, None], beta, best)
        lowest = np.where(better, loss, lowest)
        information = np.where(better[:, None, None], hessian, information)
        step = np.where(better[:, None], direction, step / 2)
        if np.abs(step).max() < _TOLERANCE:
            break
    return best, information
