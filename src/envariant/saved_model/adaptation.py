"""Adaptation of a saved model to a new environment in which a few rows have labels."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envariant.analysis.batch_score import BatchScore
from envariant.analysis.column_sketch import Sketch
from envariant.analysis.few_labels import Refit, fit_labels
from envariant.core.errors import EnvariantError, EnvariantWarning, listed
from envariant.core.tasks import Regression, Task
from envariant.data.tables.columns import Column
from envariant.data.tables.kinds import Kind
from envariant.data.tables.target_type import TargetType
from envariant.saved_model.serving import Serving, nonconformity

FEWEST_LABELS = 5
"""Smallest number of labels of an adaptation."""

# Number of unknown classes that are named.
_NAMED = 3


@final
@dataclass(frozen=True)
class Adaptation:
    """Intercept and slope fitted to a few labels of a new environment.

    Attributes:
        slope: Factor that multiplies the logits; 1 if only the intercept was fitted.
        shift: Values added to the logits: one value for binary tasks and regression, otherwise one per class.
        refit: Fitted parameters: "intercept", or "intercept and slope".
        n_labels: Number of labels used for the fit.
        dropped: Numbers of rows without a usable label, by reason.
        before: Scores of the original model on the labeled rows, by metric: "accuracy" and "log loss", or
            "RMSE" for regression.
        after: Cross-validated scores of the adapted model on the labeled rows, by metric.
        gain: Mean decrease of the cross-validated log loss or squared error per labeled row; positive if
            adaptation helps.
        gain_error: Standard error of `gain`.
        n_folds: Number of folds of the cross-validation.
    """

    slope: float
    shift: tuple[float, ...]
    refit: Refit
    n_labels: int
    dropped: Mapping[str, int]
    before: Mapping[str, float]
    after: Mapping[str, float]
    gain: float
    gain_error: float
    n_folds: int

    def apply(self, logits: Tensor) -> Tensor:
        """Return adapted logits, with the shape of `logits`."""
        return self.slope * logits + torch.tensor(self.shift, dtype=logits.dtype).squeeze()

    @property
    def summary(self) -> tuple[str, ...]:
        """Sentences about the fitted parameters, the number of labels, and the scores before and after."""
        lines = [f"{self.refit} fitted to {self.n_labels} labels"]
        if self.dropped:
            count = sum(self.dropped.values())
            reasons = "; ".join(f"{number} {reason}" for reason, number in self.dropped.items())
            lines.append(f"{count} of {count + self.n_labels} rows dropped: {reasons}")
        scores = ", ".join(f"{name} {self.before[name]:.3g} → {self.after[name]:.3g}" for name in self.before)
        lines.append(f"{scores} on these labels ({self.n_folds}-fold cross-validation)")
        if self.gain <= self.gain_error:
            lines.append(
                "these labels do not show that the adapted model is better; keep the original model, or add "
                "labels"
            )
        return tuple(lines)


@final
class Adapted(nn.Module):
    """Network with an adaptation applied to its outputs."""

    def __init__(self, network: nn.Module, adaptation: Adaptation) -> None:
        super().__init__()
        self.network, self.adaptation = network, adaptation

    def forward(self, inputs: Tensor) -> Tensor:
        return self.adaptation.apply(self.network(inputs))


@final
@dataclass(frozen=True)
class LabelColumn:
    """Target column of a table that contains labels of a new environment.

    Attributes:
        name: Name of the column.
        classes: Class labels of the model; empty for regression.
        target_type: Data type of the target column in training.
        environment: Name of the environment column, which the table may lack.
        unknown: Number of rows of each class that the model does not know; filled in by `read`.
        environments: Environments of the labeled rows; filled in by `read`.
    """

    name: str
    classes: tuple[str, ...]
    target_type: TargetType
    environment: str
    unknown: dict[str, int] = field(default_factory=dict[str, int])
    environments: set[str] = field(default_factory=set[str])

    @property
    def kind(self) -> Kind:
        """Kind of the column: "category", "date" or "number"."""
        is_date = any(name in self.target_type.dtype for name in ("datetime", "timestamp", "date32"))
        return "category" if self.classes else "date" if is_date else "number"

    def read(self, columns: Mapping[str, Column]) -> NDArray[np.float64]:
        """Return class indices or real-valued targets, `[rows]`; NaN if missing or of an unknown class."""
        targets = self._targets(columns[self.name])
        if (environment := columns.get(self.environment)) is not None and environment.categories:
            codes = np.unique(environment.values[np.isfinite(targets)])
            self.environments.update(
                environment.categories[k] for k in codes if k < len(environment.categories)
            )
        return targets

    def warn_of_environments(self) -> None:
        """Warn if the labels come from more than one environment."""
        if len(self.environments) > 1:
            names = listed(sorted(self.environments), 5)
            warnings.warn(
                f"adapt: the labels come from {len(self.environments)} environments (column "
                f"'{self.environment}': {names}), and one intercept is fitted to all; adapt the model to "
                f"each environment separately",
                EnvariantWarning,
                stacklevel=3,
            )

    def _targets(self, column: Column) -> NDArray[np.float64]:
        if not self.classes:
            return column.values.astype(np.float64)
        none = np.zeros((0, 0), dtype=np.int64)
        known = Sketch(self.name, "category", True, False, np.zeros(0), self.classes, none, none)
        names = known.recognized(column.categories)
        for name, count in known.unseen(column.values, names).items():
            self.unknown[name] = self.unknown.get(name, 0) + count
        code = {name: float(k) for k, name in enumerate(self.classes)}
        return np.array([*(code.get(name, np.nan) for name in names), np.nan])[column.values]


def fit_adaptation(
    logits: NDArray[Any], targets: NDArray[np.float64], labels: LabelColumn, task: Task
) -> tuple[Adaptation, Serving]:
    """Fit an adaptation to labeled rows; also compute prediction sets and accuracy from these rows.

    Args:
        logits: Logits of the model, `[rows]` or `[rows, classes]`.
        targets: Class indices, or targets in their original unit, `[rows]`; NaN for rows without a label.
        labels: Target column from which the targets were read.
        task: Prediction task.

    Raises:
        EnvariantError: If fewer than five rows have a usable label.
    """
    used = np.isfinite(targets)
    n, regression = int(used.sum()), isinstance(task, Regression)
    unknown = sum(labels.unknown.values())
    names = listed([f"'{name}'" for name in labels.unknown], _NAMED)
    reasons = {"without a label": len(targets) - n - unknown, f"with an unknown class ({names})": unknown}
    dropped = {reason: count for reason, count in reasons.items() if count}
    if n < FEWEST_LABELS:
        why = "".join(f"; {count} {reason}" for reason, count in dropped.items())
        names = listed([f"'{name}'" for name in labels.classes], 10)
        what = f" (classes {names})" if labels.classes else ""
        raise EnvariantError(
            f"adapt: needs at least {FEWEST_LABELS} rows with a label in column '{labels.name}'{what}; got "
            f"{n} of {len(targets)}{why}"
        )
    z, y = logits[used].astype(np.float64), targets[used]
    scale, center = (task.scale, task.center) if isinstance(task, Regression) else (1.0, 0.0)
    z = z * scale + center
    fit = fit_labels(z, y, regression=regression)
    slope, intercepts = fit.recalibration.slope, np.array(fit.recalibration.intercepts)
    # Logits of regression are standardized targets.
    shift = (slope * center + intercepts - center) / scale if regression else intercepts
    means = fit.losses.mean(axis=1)
    loss = ("RMSE", np.sqrt(means)) if regression else ("log loss", means)
    scores = [loss] if fit.errors is None else [("accuracy", 1 - fit.errors.mean(axis=1)), loss]
    gains = fit.losses[0] - fit.losses[1]
    adaptation = Adaptation(
        slope,
        tuple(([0.0] if z.ndim == 2 else []) + shift.tolist()),
        fit.refit,
        n,
        dropped,
        {name: float(values[0]) for name, values in scores},
        {name: float(values[1]) for name, values in scores},
        float(gains.mean()),
        float(gains.std(ddof=1)) / np.sqrt(n).item(),
        fit.n_folds,
    )
    return adaptation, _serving(fit.held_out, y, adaptation, regression=regression)


def _serving(
    held_out: NDArray[np.float64], targets: NDArray[np.float64], adaptation: Adaptation, *, regression: bool
) -> Serving:
    """Return the `Serving` of an adapted model, from cross-validated predictions of the labeled rows."""
    scores = np.sort(nonconformity(held_out, targets, regression=regression))[None]
    n = len(targets)
    if regression:
        # The logarithm of RMSE of n rows has a variance of about 1 / 2n.
        score = BatchScore(
            "labels", float(np.log(adaptation.after["RMSE"])), np.sqrt(0.5 / n).item(), n - 1, True
        )
    else:
        accuracy = adaptation.after["accuracy"]
        # Add one correct and one wrong prediction, so that the variance is positive if all rows are correct.
        share = (accuracy * n + 1) / (n + 2)
        score = BatchScore("labels", accuracy, np.sqrt(share * (1 - share) / n).item(), n - 1)
    return Serving(1.0, ("labels",), scores, score, same_environment=True)
