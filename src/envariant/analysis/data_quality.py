"""Check a table before training for missing-value codes, identifiers and columns that reveal environments.

Columns are given as arrays by name, and environments as one label per row.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.tree import DecisionTreeClassifier

from envariant.analysis._columns import typed
from envariant.core.errors import EnvariantError

Array = NDArray[Any]

_CODES = (0, -1, -9, -99, -999, -9999, 9, 88, 98, 99, 999, 9999, 99999, 999999)
_FEWEST_CODED, _FEWEST_OTHERS = 5, 5
# A column identifies an environment if its values recognize this share of the environment's rows, and this
# share of the recognized rows is correct. First for categories, then for intervals of numbers.
_NAMED, _NAMED_BY_NUMBERS = 0.97, 0.99
# Smallest number of rows of a value, or of an interval, that identifies an environment.
_FEWEST_ROWS = 5
_MOST_ENVIRONMENTS = 200
# Largest number of intervals per environment.
_INTERVALS = 4
# Smallest difference of two shares of missing values, and p-value of the test of equal shares.
_GAP, _LEVEL = 0.3, 1e-4
_IDENTIFIER = re.compile(
    r"(.*[\W_])?(id|ids|uid|uuid|guid|identifier|key|code|number|num|no|nr|mrn|ssn|index|serial)",
    re.IGNORECASE,
)
_CAMEL = re.compile(r".*[a-z](ID|Id|No|Nr|Key|Code|Number)")
_DISTINCT = 0.95
_FEWEST_DISTINCT = 20
_LONG = 6


@final
@dataclass(frozen=True)
class MissingCode:
    """Number that probably represents a missing value.

    Attributes:
        column: Name of the column.
        code: Number that represents a missing value, such as −1 or 999.
        rows: Number of rows with the code, by environment; environments without such rows are omitted.
    """

    column: str
    code: float
    rows: Mapping[str, int]


@final
@dataclass(frozen=True)
class NamingColumn:
    """Column whose values identify environments.

    Attributes:
        column: Name of the column.
        environments: Names of the environments that can be identified by a value of the column.
        share: Share of rows whose environment can be predicted from the column.
    """

    column: str
    environments: tuple[str, ...]
    share: float


@final
@dataclass(frozen=True)
class MissingShares:
    """Column whose values are missing much more often in some environments than in others.

    Attributes:
        column: Name of the column.
        shares: Share of missing values by environment.
    """

    column: str
    shares: Mapping[str, float]


@final
@dataclass(frozen=True)
class LocalCategories:
    """Categories that occur in one environment only, and are unlikely to do so by chance.

    Attributes:
        column: Name of the column.
        environment: Name of the only environment with these categories.
        categories: Names or numbers of the categories.
    """

    column: str
    environment: str
    categories: tuple[str, ...]


@final
@dataclass(frozen=True)
class Identifier:
    """Column with a distinct value in nearly every row.

    Attributes:
        column: Name of the column.
        kind: "text" for strings, "row number", or "number" for other whole numbers that look like an
            identifier.
        distinct: Number of distinct values.
    """

    column: str
    kind: Literal["text", "row number", "number"]
    distinct: int


def missing_codes(columns: Mapping[str, ArrayLike], environments: ArrayLike) -> tuple[MissingCode, ...]:
    """Find numbers such as 0, −1 or 999 that probably represent a missing value.

    Such a number is the smallest or largest value of its column, and occurs in at least five rows and more
    often than the nearest other value. It lies more than 1.5 interquartile ranges outside the quartiles, and
    at least 0.75 interquartile ranges from the nearest value. −1 is also reported if all other values are
    non-negative integers.

    Args:
        columns: Values by column name, each `[rows]`. Non-numeric columns are ignored.
        environments: Environment of each row, `[rows]`.

    Raises:
        EnvariantError: If a column does not have one value per row.

    Example:
        >>> import numpy as np
        >>> chol = np.random.default_rng(0).normal(220, 40, 300).round()
        >>> chol[200:260] = 0
        >>> missing_codes({"chol": chol}, np.repeat(["A", "B"], [200, 100]))
        (MissingCode(column='chol', code=0.0, rows={'B': 60}),)
    """
    names, codes = _labels(environments)
    found: list[MissingCode] = []
    for name, array in columns.items():
        kind, values, _ = _checked("missing_codes", name, array, len(codes))
        if kind != "number":
            continue
        for code in _coded(values[np.isfinite(values)]):
            counts = np.bincount(codes[values == code], minlength=len(names)).tolist()
            rows = {label: count for label, count in zip(names, counts, strict=True) if count}
            found.append(MissingCode(name, float(code), rows))
    return tuple(found)


def _coded(values: Array) -> list[float]:
    distinct, counts = np.unique(values, return_counts=True)
    found: list[float] = []
    for at, next_to in ((0, 1), (-1, -2)):
        if len(distinct) <= _FEWEST_OTHERS or distinct[at] not in _CODES:
            continue
        code, others = distinct[at], values[values != distinct[at]]
        if counts[at] < _FEWEST_CODED or len(others) < _FEWEST_CODED or counts[at] <= counts[next_to]:
            continue
        low, high = np.quantile(others, [0.25, 0.75])
        spread, gap = high - low, abs(distinct[next_to] - code)
        outside = not low - 1.5 * spread <= code <= high + 1.5 * spread
        alone = code == -1 and at == 0 and distinct[next_to] >= 0 and (distinct == np.round(distinct)).all()
        if (outside and gap >= max(2.0 if code == np.round(code) else 0.0, 0.75 * spread)) or alone:
            found.append(float(code))
    return found


def naming_columns(
    columns: Mapping[str, ArrayLike], environments: ArrayLike, *, categorical: Collection[str] = ()
) -> tuple[NamingColumn, ...]:
    """Find columns whose values identify environments, such as the serial number of a hospital's device.

    Rows are grouped by category, or by intervals of numbers; groups need at least five rows. An environment
    is identified if some groups together contain at least 97 % of its rows (99 % for intervals) and almost no
    rows of other environments. A column is reported if it identifies at least two environments and at least
    half of all environments. Distributions that are shifted but overlap do not identify an environment.

    Args:
        columns: Values by column name, `[rows]`.
        environments: Environment of each row, `[rows]`.
        categorical: Names of numeric columns with category codes. Text columns are always categorical.

    Raises:
        EnvariantError: If a column does not have one value per row.

    Example:
        >>> import numpy as np
        >>> site = np.repeat(["A", "B", "C"], 50)
        >>> device = np.repeat(["x1", "x2", "x3"], 50)
        >>> age = np.random.default_rng(0).normal(size=150) + np.repeat([0, 1, 2], 50)
        >>> naming_columns({"device": device, "age": age}, site)
        (NamingColumn(column='device', environments=('A', 'B', 'C'), share=1.0),)
    """
    names, codes = _labels(environments)
    sizes = np.bincount(codes, minlength=len(names))
    found: list[NamingColumn] = []
    for name, array in columns.items():
        kind, values, _ = _checked("naming_columns", name, array, len(codes))
        if len(names) < 2 or len(names) > _MOST_ENVIRONMENTS:
            continue
        if kind == "category" or name in categorical:
            cells, least = np.unique(values, return_inverse=True)[1], _NAMED
        elif not _may_name(values, codes, sizes):
            continue
        else:
            cells, least = _intervals(values, codes, len(names)), _NAMED_BY_NUMBERS
        table = np.zeros((int(cells.max()) + 1, len(names)))
        np.add.at(table, (cells, codes), 1)
        table[table.sum(axis=1) < _FEWEST_ROWS] = 0
        owner = table.argmax(axis=1)
        right = np.bincount(owner, table.max(axis=1), minlength=len(names))
        claimed = np.bincount(owner, table.sum(axis=1), minlength=len(names))
        named = (right >= least * sizes) & (right >= least * claimed) & (sizes >= _FEWEST_ROWS)
        if named.sum() >= max(2, len(names) / 2):
            which = tuple(names[k] for k in np.flatnonzero(named))
            found.append(NamingColumn(name, which, float(right.sum() / len(codes))))
    return tuple(found)


def _may_name(values: Array, codes: NDArray[np.int64], sizes: NDArray[np.int64]) -> bool:
    """Return False if intervals of numbers clearly cannot identify enough environments (a fast check).

    If rows are sorted by value, nearly every row of an identified environment is followed by a row of the
    same environment. Exceptions are the last row of each interval, and at most 3 % of the rows.
    """
    own = codes[np.lexsort((codes, values))]
    same = np.bincount(own[1:][own[1:] == own[:-1]], minlength=len(sizes))
    possible = (same >= 0.97 * sizes - _INTERVALS * len(sizes) - 1) & (sizes >= _FEWEST_ROWS)
    return bool(possible.sum() >= max(2, len(sizes) / 2))


def _intervals(values: Array, codes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return each value's interval index; the intervals are set by a tree that predicts the environment."""
    distinct, cells = np.unique(values, return_inverse=True)
    if len(distinct) <= 2 * count:
        return cells
    # Use ranks instead of the values, which may be too large for the tree.
    ranks = cells[:, None].astype(np.float32)
    tree: Any = DecisionTreeClassifier(
        max_leaf_nodes=_INTERVALS * count, min_samples_leaf=_FEWEST_ROWS, random_state=0
    )
    return np.unique(tree.fit(ranks, codes).apply(ranks), return_inverse=True)[1]


def missingness_differences(
    columns: Mapping[str, ArrayLike], environments: ArrayLike, *, categorical: Collection[str] = ()
) -> tuple[MissingShares, ...]:
    """Find columns whose share of missing values differs between environments by at least 0.3.

    The difference must be significant (χ² test of equal shares, p < 0.0001, Bonferroni-corrected).

    Args:
        columns: Values by column name, `[rows]`. NaN, None and negative category codes are missing.
        environments: Environment of each row, `[rows]`.
        categorical: Names of numeric columns with category codes.

    Raises:
        EnvariantError: If a column does not have one value per row.

    Example:
        >>> import numpy as np
        >>> site = np.repeat(["A", "B"], 50)
        >>> vessels = np.where(site == "B", np.nan, 1.0)
        >>> missingness_differences({"vessels": vessels, "age": np.ones(100)}, site)
        (MissingShares(column='vessels', shares={'A': 0.0, 'B': 1.0}),)
    """
    names, codes = _labels(environments)
    sizes = np.bincount(codes, minlength=len(names))
    found: list[MissingShares] = []
    for name, array in columns.items():
        kind, values, _ = _checked("missingness_differences", name, array, len(codes))
        missing = values < 0 if kind == "category" or name in categorical else ~np.isfinite(values)
        counts = np.bincount(codes, missing, minlength=len(names))
        shares = counts / sizes
        if len(names) < 2 or shares.max() - shares.min() < _GAP:
            continue
        expected = sizes * missing.mean()
        statistic = ((counts - expected) ** 2 / (expected * (1 - missing.mean()))).sum()
        if stats.chi2.sf(statistic, len(names) - 1) * len(columns) < _LEVEL:
            found.append(MissingShares(name, dict(zip(names, shares.tolist(), strict=True))))
    return tuple(found)


def local_categories(
    columns: Mapping[str, ArrayLike], environments: ArrayLike, *, categorical: Collection[str] = ()
) -> tuple[LocalCategories, ...]:
    """Find categories that occur in one environment only, and so are unknown to models trained elsewhere.

    A category is reported if the probability that all of its rows are in one environment by chance is below
    0.0001. A column is skipped if none of its categories occurs in two environments.

    Args:
        columns: Values by column name, `[rows]`. Only text and columns named in `categorical` are checked.
        environments: Environment of each row, `[rows]`.
        categorical: Names of numeric columns with category codes.

    Raises:
        EnvariantError: If a column does not have one value per row.

    Example:
        >>> import numpy as np
        >>> site, sex = np.repeat(["A", "B"], 50), np.tile(["f", "m"], 50)
        >>> sex[60:80] = "x"
        >>> local_categories({"sex": sex}, site)
        (LocalCategories(column='sex', environment='B', categories=('x',)),)
    """
    names, codes = _labels(environments)
    share = np.bincount(codes, minlength=len(names)) / max(1, len(codes))
    found: list[LocalCategories] = []
    for name, array in columns.items():
        kind, values, labels = _checked("local_categories", name, array, len(codes))
        if (kind != "category" and name not in categorical) or not (values >= 0).any():
            continue
        present = values >= 0
        table = np.zeros((int(values.max()) + 1, len(names)))
        np.add.at(table, (values[present].astype(np.int64), codes[present]), 1)
        rows, alone = table.sum(axis=1), (table > 0).sum(axis=1) == 1
        if alone[rows > 0].all():
            continue
        surprising = rows * np.log(share[table.argmax(axis=1)]) < np.log(_LEVEL)
        for e in range(len(names)):
            local = np.flatnonzero(alone & surprising & (table.argmax(axis=1) == e))
            if len(local):
                texts = tuple(labels[k] if labels else str(k) for k in local)
                found.append(LocalCategories(name, names[e], texts))
    return tuple(found)


def identifiers(
    columns: Mapping[str, ArrayLike], *, categorical: Collection[str] = ()
) -> tuple[Identifier, ...]:
    """Find columns with a distinct value in nearly every row: strings, row numbers and numeric identifiers.

    A column of whole numbers is reported as row numbers if its values are all distinct and nearly
    consecutive. It is reported as a numeric identifier if at least 95 % of the values are distinct and one of
    two conditions holds: the column name ends in a word such as "id", or all values have the same number of
    digits, at least 6.

    Args:
        columns: Values by column name, `[rows]`.
        categorical: Names of numeric columns with category codes.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> identifiers({"patient_id": rng.choice(9000, 99, replace=False), "age": rng.integers(90, size=99)})
        (Identifier(column='patient_id', kind='number', distinct=99),)
    """
    found: list[Identifier] = []
    for name, array in columns.items():
        kind, values, _ = typed(array)
        is_category = kind == "category" or name in categorical
        present = values[values >= 0] if is_category else values[np.isfinite(values)]
        distinct = len(np.unique(present))
        if distinct < max(_FEWEST_DISTINCT, _DISTINCT * len(present)):
            continue
        if is_category:
            found.append(Identifier(name, "text", distinct))
        elif kind == "number" and (present == np.floor(present)).all():
            digits = {len(str(int(abs(v)))) for v in present.tolist()}
            named = _IDENTIFIER.fullmatch(name) or _CAMEL.fullmatch(name)
            if np.ptp(present) < 1.05 * len(present) and distinct == len(present):
                found.append(Identifier(name, "row number", distinct))
            elif named or (len(digits) == 1 and min(digits) >= _LONG and (present > 0).all()):
                found.append(Identifier(name, "number", distinct))
    return tuple(found)


def _labels(environments: ArrayLike) -> tuple[list[str], NDArray[np.int64]]:
    names, codes = np.unique(np.asarray(environments), return_inverse=True)
    return [str(name) for name in names], codes


def _checked(where: str, name: str, array: ArrayLike, rows: int) -> tuple[str, Array, tuple[str, ...]]:
    kind, values, labels = typed(array)
    if len(values) != rows:
        raise EnvariantError(f"{where}: '{name}' has {len(values)} rows, but 'environments' has {rows}")
    return kind, values, labels
