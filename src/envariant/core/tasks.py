"""What is asked of a model: binary classification, multiclass classification or regression.

A task knows its loss per row, the derivative of that loss with respect to a multiplier of the logits
(IRM's penalty is built from it) and the metric people read. Everything else in the house is written once,
for all tasks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Shaped
from torch import Tensor

from envariant.core.errors import EnvariantError, unknown_name


class Task(ABC):
    """A loss and a metric. Logits are `[rows]` where there is one output, else `[rows, outputs]`."""

    name: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many numbers a model gives per row."""

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Return the shape of one row's target; empty for a single number or class."""
        return ()

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Return the shape of one row's logits; empty where a model gives one number per row."""
        return () if self.outputs == 1 else (self.outputs,)

    @property
    @abstractmethod
    def chance(self) -> float | None:
        """What guessing with equal odds reaches in the metric; None where that has no meaning."""

    @abstractmethod
    def losses(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """The loss of every row: natural-log likelihood in nats, or the squared error."""

    @abstractmethod
    def residuals(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, " rows"]
    ) -> Float[Tensor, "rows *c"]:
        """∂ℓ_i/∂z_i in closed form: probabilities less the truth, or twice the error; differentiable in z."""

    def multiplier_derivatives(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """d_i = ∂ℓ_i(s·z_i)/∂s at s = 1 in closed form, Σ_c ∂ℓ_i/∂z_ic · z_ic; differentiable in z."""
        products = self.residuals(logits, targets) * logits
        return products if self.outputs == 1 else products.sum(dim=1)

    @abstractmethod
    def confidence(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """The probability of the class that is predicted, and 1 where it is right, else 0.

        Raises:
            EnvariantError: the task has no classes.
        """

    @abstractmethod
    def scores(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Every row's share of the metric: 1 for a right class, 0 for a wrong one; or the squared error."""

    @abstractmethod
    def constant_loss(self, targets: Shaped[Tensor, " rows"]) -> float:
        """The least mean loss of a model that says the same of every row: entropy of labels, or variance."""

    @abstractmethod
    def cast(self, targets: Shaped[Tensor, " rows"], where: str) -> Shaped[Tensor, " rows"]:
        """The targets in the task's own type.

        Raises:
            EnvariantError: a target is not one the task allows; the message begins with `where`.
        """

    def logits(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows *c"]:
        """A model's raw output `[rows, outputs]` (or `[rows]`) in the task's own shape."""
        return raw.flatten() if self.outputs == 1 else raw


@final
@dataclass(frozen=True)
class Binary(Task):
    """Targets 0 and 1, one logit, logistic loss; the prediction is 1 where the logit is above 0."""

    name: ClassVar[str] = "binary"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        return 1

    @property
    def chance(self) -> float:
        return 0.5

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        # log(1 + e^(−z)) for a 1 and log(1 + e^z) for a 0: half the operations of PyTorch's own form, each
        # over all rows, and nothing cancels. From 40 on, 1 + e^z is e^z in every precision.
        return F.softplus((1 - 2 * targets) * logits, threshold=40.0)

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(logits) - targets

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # σ(|z|) is max(p, 1 − p).
        return torch.sigmoid(logits.abs()), ((logits > 0) == (targets > 0.5)).to(logits.dtype)

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ((logits > 0) == (targets > 0.5)).float()

    def constant_loss(self, targets: Tensor) -> float:
        return _entropy(torch.stack([(targets == k).double().mean() for k in (0, 1)]))

    def cast(self, targets: Tensor, where: str) -> Tensor:
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise EnvariantError(
                f"{where}: binary targets must be 0 or 1; got {_sample(targets)} "
                f"(for more classes use Multiclass(classes=…))"
            )
        return targets.float()


@final
@dataclass(frozen=True)
class Multiclass(Task):
    """Targets 0 … classes − 1, one logit a class, cross-entropy; the prediction is the largest logit."""

    name: ClassVar[str] = "multiclass"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise EnvariantError(f"Multiclass: classes must be at least 2; got {self.classes}")

    @property
    def outputs(self) -> int:
        return self.classes

    @property
    def chance(self) -> float:
        return 1 / self.classes

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        right = targets[:, None] == torch.arange(self.classes, device=targets.device)
        return torch.softmax(logits, dim=1) - right.to(logits.dtype)

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        most, predicted = torch.softmax(logits, dim=1).max(dim=1)
        return most, (predicted == targets).to(logits.dtype)

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(dim=1) == targets).float()

    def constant_loss(self, targets: Tensor) -> float:
        return _entropy(torch.bincount(targets, minlength=self.classes).double() / len(targets))

    def cast(self, targets: Tensor, where: str) -> Tensor:
        whole = targets.long()
        if not bool(((whole == targets) & (whole >= 0) & (whole < self.classes)).all()):
            raise EnvariantError(
                f"{where}: targets must be whole numbers from 0 to {self.classes - 1}; got {_sample(targets)}"
            )
        return whole


@final
@dataclass(frozen=True)
class Regression(Task):
    """Real targets, one output, squared error (f − y)² (not halved).

    Attributes:
        scale: how much one unit of the targets as they are trained on is in the unit people read the metric
            in; for targets that were standardized, their standard deviation.
        center: what 0 of them is in that unit.
    """

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "squared error"
    higher_is_better: ClassVar[bool] = False
    scale: float = 1.0
    center: float = 0.0

    @property
    def outputs(self) -> int:
        return 1

    @property
    def chance(self) -> None:
        return None

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets).square()

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        return 2 * (logits - targets)

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise EnvariantError("regression: a prediction has no confidence; leave clove out")

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.losses(logits, targets) * self.scale**2

    def constant_loss(self, targets: Tensor) -> float:
        return float(targets.double().var(correction=0))

    def cast(self, targets: Tensor, where: str) -> Tensor:
        if not bool(torch.isfinite(targets).all()):
            raise EnvariantError(f"{where}: targets hold NaN or infinity; remove those rows")
        return targets.float()


def task_named(name: str, outputs: int) -> Task:
    """The task of that name with so many outputs.

    Raises:
        EnvariantError: there is none.
    """
    known = {
        Binary.name: Binary(),
        Regression.name: Regression(),
        Multiclass.name: Multiclass(max(2, outputs)),
    }
    if name not in known:
        raise unknown_name("task", name, known)
    return known[name]


def _entropy(shares: Tensor) -> float:
    return float(-torch.special.xlogy(shares, shares).sum())


def _sample(targets: Tensor) -> str:
    values = targets.unique()[:5].tolist()
    return ", ".join(f"{value:g}" for value in values) + (", …" if targets.unique().numel() > 5 else "")
