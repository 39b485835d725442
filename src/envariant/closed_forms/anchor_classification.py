"""Anchor regression for classes: logistic regression whose score residuals are decorrelated from anchors."""

from typing import Any, Self, cast, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from envariant.closed_forms.anchor_estimator import AnchorEstimator
from envariant.closed_forms.anchors import Anchors, environment_anchors
from envariant.closed_forms.base import Array, check_number
from envariant.core.errors import EnvariantError
from envariant.core.estimator_inputs import errors_in_one_line, mean_and_scale

_MOST_STEPS = 2_000


@final
class AnchorClassifier(ClassifierMixin, AnchorEstimator):
    """Logistic anchor regression (Kook, Sick and Bühlmann 2022, arXiv 2101.08224).

    The residual of a row and class is r = 1[y = k] − p_k, the derivative of the log-likelihood by the
    intercept. With the projection Π on the span of the centered anchors and standardized columns, the
    coefficients minimize

        −Σ_i log p(y_i) + (γ−1)/4 Σ_k ‖Π r_k‖² + α/2 Σ_k ‖b_k‖²

    For two classes, Σ_k ‖Π r_k‖² = 2 ‖Π r‖², and the first two terms are those of the paper with
    ξ = (γ−1)/2; with squared error instead of the log-likelihood, they would be ½ times the objective of
    `AnchorRegressor`. There is no closed form: L-BFGS starts at the logistic regression. For γ > 1 the
    objective need not be convex.

    Args:
        gamma: Weight γ of the residual explained by the anchors, at least 1; 1 is logistic regression.
        alpha: Strength of the L2 penalty on the coefficients of standardized columns, greater than 0, so that
            the minimum is finite if classes are separable.

    Attributes:
        classes_: Class labels, sorted.
        coef_: Coefficients of the columns, `[1, p]` for two classes, else `[classes, p]`.
        intercept_: Intercepts, `[1]` or `[classes]`.
        n_iter_: Number of iterations of L-BFGS.
        environments_, environment_column_, anchor_columns_, n_features_in_: See `AnchorRegressor`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> site = np.repeat(["north", "south", "east"], 200)
        >>> x = rng.normal(size=600)
        >>> y = (x + rng.normal(size=600) > 0).astype(int)
        >>> marker = y + np.repeat([-1.0, 0.0, 1.0], 200) + rng.normal(size=600)  # Shifts between sites.
        >>> X = np.column_stack([x, marker])
        >>> [AnchorClassifier(g).fit(X, y, environments=site).coef_[0].round(1) for g in (1, 100)]
        [array([2. , 0.6]), array([2.2, 0.2])]
    """

    classes_: NDArray[Any]
    coef_: Array
    intercept_: Array

    def __init__(self, gamma: float = 4.0, *, alpha: float = 1.0) -> None:
        self.gamma = gamma
        self.alpha = alpha

    def fit(
        self,
        X: Any,  # noqa: N803
        y: ArrayLike,
        *,
        environments: ArrayLike | str | None = None,
        anchors: Any = None,
    ) -> Self:
        """Fit the coefficients.

        Args:
            X: Numeric columns, `[rows, p]`: an array or a data frame.
            y: Class labels, `[rows]`.
            environments: Environment labels, `[rows]`, of any type, or the name of the environment column of
                the data frame `X`. This column is not an input.
            anchors: Instead of environments: numeric anchors, `[rows, q]` or `[rows]`, or names of columns of
                the data frame `X`. These columns are not inputs.

        Returns:
            The fitted estimator.

        Raises:
            EnvariantError: If an argument or a parameter is invalid, or there is only one class.

        Warns:
            UserWarning: If there are neither environments nor anchors; logistic regression is then used.
        """
        gamma = check_number("AnchorClassifier", "gamma", self.gamma, 1)
        alpha = check_number("AnchorClassifier", "alpha", self.alpha, np.finfo(np.float64).tiny)
        rows, found = self._read_anchors(X, y, environments, anchors, "logistic regression was used instead")
        with errors_in_one_line():
            check_classification_targets(rows.targets)
        classes, codes = np.unique(rows.targets, return_inverse=True)
        if len(classes) < 2:
            raise EnvariantError(f"y must hold at least two classes; got one class ({classes[0]})")
        mean, scale = mean_and_scale(rows.inputs)
        onehot = (codes[:, None] == np.arange(len(classes))).astype(np.float64)
        found = found or environment_anchors(rows.codes)
        weights, self.n_iter_ = _minimize((rows.inputs - mean) / scale, onehot, found, gamma, alpha)
        coefficients = weights[1:] / scale[:, None]
        intercepts = weights[0] - mean @ coefficients
        if len(classes) == 2:
            coefficients, intercepts = np.diff(coefficients, axis=1), np.diff(intercepts)
        self.classes_, self.coef_, self.intercept_ = classes, coefficients.T, intercepts
        return self

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Return logits: `[rows]` for two classes (positive for the second), else `[rows, classes]`."""
        logits = self._columns(X) @ self.coef_.T + self.intercept_
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the most probable class of each row, `[rows]`."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:  # noqa: N803
        """Return the probability of every class, `[rows, classes]`, in the order of `classes_`."""
        logits = self.decision_function(X)
        return softmax(np.column_stack([-logits / 2, logits / 2]) if logits.ndim == 1 else logits, axis=1)


def _minimize(x: Array, onehot: Array, anchors: Anchors, gamma: float, alpha: float) -> tuple[Array, int]:
    """Return intercepts and coefficients, `[1 + p, classes]`, and the number of iterations."""
    n, n_classes = onehot.shape
    design = np.column_stack([np.ones(n), x])
    ridge = np.append(0.0, np.full(x.shape[1], alpha / n))[:, None]

    def objective(flat: Array, strength: float) -> tuple[float, Array]:
        weights = flat.reshape(-1, n_classes)
        log_p = log_softmax(design @ weights, axis=1)
        p = np.exp(log_p)
        residuals = onehot - p
        explained = anchors.project(residuals - residuals.mean(axis=0))
        value = -(onehot * log_p).sum() + strength / 2 * np.square(explained).sum()
        # d r_k / d logit_l = −p_k (1[k = l] − p_l), applied to the projected residuals.
        slope = -residuals - strength * p * (explained - (p * explained).sum(axis=1, keepdims=True))
        gradient = design.T @ slope / n + ridge * weights
        return value / n + float((ridge * np.square(weights)).sum()) / 2, gradient.ravel()

    flat, steps = np.zeros(design.shape[1] * n_classes), 0
    # The optimum of logistic regression is unique, so the result does not depend on an arbitrary start.
    for strength in dict.fromkeys((0.0, (gamma - 1) / 2)):
        options = {"maxiter": _MOST_STEPS, "gtol": 1e-9, "ftol": 1e-15, "maxcor": 30}
        found = cast(
            "Any",
            minimize(objective, flat, args=(strength,), jac=True, method="L-BFGS-B", options=options),
        )
        flat, steps = found.x, steps + int(found.nit)
    return flat.reshape(-1, n_classes), max(1, steps)
