"""Compare the baseline's score in each environment with the score expected from its predictions.

The expected score is the score that the baseline would have if P(target | prediction) were the same as in
the training environments. It reveals drops that a comparison with in-domain scores misses: with many
environments, a single environment hardly influences the model. In-domain and out-of-domain scores on that
environment therefore agree, even if the relation between inputs and target is different there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from envariant.analysis.few_labels import recalibrate
from envariant.analysis.random_effects import PooledEstimate, pool_estimates
from envariant.comparison.uncertainty import score_of_rows
from envariant.core.metrics import Metric, probabilities
from envariant.core.tasks import Regression, Task
from envariant.training.store import Predictions

Array = NDArray[np.float64]

# Simulated sets of targets of each environment, and replicas whose predictions are used.
_DRAWS, _REPLICAS = 200, 3
_FEWEST_ROWS = 10
# Residuals of real targets are those of the validation rows with the nearest predictions.
_NEIGHBORS = 25
# Logarithms of the slopes that are tried.
_LOG_SLOPES = (-4.0, 3.0)


@final
@dataclass(frozen=True)
class ExpectedScore:
    """Expected and observed score of a method in one environment.

    Attributes:
        expected: Score expected if P(target | prediction) is the same as in the training environments.
        observed: Observed score in the environment.
        shortfall: Amount by which the observed score is worse than the expected score; negative if it is
            better. This is expected minus observed if higher scores are better, else observed minus expected.
            It is computed before `expected` is clipped to the range of the metric.
        error: Standard error of the shortfall.
        p_value: P-value of the test that there is no shortfall, corrected for the number of environments.
    """

    expected: float
    observed: float
    shortfall: float
    error: float
    p_value: float


@final
@dataclass(frozen=True)
class ExpectedScores:
    """Expected and observed scores of a method in all environments.

    Attributes:
        by_environment: Scores by environment. Environments with fewer than 10 rows or an undefined score are
            absent; if fewer than two environments remain, it is empty.
        p_value: P-value of the test that shortfalls are equal in all environments (Cochran's Q).
        pooled: Random-effects mean of the shortfalls; None with fewer than two shortfalls.
    """

    by_environment: Mapping[str, ExpectedScore]
    p_value: float = 1.0
    pooled: PooledEstimate | None = None


@final
@dataclass(frozen=True, eq=False)
class _Simulation:
    """Shortfall in one environment, with standard errors and simulated shortfalls, `[simulations]`."""

    expected: float
    observed: float
    shortfall: float
    error: float
    validation_error: float
    noise: Array

    @property
    def total_error(self) -> float:
        return math.hypot(self.error, self.validation_error)


def expected_scores(
    metric: Metric,
    tasks: Mapping[str, Task],
    out_of_domain: Mapping[str, Sequence[Predictions]],
    validation: Mapping[str, Sequence[Mapping[str, Predictions]]],
    *,
    holdout_fraction: float = 0.2,
    seed: int = 0,
) -> ExpectedScores:
    """Compare the score in each environment with the expected score, and test whether they agree.

    The null hypothesis is that P(target | prediction) is the same as in the training environments, as in the
    invariance test. Covariate shift alone does not violate this hypothesis. Predictions are recalibrated on
    validation rows of the training environments, by intercept and slope (with more than two classes, by the
    slope only, Guo et al. 2017). Targets of the environment are then simulated from the recalibrated
    predictions, and the original predictions are scored against them. The expected score is the mean of these
    scores plus a correction: on the validation rows, the observed score minus the mean score against targets
    simulated in the same way. Simulated real-valued targets are predictions plus residuals of validation rows
    with similar predictions. For AUROC with two classes, the intercept is fitted in the environment, because
    AUROC does not depend on class shares.

    For single environments, the test statistic is the shortfall divided by its standard error. It is compared
    with the largest statistic over all environments in each simulation, which corrects for multiple testing
    (Westfall & Young 1993). All environments are tested together by Cochran's Q (Cochran 1954), the sum of
    squared deviations of the shortfalls from their weighted mean, each divided by the squared standard error.
    Q is also compared with simulations, because its distribution is far from χ² for small environments.
    Shortfalls are correlated, because validation rows of one model are test rows of other models. For Q, they
    are therefore multiplied by s² / (s² + v²), where s² is the variance due to rows of the environment and v²
    the variance due to validation rows. For E environments of equal size, this factor is (E − 1) / E, and the
    result is the deviation from the mean of all environments.

    Args:
        metric: Metric of the scores.
        tasks: Prediction task by environment.
        out_of_domain: Predictions of each replica by environment. Models must not have been trained on the
            environment.
        validation: Predictions of the same models on validation rows of each training environment.
        holdout_fraction: Share of each training environment's rows that are used for validation.
        seed: Seed of the simulations.
    """
    generator = np.random.default_rng(seed)
    simulations: dict[str, _Simulation] = {}
    for name, models in out_of_domain.items():
        pairs = [(own, list(others.values())) for own, others in zip(models, validation[name], strict=True)]
        pairs = [(own, others) for own, others in pairs[:_REPLICAS] if others]
        if pairs and len(pairs[0][0].targets) >= _FEWEST_ROWS:
            found = _simulated(metric, tasks[name], pairs, holdout_fraction, generator)
            if found is not None:
                simulations[name] = found
    return _tested(simulations, generator)


def _tested(simulations: Mapping[str, _Simulation], generator: np.random.Generator) -> ExpectedScores:
    """Add p-values from the simulated shortfalls to the scores."""
    each = list(simulations.values())
    if len(each) < 2:
        return ExpectedScores({})
    noise = np.array([one.noise for one in each])
    shortfalls, own, both = (
        np.array(values)
        for values in zip(*((o.shortfall, o.error, o.total_error) for o in each), strict=True)
    )
    largest = (noise / own[:, None]).max(axis=0)
    p_values = (1 + (largest >= (shortfalls / both)[:, None]).sum(axis=1)) / (1 + noise.shape[1])
    q = _cochran(np.column_stack([shortfalls * (own / both) ** 2, noise]), own)
    return ExpectedScores(
        {
            name: ExpectedScore(one.expected, one.observed, one.shortfall, one.total_error, float(p))
            for (name, one), p in zip(simulations.items(), p_values, strict=True)
        },
        float((1 + (q[1:] >= q[0]).sum()) / len(q)),
        pool_estimates(shortfalls, both),
    )


def _cochran(values: Array, errors: Array) -> Array:
    """Return Cochran's Q for every column of `values`, `[environments, columns]`."""
    weights = 1 / errors[:, None] ** 2
    mean = (weights * values).sum(axis=0) / weights.sum()
    return (weights * (values - mean) ** 2).sum(axis=0)


def _simulated(
    metric: Metric,
    task: Task,
    pairs: Sequence[tuple[Predictions, Sequence[Predictions]]],
    holdout_fraction: float,
    generator: np.random.Generator,
) -> _Simulation | None:
    """Simulate shortfalls in one environment, averaged over replicas; None if the metric is undefined."""
    n_rows = len(pairs[0][0].targets)
    # Targets of a row are simulated alike for all replicas, whose scores are averaged.
    uniform = generator.random((_DRAWS, n_rows))
    own = [_scores(metric, task, model, others, uniform) for model, others in pairs]
    validation = [_pooled(others) for _, others in pairs]
    check = [
        _scores(metric, task, each, others, generator.random((_DRAWS // 4, len(each.targets))))
        for each, (_, others) in zip(validation, pairs, strict=True)
    ]
    observed = [score_of_rows(task, metric, model) for model, _ in pairs]
    seen = [score_of_rows(task, metric, each) for each in validation]
    draws = np.mean(own, axis=0)
    expected = float(np.mean([d.mean() + s - c.mean() for d, s, c in zip(own, seen, check, strict=True)]))
    shortfall = metric.gain(expected, float(np.mean(observed)))
    # Validation rows of two replicas overlap by the share of validation rows.
    k = len(pairs)
    overlap = math.sqrt((1 + (k - 1) * holdout_fraction) / k)
    error, other = float(draws.std(ddof=1)), overlap * float(np.mean([c.std(ddof=1) for c in check]))
    if not math.isfinite(shortfall) or not math.isfinite(other) or not error > 0:
        return None
    noise = metric.sign * (draws.mean() - draws)
    # The correction may exceed the range of the metric.
    possible = float(np.clip(expected, *metric.bounds))
    return _Simulation(possible, float(np.mean(observed)), shortfall, error, other, noise)


def _pooled(predictions: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions for several environments."""
    logits, targets = (np.concatenate([getattr(p, name) for p in predictions]) for name in _ARRAYS)
    return Predictions("", "validation", len(targets), logits, targets)


_ARRAYS = ("logits", "targets")


def _slope(predictions: Predictions) -> float:
    """Return the factor for multiclass logits that gives the smallest log loss (temperature scaling)."""
    z: Array = predictions.logits.astype(np.float64)
    rows = np.arange(len(predictions.targets))
    own = z[rows, predictions.targets.astype(np.int64)]

    def loss(log_slope: float) -> float:
        slope = math.exp(log_slope)
        return float((np.asarray(logsumexp(slope * z, axis=1)) - slope * own).mean())

    best: Any = minimize_scalar(loss, bounds=_LOG_SLOPES, method="bounded", options={"xatol": 1e-3})
    return math.exp(float(best.x))


def _scores(
    metric: Metric, task: Task, model: Predictions, validation: Sequence[Predictions], uniform: Array
) -> Array:
    """Return the scores of simulated targets, `[simulations]`; undefined scores are replaced by the mean."""
    known = _pooled(validation)
    regression = isinstance(task, Regression)
    if known.logits.ndim == 2 and not regression:
        z = known_z = model.logits * _slope(known)
    else:
        fit = recalibrate(known.logits, known.targets, refit="intercept and slope", regression=regression)
        z, known_z = (fit.apply(each.logits) for each in (model, known))
    if regression:
        order = np.argsort(known_z)
        residuals = (known.targets - known_z)[order]
        nearest = np.searchsorted(known_z[order], z)
        steps = np.rint((2 * uniform - 1) * min(_NEIGHBORS, len(residuals) // 4)).astype(np.int64)
        simulated = z + residuals[np.clip(nearest + steps, 0, len(residuals) - 1)]
    else:
        if metric.name == "AUROC" and z.ndim == 1:
            z = recalibrate(z, model.targets).apply(z)
        limits = probabilities(z).cumsum(axis=1)[:, :-1]
        simulated = (uniform[..., None] > limits).sum(axis=2)
    targets = simulated.astype(np.float32)
    scores = (
        score_of_rows(task, metric, Predictions("", "test", len(own), model.logits, own)) for own in targets
    )
    values = np.fromiter(scores, np.float64, len(targets))
    return np.where(np.isfinite(values), values, np.nanmean(values) if np.isfinite(values).any() else np.nan)
