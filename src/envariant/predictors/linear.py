"""Ridge regression and L2-regularized logistic regression, with cross-validated penalty strength."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from scipy.special import logsumexp
from torch import Tensor, nn

from envariant.analysis._logistic import fit_logistic
from envariant.core.environments import EnvironmentSet
from envariant.core.tasks import Regression, Task
from envariant.predictors.base import (
    LIMIT,
    Description,
    FittedPredictor,
    Predictor,
    Tensors,
    numbers_of,
    pooled,
    row_groups,
)

Array = NDArray[np.float64]

# Inverse penalties C of logistic regression, and penalties of ridge regression, for standardized inputs.
_INVERSE_PENALTIES = tuple(10.0**k for k in range(-3, 3))
_PENALTIES = np.logspace(-2, 4, 13)
_FOLDS = 5
MOST_TESTED = 300
"""Largest number of inputs whose stability is tested by `stable-columns`."""
# With more inputs, the strength is chosen with two folds only, because each fit takes about 0.1 s.
_MOST_INPUTS_OF_FOLDS = 500
# Largest value of rows · inputs² for which all folds of a binary target are fitted together.
_MOST_AT_ONCE = 2_000_000
# Penalty strengths are compared on at most this many rows, sampled at random.
_MOST_ROWS = 20_000
# With more coefficients, Newton steps are slower than L-BFGS.
_MOST_NEWTON = 300


@final
@dataclass(frozen=True)
class Linear(Predictor):
    """Ridge or L2-regularized logistic regression (multinomial for several classes) on the pooled rows.

    The penalty applies to standardized inputs; inputs with two values are only centered. The penalty strength
    minimizes the squared error of leave-one-out predictions (ridge), or the log loss in 5-fold stratified
    cross-validation (logistic) on the pooled rows (Hoerl & Kennard 1970; le Cessie & van Houwelingen 1992).
    If rows have groups, both models use 5-fold cross-validation in which each fold consists of whole groups.
    With more than 500 inputs, logistic regression uses 2 folds instead of 5.

    Attributes:
        name: Name shown in tables.
    """

    name: str = "linear"

    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        inputs, targets, weights = pooled(environments)
        w = None if weights is None else weights.double().numpy()
        groups = row_groups(environments)
        return fit_linear(environments.task, inputs.double().numpy(), targets.numpy(), w, seed, groups=groups)


@final
@dataclass(frozen=True, eq=False)
class FittedLinear(FittedPredictor):
    """Fitted linear model: logits = inputs · weight + bias.

    Attributes:
        weight: Coefficients, `[width, outputs]`, float64.
        bias: Intercepts, `[outputs]`, float64.
        left_out: Positions of the inputs that were omitted as unstable; None if stability was not tested.
    """

    kind: ClassVar[str] = "linear"

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    left_out: tuple[int, ...] | None = None
    iterations: int = 1

    @property
    def rows_are_independent(self) -> bool:
        return True

    def logits(self, inputs: Tensor, columns: Any = None) -> Tensor:
        del columns
        raw = (inputs.flatten(1).cpu().double() @ self.weight + self.bias).float().to(inputs.device)
        return raw.flatten() if raw.shape[1] == 1 else raw

    def note(self, names: Any) -> str:
        if self.left_out is None:
            return ""
        if not self.left_out:
            why = (
                "is unstable" if len(self.weight) <= MOST_TESTED else "was tested, because there are too many"
            )
            return f"none of {len(self.weight)} inputs {why}, so this model equals the linear model"
        return f"left out as unstable: {', '.join(names[k] for k in self.left_out)}"

    def module(self) -> nn.Module:
        """Convert the model to a linear layer of PyTorch in float32."""
        width, outputs = self.weight.shape
        layer = nn.Linear(width, outputs)
        state = {"weight": self.weight.T.float().contiguous(), "bias": self.bias.float()}
        layer.load_state_dict(state)
        return layer.eval()

    def store(self) -> tuple[Description, Tensors]:
        left_out = None if self.left_out is None else list(self.left_out)
        return {"left_out": left_out}, {"weight": self.weight.clone(), "bias": self.bias.clone()}

    @classmethod
    def restore(
        cls, description: Description, tensors: Tensors, task: Task, width: int, trusted: Sequence[str] = ()
    ) -> Self:
        del trusted
        outputs = task.outputs
        weight = numbers_of(tensors, "weight", (width, outputs), torch.float64)
        left_out: list[int] | None = description["left_out"]
        if left_out is not None and not all(type(k) is int and 0 <= k < width for k in left_out):
            raise ValueError("left_out: must be positions of inputs")
        bias = numbers_of(tensors, "bias", (outputs,), torch.float64)
        return cls(weight, bias, None if left_out is None else tuple(left_out))


def fit_linear(
    task: Task,
    inputs: Array,
    targets: NDArray[Any],
    weights: Array | None,
    seed: int,
    left_out: tuple[int, ...] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> FittedLinear:
    """Fit ridge or logistic regression with cross-validated penalty strength.

    Args:
        task: Prediction task.
        inputs: Inputs, `[rows, width]`.
        targets: Targets, `[rows]`.
        weights: Sample weights, `[rows]`; None for equal weights.
        seed: Random seed of the folds.
        left_out: Positions of inputs to omit, whose coefficients are 0. None: use all inputs.
        groups: Group of each row, `[rows]`; groups are never split between folds. None: rows are
            independent.
    """
    w = np.ones(len(inputs)) if weights is None else weights / weights.mean()
    rows = w > 0
    inputs, targets, w = inputs[rows], targets[rows], w[rows]
    groups = None if groups is None else groups[rows]
    center, scale = _standardization(inputs, w)
    used = np.setdiff1d(np.arange(inputs.shape[1]), np.array(left_out or (), dtype=int))
    x = (inputs[:, used] - center[used]) / scale[used]
    draw = np.random.default_rng(seed)
    fit = _ridge if isinstance(task, Regression) else _logistic
    coefficients, intercepts = fit(task, x, targets, w, draw, groups)
    weight = np.zeros((inputs.shape[1], task.outputs))
    weight[used] = coefficients / scale[used, None]
    bias = intercepts - center @ weight
    return FittedLinear(torch.tensor(weight), torch.tensor(bias), left_out)


def _standardization(inputs: Array, w: Array) -> tuple[Array, Array]:
    """Return the weighted mean and scale of each input; the scale of 0/1 and constant inputs is 1."""
    center = w @ inputs / w.sum()
    scale = np.sqrt(np.maximum(w @ np.square(inputs - center) / w.sum(), 0))
    low, high = inputs.min(axis=0), inputs.max(axis=0)
    two_values = ((inputs == low) | (inputs == high)).all(axis=0) & (high - low <= 1)
    return center, np.where(two_values | (scale < 1e-12), 1.0, scale)


def _ridge(
    task: Task, x: Array, targets: NDArray[Any], w: Array, draw: np.random.Generator,
    groups: NDArray[np.int64] | None,
) -> tuple[Array, Array]:  # fmt: skip
    """Fit ridge regression; return coefficients, `[inputs, 1]`, and intercept, `[1]`."""
    from sklearn.linear_model import Ridge, RidgeCV

    y = targets.astype(np.float64)
    if not x.shape[1] or len(y) < 3 or not np.ptp(y):
        return np.zeros((x.shape[1], 1)), np.array([w @ y / w.sum()])
    some = _some_rows(len(y), draw)
    folds: Any = None
    if groups is not None and len(np.unique(groups[some])) > 1:
        fold = _folds_of_groups(groups[some], _FOLDS, draw)
        folds = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]
    scoring = None if folds is None else "neg_mean_squared_error"
    search: Any = RidgeCV(alphas=_PENALTIES, cv=folds, scoring=scoring)
    search.fit(x[some], y[some], sample_weight=w[some])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)
        model = Ridge(alpha=float(search.alpha_)).fit(x, y, sample_weight=w)
    return np.asarray(model.coef_)[:, None], np.array([float(model.intercept_)])


def _logistic(
    task: Task, x: Array, targets: NDArray[Any], w: Array, draw: np.random.Generator,
    groups: NDArray[np.int64] | None,
) -> tuple[Array, Array]:  # fmt: skip
    """Fit logistic regression with cross-validated penalty; return coefficients and intercepts."""
    present, y = np.unique(targets.astype(np.int64), return_inverse=True)
    if len(present) < 2 or not x.shape[1]:
        shares = np.bincount(y, w) / w.sum()
        coefficients, intercepts = np.zeros((x.shape[1], len(present))), np.log(shares)
    else:
        coefficients, intercepts = _fit_logistic(x, y, w, _strength(x, y, w, draw, groups))
    # Classes without training rows have the lowest logit.
    every = np.zeros((x.shape[1], max(2, task.outputs))), np.full(max(2, task.outputs), -LIMIT)
    every[0][:, present], every[1][present] = coefficients, intercepts
    if task.outputs > 1:
        return every
    return every[0][:, 1:] - every[0][:, :1], np.clip(every[1][1:] - every[1][:1], -LIMIT, LIMIT)


def _fit_logistic(
    x: Array, y: NDArray[Any], w: Array, inverse_penalty: float, model: Any = None
) -> tuple[Array, Array]:
    """Fit logistic regression; return coefficients, `[inputs, classes]`, and intercepts, `[classes]`.

    If a model is given, it is fitted in place; the solver starts from its coefficients.
    """
    from sklearn.exceptions import ConvergenceWarning

    model = _logistic_model(x, y) if model is None else model
    with warnings.catch_warnings():
        # The fit is penalized, so a last step that is still large changes predictions little.
        for category in (ConvergenceWarning, LinAlgWarning, RuntimeWarning):
            warnings.simplefilter("ignore", category)
        model.set_params(C=inverse_penalty).fit(x, y, sample_weight=w)
    coefficients, intercepts = np.asarray(model.coef_).T, np.asarray(model.intercept_)
    if len(intercepts) > 1:
        return coefficients, intercepts
    return np.hstack([-coefficients, coefficients]) / 2, np.hstack([-intercepts, intercepts]) / 2


def _logistic_model(x: Array, y: NDArray[Any]) -> Any:
    """Return an unfitted model whose repeated fits start from the last coefficients."""
    from sklearn.linear_model import LogisticRegression

    classes = int(y.max()) + 1
    newton = x.shape[1] * (1 if classes == 2 else classes) <= _MOST_NEWTON
    solver = "newton-cholesky" if newton else "lbfgs"
    return LogisticRegression(solver=solver, max_iter=100, tol=1e-6, warm_start=True)


def _strength(
    x: Array, y: NDArray[Any], w: Array, draw: np.random.Generator, groups: NDArray[np.int64] | None
) -> float:
    """Return the inverse penalty with the smallest log loss in stratified cross-validation."""
    some = _some_rows(len(y), draw)
    x, y, w = x[some], y[some], w[some]
    folds = min(_FOLDS if x.shape[1] <= _MOST_INPUTS_OF_FOLDS else 2, int(np.bincount(y).max()))
    if groups is not None:
        fold = _folds_of_groups(groups[some], folds, draw)
    else:
        # Rows of a class are dealt to the folds in turn, in random order.
        order = draw.permutation(len(y))
        order = order[np.argsort(y[order], kind="stable")]
        fold = np.empty(len(y), dtype=int)
        fold[order] = np.arange(len(y)) % folds
    if y.max() == 1 and len(y) * (x.shape[1] + 1) ** 2 <= _MOST_AT_ONCE:
        return _INVERSE_PENALTIES[int(_binary_losses(x, y, w, fold).argmin())]
    losses = np.zeros(len(_INVERSE_PENALTIES))
    for k in range(folds):
        inside, outside = fold != k, fold == k
        present, codes = np.unique(y[inside], return_inverse=True)
        if len(present) < 2:
            continue
        # From the strongest penalty to the weakest, each fit starts from the last one.
        model, own_x, own_w = _logistic_model(x, codes), x[inside], w[inside]
        for i, inverse_penalty in enumerate(_INVERSE_PENALTIES):
            coefficients, intercepts = _fit_logistic(own_x, codes, own_w, inverse_penalty, model)
            logits = np.full((int(outside.sum()), int(y.max()) + 1), -LIMIT)
            logits[:, present] = x[outside] @ coefficients + intercepts
            own = logits[np.arange(len(logits)), y[outside]]
            losses[i] += float(w[outside] @ (logsumexp(logits, axis=1) - own))
    return _INVERSE_PENALTIES[int(losses.argmin())]


def _binary_losses(x: Array, y: NDArray[Any], w: Array, fold: NDArray[np.int64]) -> Array:
    """Return the cross-validated log loss for every inverse penalty; all folds are fitted at once."""
    inside = w * (fold != np.unique(fold)[:, None])
    usable = ((inside > 0) & (y == 0)).any(axis=1) & ((inside > 0) & (y == 1)).any(axis=1)
    design = np.column_stack([np.ones(len(y)), x])
    rows = np.flatnonzero(usable[fold])
    losses: list[float] = []
    for inverse_penalty in _INVERSE_PENALTIES:
        precision = np.append(1e-8, np.full(x.shape[1], 1 / inverse_penalty))
        fits = fit_logistic(design[:, None], y[:, None].astype(np.float64), inside, precision=precision)
        logits = (design[rows] * fits.coefficients[fold[rows]]).sum(axis=1)
        losses.append(float(w[rows] @ (np.logaddexp(0.0, logits) - y[rows] * logits)))
    return np.array(losses)


def _folds_of_groups(groups: NDArray[np.int64], folds: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Return the fold of each row; groups are assigned to the folds at random, in equal numbers."""
    numbers, group = np.unique(groups, return_inverse=True)
    return (draw.permutation(len(numbers)) % folds)[group]


def _some_rows(count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows used to choose the penalty strength, a random sample of large data."""
    return np.arange(count) if count <= _MOST_ROWS else np.sort(draw.choice(count, _MOST_ROWS, replace=False))
