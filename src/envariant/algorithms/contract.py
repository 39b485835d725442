"""What an algorithm is: one pure function from a batch to gradients, and three kinds of part to make it of.

An algorithm keeps no state of its own, draws no global random numbers and never branches in Python on a
hyperparameter's value, so that an engine may run many replicas of it as one program: there its numbers,
the step among them, are tensors that behave as numbers do. Most algorithms are compositions (see
`composition.py`) of

    risk weighting  ×  penalties, each with a coefficient schedule  ×  gradient combination.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from jaxtyping import Float
from torch import Tensor

from envariant.environments import EnvironmentBatch, PredictedBatch
from envariant.schedules import Schedule, schedule

Parameters = Mapping[str, Tensor]
"""A model's parameters by name; gradients have the same keys and shapes."""

State = Mapping[str, Any]
"""Tensors that an algorithm carries from step to step, in nested mappings; empty for most."""

Metrics = Mapping[str, Tensor]
"""Scalars worth recording, detached."""


class Forward(Protocol):
    """A model as a function of its parameters: `(params, inputs) → (features, logits)`."""

    def __call__(self, params: Parameters, inputs: Tensor) -> tuple[Tensor, Tensor]: ...


class Algorithm(ABC):
    """One training rule: gradients in, state out.

    Attributes:
        name: what it is called in tables and figures.
        minimum_environments: how many training environments it needs to mean anything.
        needs_features: whether it looks at what the head reads; if not, features have width 0.
    """

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def minimum_environments(self) -> int: ...

    @property
    @abstractmethod
    def needs_features(self) -> bool: ...

    @abstractmethod
    def init(self, params: Parameters, environments: int) -> State:
        """The state before the first step; its keys and shapes stay what they are here.

        Args:
            params: the model's parameters.
            environments: how many training environments there are.
        """

    @abstractmethod
    def gradients(
        self, forward: Forward, params: Parameters, batch: EnvironmentBatch, state: State, step: int
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """One step's gradients, without side effects.

        Args:
            forward: the model as a function.
            params: its parameters.
            batch: rows of every training environment.
            state: what `init` or the previous call returned.
            step: updates already made; the first call has 0.

        Returns:
            Gradients with the keys of `params`, the new state, and metrics.
        """


class Part(ABC):
    """A piece of a composition: a frozen dataclass whose fields are its hyperparameters.

    Attributes:
        name: as written on the command line.
        paper: authors, year and arXiv number or venue.
        minimum_environments: how many training environments it needs to mean anything.
        needs_features: whether it looks at what the head reads.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    minimum_environments: ClassVar[int] = 1
    needs_features: ClassVar[bool] = False

    def init(self, params: Parameters, environments: int) -> State:
        """The part's state before the first step; most have none."""
        del params, environments
        return {}

    def factor(self, step: int) -> float:
        """By how much the part multiplies what it measures; the loss may be divided by the largest."""
        del step
        return 1.0


class Weighting(Part):
    """How the risks of the environments become one risk."""

    @abstractmethod
    def risk(self, predicted: PredictedBatch, state: State, step: int) -> tuple[Float[Tensor, ""], State]:
        """One risk to minimise, and the new state."""


class _WithCoefficient(Part, ABC):
    """A part that is measured and then multiplied by a coefficient, which may follow a schedule."""

    coefficient: Schedule

    def __post_init__(self) -> None:
        # Numbers and strings are welcome where a schedule is wanted.
        object.__setattr__(self, "coefficient", schedule(self.coefficient))

    def factor(self, step: int) -> float:
        return self.coefficient(step)


class Penalty(_WithCoefficient):
    """A scalar that is 0 when the environments agree in some sense, times a coefficient schedule."""

    @abstractmethod
    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Float[Tensor, ""], State]:
        """The penalty without its coefficient, and the new state."""


class GradientPenalty(_WithCoefficient):
    """A penalty that looks at the gradients of the environments' risks and not at predictions.

    Its own gradient takes second derivatives; the composition sees to them.
    """

    @abstractmethod
    def penalty(self, gradients: Mapping[str, Tensor], state: State) -> tuple[Float[Tensor, ""], State]:
        """The penalty without its coefficient, from each `[environments, *shape]`, and the new state."""


class Combination(Part):
    """How the gradients of the environments become one gradient."""

    @abstractmethod
    def combine(
        self, gradients: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """One gradient from each `[environments, *shape]`, the new state, and metrics."""
