"""Measure the kind and size of the distribution shift between two groups of environments.

Diversity shift: one group has inputs that do not occur in the other. Correlation shift: equal inputs have
different targets in the two groups. A method that helps with one kind of shift usually does not help with the
other. Ye et al. 2022, OoD-Bench (arXiv 2106.03721). The default formulas are those of the OoD-Bench code
since April 2025, which uses squared Hellinger distances. If `legacy` is set, those of the paper are used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, final
from warnings import catch_warnings, simplefilter

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from envariant.analysis.statistics import Interval, interval
from envariant.core import specs
from envariant.core.errors import EnvariantError

Array = NDArray[Any]
Samples = Mapping[str, tuple[Array, Array]]
"""Inputs `[rows, ...]` and targets `[rows]` by environment."""

MEASURES = ("diversity", "correlation", "label", "covariate")
"""Names of the shift measures, which are fields of `Shift` and `ShiftEstimate`."""

NOTABLE = 0.1
"""Smallest relevant diversity shift, and correlation shift by the formula of the paper."""

NOTABLE_CORRELATION = 0.05
"""Smallest relevant correlation shift, a squared Hellinger distance.

It corresponds to a probability that changes from 0.5 to 0.8. Without any shift, estimates can reach 0.04.
"""

# As in OoD-Bench, features are the last hidden layer of a small network that classifies the group.
_FEATURES = 8
_HIDDEN = 128
_MOST_ROWS = 20_000
_FEWEST_ROWS = 40
# Density ratio below which the smaller density counts as zero.
_ZERO_DENSITY = 1e-3
# Number of distances computed at a time.
_BLOCK = 250_000
# Largest number of rows whose distance to their neighbors is measured.
_MOST_NEIGHBORS = 5_000
# Number of quantile bins for real targets.
_BINS = 5


@final
@dataclass(frozen=True)
class Shift:
    """Distribution shift between two groups of environments; each measure lies between 0 and 1.

    z are features of the inputs, learned by a network that predicts the group of a row; p and q are the
    densities of z in the two groups.

    Attributes:
        first, second: Names of the two groups.
        diversity: Diversity shift: ½ ∫ (√p − √q)² over features z that occur in one group only.
        correlation: Correlation shift: ½ ∫ √(pq) Σ_y (√p(y|z) − √q(y|z))² over features z that occur in both
            groups, with targets y.
        label: Label shift: total variation distance of the target distributions.
        covariate: Covariate shift: 2·AUROC − 1 of a classifier that predicts the group from the inputs.
        legacy: Whether the formulas of the paper were used: ½ ∫ |p − q| for diversity shift, and
            ½ ∫ √(pq) Σ_y |p(y|z) − q(y|z)| for correlation shift.
    """

    first: str
    second: str
    diversity: Interval
    correlation: Interval
    label: Interval
    covariate: Interval
    legacy: bool = False

    @classmethod
    def from_trials(
        cls, first: str, second: str, trials: Sequence["ShiftEstimate"], *, legacy: bool = False
    ) -> "Shift":
        """Average each measure over independent trials, with a confidence interval.

        Args:
            first: Name of the first group.
            second: Name of the second group.
            trials: Estimates of the measures, one per trial.
            legacy: Whether the formulas of the paper were used.
        """
        values = ([getattr(trial, name) for trial in trials] for name in MEASURES)
        return cls(first, second, *(interval(each).clipped(0.0, 1.0) for each in values), legacy=legacy)

    @property
    def kind(self) -> Literal["both", "diversity", "correlation", "neither"]:
        """Kinds of shift of a relevant size: "diversity", "correlation", "both" or "neither"."""
        diversity = self.diversity.mean >= NOTABLE
        correlation = self.correlation.mean >= self.notable_correlation
        if diversity and correlation:
            return "both"
        return "diversity" if diversity else "correlation" if correlation else "neither"

    @property
    def notable_correlation(self) -> float:
        """Smallest correlation shift that is relevant; it depends on whether `legacy` is set."""
        return NOTABLE if self.legacy else NOTABLE_CORRELATION

    def to_dict(self) -> dict[str, Any]:
        """Return group names, measures and kind of shift as a JSON-serializable dictionary."""
        return {**asdict(self), "kind": self.kind}


@final
@dataclass(frozen=True)
class ShiftEstimate:
    """Diversity, correlation, label and covariate shift, estimated in one trial; see `Shift`."""

    diversity: float
    correlation: float
    label: float
    covariate: float


def measure_shift(
    first: Samples,
    second: Samples,
    *,
    regression: bool = False,
    seed: int = 0,
    n_trials: int = 1,
    legacy: bool = False,
) -> Shift:
    """Measure the shift between two groups of environments.

    A small network is trained on half of the rows to predict the group of a row. The measures are estimated
    on the other half, from kernel density estimates of the network's features.

    Args:
        first: Inputs `[rows, ...]` and targets `[rows]` of the first group, by environment name. Environments
            are weighted equally.
        second: Inputs and targets of the second group, by environment name.
        regression: Whether targets are real-valued; if so, they are divided into quantile bins.
        seed: Seed of row sampling and network weights.
        n_trials: Number of trials, with seeds `seed`, `seed + 1`, …; intervals need at least two.
        legacy: Whether to use the formulas of the 2022 paper; see `Shift`.

    Raises:
        EnvariantError: If a group has fewer than 40 rows or `n_trials` is below 1.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> x, noise = rng.normal(size=(2, 400, 1))
        >>> y = (x + noise > 0).astype(int)[:, 0]
        >>> shift = measure_shift({"2009": (x[:200], y[:200])}, {"2019": (x[200:] + 9, y[200:])})
        >>> shift.kind, shift.covariate.mean
        ('diversity', 1.0)
    """
    specs.check_value(n_trials, Annotated[int, Field(ge=1, le=1000)], "measure_shift: n_trials")
    specs.check_value(seed, NonNegativeInt, "measure_shift: seed")
    first, second = _as_arrays(first), _as_arrays(second)
    trials = [
        estimate_shift(first, second, regression=regression, seed=seed + k, legacy=legacy)
        for k in range(n_trials)
    ]
    return Shift.from_trials(" + ".join(first), " + ".join(second), trials, legacy=legacy)


def _as_arrays(samples: Samples) -> Samples:
    """Convert inputs and targets of each environment to arrays.

    Raises:
        EnvariantError: If there are no environments, or an environment does not have one target per row.
    """
    if not samples:
        raise EnvariantError("measure_shift: each of the two groups needs at least one environment")
    arrays = {name: (np.asarray(inputs), np.asarray(targets)) for name, (inputs, targets) in samples.items()}
    for name, (inputs, targets) in arrays.items():
        if len(inputs) != len(targets):
            raise EnvariantError(
                f"measure_shift: '{name}' has {len(inputs)} rows of inputs and {len(targets)} targets"
            )
    return arrays


def estimate_shift(
    first: Samples, second: Samples, *, regression: bool = False, seed: int = 0, legacy: bool = False
) -> ShiftEstimate:
    """Estimate the four measures in a single trial; see `measure_shift` for arguments and errors."""
    generator = np.random.default_rng(seed)
    sides = [_sample(samples, generator) for samples in (first, second)]
    if min(len(x) for x, _ in sides) < _FEWEST_ROWS:
        names = " and ".join(f"'{name}'" for name in (*first, *second))
        raise EnvariantError(
            f"shift: each of the two groups must have at least {_FEWEST_ROWS} rows; the environments are "
            f"{names}"
        )
    labels = _class_labels([y for _, y in sides], regression=regression)
    features, covariate = _learned_features([x[::2] for x, _ in sides], [x[1::2] for x, _ in sides], seed)
    diversity, correlation = _density_measures(features, [y[1::2] for y in labels], legacy=legacy)
    return ShiftEstimate(diversity, correlation, _total_variation(labels), covariate)


def _sample(samples: Samples, generator: np.random.Generator) -> tuple[Array, Array]:
    """Sample an equal number of rows from each environment, in random order, with flattened inputs."""
    sizes = [len(targets) for _, targets in samples.values()]
    size = min(_MOST_ROWS // len(samples), *sizes, _MOST_ROWS)
    parts: list[tuple[Array, Array]] = []
    for inputs, targets in samples.values():
        index = generator.permutation(len(targets))[:size]
        parts.append((inputs[index].reshape(size, -1).astype(np.float64), targets[index].astype(np.float64)))
    order = generator.permutation(size * len(parts))
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x[order], y[order]


def _class_labels(targets: list[Array], *, regression: bool) -> list[NDArray[np.int64]]:
    if regression:
        edges = np.quantile(np.concatenate(targets), np.linspace(0, 1, _BINS + 1)[1:-1])
        return [np.digitize(y, edges).astype(np.int64) for y in targets]
    return [y.astype(np.int64) for y in targets]


def _learned_features(train: list[Array], test: list[Array], seed: int) -> tuple[list[Array], float]:
    """Train a network to classify the group; return its features and 2·AUROC − 1 for the test rows."""
    scaler = StandardScaler().fit(np.concatenate(train))
    network: Any = MLPClassifier(
        (_HIDDEN, _FEATURES), alpha=1e-2, random_state=seed, early_stopping=True, max_iter=40
    )
    with catch_warnings():
        # The network need not converge: it stops early or after 40 epochs.
        simplefilter("ignore", ConvergenceWarning)
        network.fit(scaler.transform(np.concatenate(train)), np.repeat([0, 1], [len(x) for x in train]))
    features: list[Array] = []
    for x in test:
        h: Any = scaler.transform(x)
        for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0.0)
        features.append(h)
    scores = np.concatenate([network.predict_proba(scaler.transform(x))[:, 1] for x in test])
    area = roc_auc_score(np.repeat([0, 1], [len(x) for x in test]), scores)
    spread = np.concatenate(features).std(axis=0)
    varies = spread > 1e-9
    return [h[:, varies] / spread[varies] for h in features], float(max(0.0, 2 * area - 1))


def _density_measures(
    features: list[Array], labels: list[NDArray[np.int64]], *, legacy: bool
) -> tuple[float, float]:
    """Return diversity and correlation shift, from leave-one-out Gaussian kernel densities."""
    pooled = np.concatenate(features)
    if not pooled.shape[1]:
        return 0.0, _total_variation(labels)
    # One bandwidth for all rows: the median distance to the tenth neighbor, over evenly spaced rows.
    some = pooled[np.linspace(0, len(pooled) - 1, min(len(pooled), _MOST_NEIGHBORS)).round().astype(int)]
    neighbors = NearestNeighbors(n_neighbors=10).fit(pooled).kneighbors(some)[0][:, -1]
    width = max(float(np.median(neighbors)), 1e-6)
    n_classes = int(max(y.max() for y in labels)) + 1
    densities = np.stack(
        [
            _densities(pooled, h, y, n_classes, width, side)
            for side, (h, y) in enumerate(zip(features, labels, strict=True))
        ]
    )  # [sides, classes, rows]: p(z, y) up to a common factor
    p, q = densities.sum(axis=1)
    mean = (p + q) / 2
    # Isolated rows are excluded: their densities cannot be compared.
    supported = mean >= _ZERO_DENSITY * np.median(mean)
    disjoint = ((p < _ZERO_DENSITY * q) | (q < _ZERO_DENSITY * p)) & supported
    # Each group has weight ½, whatever its number of rows.
    sizes = [len(h) for h in features]
    share = np.repeat([0.5 / n for n in sizes], sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Relative to the density of the points; the quotients are at most 2 and cannot overflow.
        relative = np.nan_to_num(densities / mean)
    diversity, correlation = shift_integrals(relative[0], relative[1], share, disjoint, legacy=legacy)
    return min(1.0, diversity), min(1.0, correlation)


def shift_integrals(
    first: Float[Array, "classes points"],
    second: Float[Array, "classes points"],
    weights: Float[Array, " points"],
    disjoint: Bool[Array, " points"],
    *,
    legacy: bool = False,
) -> tuple[float, float]:
    """Return diversity and correlation shift as weighted sums over points z; see `Shift` for the integrals.

    Args:
        first: Density p(z, y) of the first group at each point, by class y.
        second: Density q(z, y) of the second group.
        weights: Weight of each point: 1 for a sum over all values of z, or 1/(m·g(z)) for m points drawn
            from a density g.
        disjoint: Mask of the points z that occur in one group only.
        legacy: Whether to use the formulas of the 2022 paper.
    """
    p, q = first.sum(axis=0), second.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        given_z = np.nan_to_num(first / p), np.nan_to_num(second / q)
    if legacy:
        marginal, conditional = np.abs(p - q), np.abs(given_z[0] - given_z[1])
    else:
        marginal = (np.sqrt(p) - np.sqrt(q)) ** 2
        conditional = (np.sqrt(given_z[0]) - np.sqrt(given_z[1])) ** 2
    change = np.sqrt(p * q) * conditional.sum(axis=0)
    return (
        float((weights * np.where(disjoint, marginal, 0.0)).sum() / 2),
        float((weights * np.where(disjoint, 0.0, change)).sum() / 2),
    )


def _densities(
    points: Array, features: Array, labels: NDArray[np.int64], n_classes: int, width: float, side: int
) -> Array:
    """Return the kernel density p(z, y) of one group at all points z, `[classes, points]`.

    A point's own kernel is left out of the density at this point.
    """
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    members = features[order]
    # Position among `members` of each point that belongs to the group, else −1.
    position = np.full(len(points), -1)
    first = 0 if side == 0 else len(points) - len(features)
    position[first + order] = np.arange(len(order))
    densities = np.zeros((n_classes, len(points)))
    for block in np.array_split(np.arange(len(points)), 1 + len(points) * len(members) // _BLOCK):
        own = np.flatnonzero(position[block] >= 0)
        kernels = _kernels(points[block], members, width, own, position[block][own])
        densities[np.ix_(present, block)] = np.add.reduceat(kernels, starts, axis=1).T
    return densities / max(1, len(features) - 1)


def _kernels(z: Array, members: Array, width: float, own: Array, position: Array) -> Array:
    """Return Gaussian kernels, `[points, members]`, centered at `members`; 0 at `[own, position]`."""
    # In place: the passes over this matrix take most of the time.
    squared = (z**2).sum(axis=1)[:, None] + (members**2).sum(axis=1)
    squared -= 2 * z @ members.T
    np.clip(squared, 0, None, out=squared)
    squared /= -2 * width**2
    squared[own, position] = -np.inf
    return np.exp(squared, out=squared)


def _total_variation(labels: list[NDArray[np.int64]]) -> float:
    """Return the total variation distance between the target distributions of the two groups."""
    n_classes = int(max(y.max() for y in labels)) + 1
    shares = [np.bincount(y, minlength=n_classes) / len(y) for y in labels]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
