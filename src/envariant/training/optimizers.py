"""The optimizers, each a frozen description such as `adam` or `sgd(momentum=0.9)`; PyTorch does the work.

All parameters of a replica lie end to end in one row of a matrix, so an update of any number of replicas
is a handful of operations on one tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envariant.core import specs
from envariant.core.errors import EnvariantError


class OptimizerConfig(ABC):
    """A frozen description of an update rule; learning rate and weight decay belong to the replica.

    Attributes:
        name: as written on the command line.
        decays_weights: whether weight decay shrinks the weights themselves; if not, it is added to the
            gradient.
    """

    name: ClassVar[str]
    decays_weights: ClassVar[bool] = False

    @abstractmethod
    def build(self, params: Tensor) -> torch.optim.Optimizer:
        """An optimizer with rate 1 and no decay, that updates `params` in place from their `.grad`."""

    def forgets_at(self, step: int) -> bool:
        """Whether the rule starts afresh before the update that follows `step` others."""
        del step
        return False


@final
class StackedOptimizer:
    """Moves the parameters of many replicas, each at a rate of its own.

    PyTorch's fused optimizers take one rate for all they move. But their rules are all of the form
    θ ← θ − rate · u(gradients so far), so one of them moves a zero vector at rate 1, what it has become is
    −u, and every replica goes that way at its own rate.

    Args:
        family: the rule.
        params: `[replicas, numbers]`, updated in place.
        rates, decays: learning rate and weight decay of each replica.
    """

    def __init__(
        self,
        family: OptimizerConfig,
        params: Float[Tensor, "replicas numbers"],
        rates: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        self._params, self._family = params, family
        self._rates, self._decays = (
            torch.tensor(values, device=params.device)[:, None] for values in (rates, decays)
        )
        self._decaying = any(decays)
        self._moved = torch.zeros_like(params)
        self._optimizer = family.build(self._moved)

    def apply(
        self, gradients: Float[Tensor, "replicas numbers"], alive: Bool[Tensor, " replicas"], step: int
    ) -> None:
        """One update of the replicas that are alive; the others' parameters stay as they are, bit for bit.

        Args:
            gradients: of every replica.
            alive: which of them to move.
            step: updates already made.
        """
        if self._family.forgets_at(step):
            self.load({})
        # Looking costs nothing on a CPU; elsewhere it would wait for all that is under way.
        everyone = alive.device.type == "cpu" and bool(alive.all())
        before = None if everyone else self._params.clone()
        if self._decaying and self._family.decays_weights:
            self._params.mul_(1 - self._rates * self._decays)
        elif self._decaying:
            gradients = torch.addcmul(gradients, self._params, self._decays)
        self._moved.grad = gradients
        self._optimizer.step()
        self._params.addcmul_(self._moved, self._rates)
        self._moved.zero_()
        if before is not None:
            self._params.copy_(torch.where(alive[:, None], self._params, before))

    def state(self) -> dict[str, Tensor]:
        """What the rule remembers, by PyTorch's names: `[replicas, numbers]` each, or one number."""
        states: Mapping[int, Mapping[str, Any]] = self._optimizer.state_dict()["state"]
        return {key: value for key, value in states.get(0, {}).items() if isinstance(value, Tensor)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what `state` returned."""
        whole = self._optimizer.state_dict()
        whole["state"] = {0: dict(state)} if state else {}
        self._optimizer.load_state_dict(whole)


@dataclass(frozen=True)
class _AdaptiveMoments(OptimizerConfig, ABC):
    """What Adam and AdamW share: moving means of the gradient and of its square.

    Attributes:
        beta1: memory of the gradient's mean.
        beta2: memory of its square's.
        epsilon: added to the square root; gradients far below it hardly move a weight.
        reset: the step at which both means start afresh, as where a coefficient jumps; 0 is never.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    reset: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon >= 0):
            raise EnvariantError(
                f"{self.name}: betas must lie in [0, 1) and epsilon be at least 0; "
                f"got {self.beta1:g}, {self.beta2:g}, {self.epsilon:g}"
            )
        if self.reset < 0:
            raise EnvariantError(f"{self.name}: reset must be a step, or 0 for never; got {self.reset}")

    def forgets_at(self, step: int) -> bool:
        return 0 < self.reset == step

    def build(self, params: Tensor) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam([params], lr=1.0, betas=betas, eps=self.epsilon, fused=True)


@final
@dataclass(frozen=True)
class Adam(_AdaptiveMoments):
    """Adam; weight decay is added to the gradient, as in the IRM code and DomainBed. Kingma & Ba 2014."""

    name: ClassVar[str] = "adam"


@final
@dataclass(frozen=True)
class AdamW(_AdaptiveMoments):
    """Adam with decay of the weights themselves, apart from the gradient. Loshchilov & Hutter 2017."""

    name: ClassVar[str] = "adamw"
    decays_weights: ClassVar[bool] = True


@final
@dataclass(frozen=True)
class SGD(OptimizerConfig):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    name: ClassVar[str] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.momentum < 0 or (self.nesterov and self.momentum == 0):
            raise EnvariantError(
                f"sgd: momentum must be at least 0, and above it for nesterov; got {self.momentum:g}"
            )

    def build(self, params: Tensor) -> torch.optim.Optimizer:
        return torch.optim.SGD([params], lr=1.0, momentum=self.momentum, nesterov=self.nesterov, fused=True)


OPTIMIZERS: dict[str, type[OptimizerConfig]] = {cls.name: cls for cls in (Adam, AdamW, SGD)}


def optimizer_config(text: str) -> OptimizerConfig:
    """The optimizer that a string such as `sgd(momentum=0.9)` names.

    Raises:
        EnvariantError: there is no such optimizer, or it has no such setting.
    """
    return specs.build("optimizer", text, OPTIMIZERS)
