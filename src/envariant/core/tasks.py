"""Prediction tasks: binary and multiclass classification, and regression.

A task defines the loss of each row, the derivative of this loss with respect to a multiplier of the logits
(used in IRM's penalty), the metric, and the shapes of targets and logits. All other code is independent of
the task.

To use another loss, set `loss` to a function or to one of `core.losses`, or define a subclass with a method
`losses`. The derivatives are then computed from this loss by automatic differentiation.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, final

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Shaped
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.func import grad

from envariant.core import specs
from envariant.core.counter_rng import other_generators
from envariant.core.errors import EnvariantError, first_line
from envariant.core.losses import Loss, LossFunction, content, mean_over_outputs
from envariant.core.single_precision import single_precision


def _place(cls: type, name: str) -> int:
    """Return the index, in the method resolution order, of the class that defines a method."""
    return next((i for i, base in enumerate(cls.__mro__) if name in vars(base)), 0)


class Task(ABC):
    """Base class of prediction tasks, which define the loss, the metric and the shape of the targets.

    Targets are `[rows, *target_shape]`; logits are `[rows]` if there is one output, else `[rows, outputs]`.

    Attributes:
        name: Name of the task.
        metric: Name of the metric that training records.
        higher_is_better: Whether higher values of the metric are better.
        loss: Loss that replaces the default loss of the task; None for the default.
    """

    name: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    loss: LossFunction | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A subclass with another loss must not inherit the derivatives of the loss it replaces.
        for name in ("residuals", "multiplier_derivatives", "constant_loss"):
            if _place(cls, name) > _place(cls, "losses"):
                setattr(cls, name, getattr(Task, name))

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of model outputs per row."""

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of the target of one row; empty if the target is a single number or class."""
        return ()

    @property
    def logits_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one row; empty if there is one output per row."""
        return () if self.outputs == 1 else (self.outputs,)

    @property
    @abstractmethod
    def chance(self) -> float | None:
        """Score of a uniformly random guess; None for regression."""

    @abstractmethod
    def losses(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, "rows *target_shape"]
    ) -> Float[Tensor, " rows"]:
        """Return each row's loss: negative log-likelihood in nats, or squared error for regression."""

    def residuals(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, "rows *target_shape"]
    ) -> Float[Tensor, "rows *c"]:
        """Return the derivative ∂ℓ_i/∂z_i of each row's loss ℓ_i with respect to the row's logits z_i.

        The result is differentiable with respect to z. Default: call the method `residuals` of the attribute
        `loss` if it has one, else use automatic differentiation of `losses`.
        """
        declared = getattr(self.loss, "residuals", None)
        if declared is not None:
            return declared(logits, targets)

        def total(z: Tensor) -> Tensor:
            return self.losses(z, targets).sum()

        return grad(total)(logits)

    def multiplier_derivatives(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, "rows *target_shape"]
    ) -> Float[Tensor, " rows"]:
        """Return the derivative of each row's loss with respect to a multiplier s of its logits, at s = 1.

        For the loss ℓ_i and the logits z_i of row i, the derivative is ∂ℓ_i(s·z_i)/∂s = Σ_c ∂ℓ_i/∂z_ic ·
        z_ic, where c runs over the outputs. The result is differentiable with respect to z.
        """
        products = self.residuals(logits, targets) * logits
        return products if self.outputs == 1 else products.sum(dim=1)

    @abstractmethod
    def confidence(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, "rows *target_shape"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Return the probability of each row's predicted class, and whether this class is correct (1 or 0).

        Raises:
            EnvariantError: If the task is not a classification task.
        """

    @abstractmethod
    def scores(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, "rows *target_shape"]
    ) -> Float[Tensor, " rows"]:
        """Return each row's score: 1 if the class is correct, else 0; for regression, the squared error.

        Args:
            logits: Logits; for regression, predictions as returned by `predictions`.
            targets: Targets.
        """

    def predictions(self, logits: Float[Tensor, "rows *c"]) -> Float[Tensor, "rows *c"]:
        """Return predictions in the unit of the targets for regression; return the logits for other tasks."""
        return logits

    def constant_loss(self, targets: Shaped[Tensor, "rows *target_shape"]) -> float:
        """Return the mean loss of the best constant prediction (class entropy, or variance of the targets).

        Default: numerical minimization of `losses`; NaN if the minimization fails.
        """
        targets = targets.double() if targets.is_floating_point() else targets
        constant = torch.zeros(self.outputs, dtype=torch.float64, device=targets.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([constant], max_iter=100, line_search_fn="strong_wolfe")

        def mean() -> Tensor:
            return self.losses(self.logits(constant.expand(len(targets), -1)), targets).mean()

        def closure() -> Tensor:
            optimizer.zero_grad()
            (loss := mean()).backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        value = float(mean().detach())
        return value if math.isfinite(value) else math.nan

    @abstractmethod
    def cast(
        self, targets: Shaped[Tensor, "rows *target_shape"], where: str
    ) -> Shaped[Tensor, "rows *target_shape"]:
        """Convert targets to the data type of the task.

        Args:
            targets: Targets of any numeric type.
            where: Name of the environment, for error messages.

        Raises:
            EnvariantError: If a target is not valid for the task.
        """

    def identity(self) -> str:
        """Return a string for hashing; it differs between tasks with different losses.

        The string is empty for `Binary` and `Multiclass` with their default losses. The targets of these two
        tasks differ in data type, so the hash of the data already distinguishes the tasks.
        """
        if self.has_default_loss:
            # Targets of classes differ in type, so the data tell them apart.
            return self.name if type(self) is Regression else ""
        values = (f"{key}={content(value)}" for key, value in vars(self).items() if value is not None)
        return " ".join((type(self).__qualname__, *values, content(type(self))))

    @property
    def has_default_loss(self) -> bool:
        """Whether the task is `Binary`, `Multiclass` or `Regression` with its default loss."""
        return type(self) in (Binary, Multiclass, Regression) and self.loss is None

    def own_losses(self, loss: LossFunction, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the value of a user-defined loss for each row, averaged over the targets of the row."""
        values = loss(logits, targets)
        return mean_over_outputs(values) if self.target_shape and isinstance(values, Tensor) else values

    def logits(self, raw: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows *c"]:
        """Reshape the raw output of a model, `[rows, outputs]` or `[rows]`, to logits of the task."""
        return raw.flatten() if self.outputs == 1 else raw


@final
@dataclass(frozen=True)
class Binary(Task):
    """Binary classification: targets 0 and 1, one logit, logistic loss; a positive logit predicts 1.

    Attributes:
        loss: Loss that replaces the logistic loss; None for the default.
    """

    name: ClassVar[str] = "binary"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    loss: LossFunction | None = field(default=None, kw_only=True, repr=False)

    @property
    def outputs(self) -> int:
        return 1

    @property
    def chance(self) -> float:
        return 0.5

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.own_losses(self.loss, logits, targets)
        # log(1 + e^(−z)) for a 1 and log(1 + e^z) for a 0: half the operations of PyTorch's own form, and
        # nothing cancels. From 40 on, 1 + e^z equals e^z in every precision.
        return F.softplus((1 - 2 * targets) * logits, threshold=40.0)

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return super().residuals(logits, targets)
        return torch.sigmoid(logits) - targets

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # σ(|z|) is max(p, 1 − p).
        return torch.sigmoid(logits.abs()), ((logits > 0) == (targets > 0.5)).to(logits.dtype)

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ((logits > 0) == (targets > 0.5)).float()

    def constant_loss(self, targets: Tensor) -> float:
        if self.loss is not None:
            return super().constant_loss(targets)
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
    """Multiclass classification: targets 0 … classes − 1, one logit per class, cross-entropy loss.

    Attributes:
        classes: Number of classes, at least 2.
        loss: Loss that replaces the cross-entropy; None for the default.
    """

    name: ClassVar[str] = "multiclass"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    classes: Annotated[int, Field(ge=2)]
    loss: LossFunction | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        specs.validate(self)

    @property
    def outputs(self) -> int:
        return self.classes

    @property
    def chance(self) -> float:
        return 1 / self.classes

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return self.own_losses(self.loss, logits, targets)
        return F.cross_entropy(logits, targets, reduction="none")

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return super().residuals(logits, targets)
        right = targets[:, None] == torch.arange(self.classes, device=targets.device)
        return torch.softmax(logits, dim=1) - right.to(logits.dtype)

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        most, predicted = torch.softmax(logits, dim=1).max(dim=1)
        return most, (predicted == targets).to(logits.dtype)

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(dim=1) == targets).float()

    def constant_loss(self, targets: Tensor) -> float:
        if self.loss is not None:
            return super().constant_loss(targets)
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
    """Regression with one real-valued target y per row; the loss of a prediction f is (f − y)².

    Targets may be standardized; `scale` and `center` convert them back to the original unit.

    Attributes:
        scale: Standard deviation of the targets before standardization; 1 if they are not standardized.
        center: Mean of the targets before standardization; 0 if they are not standardized.
        loss: Loss that replaces the squared error; None for the default.
    """

    name: ClassVar[str] = "regression"
    metric: ClassVar[str] = "squared error"
    higher_is_better: ClassVar[bool] = False
    scale: PositiveFloat = 1.0
    center: float = 0.0
    loss: LossFunction | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        specs.validate(self)

    @property
    def outputs(self) -> int:
        return 1

    @property
    def chance(self) -> None:
        return None

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            in_unit = isinstance(self.loss, Loss) and self.loss.in_unit
            return self.loss(logits, targets * self.scale + self.center if in_unit else targets)
        return (logits - targets).square()

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.loss is not None:
            return super().residuals(logits, targets)
        return 2 * (logits - targets)

    def predictions(self, logits: Tensor) -> Tensor:
        if isinstance(self.loss, Loss) and self.loss.in_unit:
            return (self.loss.link(logits) - self.center) / self.scale
        return logits

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise EnvariantError(
            "'clove' needs class probabilities, which regression does not produce; "
            "choose another algorithm, or remove 'clove' from the combination"
        )

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets).square() * self.scale**2

    def constant_loss(self, targets: Tensor) -> float:
        if self.loss is not None:
            return super().constant_loss(targets)
        return float(targets.double().var(correction=0))

    def cast(self, targets: Tensor, where: str) -> Tensor:
        if not bool(torch.isfinite(targets).all()):
            raise EnvariantError(f"{where}: targets hold NaN or infinity; remove those rows")
        if isinstance(self.loss, Loss):
            self.loss.check(targets.double() * self.scale + self.center, where)
        return single_precision(targets, f"{where}: targets")


def check_losses(task: Task, targets: Tensor) -> None:
    """Check that a user-defined task returns a differentiable loss and a score for each row.

    Args:
        task: Prediction task.
        targets: Example targets, `[rows, *target_shape]`.

    Raises:
        EnvariantError: If a result has another shape, the loss is not differentiable, or a method fails.
    """
    if task.has_default_loss:
        return
    # Two rows with different targets, if there are any, because a function can select rows by their target.
    different = (targets != targets[0]).reshape(len(targets), -1).any(dim=1)
    few = targets[[0, int(different.int().argmax()) or min(1, len(targets) - 1)]]
    for name, method in (("losses", task.losses), ("scores", task.scores)):
        logits = torch.zeros(len(few), *task.logits_shape, device=few.device, requires_grad=name == "losses")
        before, others = torch.get_rng_state(), other_generators()
        try:
            with torch.enable_grad():
                values: object = method(logits, few)
                again: object = method(logits, few)
        # A user's method can raise anything.
        except Exception as error:
            raise EnvariantError(f"task {task.name}: {name} fails: {first_line(error)}") from error
        if not isinstance(values, Tensor) or tuple(values.shape) != (len(few),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            hint = '; with PyTorch\'s losses, set reduction="none"' if got == () else ""
            raise EnvariantError(
                f"task {task.name}: {name} must return one number per row, of shape ({len(few)},) for "
                f"{len(few)} rows; got {got}{hint}"
            )
        if not values.is_floating_point() and (name == "losses" or values.is_complex()):
            kind = str(values.dtype).removeprefix("torch.")
            raise EnvariantError(f"task {task.name}: {name} must be real numbers in float32; got {kind}")
        drawn = not torch.equal(before, torch.get_rng_state()) or other_generators() != others
        # Values from a generator of the loss itself differ between two calls.
        same = torch.allclose(values, torch.as_tensor(again), rtol=0, atol=0, equal_nan=True)
        if name == "losses" and (drawn or not same):
            raise EnvariantError(
                f"task {task.name}: losses draw random numbers, which the seeds of a run do not determine; "
                f"compute them from logits and targets only"
            )
        if name == "losses" and not values.requires_grad:
            raise EnvariantError(
                f"task {task.name}: losses must be differentiable in the logits; compute them with PyTorch, "
                f"without detach or NumPy"
            )


def _entropy(shares: Tensor) -> float:
    return float(-torch.special.xlogy(shares, shares).sum())


def _sample(targets: Tensor) -> str:
    values = targets.unique()[:5].tolist()
    return ", ".join(f"{value:g}" for value in values) + (", …" if targets.unique().numel() > 5 else "")
