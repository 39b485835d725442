"""Base classes of the closed-form estimators: rows with environments, and linear predictions."""

import warnings
from abc import ABC
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from envariant.core.conversion import coded, column_of
from envariant.core.errors import EnvariantError
from envariant.core.estimator_inputs import plain_targets, split_environments, validated

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Validated rows of one call of `fit`.

    Attributes:
        inputs: Numeric columns X, `[rows, p]`, without environment and anchor columns.
        targets: Targets, `[rows]`; empty for transformers.
        codes: Environment number of each row, `[rows]`; all 0 if `fit` received no environments.
        names: Names of the environments, in the order of the numbers.
    """

    inputs: Array
    targets: NDArray[Any]
    codes: Codes
    names: tuple[str, ...]


class EnvironmentEstimator(BaseEstimator, ABC):
    """Base class of estimators whose `fit` takes environment labels."""

    # Request for scikit-learn's metadata routing: pass `environments` to `fit`.
    __metadata_request__fit = {"environments": True}  # noqa: RUF012  # pyright: ignore[reportUnusedVariable]

    environments_: NDArray[Any]
    environment_column_: str | None
    n_features_in_: int

    def _read_rows(
        self,
        X: Any,  # noqa: N803
        y: Any,
        environments: ArrayLike | str | None,
        instead: str,
        *,
        supervised: bool = True,
    ) -> Rows:
        """Validate the arguments of `fit`.

        Args:
            X: Columns, `[rows, p]`; it may be a data frame with the environment column.
            y: Targets, `[rows]`; not used if `supervised` is False.
            environments: Environment labels, `[rows]`, the name of their column, or None.
            instead: What is computed without environments, for the warning. "" for no warning.
            supervised: Whether the estimator has targets.

        Raises:
            EnvariantError: If the rows are invalid, or there is only one environment.

        Warns:
            UserWarning: If there are no environments.
        """
        name = type(self).__name__
        table, labels = split_environments(X, environments)
        if not supervised:
            inputs, targets = validated(self, table, dtype=np.float64, ensure_min_samples=2), np.empty(0)
        else:
            numeric = isinstance(self, RegressorMixin)
            inputs, targets = validated(
                self, table, plain_targets(y), dtype=np.float64, y_numeric=numeric, ensure_min_samples=2
            )
        if labels is not None:
            codes, names = read_labels(name, labels, len(inputs))
            return Rows(inputs, targets, codes, names)
        if instead:
            warnings.warn(
                f"{name}: needs environments, but fit received none, so {instead}. "
                "Pass fit(…, environments=…)",
                UserWarning,
                stacklevel=3,
            )
        return Rows(inputs, targets, np.zeros(len(inputs), dtype=np.int64), ("all",))

    def _remember(self, rows: Rows, environments: ArrayLike | str | None) -> None:
        """Set the fitted attributes that describe the environments."""
        self.environments_ = np.array(rows.names)
        self.environment_column_ = environments if isinstance(environments, str) else None

    def _columns(self, X: Any) -> Array:  # noqa: N803
        """Return the numeric columns of new rows, `[rows, p]`, without the environment column."""
        check_is_fitted(self)
        return validated(self, self._without_other_columns(X), dtype=np.float64, reset=False)

    def _without_other_columns(self, X: Any) -> Any:  # noqa: N803
        """Return new rows without columns that are not inputs."""
        column = self.environment_column_
        return split_environments(X, column)[0] if column in getattr(X, "columns", ()) else X


class LinearRegressor(RegressorMixin, EnvironmentEstimator, ABC):
    """Base class of regressors with predictions X·b + intercept."""

    coef_: Array
    intercept_: float

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Return the predicted target of each row, `[rows]`.

        Args:
            X: Columns, `[rows, p]`; a data frame may also have the environment column.
        """
        return self._columns(X) @ self.coef_ + self.intercept_

    def _set_line(self, coefficients: Array, x_mean: Array, y_mean: float) -> None:
        """Set coefficients, and the intercept ȳ − x̄ᵀb of a line through the means."""
        self.coef_ = coefficients
        self.intercept_ = float(y_mean - x_mean @ coefficients)


def read_labels(where: str, labels: Any, rows: int) -> tuple[Codes, tuple[str, ...]]:
    """Return the environment number of each row, `[rows]`, and the names of the environments.

    Args:
        where: Name of the estimator, for error messages.
        labels: Environment labels, `[rows]`, of any type.
        rows: Number of rows.

    Raises:
        EnvariantError: If there is not one label per row, or only one environment.
    """
    what = f"{where}: environments"
    codes, names = coded(column_of(labels, what), what)
    if len(codes) != rows:
        raise EnvariantError(f"{what} must hold one label per row; got {len(codes)} labels for {rows} rows")
    if len(names) < 2:
        raise EnvariantError(f"{where}: needs at least 2 environments, but 'environments' contains 1")
    return codes, names


def least_squares(matrix: Array, values: Array) -> Array:
    """Return the least-squares solution of least norm, `[p]`.

    Args:
        matrix: Matrix, `[rows, p]`.
        values: Right-hand side, `[rows]`.
    """
    return np.asarray(np.linalg.lstsq(matrix, values, rcond=None)[0], dtype=np.float64)


def environment_means(values: Array, codes: Codes) -> Array:
    """Return the mean of each environment, `[environments, columns]`.

    Args:
        values: Columns, `[rows, columns]`.
        codes: Environment number of each row, `[rows]`.
    """
    sums = np.zeros((int(codes.max()) + 1, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums / np.bincount(codes)[:, None]


def second_moments(x: Array, y: Array, codes: Codes) -> tuple[Array, Array]:
    """Return the moments G_e = X_eᵀX_e / n_e and Z_e = X_eᵀy_e / n_e of every environment.

    Args:
        x: Columns, `[rows, p]`.
        y: Targets, `[rows]`.
        codes: Environment number of each row, `[rows]`.

    Returns:
        G, `[environments, p, p]`, and Z, `[environments, p]`.
    """
    members = [codes == e for e in range(int(codes.max()) + 1)]
    gram = np.array([x[own].T @ x[own] / own.sum() for own in members])
    cross = np.array([x[own].T @ y[own] / own.sum() for own in members])
    return gram, cross


def check_number(where: str, name: str, value: Any, low: float) -> float:
    """Return a parameter as a float, after checking that it is finite and at least `low`.

    Args:
        where: Name of the estimator.
        name: Name of the parameter.
        value: Value of the parameter.
        low: Smallest allowed value.

    Raises:
        EnvariantError: If the value is not a finite number of at least `low`.
    """
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not low <= float(value) < np.inf:
        raise EnvariantError(f"{where}: {name} must be a number of at least {low:g}, got {value!r}")
    return float(value)


def check_level(where: str, alpha: Any) -> float:
    """Return a significance level as a float, after checking that it is between 0 and 1.

    Raises:
        EnvariantError: If it is not a number between 0 and 1.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.floating) or not 0 < alpha < 1:
        raise EnvariantError(f"{where}: alpha must be between 0 and 1, got {alpha!r}")
    return float(alpha)
