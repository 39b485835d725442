"""The optimizers, each a frozen description such as `adam` or `sgd(momentum=0.9)`; PyTorch does the work."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from envariant import specs
from envariant.errors import unknown_name


class OptimizerFamily(ABC):
    """A frozen description of an update rule; learning rate and weight decay belong to the replica."""

    name: ClassVar[str]

    @abstractmethod
    def build(
        self, params: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """An optimizer that updates `params` in place from their `.grad`."""


@final
@dataclass(frozen=True)
class Adam(OptimizerFamily):
    """Adam; weight decay is added to the gradient, as in the IRM code and DomainBed. Kingma & Ba 2014."""

    name: ClassVar[str] = "adam"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def build(
        self, params: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            params, learning_rate, (self.beta1, self.beta2), self.epsilon, weight_decay, fused=True
        )


@final
@dataclass(frozen=True)
class AdamW(OptimizerFamily):
    """Adam with decay of the weights themselves, apart from the gradient. Loshchilov & Hutter 2017."""

    name: ClassVar[str] = "adamw"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def build(
        self, params: Sequence[Tensor], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            params, learning_rate, (self.beta1, self.beta2), self.epsilon, weight_decay, fused=True
        )


@final
@dataclass(frozen=True)
class SGD(OptimizerFamily):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    name: ClassVar[str] = "sgd"
    momentum: float = 0.0
    nesterov: bool = False

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
    spec = specs.parse(text)
    cls = OPTIMIZERS.get(spec.name)
    if cls is None:
        raise unknown_name("optimizer", spec.name, OPTIMIZERS)
    return cls(**specs.fill(cls, spec))
