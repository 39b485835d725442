"""Tasks with several labels or targets per row, and `task_named`, which returns any task by its name."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.losses import Loss, LossFunction
from envariant.core.single_precision import single_precision
from envariant.core.tasks import Binary, Multiclass, Regression, Task


@final
@dataclass(frozen=True)
class MultiLabel(Task):
    """Multi-label classification, with targets 0 and 1 of shape `[rows, labels]`.

    Each label has a logit and a logistic loss. The loss of a row is the mean loss of its labels. The score of
    a row is the share of its labels that are predicted correctly.

    Attributes:
        labels: Number of labels, at least 2.
        loss: Loss that replaces the logistic loss; None for the default.
    """

    name: ClassVar[str] = "multi-label"
    metric: ClassVar[str] = "label accuracy"
    higher_is_better: ClassVar[bool] = True
    labels: Annotated[int, Field(ge=2)]
    loss: LossFunction | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        specs.validate(self)

    @property
    def outputs(self) -> int:
        return self.labels

    @property
    def target_shape(self) -> tuple[int, ...]:
        return (self.labels,)

    @property
    def chance(self) -> float:
        return 0.5

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.own_losses(self.loss or Binary().losses, logits, targets)

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return super().residuals(logits, targets)
        return (torch.sigmoid(logits) - targets) / self.labels

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise EnvariantError(
            "'clove' needs one predicted class per row, but a multi-label task predicts several labels; use "
            "an algorithm without clove"
        )

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ((logits > 0) == (targets > 0.5)).float().mean(dim=1)

    def cast(self, targets: Tensor, where: str) -> Tensor:
        if len(wrong := targets[(targets != 0) & (targets != 1)]):
            raise EnvariantError(f"{where}: multi-label targets must be 0 or 1; got {wrong[0]:g}")
        return targets.float()


@final
@dataclass(frozen=True)
class MultiOutputRegression(Task):
    """Regression with several real-valued targets per row, `[rows, targets]`; loss: mean squared error.

    Attributes:
        targets: Number of targets per row, at least 2.
        loss: Loss that replaces the squared error; None for the default.
    """

    name: ClassVar[str] = "multi-output regression"
    metric: ClassVar[str] = "squared error"
    higher_is_better: ClassVar[bool] = False
    targets: Annotated[int, Field(ge=2)]
    loss: LossFunction | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        specs.validate(self)

    @property
    def outputs(self) -> int:
        return self.targets

    @property
    def target_shape(self) -> tuple[int, ...]:
        return (self.targets,)

    @property
    def chance(self) -> None:
        return None

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.own_losses(self.loss or _squared_error, logits, targets)

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return super().residuals(logits, targets)
        return 2 * (logits - targets) / self.targets

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise EnvariantError(
            "'clove' needs class probabilities, which multi-output regression does not produce; use an "
            "algorithm without clove"
        )

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets).square().mean(dim=1)

    def predictions(self, logits: Tensor) -> Tensor:
        return self.loss.link(logits) if isinstance(self.loss, Loss) else logits

    def constant_loss(self, targets: Tensor) -> float:
        if self.loss is not None:
            return super().constant_loss(targets)
        return float(targets.double().var(dim=0, correction=0).mean())

    def cast(self, targets: Tensor, where: str) -> Tensor:
        if not bool(torch.isfinite(targets).all()):
            raise EnvariantError(f"{where}: targets hold NaN or infinity; remove those rows")
        if isinstance(self.loss, Loss):
            self.loss.check(targets, where)
        return single_precision(targets, f"{where}: targets")


def task_named(name: str, outputs: int) -> Task:
    """Return the task with a given name.

    Args:
        name: "binary", "multiclass", "regression", "multi-label" or "multi-output regression".
        outputs: Number of classes (multiclass), labels (multi-label) or targets (multi-output regression);
            ignored for other tasks.

    Raises:
        EnvariantError: If the name is unknown.
    """
    several = max(2, outputs)
    each: tuple[Task, ...] = (Binary(), Regression(), Multiclass(several))
    known = {task.name: task for task in (*each, MultiLabel(several), MultiOutputRegression(several))}
    if name not in known:
        raise unknown_name("task", name, known)
    return known[name]


def _squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(logits, targets, reduction="none")
