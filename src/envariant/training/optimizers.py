"""Optimizers: configurations such as `adam` or `sgd(momentum=0.9)`, and any `torch.optim` class.

The parameters of all replicas form a matrix with one row per replica. One optimizer updates all rows at once
if its update rule allows this (`OptimizerConfig.stackable`); otherwise each replica has a separate optimizer.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar, cast, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from envariant.core import specs
from envariant.core.errors import EnvariantError, shown
from envariant.core.schedules import Schedule, schedule
from envariant.training.schedule_table import ScheduleTable

OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""`torch.optim` class, or `functools.partial` of one: `(params, lr=…, weight_decay=…) → optimizer`."""


class OptimizerConfig(ABC):
    """Configuration of an optimizer, except its learning rate and weight decay.

    These two may differ between replicas.

    Attributes:
        name: Name of the optimizer, such as `adam`.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    @property
    def decoupled_decay(self) -> bool:
        """Whether weight decay is applied to the weights directly instead of being added to the gradient."""
        return False

    @property
    def stackable(self) -> bool:
        """Whether one optimizer can update all replicas.

        The update rule must be elementwise and have the form θ ← θ − rate · u(gradients), where θ are the
        parameters and u does not depend on θ or on the rate.
        """
        return True

    @abstractmethod
    def build(self, params: Sequence[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        """Create an optimizer that updates parameters in place, with the gradients in their attribute `grad`.

        Args:
            params: Tensors to update.
            rate: Learning rate. Callers pass 1 if the optimizer is stackable.
            decay: Weight decay. Callers pass 0 if the optimizer is stackable.
        """

    def resets_at(self, step: int) -> bool:
        """Return whether the optimizer state is cleared when `step` updates have been completed."""
        del step
        return False


@final
class StackedOptimizer:
    """Optimizer of many replicas, each with its own learning rate and weight decay.

    PyTorch's fused optimizers have a single learning rate. A stackable update rule has the form
    θ ← θ − rate · u, where θ are the parameters and u depends only on the gradients. One optimizer therefore
    updates a zero matrix at rate 1, which gives −u; the rows of −u are then multiplied by the replicas'
    learning rates. For other rules, each replica has a separate optimizer.

    A row can be divided into segments of adjacent parameters, each with its own learning rate and decay.

    Args:
        config: Configuration of the optimizer.
        params: Parameters `[replicas, numbers]`, updated in place.
        rates: Learning rate of each replica: a number or a schedule, or a tuple with one of these for each
            segment.
        decays: Weight decay of each replica: a number, or a tuple with one number for each segment.
        shapes: Shapes of the parameters in a row, for rules that depend on them. Default: one vector.
        segments: Number of parameter tensors in each segment. Default: one segment.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        params: Float[Tensor, "replicas numbers"],
        rates: Sequence[tuple[Schedule | float, ...] | Schedule | float],
        decays: Sequence[tuple[float, ...] | float],
        shapes: Sequence[torch.Size] = (),
        segments: Sequence[int] = (),
    ) -> None:
        self._params, self._config = params, config
        rate_rows = [rate if isinstance(rate, tuple) else (rate,) for rate in rates]
        decay_rows = [decay if isinstance(decay, tuple) else (decay,) for decay in decays]
        self._rates = ScheduleTable(rate_rows, params.device)
        shapes = list(shapes) or [params.shape[1:]]
        counts = list(segments) or [len(shapes)]
        self._segment: Tensor | None = None
        if len(counts) > 1:
            sizes = torch.tensor([shape.numel() for shape in shapes])
            numbers = [int(part.sum()) for part in sizes.split(counts)]
            self._segment = (
                torch.arange(len(counts)).repeat_interleave(torch.tensor(numbers)).to(params.device)
            )
        self._decays = self._by_number(torch.tensor(decay_rows, device=params.device))
        self._any_decay = any(map(any, decay_rows))
        self._rule: _SharedRule | _SeparateRules = (
            _SharedRule(config, params)
            if config.stackable
            else _SeparateRules(config, params, rate_rows, decay_rows, shapes, counts)
        )

    def apply(
        self, gradients: Float[Tensor, "replicas numbers"], alive: Bool[Tensor, " replicas"], step: int
    ) -> None:
        """Update the replicas that have neither diverged nor stopped; leave the others unchanged.

        Args:
            gradients: Gradient of each replica, `[replicas, numbers]`.
            alive: Mask of the replicas to update, `[replicas]`.
            step: Number of updates completed before this one.
        """
        if self._config.resets_at(step):
            self.load({})
        # Reading a flag is free on a CPU; on a GPU it would wait for all pending work.
        all_alive = alive.device.type == "cpu" and bool(alive.all())
        before = None if all_alive else self._params.clone()
        if isinstance(self._rule, _SeparateRules):
            self._rule.update(gradients, step)
        else:
            rates = self._by_number(self._rates.at(step))
            if self._any_decay and self._config.decoupled_decay:
                self._params.mul_(1 - rates * self._decays)
            elif self._any_decay:
                gradients = torch.addcmul(gradients, self._params, self._decays)
            self._rule.update(gradients, rates)
        if before is not None:
            self._params.copy_(torch.where(alive[:, None], self._params, before))

    def _by_number(self, values: Float[Tensor, "replicas segments"]) -> Tensor:
        """Repeat the value of each segment for all its numbers; values of a single segment stay unchanged."""
        return values if self._segment is None else values.index_select(1, self._segment)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer state for checkpoints, as tensors with PyTorch's names.

        Raises:
            EnvariantError: If the state contains values other than tensors.
        """
        return self._rule.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the optimizer state returned by `state`; an empty mapping clears the state."""
        self._rule.load(state)


@final
class _SharedRule:
    """Optimizer that updates the parameters of all replicas as one matrix."""

    def __init__(self, config: OptimizerConfig, params: Tensor) -> None:
        self._params, self._moved = params, torch.zeros_like(params)
        self._optimizer = config.build([self._moved], 1.0, 0.0)

    def update(self, gradients: Tensor, rates: Tensor) -> None:
        self._moved.grad = gradients
        self._optimizer.step()
        self._params.addcmul_(self._moved, rates)
        self._moved.zero_()

    def state(self) -> dict[str, Tensor]:
        states: Mapping[int, Mapping[str, Any]] = self._optimizer.state_dict()["state"]
        return _tensors(states.get(0, {}), self._optimizer)

    def load(self, state: Mapping[str, Tensor]) -> None:
        whole = self._optimizer.state_dict()
        # Copies, because the optimizer changes its state in place.
        whole["state"] = {0: {name: value.clone() for name, value in state.items()}} if state else {}
        self._optimizer.load_state_dict(whole)


@final
class _SeparateRules:
    """Set of optimizers, one per replica; each updates one row of the parameter matrix."""

    def __init__(
        self,
        config: OptimizerConfig,
        params: Tensor,
        rates: Sequence[tuple[Schedule | float, ...]],
        decays: Sequence[tuple[float, ...]],
        shapes: Sequence[torch.Size],
        counts: Sequence[int],
    ) -> None:
        self._shapes = list(shapes)
        self._parts = [self._views(row) for row in params.unbind()]
        self._rates = [[schedule(rate) for rate in own] for own in rates]
        # Some optimizers, such as Rprop, use the initial learning rate as the size of their first step.
        self._optimizers = [
            config.build(parts, own[0](0), max(decay))
            for parts, own, decay in zip(self._parts, self._rates, decays, strict=True)
        ]
        if len(counts) == 1:
            return
        ends = list(accumulate(counts))
        for optimizer, parts, decay in zip(self._optimizers, self._parts, decays, strict=True):
            common = optimizer.param_groups[0]
            decayed = any(decay) or bool(common.get("weight_decay"))
            optimizer.param_groups = [
                {**common, "params": parts[end - count : end], **({"weight_decay": d} if decayed else {})}
                for count, end, d in zip(counts, ends, decay, strict=True)
            ]

    def update(self, gradients: Tensor, step: int) -> None:
        for optimizer, parts, gradient, rate in zip(
            self._optimizers, self._parts, gradients.unbind(), self._rates, strict=True
        ):
            for group, own in zip(optimizer.param_groups, rate, strict=True):
                group["lr"] = own(step)
            for part, values in zip(parts, self._views(gradient), strict=True):
                part.grad = values
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        # All replicas make the same updates, so their states have the same names and shapes.
        own = [
            {
                f"{number}.{name}": value
                for number, state in optimizer.state_dict()["state"].items()
                for name, value in _tensors(state, optimizer).items()
            }
            for optimizer in self._optimizers
        ]
        return {name: torch.stack([state[name] for state in own]) for name in own[0]}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for k, optimizer in enumerate(self._optimizers):
            states: dict[int, dict[str, Tensor]] = {}
            for name, values in state.items():
                number, key = name.split(".", 1)
                states.setdefault(int(number), {})[key] = values[k].clone()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})

    def _views(self, row: Tensor) -> list[Tensor]:
        parts = row.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _tensors(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    for name, value in state.items():
        if value is not None and not isinstance(value, Tensor):
            raise EnvariantError(
                f"optimizer: {type(optimizer).__name__} stores '{name}' as {type(value).__name__}, which "
                f"cannot be saved in a checkpoint; use an optimizer whose state consists only of tensors"
            )
    return {name: value for name, value in state.items() if value is not None}


@dataclass(frozen=True)
class _AdaptiveMoments(OptimizerConfig, ABC):
    """Base class of Adam and AdamW, which use moving means of the gradient and of its square.

    Attributes:
        beta1: Decay rate of the mean of the gradient.
        beta2: Decay rate of the mean of the squared gradient.
        epsilon: Constant added to the root of the mean squared gradient; gradients much smaller than epsilon
            hardly change the weights.
        reset: Step at which both means are cleared, for example when a coefficient jumps; 0 for never.
    """

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    epsilon: NonNegativeFloat = 1e-8
    reset: NonNegativeInt = 0

    def resets_at(self, step: int) -> bool:
        return 0 < self.reset == step

    def build(self, params: Sequence[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(
            params, lr=rate, betas=betas, eps=self.epsilon, weight_decay=decay, fused=True
        )


@final
@dataclass(frozen=True)
class Adam(_AdaptiveMoments):
    """Adam; weight decay is added to the gradient, as in the IRM code and DomainBed. Kingma & Ba 2014."""

    name: ClassVar[str] = "adam"


@final
@dataclass(frozen=True)
class AdamW(_AdaptiveMoments):
    """Adam with weight decay applied to the weights directly. Loshchilov & Hutter 2017."""

    name: ClassVar[str] = "adamw"

    @property
    def decoupled_decay(self) -> bool:
        return True


@final
@dataclass(frozen=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient.

    Attributes:
        momentum: Decay rate of the accumulated gradient; 0 for no momentum.
        nesterov: Whether to use Nesterov momentum.
    """

    name: ClassVar[str] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise EnvariantError("sgd: nesterov needs a momentum above 0, such as momentum=0.9")

    def build(self, params: Sequence[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        momentum, nesterov = self.momentum, self.nesterov
        return torch.optim.SGD(
            params, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=True
        )


@final
@dataclass(frozen=True, eq=False)
class TorchOptimizer(OptimizerConfig):
    """Configuration of a PyTorch optimizer class, or of a `functools.partial` of such a class.

    If the update is elementwise and linear in the learning rate, one optimizer updates all replicas: SGD,
    Adam, AdamW, RMSprop, Adagrad, Adadelta, Adamax, NAdam and RAdam, unless `decoupled_weight_decay` is set.
    For other classes, such as ASGD, Adafactor and user-defined ones, each replica has a separate optimizer.

    Attributes:
        factory: Optimizer class or partial, called as `factory(params, lr=…)`. `weight_decay=…` is added if
            it is not 0, or if the default of the class is not 0.
    """

    name: ClassVar[str] = "torch"
    factory: OptimizerFactory

    def __post_init__(self) -> None:
        cls, fixed = self._parts()
        for name in ("lr", "weight_decay"):
            if name in fixed:
                option = "learning_rate" if name == "lr" else name
                raise EnvariantError(f"optimizer: {cls.__name__} must not fix {name}; set {option} instead")
        closure = inspect.signature(cls.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise EnvariantError(
                f"optimizer: {cls.__name__} needs a closure at every step; choose an optimizer without one"
            )

    def __str__(self) -> str:
        cls, fixed = self._parts()
        settings = ", ".join(f"{key}={value!r}" for key, value in fixed.items())
        return f"{cls.__module__}.{cls.__qualname__}" + (f"({settings})" if settings else "")

    @property
    def stackable(self) -> bool:
        cls, fixed = self._parts()
        return cls in _STACKABLE and not fixed.get("decoupled_weight_decay")

    @property
    def decoupled_decay(self) -> bool:
        return self._parts()[0] is torch.optim.AdamW

    def build(self, params: Sequence[Tensor], rate: float, decay: float) -> torch.optim.Optimizer:
        settings = {"weight_decay": decay} if decay or self._decays_by_default() else {}
        try:
            return self.factory(params, lr=rate, **settings)
        except (TypeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise EnvariantError(f"optimizer: {self} cannot be built ({first})") from error

    def _decays_by_default(self) -> bool:
        """Return whether the default weight decay of the class is not 0, as in AdamW."""
        default = inspect.signature(self._parts()[0]).parameters.get("weight_decay")
        return default is not None and bool(default.default)

    def _parts(self) -> tuple[type[torch.optim.Optimizer], Mapping[str, Any]]:
        """Return the optimizer class and the arguments fixed by `functools.partial`."""
        factory, fixed = cast("Any", self.factory), dict[str, Any]()
        while isinstance(factory, functools.partial):
            partial = cast("functools.partial[Any]", factory)
            factory, fixed = partial.func, {**partial.keywords, **fixed}
        if not (isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer)):
            raise EnvariantError(
                f"optimizer: must be a name, a torch.optim class or functools.partial of one; got "
                f"{shown(factory)}"
            )
        return factory, fixed


_STACKABLE = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.RMSprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.Adamax,
        torch.optim.NAdam,
        torch.optim.RAdam,
    }
)

OPTIMIZERS: dict[str, type[OptimizerConfig]] = {cls.name: cls for cls in (Adam, AdamW, SGD)}


def optimizer_config(optimizer: str | OptimizerConfig | OptimizerFactory) -> OptimizerConfig:
    """Convert a string, an `OptimizerConfig` or a `torch.optim` class to an optimizer configuration.

    Args:
        optimizer: String such as `sgd(momentum=0.9)`, an `OptimizerConfig`, a class such as
            `torch.optim.RMSprop`, or `functools.partial(torch.optim.Adam, betas=(0.5, 0.9))`.

    Raises:
        EnvariantError: If the name or a setting is unknown, or the object is not an optimizer class.
    """
    if isinstance(optimizer, OptimizerConfig):
        return optimizer
    if isinstance(optimizer, str):
        return specs.build("optimizer", optimizer, OPTIMIZERS)
    return TorchOptimizer(optimizer)
