"""Estimators of invariant causal prediction: regression on the columns that every invariant set shares."""

import warnings
from abc import ABC
from typing import Any, Self, cast, final, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from envariant.closed_forms.base import Array, EnvironmentEstimator, LinearRegressor, Rows, check_level
from envariant.closed_forms.causal_subsets import (
    CausalSubsets,
    Correction,
    Subset,
    SubsetFit,
    Test,
    find_causal_subsets,
    regress_linear,
    regress_logistic,
)
from envariant.core.errors import EnvariantError, EnvariantWarning, listed, unknown_name
from envariant.core.estimator_inputs import errors_in_one_line

_FEWEST_ROWS = 3
_MOST_COLUMNS = 15


class CausalEstimator(EnvironmentEstimator, ABC):
    """Base class of the regressor and the classifier."""

    alpha: float
    max_columns: int
    correction: Correction

    subsets_: CausalSubsets

    def _find(self, rows: Rows, targets: Array, *, binary: bool, test: Test = "residuals") -> SubsetFit:
        """Test the subsets, and return the regression on the causal parents."""
        name = type(self).__name__
        if self.correction not in get_args(Correction):
            raise unknown_name("correction", str(self.correction), get_args(Correction), where=name)
        if type(self.max_columns) is not int or not 1 <= self.max_columns <= _MOST_COLUMNS:
            raise EnvariantError(
                f"{name}: max_columns must be an integer from 1 to {_MOST_COLUMNS}, because 2^max_columns "
                f"regressions are fitted; got {self.max_columns!r}"
            )
        sizes = np.bincount(rows.codes)
        if len(sizes) > 1 and sizes.min() < _FEWEST_ROWS:
            raise EnvariantError(
                f"{name}: every environment needs at least {_FEWEST_ROWS} rows, but "
                f"'{rows.names[int(sizes.argmin())]}' has {sizes.min()}; remove or merge small environments"
            )
        self.subsets_ = find_causal_subsets(
            rows.inputs,
            targets,
            rows.codes,
            alpha=check_level(name, self.alpha),
            binary=binary,
            test=test,
            correction=self.correction,
            tested=_preselected(rows.inputs, targets, self.max_columns),
        )
        if self.subsets_.parents is None:
            warnings.warn(
                f"{name}: {self.conclusion()} Predictions are constant.", EnvariantWarning, stacklevel=3
            )
        return (regress_logistic if binary else regress_linear)(
            rows.inputs, targets, self.subsets_.parents or ()
        )

    @property
    def parents_(self) -> tuple[Any, ...] | None:
        """Causal parents: names of columns, or positions if columns have no names; None if rejected."""
        parents = self.subsets_.parents
        return None if parents is None else tuple(self._names(parents))

    @property
    def accepted_sets_(self) -> tuple[tuple[Any, ...], ...]:
        """Accepted sets of columns."""
        return tuple(tuple(self._names(subset)) for subset in self.subsets_.accepted)

    @property
    def defining_sets_(self) -> tuple[tuple[Any, ...], ...]:
        """Minimal sets of columns of which at least one is a causal parent."""
        return tuple(tuple(self._names(subset)) for subset in self.subsets_.defining_sets)

    def summary(self) -> pd.DataFrame:
        """Return confidence interval, p-value and verdict for each column.

        Returns:
            Data frame with the columns `low`, `high`, `p_value` and `parent`. The interval is NaN if the
            model is rejected, or the column was not tested.
        """
        low, high = self.subsets_.intervals.T
        parents = self.subsets_.parents or ()
        every = tuple(range(self.subsets_.n_columns))
        return pd.DataFrame(
            {
                "low": low,
                "high": high,
                "p_value": self.subsets_.column_p_values,
                "parent": [j in parents for j in every],
            },
            index=pd.Index(self._names(every), name="column"),
        )

    def conclusion(self) -> str:
        """Return the conclusion in one or two sentences."""
        alpha, parents = self.subsets_.alpha, self.parents_
        if parents is None:
            return (
                f"No set of columns is invariant at level {alpha:g}, so the model is rejected and there is "
                f"no answer. The environments may act on the target itself, a cause may be missing, or the "
                f"relation may not be linear."
            )
        if parents:
            return f"Causal parents at level {alpha:g}: {listed(parents, 20)}."
        if sets := self.defining_sets_:
            return (
                f"No single column is in every invariant set, but at level {alpha:g} there is a causal "
                f"parent in each of: {listed([' or '.join(map(str, each)) for each in sets], 5, '; ')}."
            )
        return (
            f"The empty set is invariant at level {alpha:g}, so no column is identified as a cause. The "
            f"environments may be too few, or differ too little."
        )

    def _names(self, columns: Subset) -> list[Any]:
        names: Any = getattr(self, "feature_names_in_", None)
        return [j if names is None else str(names[j]) for j in columns]


@final
class InvariantCausalPrediction(CausalEstimator, LinearRegressor):
    """Invariant causal prediction (Peters, Bühlmann and Meinshausen 2016, arXiv 1501.01332).

    A set S of columns is accepted if the regression of y on X_S has equal residuals in all environments, as
    far as tests can tell. Every cause of y is then in every accepted set that the data can distinguish, so
    the intersection Ŝ of the accepted sets contains only causal parents with probability at least 1 − α. See
    `find_causal_subsets` for the tests. Predictions are the regression on Ŝ: the mean of y, if Ŝ is empty.

    The environments must not act on y directly, and all parents must be observed. If no set is accepted, the
    model is rejected: `parents_` is None. With few environments or weak shifts, Ŝ is often empty.

    Args:
        alpha: Level α, between 0 and 1.
        max_columns: Largest number of tested columns. With more columns, the first `max_columns` of the path
            of least-angle regression are tested. The cost is 2^max_columns regressions.
        test: "residuals" (t test and F test) or "exact" (Chow's test, exact for normal noise).
        correction: Bonferroni factor: "environments" (E, as in the paper) or "comparisons" (E − 1, as in the
            authors' program).

    Attributes:
        parents_: Names, or positions, of the causal parents Ŝ; None if the model is rejected.
        accepted_sets_: Accepted sets.
        defining_sets_: Minimal sets that contain a causal parent, at level α.
        subsets_: `CausalSubsets` with all p-values and confidence intervals.
        coef_: Coefficients, `[p]`; 0 outside Ŝ.
        intercept_: Intercept.
        environments_, environment_column_, n_features_in_: See `AnchorRegressor`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> site, shift = np.repeat([0, 1, 2], 200), np.repeat([0.0, 2.0, 4.0], 200)
        >>> cause = shift + rng.normal(size=600)
        >>> y = 1.5 * cause + rng.normal(size=600)
        >>> effect = y + shift + rng.normal(size=600)
        >>> icp = InvariantCausalPrediction().fit(np.column_stack([cause, effect]), y, environments=site)
        >>> icp.parents_, icp.accepted_sets_
        ((0,), ((0,),))
    """

    test: Test

    def __init__(
        self,
        alpha: float = 0.05,
        *,
        max_columns: int = 8,
        test: Test = "residuals",
        correction: Correction = "environments",
    ) -> None:
        self.alpha = alpha
        self.max_columns = max_columns
        self.test = test
        self.correction = correction

    def fit(self, X: Any, y: ArrayLike, *, environments: ArrayLike | str | None = None) -> Self:  # noqa: N803
        """Test all sets of columns, and fit the regression on the causal parents.

        Args:
            X: Numeric columns, `[rows, p]`: an array or a data frame.
            y: Targets, `[rows]`.
            environments: Environment labels, `[rows]`, of any type, or the name of the environment column of
                the data frame `X`. This column is not tested.

        Returns:
            The fitted estimator.

        Raises:
            EnvariantError: If an argument or a parameter is invalid, or an environment has too few rows.

        Warns:
            EnvariantWarning: If the model is rejected.
            UserWarning: If there are no environments; every set is then accepted.
        """
        rows = self._read_rows(X, y, environments, "no column is identified as a cause")
        if self.test not in get_args(Test):
            raise unknown_name("test", str(self.test), get_args(Test), where="InvariantCausalPrediction")
        fit = self._find(rows, rows.targets.astype(np.float64), binary=False, test=self.test)
        self.coef_ = _spread(fit, rows.inputs.shape[1])
        self.intercept_ = fit.intercept
        self._remember(rows, environments)
        return self

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        # Without environments, predictions are constant.
        tags.regressor_tags.poor_score = True
        return tags


@final
class InvariantCausalClassifier(ClassifierMixin, CausalEstimator):
    """Invariant causal prediction for two classes, with logistic regressions.

    The residuals are y − P(y = 1 | X_S), and only their means are compared. See `InvariantCausalPrediction`.

    Args:
        alpha: Level α, between 0 and 1.
        max_columns: Largest number of tested columns.
        correction: Bonferroni factor: "environments" (E) or "comparisons" (E − 1).

    Attributes:
        classes_: The two class labels, sorted.
        coef_: Coefficients, `[1, p]`; 0 outside Ŝ.
        intercept_: Intercept, `[1]`.
        parents_, accepted_sets_, defining_sets_, subsets_: See `InvariantCausalPrediction`.
        environments_, environment_column_, n_features_in_: See `AnchorRegressor`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(1)
        >>> site, shift = np.repeat([0, 1, 2], 400), np.repeat([0.0, 1.0, 2.0], 400)
        >>> cause = shift + rng.normal(size=1200)
        >>> y = cause + rng.logistic(size=1200) > 0
        >>> effect = y - shift + rng.normal(size=1200)
        >>> X = np.column_stack([cause, effect])
        >>> InvariantCausalClassifier().fit(X, y, environments=site).parents_
        (0,)
    """

    classes_: NDArray[Any]
    coef_: Array
    intercept_: Array

    def __init__(
        self, alpha: float = 0.05, *, max_columns: int = 8, correction: Correction = "environments"
    ) -> None:
        self.alpha = alpha
        self.max_columns = max_columns
        self.correction = correction

    def fit(self, X: Any, y: ArrayLike, *, environments: ArrayLike | str | None = None) -> Self:  # noqa: N803
        """Test all sets of columns, and fit the logistic regression on the causal parents.

        Args:
            X: Numeric columns, `[rows, p]`: an array or a data frame.
            y: Labels of two classes, `[rows]`.
            environments: Environment labels, `[rows]`, of any type, or the name of the environment column of
                the data frame `X`. This column is not tested.

        Returns:
            The fitted estimator.

        Raises:
            EnvariantError: If an argument or a parameter is invalid, or there are not two classes.

        Warns:
            EnvariantWarning: If the model is rejected.
            UserWarning: If there are no environments; every set is then accepted.
        """
        rows = self._read_rows(X, y, environments, "no column is identified as a cause")
        with errors_in_one_line():
            check_classification_targets(rows.targets)
        classes, codes = np.unique(rows.targets, return_inverse=True)
        if len(classes) != 2:
            raise EnvariantError(
                f"InvariantCausalClassifier: Only binary classification is supported; y has {len(classes)} "
                f"{'class' if len(classes) == 1 else 'classes'}"
            )
        fit = self._find(rows, codes.astype(np.float64), binary=True)
        self.classes_ = classes
        self.coef_ = _spread(fit, rows.inputs.shape[1])[None]
        self.intercept_ = np.array([fit.intercept])
        self._remember(rows, environments)
        return self

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Return log-odds of the second class, `[rows]`."""
        return self._columns(X) @ self.coef_[0] + self.intercept_[0]

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the most probable class of each row, `[rows]`."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int)]

    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Return the probability of both classes, `[rows, 2]`."""
        logits = self.decision_function(X)
        return np.column_stack([expit(-logits), expit(logits)])

    def __sklearn_tags__(self) -> Any:
        tags: Any = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        # Without environments, predictions are constant.
        tags.classifier_tags.poor_score = True
        return tags


def _spread(fit: SubsetFit, n_columns: int) -> Array:
    """Return the coefficients of all columns, `[p]`; 0 for columns outside the subset."""
    coefficients = np.zeros(n_columns)
    coefficients[list(fit.columns)] = fit.coefficients
    return coefficients


def _preselected(x: Array, y: Array, count: int) -> Subset | None:
    """Return the first columns on the path of least-angle regression; None if there are few columns."""
    from sklearn.linear_model import lars_path

    if x.shape[1] <= count:
        return None
    scale = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    active = cast("Any", lars_path(z, y - y.mean(), method="lar", max_iter=count))[1]
    return tuple(sorted(int(j) for j in active[:count]))
