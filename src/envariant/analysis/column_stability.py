"""Which columns tell the same of the target everywhere, and which tell one thing here and another there.

For every column and environment, the slope of the target over the column, by itself; then whether the slopes
differ by more than noise. A model that leans on a column whose slope turns will be wrong somewhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.analysis import statistics
from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Multiclass

Array = NDArray[np.float64]

LEVEL = 0.05
# Of a column's variation in an environment: what one row may bring.
_MOST_OF_ONE = 0.1
NOTABLE = 0.15
"""From this difference of two slopes on, in standard deviations of the target per one of the column."""


@final
@dataclass(frozen=True)
class ColumnStability:
    """One column's relation with the target.

    Attributes:
        column: its name.
        slopes: by environment, in standard deviations of the target per one of the column; of a category's
            or a multiclass target's numbers the direction in which they go together most. NaN where the
            column does not vary.
        errors: their standard errors.
        p_value: of there being one slope for all (Cochran's Q), corrected by Holm for all columns.
    """

    column: str
    slopes: Mapping[str, float]
    errors: Mapping[str, float]
    p_value: float

    @property
    def spread(self) -> float:
        """The largest slope less the smallest."""
        known = [slope for slope in self.slopes.values() if math.isfinite(slope)]
        return max(known) - min(known) if known else 0.0

    @property
    def turns(self) -> bool:
        """Whether it is beyond noise above 0 in one environment and below in another."""
        # Of many environments one lies on the other side by chance: each must do so by more.
        least = float(stats.norm.isf(LEVEL / 2 / max(1, len(self.slopes))))
        sure = [
            slope
            for name, slope in self.slopes.items()
            if math.isfinite(slope) and abs(slope) > least * self.errors[name]
        ]
        return bool(sure) and min(sure) < 0 < max(sure)

    @property
    def unstable(self) -> bool:
        """Whether its slopes differ by more than noise, and by enough to matter."""
        return self.p_value < LEVEL and self.spread >= NOTABLE

    @property
    def kind(self) -> str:
        """In a word."""
        if not self.unstable:
            return "stable"
        return "turns" if self.turns else "varies"


def stability(drawn: EnvironmentSet, columns: Mapping[str, slice]) -> tuple[ColumnStability, ...]:
    """Every column's relation with the target, the least stable first.

    Args:
        drawn: the environments.
        columns: where each column's numbers lie among their inputs.
    """
    targets = [_targets(e.targets.double().numpy(), drawn) for e in drawn.environments]
    found: list[tuple[str, Array, Array, float]] = []
    for column, place in columns.items():
        values = [e.inputs[:, place].double().numpy() for e in drawn.environments]
        slopes, errors = _slopes(values, targets)
        found.append((column, slopes, errors, _differ(slopes, errors)))
    corrected = statistics.holm([p for *_, p in found])
    each = [
        ColumnStability(
            column,
            dict(zip(drawn.names, slopes.tolist(), strict=True)),
            dict(zip(drawn.names, errors.tolist(), strict=True)),
            p,
        )
        for (column, slopes, errors, _), p in zip(found, corrected, strict=True)
    ]
    return tuple(sorted(each, key=lambda c: (not c.unstable, -c.spread)))


def _targets(values: Array, drawn: EnvironmentSet) -> Array:
    if isinstance(drawn.task, Multiclass):
        return (values[:, None] == np.arange(drawn.task.classes)).astype(np.float64)
    return values[:, None]


def _slopes(values: Sequence[Array], targets: Sequence[Array]) -> tuple[Array, Array]:
    """By environment, with standard errors that hold where the noise is uneven (HC3, MacKinnon & White 1985).

    Where a column or the target is several numbers, one half of the rows says in which direction they go
    together, and the other half how much: a direction fits the rows that it was chosen by.
    """
    several = values[0].shape[1] > 1 or targets[0].shape[1] > 1
    along, across = np.ones(1), np.ones(1)
    if several:
        # At random: rows may come in pairs, such as a woman and her husband.
        generator = np.random.default_rng(0)
        order = [generator.permutation(len(v)) for v in values]
        values, targets = ([p[o] for p, o in zip(part, order, strict=True)] for part in (values, targets))
        x, y = _centerd([v[::2] for v in values], [t[::2] for t in targets])
        together = [v.T @ t / len(v) for v, t in zip(x, y, strict=True)]
        # In which they go together most in all environments, whatever the sign.
        along, across = _first(sum(c @ c.T for c in together)), _first(sum(c.T @ c for c in together))
        values, targets = [v[1::2] for v in values], [t[1::2] for t in targets]
    x, y = _centerd(values, targets)
    slopes: list[float] = []
    errors: list[float] = []
    for v, t in zip(x, y, strict=True):
        z, goal = v @ along, t @ across
        power = float(z @ z)
        # Where a few rows are nearly all that varies, the slope is theirs, and its error cannot be known.
        if power <= 1e-9 * len(z) or float((z * z).max()) > _MOST_OF_ONE * power:
            slopes.append(math.nan)
            errors.append(math.nan)
            continue
        slope = float(z @ goal) / power
        slopes.append(slope)
        leverage = np.minimum(1 / len(z) + z * z / power, 0.99)
        left = (goal - slope * z) / (1 - leverage)
        errors.append(max(1e-12, math.sqrt(float(np.square(z * left).sum())) / power))
    # A direction has no sign of its own: more of it means more of the target in most places.
    sign = -1.0 if several and np.nansum(slopes) < 0 else 1.0
    return sign * np.array(slopes), np.array(errors)


def _centerd(values: Sequence[Array], targets: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Both without each environment's mean, in standard deviations within environments."""
    x, y = ([part - part.mean(axis=0) for part in parts] for parts in (values, targets))
    x_scale, y_scale = _scale(x), _scale(y)
    return [part / x_scale for part in x], [part / y_scale for part in y]


def _scale(parts: Sequence[Array]) -> Array:
    """The standard deviation within environments, each counting alike; 1 where there is none."""
    spread = np.sqrt(np.mean([np.square(part).mean(axis=0) for part in parts], axis=0))
    return np.where(spread > 1e-9, spread, 1.0)


def _first(matrix: Any) -> Array:
    return np.linalg.eigh(matrix)[1][:, -1]


def _differ(slopes: Array, errors: Array) -> float:
    """Cochran's Q: the p-value of all slopes being one."""
    known = np.isfinite(slopes)
    if known.sum() < 2:
        return 1.0
    weights = 1 / errors[known] ** 2
    middle = (weights * slopes[known]).sum() / weights.sum()
    return float(stats.chi2.sf((weights * np.square(slopes[known] - middle)).sum(), known.sum() - 1))
