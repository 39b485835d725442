"""Which kind of shift lies between environments, as numbers, before any method is chosen.

Diversity shift: there are rows in one that do not occur in the other. Correlation shift: the same rows have
other targets. Methods that help against one do nothing against the other. Ye et al. 2022, OoD-Bench.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any, final
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from envariant.analysis.statistics import Interval, interval
from envariant.core.environments import Environment, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task

Array = NDArray[np.float64]

# As in OoD-Bench: the features are what a small network ends in that tells the two apart.
_FEATURES = 8
_HIDDEN = 128
_ROWS = 20_000
# Where one density is so much smaller than the other, there is none of it.
_ABSENT = 1e-3
# From here on a shift is called one.
NOTABLE = 0.1
_LEAST = 40
# Real targets are told apart by which fifth of all of them they are in.
_BINS = 5


@final
@dataclass(frozen=True)
class Shift:
    """How far two places lie apart: each number between 0 and 1, a mean over trials with its interval.

    Attributes:
        first, second: what they are called.
        diversity: ½ ∫ |p − q| over features that occur in one of them only.
        correlation: ½ ∫ √(pq) Σ_y |p(y|z) − q(y|z)| over features that occur in both.
        label: total variation between the targets' distributions.
        covariate: how well inputs tell the two apart: twice the area under the ROC curve, less 1.
    """

    first: str
    second: str
    diversity: Interval
    correlation: Interval
    label: Interval
    covariate: Interval

    @property
    def kind(self) -> str:
        """Which of the first two is there, in words."""
        diverse, turned = self.diversity.mean >= NOTABLE, self.correlation.mean >= NOTABLE
        if diverse and turned:
            return "both"
        return "diversity" if diverse else "correlation" if turned else "neither"


def shifts(
    source: EnvironmentSource, *, test: tuple[str, ...] | None = None, seed: int = 0, trials: int = 3
) -> tuple[Shift, ...]:
    """All training environments together against each that is held out, and against each other.

    Args:
        source: of the data.
        test: names that are held out; None is what the data suggest.
        seed: of the data draw and of everything else that is drawn.
        trials: each with a data draw and a network of its own.

    Raises:
        EnvariantError: there are fewer than two environments, or too few rows.
    """
    if trials < 1:
        raise EnvariantError(f"shift: trials must be at least 1; got {trials}")
    found: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for trial in range(seed, seed + trials):
        drawn = source.with_test_environments(test).sample(trial)
        if len(drawn.names) < 2:
            raise EnvariantError(f"{drawn.name}: shift lies between environments, and there is one")
        roles = drawn.roles(test)
        training = [e for e in drawn.environments if roles[e.name] == "train"]
        test_environments = [e for e in drawn.environments if roles[e.name] == "test"]
        pairs = [(training, [e]) for e in test_environments]
        pairs += [([a], [b]) for a, b in combinations(training, 2)]
        for pair in pairs:
            first, second = (" + ".join(e.name for e in side) for side in pair)
            found.setdefault((first, second), []).append(between(*pair, drawn.task, trial))
    return tuple(Shift(*names, *map(interval, zip(*each, strict=True))) for names, each in found.items())


def between(
    first: list[Environment], second: list[Environment], task: Task, seed: int = 0
) -> tuple[float, float, float, float]:
    """Diversity, correlation, label and covariate shift, from one half of the rows by features of the other.

    Raises:
        EnvariantError: there are fewer than 40 rows on one side.
    """
    generator = np.random.default_rng(seed)
    sides = [_rows(each, generator) for each in (first, second)]
    if min(len(x) for x, _ in sides) < _LEAST:
        names = " and ".join(f"'{e.name}'" for e in (*first, *second))
        raise EnvariantError(f"shift: {names} need at least {_LEAST} rows on either side")
    labels = _classes([y for _, y in sides], task)
    features, told = _telling([x[::2] for x, _ in sides], [x[1::2] for x, _ in sides], seed)
    return (*_parts(features, [y[1::2] for y in labels]), _of_labels(labels), told)


def _rows(environments: list[Environment], generator: np.random.Generator) -> tuple[Array, Array]:
    """As many rows of each, shuffled; inputs flat."""
    most = min(_ROWS // len(environments), *(len(e) for e in environments), _ROWS)
    found: list[tuple[Array, Array]] = []
    for environment in environments:
        index = generator.permutation(len(environment))[:most]
        inputs, targets = environment.inputs[index], environment.targets[index]
        found.append((inputs.flatten(1).double().numpy(), targets.double().numpy()))
    order = generator.permutation(most * len(found))
    return np.concatenate([x for x, _ in found])[order], np.concatenate([y for _, y in found])[order]


def _classes(targets: list[Array], task: Task) -> list[NDArray[np.int64]]:
    if isinstance(task, Regression):
        edges = np.quantile(np.concatenate(targets), np.linspace(0, 1, _BINS + 1)[1:-1])
        return [np.digitize(y, edges).astype(np.int64) for y in targets]
    return [y.astype(np.int64) for y in targets]


def _telling(seen: list[Array], new: list[Array], seed: int) -> tuple[list[Array], float]:
    """Features of new rows by a network that learned to tell the sides apart, and how well it does."""
    scaler = StandardScaler().fit(np.concatenate(seen))
    network: Any = MLPClassifier(
        (_HIDDEN, _FEATURES), alpha=1e-2, random_state=seed, early_stopping=True, max_iter=40
    )
    with catch_warnings():
        # It stops where it no longer gains, or there: either will do.
        simplefilter("ignore", ConvergenceWarning)
        network.fit(scaler.transform(np.concatenate(seen)), np.repeat([0, 1], [len(x) for x in seen]))
    found: list[Array] = []
    for x in new:
        h: Any = scaler.transform(x)
        for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0.0)
        found.append(h)
    scores = np.concatenate([network.predict_proba(scaler.transform(x))[:, 1] for x in new])
    area = roc_auc_score(np.repeat([0, 1], [len(x) for x in new]), scores)
    spread = np.concatenate(found).std(axis=0)
    kept = spread > 1e-9
    return [h[:, kept] / spread[kept] for h in found], float(max(0.0, 2 * area - 1))


def _parts(features: list[Array], labels: list[NDArray[np.int64]]) -> tuple[float, float]:
    """Diversity and correlation shift, by Gaussian kernels over the features, a row never its own witness."""
    whole = np.concatenate(features)
    if not whole.shape[1]:
        return 0.0, _of_labels(labels)
    # A bandwidth for the whole, from how far a row's neighbors are.
    near = NearestNeighbors(n_neighbors=10).fit(whole).kneighbors(whole)[0][:, -1]
    width = max(float(np.median(near)), 1e-6)
    classes = int(max(y.max() for y in labels)) + 1
    densities = np.stack(
        [
            np.stack([_density(whole, h, y == c, width, side) for c in range(classes)])
            for side, (h, y) in enumerate(zip(features, labels, strict=True))
        ]
    )  # [sides, classes, rows]: p(z, y) up to a factor that is the same for all
    p, q = densities.sum(axis=1)
    middle = (p + q) / 2
    # A row that lies by itself, far from all others, is no evidence of anything.
    seen = middle >= _ABSENT * np.median(middle)
    apart = ((p < _ABSENT * q) | (q < _ABSENT * p)) & seen
    with np.errstate(divide="ignore", invalid="ignore"):
        conditional = np.nan_to_num(densities / np.stack([p, q])[:, None])
        weight = np.nan_to_num(np.sqrt(p * q) / middle)
        distance = np.nan_to_num(np.abs(p - q) / middle)
    changed = np.abs(conditional[0] - conditional[1]).sum(axis=0)
    # Rows are drawn from both sides; each side counts half, however many rows it has.
    sizes = [len(h) for h in features]
    share = np.repeat([0.5 / n for n in sizes], sizes)
    diversity = float((share * np.where(apart, distance, 0.0)).sum() / 2)
    correlation = float((share * np.where(apart, 0.0, weight * changed)).sum() / 2)
    return min(1.0, diversity), min(1.0, correlation)


def _density(at: Array, rows: Array, chosen: NDArray[np.bool_], width: float, side: int) -> Array:
    """p(z, y) of one side and class at all rows, without each row's own share."""
    own = rows[chosen]
    found = np.zeros(len(at))
    if not len(own):
        return found
    # The place of this side's rows among all.
    start = 0 if side == 0 else len(at) - len(rows)
    places = np.full(len(at), -1)
    places[start : start + len(rows)][chosen] = np.arange(len(own))
    for block in np.array_split(np.arange(len(at)), max(1, len(at) // 500)):
        squared = ((at[block] ** 2).sum(axis=1)[:, None] + (own**2).sum(axis=1) - 2 * at[block] @ own.T).clip(
            min=0
        ) / (2 * width**2)
        inside = np.flatnonzero(places[block] >= 0)
        squared[inside, places[block][inside]] = np.inf
        found[block] = np.exp(logsumexp(-squared, axis=1))
    return found / max(1, len(rows) - 1)


def _of_labels(labels: list[NDArray[np.int64]]) -> float:
    """Where nothing tells the sides apart, the targets' own distributions are all there is."""
    classes = int(max(y.max() for y in labels)) + 1
    shares = [np.bincount(y, minlength=classes) / len(y) for y in labels]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
