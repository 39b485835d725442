"""Losses by name: focal, label smoothing, Huber, quantile and Poisson.

A loss is a function `loss(logits, targets)` that returns one number per row. Derivatives are computed by
automatic differentiation, or by the method `residuals` of the loss if there is one.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast, final

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import Field, PositiveFloat
from torch import Tensor

from envariant.core import specs
from envariant.core.errors import EnvariantError, unknown_name

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""Function from logits `[rows]` or `[rows, outputs]` and targets `[rows, …]` to one loss per row."""


class Loss(ABC):
    """Base class of losses that can be requested by name.

    Attributes:
        name: Name of the loss in options.
        for_classes: Whether targets are classes or labels; otherwise they are real numbers.
        in_unit: Whether the loss is computed from targets in their original unit, even if the model is
            trained on standardized targets.
        note: Remark recorded with every run that uses this loss; "" for none.
    """

    name: ClassVar[str]
    for_classes: ClassVar[bool]
    in_unit: ClassVar[bool] = False
    note: ClassVar[str] = ""

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    @abstractmethod
    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, `[rows]`, or of each row and output."""

    def link(self, logits: Tensor) -> Tensor:
        """Convert logits to predicted target values. Default: return the logits."""
        return logits

    def check(self, targets: Tensor, where: str) -> None:
        """Check that the loss is defined for all targets, which are given in their original unit.

        Args:
            targets: Targets of an environment.
            where: Name of the environment, for error messages.

        Raises:
            EnvariantError: If the loss is not defined for a target.
        """
        del targets, where


def _is_multiclass(logits: Tensor, targets: Tensor) -> bool:
    return logits.dim() > targets.dim()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    if _is_multiclass(logits, targets):
        return F.cross_entropy(logits, targets, reduction="none")
    return F.softplus((1 - 2 * targets) * logits, threshold=40.0)


@final
@dataclass(frozen=True)
class Focal(Loss):
    """Focal loss (1 − p)^γ · (−log p), where p is the probability of the true class. Lin et al. 2017, eq. 4.

    Attributes:
        gamma: Exponent γ; 0 gives the cross-entropy.
    """

    name: ClassVar[str] = "focal"
    for_classes: ClassVar[bool] = True
    gamma: Annotated[float, Field(ge=0)] = 2.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = _cross_entropy(logits, targets)
        # 1 − p = 1 − e^(−ℓ) without cancellation. Its power has an infinite slope at 0 if γ < 1.
        wrong = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        return wrong.pow(self.gamma) * losses


@final
@dataclass(frozen=True)
class LabelSmoothing(Loss):
    """Cross-entropy with targets (1 − ε) · y + ε / K for K classes. Szegedy et al. 2016, section 7.

    y is the one-hot vector of the true class.

    Attributes:
        amount: Probability ε that is distributed uniformly over all classes, in [0, 1).
    """

    name: ClassVar[str] = "label-smoothing"
    for_classes: ClassVar[bool] = True
    amount: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = _cross_entropy(logits, targets)
        if _is_multiclass(logits, targets):
            uniform = -F.log_softmax(logits, dim=-1).mean(dim=-1)
        else:
            uniform = F.softplus(logits) - logits / 2
        return (1 - self.amount) * losses + self.amount * uniform


@final
@dataclass(frozen=True)
class Huber(Loss):
    """Huber loss of the error e = f − y: e² / 2 if |e| ≤ δ, else δ · (|e| − δ / 2). Huber 1964.

    f is the prediction, and y is the target.

    Attributes:
        delta: Error δ above which the loss is linear, in the unit of the training targets (for tables and
            `InvariantRegressor`: standard deviations).
    """

    name: ClassVar[str] = "huber"
    for_classes: ClassVar[bool] = False
    delta: PositiveFloat = 1.0

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.huber_loss(logits, targets.to(logits.dtype), reduction="none", delta=self.delta)


@final
@dataclass(frozen=True)
class Quantile(Loss):
    """Quantile loss max(τ · e, (τ − 1) · e) of the error e = y − f. Koenker and Bassett 1978.

    f is the prediction, and y is the target.

    Attributes:
        level: Level τ of the predicted quantile, in (0, 1); 0.5 is the median.
    """

    name: ClassVar[str] = "quantile"
    for_classes: ClassVar[bool] = False
    note: ClassVar[str] = (
        "loss quantile: the score is still the squared error, which this loss does not minimize; compare "
        "runs by their loss"
    )
    level: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        errors = targets - logits
        return torch.maximum(self.level * errors, (self.level - 1) * errors)


@final
@dataclass(frozen=True)
class Poisson(Loss):
    """Poisson loss e^z − y · z of counts y and logits z. The predicted count is e^z."""

    name: ClassVar[str] = "poisson"
    for_classes: ClassVar[bool] = False
    in_unit: ClassVar[bool] = True

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Rounding of standardized targets can make a count of 0 slightly negative.
        return logits.exp() - targets.clamp(min=0) * logits

    def link(self, logits: Tensor) -> Tensor:
        return logits.exp()

    def check(self, targets: Tensor, where: str) -> None:
        if float(least := targets.min()) < -1e-3:
            raise EnvariantError(f"{where}: the loss poisson needs targets of at least 0; got {least:g}")


LOSSES: Mapping[str, type[Loss]] = {
    each.name: each for each in (Focal, LabelSmoothing, Huber, Quantile, Poisson)
}
"""Losses by name."""
DEFAULTS: Mapping[str, bool] = {"cross-entropy": True, "mse": False}
"""Default losses by name, and whether they are for classes."""


def loss_named(text: str) -> Loss | None:
    """Convert a string such as `focal(gamma=2)` to a loss; return None for the name of a default loss.

    Raises:
        EnvariantError: If the name or a setting is unknown, or a value is not allowed.
    """
    spec = specs.parse_as("loss", text)
    if spec.name in DEFAULTS:
        if spec.positional or spec.keywords:
            raise EnvariantError(f"{spec.name}: takes no settings")
        return None
    if spec.name not in LOSSES:
        raise unknown_name("loss", spec.name, (*LOSSES, *DEFAULTS))
    return specs.build("loss", text, LOSSES)


def check_applies(loss: object, *, to_classes: bool, task: str) -> None:
    """Check that the targets of a task have the kind that a loss requires: classes or real numbers.

    Args:
        loss: Loss, name of a loss, or function; functions are not checked.
        to_classes: Whether the targets are classes or labels, not real numbers.
        task: Name of the task, for the error message.

    Raises:
        EnvariantError: If the loss does not apply to the task.
    """
    known = {**DEFAULTS, **{name: each.for_classes for name, each in LOSSES.items()}}
    name = specs.parse(loss).name if isinstance(loss, str) else loss.name if isinstance(loss, Loss) else ""
    if known.get(name, to_classes) != to_classes:
        kind = "classes" if known[name] else "numbers"
        usable = ", ".join(each for each, classes in known.items() if classes == to_classes)
        raise EnvariantError(f"loss {name}: is for {kind}, but the task is {task}; use one of {usable}")


def content(value: Any) -> str:
    """Return a string for hashing an object: tensor values, source code of functions, or settings."""
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        return " ".join(map(content, (partial.func, *partial.args, *sorted(partial.keywords.items()))))
    if not callable(value):
        return repr(value)
    is_object = not inspect.isroutine(value) and not isinstance(value, type)
    code: Any = type(value) if is_object else value
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):
        source = getattr(code, "__qualname__", type(code).__qualname__)
    settings = sorted(vars(value).items()) if is_object and hasattr(value, "__dict__") else []
    plain = (f"{key}={content(each)}" for key, each in settings if isinstance(each, _PLAIN))
    return " ".join((source, closure_content(value), *plain))


def closure_content(function: Any) -> str:
    """Return a string for hashing the numbers, strings and tensors in the closure of a function."""
    known: list[Any] = []
    for cell in getattr(function, "__closure__", None) or ():
        # A cell is empty before its variable is set.
        with suppress(ValueError):
            known.append(cell.cell_contents)
    return " ".join(content(each) for each in known if isinstance(each, _PLAIN))


# The string of other objects may contain memory addresses, which differ between processes.
_PLAIN = (Tensor, int, float, str, tuple)


def mean_over_outputs(values: Tensor) -> Tensor:
    """Average values `[rows, outputs]` over the outputs; return other shapes unchanged."""
    return values.mean(dim=1) if values.dim() == 2 else values
