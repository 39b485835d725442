"""Measure how stable the relation between each column and the target is across environments.

If the slope of a column changes sign, models that use the column make wrong predictions in some environments.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from envariant.analysis import statistics
from envariant.analysis._environment_fit import (
    EnvironmentFit,
    firth_slopes,
    fit_environments,
    linear_slopes,
)
from envariant.analysis.random_effects import PooledEstimate, pool_estimates
from envariant.core.errors import EnvariantError

Array = NDArray[np.float64]
Link = Literal["identity", "logit"]

LEVEL = 0.02
"""Significance level of the tests; it is strict, because users may omit a wrongly reported column."""

NOTABLE: Mapping[Link, float] = {"identity": 0.15, "logit": 0.3}
"""Smallest relevant difference between two slopes, by link (scale of the slopes)."""

# Simulated data sets of the null distribution.
_DRAWS = 300
# Rows used, sampled evenly from environments; classes compared.
_MOST_ROWS, _MOST_CLASSES = 20_000, 10
# Inputs in the common model: at most this many columns, and at most one term per this many rows.
_MOST_COMMON, _ROWS_PER_TERM = 60, 15
_KNOTS = (0.2, 0.5, 0.8)
# Columns that may get slopes of each environment in the common model.
_MOST_OWN = 6
# A slope is measured where no row has a larger share of the information, and its error is not larger.
_LARGEST_SHARE, _FEWEST_ROWS, _FEWEST_OF_A_CLASS = 0.34, 8, 3
_LARGEST_ERROR: Mapping[Link, float] = {"identity": 0.75, "logit": 1.5}
_FARTHEST = 8.0
_BLOCK = 4_000_000


@final
@dataclass(frozen=True)
class ColumnStability:
    """Relation between one column and the target in each environment, given the other columns.

    Attributes:
        column: Name of the column.
        slopes: Slope by environment, in log-odds of a class or standard deviations of a real-valued target,
            per standard deviation of the column within environments. If a column has several inputs, such
            as one-hot categories, or the target has several classes, this is the slope with the smallest
            p-value. NaN if it cannot be estimated.
        errors: Standard error of the slope by environment.
        p_value: P-value of the test of equal slopes in all environments, Holm-corrected over columns.
        pooled: Random-effects mean of the slopes, and prediction interval of the slope in the next
            environment; None if fewer than two slopes could be estimated.
        measured: Whether the slope could be estimated in at least two environments.
        link: Scale of the slopes: "logit" (log-odds) for classes, "identity" for real-valued targets.
    """

    column: str
    slopes: Mapping[str, float]
    errors: Mapping[str, float]
    p_value: float
    pooled: PooledEstimate | None = None
    measured: bool = True
    link: Link = "identity"

    @property
    def spread(self) -> float:
        """Largest slope minus smallest slope; 0 if all slopes are NaN."""
        known = [slope for slope in self.slopes.values() if math.isfinite(slope)]
        return max(known) - min(known) if known else 0.0

    @property
    def changes_sign(self) -> bool:
        """Whether the slope is significantly positive in one environment and negative in another."""
        # Bonferroni: with many environments, one has the other sign by chance.
        quantile = float(stats.norm.isf(LEVEL / 2 / max(1, len(self.slopes))))
        significant = [
            slope
            for name, slope in self.slopes.items()
            if math.isfinite(slope) and abs(slope) > quantile * self.errors[name]
        ]
        return bool(significant) and min(significant) < 0 < max(significant)

    @property
    def unstable(self) -> bool:
        """Whether the slopes differ significantly, and `spread` is at least `NOTABLE[link]`."""
        return self.measured and self.p_value < LEVEL and self.spread >= NOTABLE[self.link]

    @property
    def kind(self) -> Literal["stable", "varies", "changes sign", "not measured"]:
        """Classification of the relation: "stable", "varies", "changes sign" or "not measured"."""
        if not self.measured:
            return "not measured"
        if not self.unstable:
            return "stable"
        return "changes sign" if self.changes_sign else "varies"


def measure_stability(
    columns: Mapping[str, ArrayLike],
    targets: ArrayLike,
    environments: ArrayLike,
    *,
    n_classes: int | None = None,
    seed: int = 0,
) -> tuple[ColumnStability, ...]:
    """Estimate every column's slope in every environment and test whether the slopes are equal.

    A joint model of all columns has one intercept per environment. Its other terms are common to all
    environments: the columns, their squares, hinge functions and products. The number of these terms is
    limited by the number of rows. At most 60 columns are included: those with the strongest association with
    the target. For each column, the score statistic for separate slopes is Σ_e U_e² / V_e, with score U_e and
    information V_e in environment e. The statistic is compared with its values in data simulated by the joint
    model: with labels drawn from the model's probabilities or, for real-valued targets, with random signs of
    the residuals (Liu 1988). An unstable column then gets one slope per environment in the model, and the
    other columns are tested again, so that its instability is not attributed to them. Neither covariate shift
    nor a change of prevalence makes a column unstable. Interactions that differ between environments are not
    tested.

    The reported slopes of a column are estimated separately in each environment, with the slopes of all
    other columns fixed at their estimates in the model. The method is Firth's penalized likelihood (1993) for
    classes, and least squares with HC3 standard errors (MacKinnon & White 1985) for real-valued targets. For
    multiclass targets, each class (at most 10) is compared with the most frequent class, with Bonferroni
    correction.

    Args:
        columns: Values by column name, each `[rows]`, or `[rows, k]` for one-hot encoded categories.
        targets: Targets 0 and 1, real-valued targets, or class indices if `n_classes` is set, `[rows]`.
        environments: Environment of each row, `[rows]`.
        n_classes: Number of classes, for a multiclass target only. Default: binary or real-valued target.
        seed: Seed of the simulations.

    Returns:
        One entry per column, the least stable first.

    Raises:
        EnvariantError: If a column or `environments` does not have one entry per target.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(2)
        >>> hospital = np.repeat(["north", "south"], 300)
        >>> age, dose = rng.normal(size=(2, 600))
        >>> risk = age + np.where(hospital == "north", dose, -dose) + rng.normal(size=600)
        >>> [(c.column, c.kind) for c in measure_stability({"age": age, "dose": dose}, risk, hospital)]
        [('dose', 'changes sign'), ('age', 'stable')]
    """
    y, labels = np.asarray(targets), np.asarray(environments)
    arrays = {column: np.asarray(values) for column, values in columns.items()}
    for name, array in {"targets": y, **arrays}.items():
        if len(array) != len(labels):
            raise EnvariantError(
                f"measure_stability: '{name}' has {len(array)} rows, but 'environments' has {len(labels)}"
            )
    names, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    # Environments in order of appearance.
    keys = [str(names[k]) for k in np.argsort(first)]
    codes = np.argsort(np.argsort(first))[codes]
    generator = np.random.default_rng(seed)
    rows = _rows_by_environment(codes, len(keys), generator)
    parts = _parts(codes[rows], len(keys))
    inputs, groups = _inputs([array[rows] for array in arrays.values()], parts)
    outcomes, link = _outcomes(y[rows], parts, n_classes)
    tests: list[_Test] = []
    for used, outcome in outcomes:
        part = _parts(codes[rows][used], len(keys))
        tests.append(_test(inputs[used], groups, outcome[used], part, link, generator))
    corrected = statistics.holm(
        [min(1.0, len(tests) * min(t.p_values[j] for t in tests)) for j in range(len(groups))]
    )
    results: list[ColumnStability] = []
    for j, column in enumerate(arrays):
        best = min(tests, key=lambda test: test.p_values[j])
        slopes, errors = best.slopes[:, j], best.errors[:, j]
        known = np.isfinite(slopes)
        pooled = pool_estimates(slopes[known], errors[known]) if known.sum() > 1 else None
        by_name, error_by_name = (dict(zip(keys, part.tolist(), strict=True)) for part in (slopes, errors))
        results.append(
            ColumnStability(column, by_name, error_by_name, corrected[j], pooled, pooled is not None, link)
        )
    return tuple(sorted(results, key=lambda c: (not c.unstable, -c.spread)))


@final
class _Test(NamedTuple):
    """Test results: p-values, `[columns]`; slopes and standard errors, `[environments, columns]`."""

    p_values: Array
    slopes: Array
    errors: Array


def _rows_by_environment(
    codes: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return indices of at most `_MOST_ROWS` rows, sorted by environment; large environments are sampled."""
    sizes = np.bincount(codes, minlength=count)
    most = int(sizes.max(initial=0))
    while most > 1 and np.minimum(sizes, most).sum() > _MOST_ROWS:
        most = min(int(most * 0.9), most - 1)
    members = (np.flatnonzero(codes == k) for k in range(count))
    selected = [m if len(m) <= most else np.sort(generator.choice(m, most, replace=False)) for m in members]
    return np.concatenate(selected) if selected else np.arange(0)


def _parts(codes: NDArray[np.int64], count: int) -> list[slice]:
    """Return the slice of each environment's rows, which are sorted by environment."""
    bounds = np.searchsorted(codes, np.arange(count + 1)).tolist()
    return [slice(*bounds[k : k + 2]) for k in range(count)]


def _inputs(arrays: Sequence[NDArray[np.generic]], parts: Sequence[slice]) -> tuple[Array, list[slice]]:
    """Return all inputs, scaled by the spread within environments, and the slice of each column's inputs."""
    blocks = [(a[:, None] if a.ndim == 1 else a).astype(np.float64) for a in arrays]
    ends = np.cumsum([0, *(block.shape[1] for block in blocks)]).tolist()
    inputs = np.concatenate(blocks, axis=1)
    spread = np.sqrt(np.mean([inputs[rows].var(axis=0) for rows in parts], axis=0))
    scaled = (inputs - inputs.mean(axis=0)) / np.where(spread > 1e-9, spread, np.inf)
    for rows in parts:
        level = scaled[rows].mean(axis=0)
        # Values far from all others would alone determine a slope.
        within = np.clip(scaled[rows] - level, -_FARTHEST, _FARTHEST)
        scaled[rows] = within + np.clip(level, -_FARTHEST, _FARTHEST)
    return scaled, [slice(*ends[k : k + 2]) for k in range(len(blocks))]


def _outcomes(
    y: NDArray[np.generic], parts: Sequence[slice], n_classes: int | None
) -> tuple[list[tuple[NDArray[np.bool_], Array]], Link]:
    """Return the row mask and targets of each test; multiclass targets are split into pairs of classes."""
    values = y.astype(np.float64)
    if n_classes is not None:
        frequent = np.argsort(-np.bincount(y.astype(np.int64), minlength=n_classes), kind="stable")
        first, *others = frequent[:_MOST_CLASSES].tolist()
        # Compared with all other classes, slopes would differ wherever the class frequencies differ.
        return [
            ((y == first) | (y == k), (values == k).astype(np.float64)) for k in others or [first]
        ], "logit"
    everything = np.ones(len(y), dtype=bool)
    if np.isin(values, (0.0, 1.0)).all():
        return [(everything, values)], "logit"
    spread = math.sqrt(float(np.mean([values[rows].var() for rows in parts])))
    return [(everything, (values - values.mean()) / (spread or 1.0))], "identity"


def _test(
    inputs: Array,
    groups: Sequence[slice],
    y: Array,
    parts: Sequence[slice],
    link: Link,
    generator: np.random.Generator,
) -> _Test:
    """Test each column; give unstable columns one slope per environment while testing the others."""
    binary = link == "logit"
    columns = np.repeat(np.arange(len(groups)), [g.stop - g.start for g in groups])
    null = fit_environments(
        np.zeros((len(y), 0)), np.zeros((len(y), 0)), y, parts, own_precision=np.zeros(0), binary=binary
    )
    budget = max(2, (len(y) - len(parts)) // _ROWS_PER_TERM)
    linear = _strongest(null, inputs, min(_MOST_COMMON, budget))
    terms = np.column_stack([inputs[:, linear], _curves(inputs[:, linear], budget - len(linear))])
    own: list[int] = []
    precision = np.zeros(0)
    p_values, worst = np.ones(len(groups)), np.zeros(len(groups), dtype=np.int64)
    prior, measured = np.zeros(len(columns)), np.zeros((len(parts), len(columns)), dtype=bool)
    while True:
        own_inputs = np.flatnonzero(np.isin(columns, own))
        fit = fit_environments(terms, inputs[:, own_inputs], y, parts, own_precision=precision, binary=binary)
        scores = _scores(fit, inputs, columns, y, generator, binary)
        left = [j for j in range(len(groups)) if j not in own]
        p_values[left], worst[left] = scores.p_values[left], scores.worst[left]
        if not own:
            measured, prior = scores.measured, scores.between
        testable = [j for j in left if scores.testable[j]]
        if len(own) == _MOST_OWN or not testable:
            break
        found = min(testable, key=lambda j: scores.p_values[j])
        if scores.p_values[found] * len(testable) >= LEVEL:
            break
        own.append(found)
        own_inputs = np.flatnonzero(np.isin(columns, own))
        prior = np.maximum(prior, np.where(columns == found, scores.between, 0.0))
        precision = 1 / np.maximum(prior[own_inputs], 0.05)
    slopes, errors = _slopes(inputs, worst, linear, own_inputs, precision, y, parts, link)
    classes = [
        np.minimum(y[rows].sum(), (1 - y[rows]).sum()) >= _FEWEST_OF_A_CLASS or not binary for rows in parts
    ]
    known = measured[:, worst] & (errors <= _LARGEST_ERROR[link]) & np.array(classes)[:, None]
    absent = ~known | (known.sum(axis=0) < 2)
    p_values[(~absent).sum(axis=0) < 2] = 1.0
    slopes, errors = np.where(absent, np.nan, slopes), np.where(absent, np.nan, errors)
    return _Test(p_values, slopes, errors)


@final
class _Scores(NamedTuple):
    """Results of the score tests.

    Attributes:
        p_values: P-value of each column, `[columns]`.
        testable: Mask of the columns that can be tested, `[columns]`.
        worst: Index of each column's input whose slopes differ the most, `[columns]`.
        between: Estimated variance of the slopes between environments, `[inputs]`.
        measured: Mask of the slopes with enough information, `[environments, inputs]`.
    """

    p_values: Array
    testable: NDArray[np.bool_]
    worst: NDArray[np.int64]
    between: Array
    measured: NDArray[np.bool_]


def _scores(
    fit: EnvironmentFit,
    inputs: Array,
    columns: NDArray[np.int64],
    y: Array,
    generator: np.random.Generator,
    binary: bool,
) -> _Scores:
    """Test for each column, by simulations of the model, whether its slope differs between environments."""
    n, count = len(y), int(columns.max(initial=-1)) + 1
    spread = np.sqrt(1 - fit.leverage())[:, None]
    if binary:
        fitted = (y - fit.residuals)[:, None]
        draws = ((generator.random((n, _DRAWS)) < fitted) - fitted) / spread
    else:
        draws = generator.choice([-1.0, 1.0], (n, _DRAWS)) * fit.residuals[:, None] / spread
    residuals = np.column_stack([fit.residuals, fit.project(draws)])
    # The penalty of the intercepts leaves sums of residuals that are not exactly zero.
    centered = [inputs[r] - inputs[r].mean(axis=0) for r in fit.parts if r.stop > r.start]
    inputs = np.concatenate(centered)
    information = fit.variation(inputs)
    measured = _measured(fit, inputs, information)
    score = np.zeros((inputs.shape[1], _DRAWS + 1))
    size = max(1, _BLOCK // ((_DRAWS + 1) * len(fit.parts)))
    for start in range(0, inputs.shape[1], size):
        block = slice(start, start + size)
        weights = np.where(measured[:, block], information[:, block], np.inf)[..., None]
        u = np.stack([inputs[rows, block].T @ residuals[rows] for rows in fit.parts])
        u = np.where(measured[:, block, None], u, 0.0)
        total = np.where(measured[:, block], information[:, block], 0.0).sum(0)[:, None]
        score[block] = (u**2 / weights).sum(0) - u.sum(0) ** 2 / np.maximum(total, 1e-12)
    excess = score[:, 0] - score[:, 1:].mean(axis=1)
    between = np.maximum(excess, 0) / np.maximum(np.where(measured, information, 0.0).sum(axis=0), 1e-12)
    comparable = measured.sum(axis=0) > 1
    relative = np.where(comparable, excess / np.maximum(score[:, 1:].std(axis=1), 1e-12), -np.inf)
    by_column = np.zeros((count, _DRAWS + 1))
    np.add.at(by_column, columns, comparable[:, None] * score)
    mean, variance = by_column[:, 1:].mean(axis=1), by_column[:, 1:].var(axis=1)
    testable = variance > 1e-12
    scale = np.where(testable, variance / np.maximum(mean, 1e-12), 1.0)
    p_values = np.where(
        testable, stats.gamma.sf(by_column[:, 0], np.maximum(mean / scale, 1e-6), scale=scale), 1.0
    )
    starts = np.searchsorted(columns, np.arange(count))
    worst = np.array(
        [s + int(np.argmax(part)) for s, part in zip(starts, np.split(relative, starts[1:]), strict=True)]
    )
    return _Scores(p_values, testable, worst, between, measured)


def _measured(fit: EnvironmentFit, inputs: Array, information: Array) -> NDArray[np.bool_]:
    """Return a mask of the slopes that can be estimated in each environment, `[environments, inputs]`."""
    measured = np.zeros(information.shape, dtype=bool)
    for e, rows in enumerate(fit.parts):
        if rows.stop - rows.start < _FEWEST_ROWS:
            continue
        weights, part = fit.weights[rows][:, None], inputs[rows]
        centered = part - (weights * part).sum(axis=0) / weights.sum()
        largest = (weights * centered**2).max(axis=0)
        measured[e] = (information[e] > 1e-6) & (largest <= _LARGEST_SHARE * information[e])
    return measured


def _slopes(
    inputs: Array, worst: NDArray[np.int64], linear: NDArray[np.int64], own: NDArray[np.int64],
    precision: Array, y: Array, parts: Sequence[slice], link: Link,
) -> tuple[Array, Array]:  # fmt: skip
    """Return the slope of one input per column in each environment, and standard errors; others are fixed."""
    fit = fit_environments(
        inputs[:, linear], inputs[:, own], y, parts, own_precision=precision, binary=link == "logit"
    )
    slopes = np.zeros((len(parts), inputs.shape[1]))
    slopes[:, linear] += fit.common_slopes
    slopes[:, own] += fit.own_slopes[:, 1:]
    chosen = inputs[:, worst]
    offset = np.repeat(fit.linear[:, None], len(worst), axis=1)
    for e, rows in enumerate(parts):
        offset[rows] -= chosen[rows] * slopes[e, worst]
    return (firth_slopes if link == "logit" else linear_slopes)(chosen, y, offset, parts)


def _strongest(fit: EnvironmentFit, inputs: Array, count: int) -> NDArray[np.int64]:
    """Return the inputs most strongly associated with the target within environments, strongest first."""
    information = fit.variation(inputs).sum(axis=0)
    z = np.abs(inputs.T @ fit.residuals) / np.sqrt(np.maximum(information, 1e-12))
    order = np.argsort(-np.where(information > 1e-9, z, -1.0), kind="stable")
    return order[: min(count, int((information > 1e-9).sum()))]


def _curves(x: Array, count: int) -> Array:
    """Return up to `count` standardized squares, hinges and products of columns, in this order."""
    curved = [k for k in range(x.shape[1]) if len(np.unique(x[:, k])) > 4]
    pairs = ((a, b) for b in range(x.shape[1]) for a in range(b))
    terms = chain(
        (x[:, k] ** 2 for k in curved),
        (np.maximum(x[:, k] - np.quantile(x[:, k], knot), 0.0) for knot in _KNOTS for k in curved),
        (x[:, a] * x[:, b] for a, b in pairs),
    )
    every = len(curved) * (1 + len(_KNOTS)) + x.shape[1] * (x.shape[1] - 1) // 2
    kept = np.empty((len(x), min(max(0, count), every)))
    # In place: this is the largest array of all.
    for k, term in enumerate(islice(terms, kept.shape[1])):
        kept[:, k] = term
    kept -= kept.mean(axis=0)
    spread = np.sqrt(np.square(kept).mean(axis=0))
    kept /= np.where(spread > 1e-9, spread, 1.0)
    return kept if (spread > 1e-9).all() else kept[:, spread > 1e-9]
