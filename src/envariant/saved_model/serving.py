"""`Serving`: temperature, conformal scores and accuracy estimate, stored with a model for prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from envariant.analysis.batch_score import BatchScore, fit_batch_error, fit_batch_score
from envariant.analysis.conformal import ConformalThreshold, held_out_threshold, split_threshold
from envariant.analysis.temperature import fit_temperature
from envariant.core.errors import EnvariantError
from envariant.core.metrics import probabilities

Array = NDArray[np.float64]

FEWEST_ENVIRONMENTS = 3
"""Smallest number of left-out environments from which results for a new environment are estimated."""

QUANTILES = 200
"""Number of stored conformal scores per environment."""


@final
@dataclass(frozen=True, eq=False)
class Serving:
    """Calibration, conformal scores and accuracy estimate, from predictions for left-out environments.

    Attributes:
        temperature: Temperature by which logits are divided; 1 for regression, or if no other value is
            better.
        environments: Names of the left-out environments; ("labels",) if `same_environment` is True.
        scores: Quantiles of the conformal scores in each environment, `[environments, quantiles]`. The score
            of a row is −log of the probability of the true class, or |target − prediction|. If
            `same_environment` is True: the scores of all labeled rows, `[1, rows]`.
        score: Estimator of the accuracy or RMSE of a batch.
        same_environment: Whether the scores come from labeled rows of the new environment.
    """

    temperature: float
    environments: tuple[str, ...]
    scores: Array = field(repr=False)
    score: BatchScore
    same_environment: bool = False

    def threshold(self, alpha: float) -> tuple[ConformalThreshold, Mapping[str, float]]:
        """Return the threshold of conformal scores, and the coverage in each left-out environment.

        A class or value is in the prediction set if its conformal score is at most the threshold. The
        coverage in environment e is that of the threshold c q_{−e} in `held_out_threshold`, where q_{−e} is
        computed from the other environments. If `same_environment` is True, no coverage is returned.

        Args:
            alpha: Allowed share of rows whose target is outside the prediction set.
        """
        if self.same_environment:
            return split_threshold(self.scores[0], alpha), {}
        names = np.repeat(self.environments, self.scores.shape[1])
        return held_out_threshold(self.scores.ravel(), names, alpha)


def fit_serving(
    scores: Sequence[Array], targets: Sequence[Array], environments: Sequence[str], *, regression: bool
) -> Serving:
    """Compute a `Serving` from predictions for environments that were left out of training.

    Args:
        scores: For each environment: logits `[rows]` or `[rows, classes]`, or predictions of real-valued
            targets `[rows]`.
        targets: For each environment: class indices, or real-valued targets, `[rows]`.
        environments: Names of the environments.
        regression: Whether the targets are real-valued.

    Raises:
        EnvariantError: If there are fewer than three environments.
    """
    if len(environments) < FEWEST_ENVIRONMENTS:
        raise EnvariantError(
            f"serving: needs predictions for at least {FEWEST_ENVIRONMENTS} held-out environments; got "
            f"{len(environments)}"
        )
    z, y = np.concatenate(scores), np.concatenate(targets)
    codes = np.repeat(np.arange(len(environments)), [len(each) for each in targets])
    temperature = 1.0 if regression else fit_temperature(z, y, codes)
    r = nonconformity(z / temperature, y, regression=regression)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    parts = [r[codes == k] for k in range(len(environments))]
    quantiles = np.stack([np.quantile(part, levels, method="inverted_cdf") for part in parts])
    if regression:
        score = fit_batch_error(y - z, codes)
    else:
        p = probabilities(z / temperature)
        score = fit_batch_score(p.max(axis=1), p.argmax(axis=1) == y, codes)
    return Serving(temperature, tuple(environments), quantiles, score)


def nonconformity(scores: Array, targets: Array, *, regression: bool) -> Array:
    """Return the conformal score of each row.

    The score is −log of the probability of the true class, or |target − prediction| for regression.

    Args:
        scores: Logits `[rows]` or `[rows, classes]`, or predictions of real-valued targets `[rows]`.
        targets: Class indices, or real-valued targets, `[rows]`.
        regression: Whether the targets are real-valued.
    """
    if regression:
        return np.abs(targets - scores)
    return minus_log_probabilities(scores)[np.arange(len(targets)), targets.astype(np.int64)]


def minus_log_probabilities(logits: Array) -> Array:
    """Return −log p of every class, `[rows, classes]`, from logits `[rows]` or `[rows, classes]`."""
    if logits.ndim == 1:
        return np.logaddexp(0.0, np.stack([logits, -logits], axis=1))
    return np.asarray(logsumexp(logits, axis=1))[:, None] - logits
