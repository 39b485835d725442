"""Correct for label shift: estimate class shares without labels, adjust probabilities, test the assumptions.

All corrections assume that P(X | Y) is unchanged; `assess_conditional_shift` tests this.
"""

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from envariant.analysis._two_sample import mean_statistics, subsample_rows, varying_columns, with_squares
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]

# The estimate is refused if the smallest singular value of the confusion matrix is below this multiple of its
# standard error.
_SEPARATION = 3.0
_TABLES = 2000


@final
@dataclass(frozen=True)
class PriorEstimate:
    """Estimated class shares of rows without labels.

    Attributes:
        shares: Estimated share of each class.
        errors: Standard error of each share. For EM, the probabilities are assumed to be exact.
        weights: Share in the new rows divided by share in the training rows, for each class.
        converged: Whether EM converged; always true for BBSE.
        n_iterations: Number of EM iterations; 0 for BBSE.
        method: "EM", "BBSE (hard)" or "BBSE (soft)".
    """

    shares: tuple[float, ...]
    errors: tuple[float, ...]
    weights: tuple[float, ...]
    converged: bool
    n_iterations: int
    method: Literal["EM", "BBSE (hard)", "BBSE (soft)"]


@final
@dataclass(frozen=True)
class ShiftTest:
    """Result of a test of the null hypothesis that there is no shift.

    Attributes:
        p_value: P-value of the test.
        statistic: Test statistic: χ² in `assess_label_shift`, the largest Kolmogorov–Smirnov distance over
            outputs in `assess_output_shift`, or the largest standardized measure over environments in
            `assess_conditional_shift`.
        null: Null hypothesis in words.
    """

    p_value: float
    statistic: float
    null: str


def adjust_probabilities(probabilities: ArrayLike, weights: ArrayLike) -> Array:
    """Adjust class probabilities to new class shares: q(y | x) ∝ p(y | x) w_y.

    Args:
        probabilities: Class probabilities p(y | x), `[rows, classes]`.
        weights: Weight w_y of each class: new share divided by training share, `[classes]`.

    Example:
        >>> adjust_probabilities([[0.7, 0.2, 0.1]], [0.5, 2, 1]).round(3).tolist()
        [[0.412, 0.471, 0.118]]
    """
    product = np.asarray(probabilities, dtype=np.float64) * np.asarray(weights, dtype=np.float64)
    return product / product.sum(axis=1, keepdims=True)


def estimate_prior_em(
    probabilities: ArrayLike,
    training_shares: ArrayLike,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 10_000,
) -> PriorEstimate:
    """Estimate class shares by maximum likelihood with the EM algorithm (Saerens et al. 2002).

    With probability p_iy of class y for row i and training shares π, the share of class y is updated by
    q_y ← mean_i p_iy (q_y / π_y) / Σ_c p_ic (q_c / π_c). The log-likelihood is concave, so the result does
    not depend on the initial shares. If probabilities are not calibrated, the estimate may be misleading.

    Args:
        probabilities: Class probabilities of the rows without labels, `[rows, classes]`.
        training_shares: Class shares π of the training rows, or mean probabilities in validation rows,
            `[classes]`.
        tolerance: The iteration stops when no class share changes by more than this value.
        max_iterations: Maximum number of iterations.

    Raises:
        EnvariantError: If shapes are inconsistent, or a training share is not positive.

    Example:
        >>> p = [0.9, 0.6, 0.05, 0.3, 0.1, 0.7]
        >>> estimate = estimate_prior_em([[a, 1 - a] for a in p], [0.6, 0.4])
        >>> round(estimate.shares[0], 4), estimate.converged
        (0.1837, True)
    """
    p, pi = np.asarray(probabilities, dtype=np.float64), np.asarray(training_shares, dtype=np.float64)
    if p.ndim != 2 or not len(p) or pi.shape != p.shape[1:] or not (pi > 0).all():
        raise EnvariantError(
            f"estimate_prior_em: needs probabilities [rows, classes] and a positive share per class; got "
            f"{p.shape} and {pi.shape}"
        )
    ratio = p / pi
    q, change, rounds = pi / pi.sum(), np.inf, 0
    while change > tolerance and rounds < max_iterations:
        # The mean posterior of class y is q_y mean_i (ratio_iy / Σ_c ratio_ic q_c).
        updated = q * (ratio / (ratio @ q)[:, None]).mean(axis=0)
        change, q, rounds = float(np.abs(updated - q).max()), updated, rounds + 1
    return PriorEstimate(
        tuple(q.tolist()), _em_errors(ratio, q), tuple((q / pi).tolist()), change <= tolerance, rounds, "EM"
    )


def estimate_prior_bbse(
    source_probabilities: ArrayLike,
    source_labels: ArrayLike,
    new_probabilities: ArrayLike,
    *,
    soft: bool = False,
) -> PriorEstimate:
    """Estimate class shares by inverting the confusion matrix (BBSE; Lipton, Wang & Smola 2018).

    The weights are w = C⁻¹ μ, and the share of class y is q_y = w_y π_y. C_ab is the share of labeled rows
    with prediction a and label b, μ_a the share of new rows with prediction a, and π_y the share of class y
    among labeled rows. If `soft` is set, C and μ are averages of probabilities. Negative shares become 0.
    Standard errors are computed by the delta method and account for the sampling noise of labeled and new
    rows. Probabilities need not be calibrated. arXiv 1802.03916.

    Args:
        source_probabilities: Class probabilities of labeled rows not used for training, `[rows, classes]`.
        source_labels: Class indices of the labeled rows, from 0, `[rows]`.
        new_probabilities: Class probabilities of the rows without labels, `[rows, classes]`.
        soft: Whether to average probabilities instead of predicted classes.

    Raises:
        EnvariantError: If shapes are inconsistent, a class has no labeled row, or the predictions separate
            the classes no better than noise.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> def rows(share, n=4000):
        ...     y = (rng.random(n) < share).astype(int)
        ...     p = 1 / (1 + np.exp(-2 * (rng.normal(size=n) + 2 * y - 1)))
        ...     return y, np.column_stack([1 - p, p])
        >>> (labels, source), (_, new) = rows(0.5), rows(0.9)
        >>> round(estimate_prior_bbse(source, labels, new).shares[1], 1)
        0.9
    """
    p, y, new = (np.asarray(part) for part in (source_probabilities, source_labels, new_probabilities))
    if p.ndim != 2 or new.ndim != 2 or p.shape[1] != new.shape[1] or len(p) != len(y) or not len(new):
        raise EnvariantError(
            f"estimate_prior_bbse: needs probabilities [rows, classes] and one label per labeled row; got "
            f"{p.shape}, {y.shape} and {new.shape}"
        )
    k = p.shape[1]
    counts = np.bincount(y, minlength=k)
    if len(counts) > k or not counts.all():
        raise EnvariantError("estimate_prior_bbse: every class needs at least one labeled row")
    identity = np.eye(k)
    f, g = (p, new) if soft else (identity[p.argmax(axis=1)], identity[new.argmax(axis=1)])
    confusion = f.T @ identity[y] / len(y)
    left, singular, right = np.linalg.svd(confusion)
    noise = float((f @ left[:, -1] * right[-1, y]).std()) / np.sqrt(len(y))
    if singular[-1] < _SEPARATION * noise:
        raise EnvariantError(
            f"estimate_prior_bbse: the predictions do not separate the classes (smallest singular value "
            f"{singular[-1]:.2g}, sampling noise {noise:.2g}), so class shares cannot be estimated"
        )
    pi = counts / len(y)
    shares, weights = solve_bbse(confusion, g.mean(axis=0))
    # The influence of the matrix P(prediction | class) on its product with the shares.
    conditional = np.linalg.inv(confusion / pi)
    raw = conditional @ g.mean(axis=0)
    covariance = np.cov(g.T, ddof=0) / len(g) + sum(
        raw[c] ** 2 * np.cov(f[y == c].T, ddof=0) / counts[c] for c in range(k)
    )
    errors = np.sqrt(np.diag(conditional @ covariance @ conditional.T))
    method = "BBSE (soft)" if soft else "BBSE (hard)"
    return PriorEstimate(
        tuple(shares.tolist()), tuple(errors.tolist()), tuple(weights.tolist()), True, 0, method
    )


def solve_bbse(confusion: ArrayLike, predicted_shares: ArrayLike) -> tuple[Array, Array]:
    """Compute class shares and class weights of new rows from a confusion matrix (BBSE).

    Weights are shares in new rows divided by shares in labeled rows. Negative weights become 0.

    Args:
        confusion: Share of labeled rows with each prediction and label, `[predictions, labels]`.
        predicted_shares: Share of each prediction in the new rows, `[predictions]`.

    Example:
        >>> shares, weights = solve_bbse([[0.25, 0.10], [0.05, 0.60]], [0.55, 0.45])
        >>> shares.round(3).tolist(), weights.round(3).tolist()
        ([0.59, 0.41], [1.966, 0.586])
    """
    c = np.asarray(confusion, dtype=np.float64)
    weights = np.clip(np.linalg.solve(c, np.asarray(predicted_shares, dtype=np.float64)), 0.0, None)
    shares = weights * c.sum(axis=0)
    shares = shares / shares.sum()
    return shares, shares / c.sum(axis=0)


def assess_label_shift(labels: ArrayLike, environments: ArrayLike, *, seed: int = 0) -> ShiftTest:
    """Test whether class shares are the same in all environments (χ² test of homogeneity).

    If an expected count is below 5, the p-value is computed from 2,000 random tables with the same margins.

    Args:
        labels: Class of each row, `[rows]`.
        environments: Environment of each row, `[rows]`.
        seed: Seed of the random tables.

    Raises:
        EnvariantError: If lengths differ.

    Example:
        >>> assess_label_shift([0] * 30 + [1] * 30, ["A"] * 30 + ["B"] * 30).p_value < 1e-6
        True
    """
    y, e = np.asarray(labels), np.asarray(environments)
    if len(y) != len(e):
        raise EnvariantError(f"assess_label_shift: got {len(y)} labels, but environments for {len(e)} rows")
    null = "P(Y) is the same in all environments"
    rows, columns = (np.unique(part, return_inverse=True)[1] for part in (e, y))
    table = np.zeros((rows.max(initial=0) + 1, columns.max(initial=0) + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    if min(table.shape) < 2:
        return ShiftTest(1.0, 0.0, null)
    found: Any = stats.chi2_contingency(table, correction=False)
    statistic, expected = float(found.statistic), np.asarray(found.expected_freq)
    if expected.min() >= 5:
        return ShiftTest(float(found.pvalue), statistic, null)
    margins: Any = stats.random_table(table.sum(axis=1), table.sum(axis=0))
    tables = np.asarray(margins.rvs(_TABLES, random_state=np.random.default_rng(seed)))
    statistics = (np.square(tables - expected) / expected).sum(axis=(1, 2))
    p_value = (1 + int((statistics >= statistic * (1 - 1e-9)).sum())) / (1 + _TABLES)
    return ShiftTest(p_value, statistic, null)


def assess_output_shift(source_probabilities: ArrayLike, new_probabilities: ArrayLike) -> ShiftTest:
    """Test, without labels, whether a model's outputs are distributed differently for new rows (BBSD).

    Each output is tested by a two-sample Kolmogorov–Smirnov test, with Bonferroni correction (Rabanser,
    Günnemann & Lipton 2019). A small p-value indicates some shift, not necessarily label shift.

    Args:
        source_probabilities: Class probabilities of source rows not used for training, `[rows, classes]`.
        new_probabilities: Class probabilities of the new rows, `[new rows, classes]`.

    Raises:
        EnvariantError: If the numbers of classes differ.

    Example:
        >>> import numpy as np
        >>> p = np.linspace(0, 1, 50)
        >>> assess_output_shift(np.column_stack([p, 1 - p]), np.column_stack([p**3, 1 - p**3])).p_value < 0.01
        True
    """
    p, q = (np.asarray(part, dtype=np.float64) for part in (source_probabilities, new_probabilities))
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise EnvariantError(
            f"assess_output_shift: needs two arrays [rows, classes]; got shapes {p.shape} and {q.shape}"
        )
    # The outputs of two classes are complementary.
    outputs = [1] if p.shape[1] == 2 else list(range(p.shape[1]))
    tests: list[Any] = [stats.ks_2samp(p[:, c], q[:, c]) for c in outputs]
    p_value = min(1.0, len(outputs) * min(float(test.pvalue) for test in tests))
    return ShiftTest(
        p_value, max(float(test.statistic) for test in tests), "the outputs have the same distribution"
    )


def assess_conditional_shift(
    inputs: ArrayLike, labels: ArrayLike, environments: ArrayLike, *, seed: int = 0
) -> ShiftTest:
    """Test whether P(X | Y) is the same in all environments, as label-shift correction assumes.

    Within each class, the means of columns and squared columns in each environment are compared with the
    means over all environments. Two measures are standardized: the squared Mahalanobis distance, summed over
    classes, and the largest squared difference of a single feature in a single class. The test statistic is
    the largest of these measures over environments, which accounts for multiple testing. Its null
    distribution comes from permutations of the environments within classes.

    Args:
        inputs: Numeric columns, or outputs of a model, without missing values, `[rows, columns]`.
        labels: Class of each row, `[rows]`.
        environments: Environment of each row, `[rows]`.
        seed: Seed of the permutations.

    Raises:
        EnvariantError: If lengths differ or a value is missing.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y, hospital = rng.integers(2, size=400), np.repeat(["north", "south"], 200)
        >>> x = rng.normal(size=(400, 2)) + y[:, None]
        >>> same = assess_conditional_shift(x, y, hospital).p_value
        >>> other = assess_conditional_shift(x + (hospital == "south")[:, None], y, hospital).p_value
        >>> same > 0.05, other < 0.05
        (True, True)
    """
    x, y, e = np.asarray(inputs, dtype=np.float64), np.asarray(labels), np.asarray(environments)
    if x.ndim != 2 or not len(x) == len(y) == len(e) or not np.isfinite(x).all():
        raise EnvariantError(
            "assess_conditional_shift: needs inputs [rows, columns] without missing values, and a label and "
            "an environment for each row"
        )
    generator = np.random.default_rng(seed)
    names, codes = np.unique(e, return_inverse=True)
    rows = subsample_rows(codes, len(names), generator)
    strata = np.unique(y[rows], return_inverse=True)[1]
    features, keep = with_squares(varying_columns(x[rows])), np.ones(len(names), dtype=np.bool_)
    observed, null = mean_statistics(features, strata, codes[rows], keep, generator)
    largest = float(observed.max())
    p_value = (1 + int((null.max(axis=1) >= largest * (1 - 1e-12)).sum())) / (1 + len(null))
    return ShiftTest(p_value, largest, "P(X | Y) is the same in all environments")


def _em_errors(ratio: Array, q: Array) -> tuple[float, ...]:
    """Return standard errors of the maximum-likelihood shares q, from the observed information.

    The log-likelihood is Σ_i log Σ_y ratio_iy q_y, restricted to shares that sum to 1. Shares of 0 get
    standard error 0.
    """
    scores = ratio / (ratio @ q)[:, None]
    free = np.flatnonzero(q > 1e-8)
    errors = np.zeros(len(q))
    if len(free) > 1:
        base = free[-1]
        contrasts = scores[:, free[:-1]] - scores[:, [base]]
        covariance = np.linalg.pinv(contrasts.T @ contrasts)
        errors[free[:-1]] = np.sqrt(np.diag(covariance))
        errors[base] = np.sqrt(max(float(covariance.sum()), 0.0))
    return tuple(errors.tolist())
