"""What an algorithm is: one pure function from a batch to gradients, and three kinds of part to make it of.

An algorithm keeps no state of its own, draws no global random numbers and never branches in Python on a
hyperparameter's value, so that an engine may run many replicas of it as one program: there its numbers,
the step among them, are tensors that behave as numbers do. Most algorithms are compositions (see
`composition.py`) of

    risk weighting  ×  penalties, each with a coefficient schedule  ×  gradient combination.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from envariant.core.environments import EnvironmentBatch, PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule, schedule
from envariant.core.step_context import StepContext
from envariant.core.tasks import Task

Parameters = Mapping[str, Tensor]
"""A model's parameters by name; gradients have the same keys and shapes."""

State = Mapping[str, Any]
"""Tensors that an algorithm carries from step to step, in nested mappings; empty for most."""

Metrics = Mapping[str, Tensor]
"""Scalars worth recording, detached."""


@final
@dataclass(frozen=True)
class TrainContext:
    """What stays the same all through training.

    Attributes:
        environments: how many are trained on.
        task: what is predicted.
        features: numbers that the head reads for each row; 0 where nobody looks at them.
        input_shape: of one row.
        linear_head: whether the head, as the model came, is one linear layer.
        build: one more model like the run's, newly drawn, for rows of some shape.
    """

    environments: int
    task: Task
    features: int = 0
    input_shape: Sequence[int] = ()
    linear_head: bool = False
    build: Callable[[Sequence[int]], nn.Module] | None = None

    def another(self, input_shape: Sequence[int] | None = None) -> nn.Module:
        """A model like the run's, newly drawn; for rows of another shape if one is given.

        Raises:
            EnvariantError: the run has one model and no way to build another.
        """
        if self.build is None:
            raise EnvariantError("model: this algorithm needs a second one; give a name or a function")
        return self.build(self.input_shape if input_shape is None else input_shape)


class Model(Protocol):
    """A model as a function of its parameters: `model(params, inputs) → (features, logits)`."""

    @property
    def auxiliary_networks(self) -> Sequence[str]:
        """Names of the networks that belong to the algorithm."""
        ...

    def __call__(self, params: Parameters, inputs: Tensor) -> tuple[Tensor, Tensor]: ...

    def head(self, params: Parameters, features: Tensor) -> Tensor:
        """The logits of features."""
        ...

    def network(self, name: str, params: Parameters, inputs: Tensor) -> Tensor:
        """What one of the algorithm's own networks makes of some inputs."""
        ...


class Algorithm(ABC):
    """One training rule: gradients in, state out.

    Attributes:
        name: what it is called in tables and figures.
        minimum_environments: how many training environments it needs to mean anything.
        needs_features: whether it looks at what the head reads; if not, features have width 0.
        draws: whether it draws random numbers.
        returns_updates: whether what it returns is how far to move, θ ← θ − gradient, and not for the run's
            optimizer to make steps of.
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

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def returns_updates(self) -> bool:
        return False

    @property
    def finds_environments(self) -> "EnvironmentInference | None":
        """What finds the environments to train on, if they are not the data's own."""
        return None

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        """The model as the algorithm trains it and predicts with it; most leave it as it is.

        Args:
            module: newly built, and the algorithm's to change.
            context: what stays the same; its `features` are not known yet.

        Raises:
            EnvariantError: the algorithm has no use for such a model.
        """
        del context
        return module

    def eval_params(self, params: Parameters, state: State) -> Parameters:
        """The parameters to predict with; for most those that are trained."""
        del state
        return params

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        """Networks of the algorithm's own, by name, with weights from PyTorch's default generator.

        Their parameters train with the model's, as `name.…` beside them.
        """
        del context
        return {}

    @abstractmethod
    def init(self, params: Parameters, context: TrainContext) -> State:
        """The state before the first step; its keys and shapes stay what they are here.

        Args:
            params: of the model and of the algorithm's own networks.
            context: what stays the same.

        Raises:
            EnvariantError: the algorithm does not work in such a setting.
        """

    @abstractmethod
    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """One step's gradients, without side effects.

        Args:
            model: as a function.
            params: of the model and of the algorithm's own networks.
            batch: rows of every training environment.
            state: what `init` or the previous call returned.
            context: the step, its learning rate and its random numbers.

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
        needs_linear_head: whether the head must be one linear layer.
        needs_classes: whether it means nothing for regression.
        draws: whether it draws random numbers.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    minimum_environments: ClassVar[int] = 1
    needs_features: ClassVar[bool] = False
    needs_linear_head: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        """The model as the part wants it, as `Algorithm.wrap_model`; most leave it as it is."""
        del context
        return module

    def eval_params(self, params: Parameters, state: State) -> Parameters:
        """The parameters to predict with, as `Algorithm.eval_params`."""
        del state
        return params

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        """Networks of the part's own, as `Algorithm.networks`; most have none."""
        del context
        return {}

    def init(self, params: Parameters, context: TrainContext) -> State:
        """The part's state before the first step; most have none."""
        del params, context
        return {}

    def coefficient_at(self, step: int) -> float:
        """By how much the part multiplies what it measures; the loss may be divided by the largest."""
        del step
        return 1.0


class RiskAggregator(Part):
    """How the risks of the environments become one risk."""

    @abstractmethod
    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Float[Tensor, ""], State]:
        """One risk to minimize, and the new state."""


class _WithCoefficient(Part, ABC):
    """A part that is measured and then multiplied by a coefficient, which may follow a schedule."""

    coefficient: Schedule

    def __post_init__(self) -> None:
        # Numbers and strings are welcome where a schedule is wanted.
        object.__setattr__(self, "coefficient", schedule(self.coefficient))

    def coefficient_at(self, step: int) -> float:
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


class TrainingStep(Part):
    """A whole step that is no sum of risks and penalties: with inner steps, say, or data of its making.

    Attributes:
        returns_updates: whether it returns how far to move, and not a gradient for the run's optimizer.
    """

    returns_updates: ClassVar[bool] = False

    @abstractmethod
    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """As `Algorithm.gradients`."""


class GradientAggregator(Part):
    """How the gradients of the environments become one gradient."""

    @abstractmethod
    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """One gradient from each `[environments, *shape]`, the new state, and metrics."""


class EnvironmentInference(Part):
    """How environments are found where none are given, before training: from a first model's answers.

    Attributes:
        count: how many are found.
        reference_steps: that the first model trains; 0 is as many as the run.
        reference_l2: weight of the squared norm in its loss.
    """

    count: ClassVar[int] = 2
    reference_steps: int
    reference_l2: float

    @abstractmethod
    def environments(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, " rows"], task: Task
    ) -> Int[Tensor, " rows"]:
        """The number of each row's environment, from 0."""


def featurizer_and_head(module: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """The two parts of a model that an algorithm of that name wants to look at or change.

    Raises:
        EnvariantError: the model does not have them.
    """
    if not all(hasattr(module, part) for part in ("featurizer", "head")):
        raise EnvariantError(f"{name}: the model needs the parts featurizer and head")
    return module.get_submodule("featurizer"), module.get_submodule("head")
