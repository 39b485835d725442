"""Estimate accuracy on rows without labels, from the model's confidence.

Every estimate assumes that P(Y | X) is the same as for the labeled source rows. Under concept shift, all
estimates are wrong, and this cannot be detected without labels.
"""

import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]
Score = Literal["confidence", "negative entropy"]

_UNCHANGED = "P(Y | X) is unchanged"
# Agreements outside this range carry little information, because the probit scale is unbounded.
_AGREEMENTS = (0.05, 0.98)


@final
@dataclass(frozen=True)
class AccuracyEstimate:
    """Accuracy estimated without labels.

    Attributes:
        value: Estimated accuracy.
        sd: Standard deviation of the estimate if the assumption holds; NaN if unknown.
        method: Name of the method.
        assumption: Condition under which the estimate is valid. It cannot be checked without labels.
    """

    value: float
    sd: float
    method: str
    assumption: str

    def __str__(self) -> str:
        spread = f" ± {self.sd:.3f}" if math.isfinite(self.sd) else ""
        return f"accuracy {self.value:.3f}{spread} ({self.method}; if {self.assumption})"


@final
@dataclass(frozen=True)
class ExpectedConfusion:
    """Expected confusion matrix of a binary classifier, in numbers of rows.

    Attributes:
        true_positive, false_positive, false_negative, true_negative: Expected number of rows.
        accuracy: Estimated accuracy with its standard deviation.
    """

    true_positive: float
    false_positive: float
    false_negative: float
    true_negative: float
    accuracy: AccuracyEstimate

    @property
    def precision(self) -> float:
        """Expected true positives divided by predicted positives; NaN if no row is predicted positive."""
        predicted = self.true_positive + self.false_positive
        return self.true_positive / predicted if predicted else math.nan

    @property
    def recall(self) -> float:
        """Expected true positives divided by all expected positives; NaN if these are 0."""
        positive = self.true_positive + self.false_negative
        return self.true_positive / positive if positive else math.nan


def confidence_scores(probabilities: ArrayLike, score: Score = "confidence") -> Array:
    """Return the confidence of every row: the largest probability p_c, or negative entropy Σ_c p_c log p_c.

    Args:
        probabilities: Probabilities p_c of the classes c, `[rows, classes]`.
        score: "confidence" or "negative entropy".

    Example:
        >>> confidence_scores([[0.7, 0.3], [0.5, 0.5]]).tolist()
        [0.7, 0.5]
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if score == "confidence":
        return p.max(axis=1)
    return (p * np.log(np.where(p > 0, p, 1.0))).sum(axis=1)


def average_confidence(target_scores: ArrayLike) -> AccuracyEstimate:
    """Estimate accuracy as the mean confidence of rows without labels (AC).

    For confidences c of n rows, the standard deviation is √(Σ c (1 − c)) / n.

    Args:
        target_scores: Confidence of each unlabeled row, between 0 and 1, `[rows]`.

    Raises:
        EnvariantError: If there are no rows or a score is missing.

    Example:
        >>> estimate = average_confidence([0.9, 0.8, 0.6])
        >>> round(estimate.value, 2), round(estimate.sd, 2), estimate.assumption
        (0.77, 0.23, 'P(Y | X) is unchanged and the probabilities are calibrated')
    """
    c = _checked("average_confidence", target_scores)
    assumption = f"{_UNCHANGED} and the probabilities are calibrated"
    return AccuracyEstimate(float(c.mean()), _poisson_binomial(c), "average confidence", assumption)


def difference_of_confidences(
    source_scores: ArrayLike, source_correct: ArrayLike, target_scores: ArrayLike
) -> AccuracyEstimate:
    """Estimate accuracy from the difference of confidences (DoC; Guillory et al. 2021).

    The estimate is source accuracy + mean target confidence − mean source confidence, where source rows are
    labeled and target rows are not.

    Args:
        source_scores: Confidence for each labeled row, by a model not trained on these rows, `[rows]`.
        source_correct: Whether the prediction for each labeled row is right, `[rows]`.
        target_scores: Confidence of each unlabeled row, `[target rows]`.

    Raises:
        EnvariantError: If there are no rows, a score is missing, or lengths differ.

    Example:
        >>> round(difference_of_confidences([0.9, 0.7], [1, 0], [0.8, 0.6]).value, 3)
        0.4
    """
    s, right, t = _source("difference_of_confidences", source_scores, source_correct, target_scores)
    value = min(1.0, max(0.0, float(right.mean() + t.mean() - s.mean())))
    sd = math.sqrt(float((right - s).var()) / len(s) + float(t.var()) / len(t))
    assumption = f"{_UNCHANGED} and overconfidence is the same"
    return AccuracyEstimate(value, sd, "difference of confidences", assumption)


def thresholded_confidence(
    source_scores: ArrayLike, source_correct: ArrayLike, target_scores: ArrayLike
) -> AccuracyEstimate:
    """Estimate accuracy as the share of scores above a threshold, which is chosen on labeled rows (ATC).

    With k errors in the labeled source rows, the threshold t is the k-th smallest source score. The estimate
    is the share of target scores > t (Garg et al. 2022, arXiv 2201.04234; the authors' code uses ≥, which
    counts one row too many).

    Args:
        source_scores: Score of each labeled row, by a model not trained on these rows, `[rows]`.
        source_correct: Whether the prediction for each labeled row is right, `[rows]`.
        target_scores: Score of each unlabeled row, `[target rows]`.

    Raises:
        EnvariantError: If there are no rows, a score is missing, or lengths differ.

    Example:
        >>> thresholded_confidence([0.6, 0.7, 0.8, 0.9], [0, 1, 1, 1], [0.5, 0.65, 0.7, 0.9]).value
        0.75
    """
    s, right, t = _source("thresholded_confidence", source_scores, source_correct, target_scores)
    errors = round(len(right) - float(right.sum()))
    value = float((t > (np.sort(s)[errors - 1] if errors else -np.inf)).mean())
    accuracy = float(right.mean())
    # Sampling of the target rows, and of the source accuracy that sets the threshold.
    sd = math.sqrt(value * (1 - value) / len(t) + accuracy * (1 - accuracy) / len(s))
    assumption = (
        f"{_UNCHANGED} and, as in the source, the share of scores up to the threshold equals the error rate"
    )
    return AccuracyEstimate(value, sd, "average thresholded confidence", assumption)


def expected_confusion(probabilities: ArrayLike, threshold: float = 0.5) -> ExpectedConfusion:
    """Estimate the confusion matrix of a binary classifier without labels (CBPE; Białek et al. 2024).

    For probabilities p of class 1 and threshold τ, the expected numbers of true and false positives and
    negatives are TP = Σ_{p ≥ τ} p, FP = Σ_{p ≥ τ} (1 − p), FN = Σ_{p < τ} p and TN = Σ_{p < τ} (1 − p);
    arXiv 2401.08348.

    Args:
        probabilities: Calibrated probability of class 1 for each unlabeled row, `[rows]`.
        threshold: Smallest probability for which class 1 is predicted.

    Raises:
        EnvariantError: If there are no rows or a probability is missing.

    Example:
        >>> confusion = expected_confusion([0.9, 0.2, 0.6, 0.45, 0.75])
        >>> round(confusion.accuracy.value, 2), round(confusion.precision, 2), round(confusion.recall, 2)
        (0.72, 0.75, 0.78)
    """
    p = _checked("expected_confusion", probabilities)
    positive = p >= threshold
    assumption = f"{_UNCHANGED} and the probabilities are calibrated"
    correct = np.where(positive, p, 1 - p)
    accuracy = AccuracyEstimate(float(correct.mean()), _poisson_binomial(correct), "CBPE", assumption)
    parts = (p[positive], 1 - p[positive], p[~positive], 1 - p[~positive])
    cells = [float(part.sum()) for part in parts]
    return ExpectedConfusion(cells[0], cells[1], cells[2], cells[3], accuracy)


def agreement_on_the_line(
    source_accuracies: ArrayLike, source_predictions: ArrayLike, target_predictions: ArrayLike
) -> tuple[AccuracyEstimate, ...]:
    """Estimate the accuracies of several models from their agreement (ALine-D; Baek et al. 2022).

    Source rows are labeled, target rows are not. Let x_ij and y_ij be the agreement of models i and j on
    source and target rows, transformed by the probit Φ⁻¹, and acc_i the source accuracies. All pairs (x_ij,
    y_ij) are assumed to lie on a line y = b + m x. The target accuracies are Φ(w_i), where w is the
    least-squares solution of ½ (w_i + w_j) = y_ij + m (½ (Φ⁻¹acc_i + Φ⁻¹acc_j) − x_ij). arXiv 2206.13089.

    Args:
        source_accuracies: Accuracy of each model in labeled rows, `[models]`.
        source_predictions: Predicted classes of the labeled rows, `[models, rows]`.
        target_predictions: Predicted classes of rows without labels, `[models, rows]`.

    Returns:
        One estimate per model. Its `assumption` states the R² of the line, which should be at least 0.95.

    Raises:
        EnvariantError: If there are fewer than three models, or fewer than three pairs that agree in 5 % to
            98 % of both source and target rows.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.integers(2, size=4000)
        >>> def predict(accuracies):
        ...     wrong = rng.random((4, 4000)) > np.array(accuracies)[:, None]
        ...     return np.where(wrong, 1 - truth, truth)
        >>> source, target = predict([0.95, 0.9, 0.85, 0.8]), predict([0.85, 0.8, 0.75, 0.7])
        >>> estimates = agreement_on_the_line((source == truth).mean(1), source, target)
        >>> [round(estimate.value, 1) for estimate in estimates]
        [0.8, 0.8, 0.7, 0.7]
    """
    accuracies = np.asarray(source_accuracies, dtype=np.float64)
    first, second = np.triu_indices(len(accuracies), 1)
    agreements = [
        (np.asarray(p)[first] == np.asarray(p)[second]).mean(axis=1)
        for p in (source_predictions, target_predictions)
    ]
    return solve_agreement(accuracies, *agreements)


def solve_agreement(
    source_accuracies: ArrayLike, source_agreements: ArrayLike, target_agreements: ArrayLike
) -> tuple[AccuracyEstimate, ...]:
    """Estimate the accuracies of models from the agreements of all pairs; see `agreement_on_the_line`.

    Args:
        source_accuracies: Accuracy of each model in labeled rows, `[models]`.
        source_agreements: Share of labeled rows in which each pair (0, 1), (0, 2), …, (1, 2), … agrees.
        target_agreements: Share of rows without labels in which each pair agrees.

    Raises:
        EnvariantError: If there are fewer than three models, or fewer than three pairs that agree in 5 % to
            98 % of both source and target rows.

    Example:
        >>> estimates = solve_agreement([0.9, 0.85, 0.8], [0.88, 0.84, 0.82], [0.75, 0.7, 0.68])
        >>> [round(estimate.value, 4) for estimate in estimates]
        [0.7743, 0.7157, 0.6566]
    """
    accuracies, source, target = (
        np.asarray(values, dtype=np.float64)
        for values in (source_accuracies, source_agreements, target_agreements)
    )
    n = len(accuracies)
    low, high = _AGREEMENTS
    used = (np.minimum(source, target) >= low) & (np.maximum(source, target) <= high)
    if n < 3 or used.sum() < 3:
        raise EnvariantError(
            f"solve_agreement: needs at least three models, and three pairs of them that agree in {low:.0%} "
            f"to {high:.0%} of rows; got {n} models and {int(used.sum())} such pairs"
        )
    first, second = (index[used] for index in np.triu_indices(n, 1))
    x, y = stats.norm.ppf(source[used]), stats.norm.ppf(target[used])
    spread = float(np.square(x - x.mean()).sum())
    slope = float((x - x.mean()) @ y) / spread if spread else 1.0
    remaining = y - y.mean() - slope * (x - x.mean())
    total = float(np.square(y - y.mean()).sum())
    r2 = 1 - float(remaining @ remaining) / total if total else 1.0
    probits = stats.norm.ppf(np.clip(accuracies, 1e-6, 1 - 1e-6))
    pairs = np.zeros((len(x), n))
    rows = np.arange(len(x))
    pairs[rows, first] = pairs[rows, second] = 0.5
    right = y + slope * (pairs @ probits - x)
    solved = np.linalg.lstsq(pairs, right, rcond=None)[0]
    assumption = f"accuracies lie on the same line as the agreements, R² = {r2:.2f}"
    return tuple(
        AccuracyEstimate(float(value), math.nan, "agreement on the line", assumption)
        for value in stats.norm.cdf(solved)
    )


def _poisson_binomial(c: Array) -> float:
    return math.sqrt(float((c * (1 - c)).sum())) / len(c)


def _source(
    where: str, scores: ArrayLike, correct: ArrayLike, target: ArrayLike
) -> tuple[Array, Array, Array]:
    s, t, right = _checked(where, scores), _checked(where, target), np.asarray(correct, dtype=np.float64)
    if right.shape != s.shape:
        raise EnvariantError(f"{where}: got {len(s)} source scores, but {len(right)} source outcomes")
    return s, right, t


def _checked(where: str, scores: ArrayLike) -> Array:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise EnvariantError(f"{where}: scores must be one-dimensional, finite and not empty")
    return values
