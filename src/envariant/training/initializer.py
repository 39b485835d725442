"""Base classes of pretraining methods for the initial weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

from torch import Tensor, nn

from envariant.algorithms import Composition
from envariant.core import specs
from envariant.core.environments import EnvironmentSet


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """Pretrained model, represented by its weights and a prediction function.

    Attributes:
        weights: Parameters and buffers by name.
        logits: Function that maps rows, in the storage format of the environments, to logits `[rows]` or
            `[rows, outputs]`.
    """

    weights: Mapping[str, Tensor]
    logits: Callable[[Tensor], Tensor]


class Fit(Protocol):
    """Function that trains a new model of the run's architecture."""

    @property
    def batch_size(self) -> int | None:
        """Rows of each environment per step; None for all rows."""
        ...

    def but(self, *, batch_size: int | None, learning_rate: float | None) -> "Fit":
        """Return a copy with another batch size and learning rate.

        Args:
            batch_size: Rows of each environment per step; None to keep the batch size.
            learning_rate: Learning rate of all parameters; None to keep the learning rates.
        """
        ...

    def __call__(self, environments: EnvironmentSet, algorithm: Composition, steps: int) -> Fitted:
        """Train a new model on all environments.

        Args:
            environments: Training environments.
            algorithm: Algorithm for training the model.
            steps: Number of updates.
        """
        ...

    def initial(self, environments: EnvironmentSet) -> nn.Module:
        """Return the network of the run with its initial weights.

        Args:
            environments: Training environments.
        """
        ...


class Initializer(ABC):
    """Base class of pretraining methods for the initial weights.

    Attributes:
        name: Name of the method in the option `init`, such as `rfc`.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Total number of pretraining steps of one replica."""

    def identity(self) -> str | None:
        """Return a string that identifies the weights, or None.

        None means that the method's string, such as `rfc(rounds=3)`, identifies the weights already.
        """
        return None

    @abstractmethod
    def weights(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        """Return pretrained parameters and buffers of the run's model, by name.

        Args:
            environments: Training environments.
            fit: Function that trains a model of the run's architecture.
            seed: Seed of all randomness other than weight initialization and batch order.

        Raises:
            EnvariantError: If the initialization method does not support the task or the model.
        """
