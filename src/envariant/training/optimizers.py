"""The optimizers, each a frozen description such as `adam` or `sgd(momentum=0.9)`; PyTorch does the work."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from envariant import specs
from envariant.errors import EnvariantError


class OptimizerFamily(ABC):
    """A frozen description of an update rule; learning rate and weight decay belong to the replica."""

    name: ClassVar[str]

    @abstractmethod
    def build(
        self, params: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """An optimizer that updates `params` in place from their `.grad`."""


@dataclass(frozen=True)
class _AdaptiveMoments(OptimizerFamily, ABC):
    """What Adam and AdamW share: moving means of the gradient and of its square.

    Attributes:
        beta1: memory of the gradient's mean.
        beta2: memory of its square's.
        epsilon: added to the square root; gradients far below it hardly move a weight.
    """

    rule: ClassVar[type[torch.optim.Optimizer]]
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.epsilon >= 0):
            raise EnvariantError(
                f"{self.name}: betas must lie in [0, 1) and epsilon be at least 0; "
                f"got {self.beta1:g}, {self.beta2:g}, {self.epsilon:g}"
            )

    def build(
        self, params: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        settings: dict[str, Any] = {
            "lr": learning_rate,
            "betas": (self.beta1, self.beta2),
            "eps": self.epsilon,
            "weight_decay": weight_decay,
            "fused": True,
        }
        return self.rule(params, **settings)


@final
@dataclass(frozen=True)
class Adam(_AdaptiveMoments):
    """Adam; weight decay is added to the gradient, as in the IRM code and DomainBed. Kingma & Ba 2014."""

    name: ClassVar[str] = "adam"
    rule: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam


@final
@dataclass(frozen=True)
class AdamW(_AdaptiveMoments):
    """Adam with decay of the weights themselves, apart from the gradient. Loshchilov & Hutter 2017."""

    name: ClassVar[str] = "adamw"
    rule: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW


@final
@dataclass(frozen=True)
class SGD(OptimizerFamily):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    name: ClassVar[str] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.momentum < 0 or (self.nesterov and self.momentum == 0):
            raise EnvariantError(
                f"sgd: momentum must be at least 0, and above it for nesterov; got {self.momentum:g}"
            )

    def build(
        self, params: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            params,
            learning_rate,
            momentum=self.momentum,
            weight_decay=weight_decay,
            nesterov=self.nesterov,
            fused=True,
        )


OPTIMIZERS: dict[str, type[OptimizerFamily]] = {cls.name: cls for cls in (Adam, AdamW, SGD)}


def optimizer_family(text: str) -> OptimizerFamily:
    """The optimizer that a string such as `sgd(momentum=0.9)` names.

    Raises:
        EnvariantError: there is no such optimizer, or it has no such setting.
    """
    return specs.build("optimizer", text, OPTIMIZERS)
