"""Split a performance drop into effects of harder inputs, new inputs, and a changed input–target relation.

The method is DISDE (Cai, Namkoong & Yadlowsky 2023, arXiv 2303.02011). Source rows are in-domain rows;
target rows come from the environment with the drop.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from envariant.analysis._groups import group_numbers, group_sums
from envariant.analysis._two_sample import varying_columns, with_squares
from envariant.analysis.statistics import LEVEL, Interval
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]
Density = Literal["harmonic", "minimum"]

# Without overlap, weights concentrate on few rows and classifier and inputs nearly determine the side.
_LARGEST_AUC = 0.95
_FEWEST_EFFECTIVE_ROWS = 10.0


@final
@dataclass(frozen=True)
class DropDecomposition:
    """Difference in mean loss between target and source rows, decomposed into three additive parts.

    P and Q are the input distributions of source and target, and S is a distribution of inputs that occur in
    both. R_P and R_Q are the expected losses for a given input in source and target. E_P, E_Q and E_S are
    means over P, Q and S.

    Attributes:
        harder_inputs: E_S R_P − E_P R_P: effect of hard inputs that are more frequent in the target.
        changed_relation: E_S R_Q − E_S R_P: effect of a different loss at equal inputs, because P(Y | X)
            differs.
        new_inputs: E_Q R_Q − E_S R_Q: effect of target inputs that are rare or absent in the source.
        errors: Standard errors of the three parts, in this order.
        source_loss: Mean loss E_P R_P of the source rows.
        target_loss: Mean loss E_Q R_Q of the target rows.
        source_rows: Effective number of source rows in S, (Σw)² / Σw² for weights w.
        target_rows: Effective number of target rows in S.
        auc: Cross-fitted AUROC of the classifier that separates source and target rows.
    """

    harder_inputs: Interval
    changed_relation: Interval
    new_inputs: Interval
    errors: tuple[float, float, float]
    source_loss: float
    target_loss: float
    source_rows: float
    target_rows: float
    auc: float

    @property
    def has_overlap(self) -> bool:
        """Whether the inputs of source and target overlap enough for the parts to be meaningful."""
        rows = min(self.source_rows, self.target_rows)
        return self.auc <= _LARGEST_AUC and rows >= _FEWEST_EFFECTIVE_ROWS

    def __str__(self) -> str:
        if not self.has_overlap:
            return f"no overlap of source and target (AUROC {self.auc:.2f}): the drop cannot be decomposed"
        return (
            f"changed relation {self.changed_relation}, harder inputs {self.harder_inputs}, "
            f"new inputs {self.new_inputs}"
        )


def measure_disde(
    source: tuple[ArrayLike, ArrayLike],
    target: tuple[ArrayLike, ArrayLike],
    *,
    classifier: Any = None,
    density: Density = "harmonic",
    n_folds: int = 5,
    n_resamples: int = 0,
    level: float = LEVEL,
    seed: int = 0,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
) -> DropDecomposition:
    """Decompose the difference in mean loss between target and source rows (arXiv 2303.02011, eq. 4).

    A cross-fitted classifier estimates π(x), the probability that a row with inputs x is a target row. The
    weights derived from π are given in `decompose_drop`. If `n_resamples` is 2 or more, standard errors and
    intervals come from a bootstrap of source and target rows, with a refitted classifier; all copies of a row
    in a resample are in the same fold. If `n_resamples` is less than 2, there is no bootstrap: the estimation
    error of π is ignored, and the intervals are too narrow.

    Args:
        source: Inputs `[rows, columns]` and losses `[rows]` of the source rows. Inputs are numeric, without
            missing values. The model must not have been trained on these rows.
        target: Inputs and losses of the target rows, in the same format.
        classifier: scikit-learn classifier whose `fit` takes `sample_weight`. Default: logistic regression on
            columns and their squares.
        density: Density, up to a factor, of the distribution S of common inputs (see `DropDecomposition`):
            "harmonic", p q / (p + q), or "minimum", min(p, q). p and q are the input densities of source and
            target.
        n_folds: Number of folds for cross-fitting.
        n_resamples: Number of bootstrap resamples; 0 for plug-in standard errors.
        level: Confidence level of the intervals.
        seed: Seed of folds and resampling.
        groups: Groups of the source rows and of the target rows, such as patients. A group is never split
            between folds or by resampling, and standard errors are cluster-robust. Default: every row is
            a group.

    Raises:
        EnvariantError: If inputs and losses differ in length, or source or target have fewer groups than
            folds.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x, noise = rng.normal(size=(2, 1000, 1)), rng.random((2, 1000))
        >>> errors = (noise < [[0.1], [0.4]]).astype(float)
        >>> parts = measure_disde((x[0], errors[0]), (x[1], errors[1]))
        >>> round(parts.changed_relation.mean, 1), abs(parts.new_inputs.mean) < 0.02
        (0.3, True)
    """
    (x_p, r_p), (x_q, r_q) = (_side(*side, n_folds) for side in (source, target))
    generator = np.random.default_rng(seed)
    x, side = np.concatenate([x_p, x_q]), np.repeat([0, 1], [len(r_p), len(r_q)])
    if classifier is None:
        x, classifier = with_squares(varying_columns(x)), LogisticRegression(C=1.0, max_iter=200)
    numbers = [group_numbers(None if groups is None else groups[k], len(r)) for k, r in enumerate((r_p, r_q))]
    counted = [int(number.max()) + 1 for number in numbers]
    if min(counted) < max(2, n_folds):
        least, sizes = max(2, n_folds), f"{counted[0]} and {counted[1]}"
        raise EnvariantError(
            f"measure_disde: source and target each need at least {least} groups; got {sizes}"
        )
    folds = np.concatenate(
        [generator.permutation(n)[number] % n_folds for n, number in zip(counted, numbers, strict=True)]
    )
    estimates: list[DropDecomposition] = []
    for resample in range(n_resamples + 1):
        counts = np.ones(len(x))
        if resample:
            draws = [generator.multinomial(n, np.full(n, 1 / n)) for n in counted]
            copies = [draw[number] for draw, number in zip(draws, numbers, strict=True)]
            counts = np.concatenate(copies).astype(np.float64)
        pi = np.empty(len(x))
        for fold in range(n_folds):
            train = (folds != fold) & (counts > 0)
            model: Any = clone(classifier)
            model.fit(x[train], side[train], sample_weight=counts[train])
            pi[folds == fold] = model.predict_proba(x[folds == fold])[:, 1]
        split = np.split(np.repeat(np.arange(len(x)), counts.astype(np.int64)), [len(r_p)])
        p, q = split
        pairs = None if groups is None else (numbers[0][p], numbers[1][q - len(r_p)])
        estimates.append(
            decompose_drop(
                pi[p], r_p[p], pi[q], r_q[q - len(r_p)], density=density, level=level, groups=pairs
            )
        )
    return estimates[0] if n_resamples < 2 else _bootstrapped(estimates, level)


def decompose_drop(
    source_probabilities: ArrayLike,
    source_losses: ArrayLike,
    target_probabilities: ArrayLike,
    target_losses: ArrayLike,
    *,
    density: Density = "harmonic",
    level: float = LEVEL,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
) -> DropDecomposition:
    """Decompose a performance drop, given each row's probability π of being a target row.

    If a is the share of target rows, the density ratio of target and source is q/p = π(1−a) / ((1−π)a).
    Weights for the "harmonic" density are (1−a)π / (a(1−π) + (1−a)π) for source rows and a(1−π) / (a(1−π) +
    (1−a)π) for target rows. Weights for "minimum" are min(1, q/p) for source rows and min(1, p/q) for target
    rows. Standard errors are those of weighted means, with π taken as known.

    Args:
        source_probabilities: Probability π of each source row, `[rows]`, by a classifier that was not trained
            on this row.
        source_losses: Loss of each source row, `[rows]`; for error rates, 1 for an error and 0 otherwise.
        target_probabilities: Probability π of each target row, `[rows]`, by a classifier that was not trained
            on this row.
        target_losses: Loss of each target row, `[rows]`.
        density: Density of the common inputs: "harmonic" or "minimum"; see `measure_disde`.
        level: Confidence level of the intervals.
        groups: Groups of the source rows and of the target rows, for cluster-robust standard errors.
            Default: rows are independent.

    Raises:
        EnvariantError: If probabilities and losses differ in length, or there are no source or target rows.

    Example:
        >>> parts = decompose_drop([0.2, 0.3, 0.5, 0.6], [0, 0, 1, 0], [0.7, 0.4, 0.9], [0, 1, 1])
        >>> total = parts.harder_inputs.mean + parts.changed_relation.mean + parts.new_inputs.mean
        >>> round(total, 4) == round(2 / 3 - 1 / 4, 4)
        True
    """
    pi_p, r_p, pi_q, r_q = (
        np.asarray(v, dtype=np.float64)
        for v in (source_probabilities, source_losses, target_probabilities, target_losses)
    )
    if not len(r_p) or not len(r_q) or pi_p.shape != r_p.shape or pi_q.shape != r_q.shape:
        raise EnvariantError(
            "decompose_drop: source and target must each have at least one row, and one probability per loss"
        )
    a = len(r_q) / (len(r_p) + len(r_q))
    in_p, in_q = ((a * (1 - pi), (1 - a) * pi) for pi in (pi_p, pi_q))
    if density == "harmonic":
        w_p, w_q = in_p[1] / (in_p[0] + in_p[1]), in_q[0] / (in_q[0] + in_q[1])
    else:
        w_p = np.minimum(1.0, in_p[1] / np.maximum(in_p[0], 1e-300))
        w_q = np.minimum(1.0, in_q[0] / np.maximum(in_q[1], 1e-300))
    means, influences = zip(
        *(
            _mean(w, r)
            for w, r in ((np.ones(len(r_p)), r_p), (w_p, r_p), (w_q, r_q), (np.ones(len(r_q)), r_q))
        ),
        strict=True,
    )

    def norm(influence: Array, side: int) -> float:
        return float(np.linalg.norm(influence if groups is None else group_sums(influence, groups[side])))

    errors = (
        norm(influences[1] - influences[0], 0),
        math.hypot(norm(influences[1], 0), norm(influences[2], 1)),
        norm(influences[3] - influences[2], 1),
    )
    half = float(stats.norm.isf((1 - level) / 2))
    parts = [
        Interval(part, part - half * error, part + half * error, len(r_q))
        for part, error in zip(np.diff(means).tolist(), errors, strict=True)
    ]
    side = np.repeat([0, 1], [len(pi_p), len(pi_q)])
    auc = float(roc_auc_score(side, np.concatenate([pi_p, pi_q])))
    harder, changed, new = parts
    return DropDecomposition(
        harder, changed, new, errors, means[0], means[3], _effective(w_p), _effective(w_q), max(auc, 1 - auc)
    )


def _mean(weights: Array, losses: Array) -> tuple[float, Array]:
    """Return the weighted mean of losses, and each row's influence on it; NaN if all weights are 0."""
    share = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), np.nan)
    mean = float(share @ losses)
    return mean, share * (losses - mean)


def _effective(weights: Array) -> float:
    return float(weights.sum() ** 2 / max(float(np.square(weights).sum()), 1e-300))


def _bootstrapped(estimates: list[DropDecomposition], level: float) -> DropDecomposition:
    """Return the first estimate, with standard errors and percentile intervals from all other estimates."""
    first = estimates[0]
    values = np.array(
        [[e.harder_inputs.mean, e.changed_relation.mean, e.new_inputs.mean] for e in estimates[1:]]
    )
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    means = (first.harder_inputs, first.changed_relation, first.new_inputs)
    parts = [
        Interval(part.mean, float(a), float(b), part.count)
        for part, a, b in zip(means, low, high, strict=True)
    ]
    errors = np.nanstd(values, axis=0, ddof=1)
    return replace(
        first,
        harder_inputs=parts[0],
        changed_relation=parts[1],
        new_inputs=parts[2],
        errors=(float(errors[0]), float(errors[1]), float(errors[2])),
    )


def _side(inputs: ArrayLike, losses: ArrayLike, n_folds: int) -> tuple[Array, Array]:
    x, r = np.asarray(inputs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if not np.isfinite(x).all():
        raise EnvariantError("measure_disde: inputs contain missing or infinite values; fill them first")
    if x.ndim != 2 or r.ndim != 1 or len(x) != len(r) or len(r) < max(2, n_folds):
        raise EnvariantError(
            f"measure_disde: needs inputs [rows, columns], one loss per row, and at least {max(2, n_folds)} "
            f"rows in both source and target; got shapes {x.shape} and {r.shape}"
        )
    return x, r
