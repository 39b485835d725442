"""Base classes of algorithms and their parts.

An algorithm is a pure function from a minibatch to gradients. It has no mutable state and takes random
numbers only from its context. It never branches in Python on a hyperparameter's value, because
hyperparameters and the step number may be tensors: the engine runs many replicas as one program. Most
algorithms are compositions (`composition.py`) of

    risk aggregator  ×  penalties, each with a coefficient schedule  ×  gradient aggregator.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, Protocol, cast

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from envariant.algorithms.train_context import TrainContext
from envariant.core import specs
from envariant.core.environments import EnvironmentBatch, PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule, schedule
from envariant.core.step_context import StepContext
from envariant.core.tasks import Task

Parameters = Mapping[str, Tensor]
"""Model parameters by name. Gradients have the same keys and shapes."""

State = Mapping[str, Any]
"""Tensors passed from each step to the next, in nested mappings; empty for most algorithms."""

Metrics = Mapping[str, Tensor]
"""Scalars to record, by name; detached, so no gradient flows through them."""


Requirement = Literal["rows", "derivatives", "risks"]
"""What a part needs of a batch: rows, or the mean over each environment of certain values of its rows.

"risks" are the losses. "derivatives" are, in addition, `multiplier_derivatives()` and `task.residuals`.
"""


class Model(Protocol):
    """Model as a pure function: `model(params, inputs)` returns features and logits."""

    @property
    def auxiliary_networks(self) -> Sequence[str]:
        """Names of the networks that the algorithm adds to the model."""
        ...

    def __call__(self, params: Parameters, inputs: Tensor) -> tuple[Tensor, Tensor]: ...

    def layers(self, params: Parameters, inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the outputs of the layers in `Algorithm.layers_used`, and the logits."""
        ...

    def head(self, params: Parameters, features: Tensor) -> Tensor:
        """Return the logits of the model's head for features `[rows, width]`."""
        ...

    def network(self, name: str, params: Parameters, inputs: Tensor) -> Tensor:
        """Return the output of the auxiliary network `name` for `inputs`."""
        ...


class Algorithm(ABC):
    """Base class of algorithms: functions from model parameters and a minibatch to gradients.

    Attributes:
        environment_inference: Method that infers the training environments; None to use the environments of
            the data.
    """

    environment_inference: "EnvironmentInference | None" = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Name shown in tables and figures."""

    @property
    @abstractmethod
    def minimum_environments(self) -> int:
        """Smallest number of training environments that the algorithm needs."""

    @property
    @abstractmethod
    def needs_features(self) -> bool:
        """Whether the algorithm uses the features (inputs of the head); otherwise, they have width 0."""

    @property
    def layers_used(self) -> tuple[str, ...]:
        """Names of the submodules whose outputs the algorithm uses; "features" for the inputs of the head."""
        return ()

    @property
    def stochastic(self) -> bool:
        """Whether a training step uses random numbers."""
        return False

    @property
    def depends_on_sizes(self) -> bool:
        """Whether an environment's weight in the loss depends on its size; see `Part.depends_on_sizes`."""
        return False

    @property
    def returns_updates(self) -> bool:
        """Whether `gradients` returns parameter updates, applied as θ ← θ − update without an optimizer."""
        return False

    @property
    def default_average(self) -> str | None:
        """Default value of the run's option `average`, such as "ma(start=599)"; None for no averaging."""
        return None

    @property
    def predicts_with_own_weights(self) -> bool:
        """Whether `eval_params` returns weights other than the trained ones, such as an average."""
        return type(self).eval_params is not Algorithm.eval_params

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        """Adapt the model to the algorithm before training. Default: return it unchanged.

        Args:
            module: Newly built model; may be changed in place.
            context: Constant properties of the run; `features` is not set yet.

        Raises:
            EnvariantError: If the algorithm does not support this model.
        """
        del context
        return module

    def eval_params(self, params: Parameters, state: State) -> Parameters:
        """Return the parameters used for prediction. Default: the trained parameters."""
        del state
        return params

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        """Return additional networks by name, initialized from PyTorch's default generator.

        The networks are trained together with the model. Names of their parameters begin with the network's
        name and a dot.
        """
        del context
        return {}

    @abstractmethod
    def init(self, params: Parameters, context: TrainContext) -> State:
        """Return the initial state. Keys and shapes of the state must not change during training.

        Args:
            params: Parameters of the model and of the auxiliary networks.
            context: Constant properties of the run.

        Raises:
            EnvariantError: If the algorithm does not support this task or model.
        """

    @abstractmethod
    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """Return the gradients of one step, without side effects.

        Args:
            model: Model as a function of its parameters.
            params: Parameters of the model and of the auxiliary networks.
            batch: Minibatch with rows of every training environment.
            state: State returned by `init` or by the previous call.
            context: Step number, learning rate and random numbers.

        Returns:
            Gradients by parameter name (same keys as `params`), the new state, and metrics by name.
        """


class Part(ABC):
    """Base class of the parts of a composition: frozen dataclasses whose fields are hyperparameters.

    At construction, the value of each field is checked against the field's type and against its bounds, which
    are declared as in `Annotated[float, Field(ge=0)]`.

    Attributes:
        name: Name in specifications such as `vrex + and-mask`.
        paper: Authors, year, and arXiv number or venue.
        minimum_environments: Smallest number of training environments that the part needs.
        needs_features: Whether the part uses the features (the inputs of the head).
        needs_linear_head: Whether the head must be one linear layer.
        needs_classes: Whether the part is defined only for classification with a single target per row.
        needs_one_target: Whether the part requires a single target per row.
        stochastic: Whether the part uses random numbers.
        depends_on_sizes: Whether an environment's weight in the loss depends on its number of rows. If false,
            duplicating all rows of one environment leaves the gradients unchanged, apart from the effect of
            divisors such as n − 1.
        default_average: Default value of the run's option `average`, such as "ma(start=599)". The step number
            in it is scaled to the length of the run. None for no averaging.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    minimum_environments: ClassVar[int] = 1
    needs_features: ClassVar[bool] = False
    needs_linear_head: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    needs_one_target: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    depends_on_sizes: ClassVar[bool] = False
    default_average: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        specs.validate(self)

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        """Adapt the model to the part; see `Algorithm.wrap_model`. Default: return it unchanged."""
        del context
        return module

    def eval_params(self, params: Parameters, state: State) -> Parameters:
        """Return the parameters used for prediction; see `Algorithm.eval_params`."""
        del state
        return params

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        """Return additional networks; see `Algorithm.auxiliary_networks`. Default: none."""
        del context
        return {}

    def init(self, params: Parameters, context: TrainContext) -> State:
        """Return the state before the first step; see `Algorithm.init`. Default: an empty state."""
        del params, context
        return {}

    def layers_used(self) -> tuple[str, ...]:
        """Return the names of the submodules whose outputs the part uses; see `Algorithm.layers_used`."""
        return ()

    def requires(self) -> "Requirement":
        """Return what a step needs of a batch: single rows, or only averages over each environment.

        Linear models are trained faster if averages are enough (`training/linear_risks.py`). A part then
        receives a batch with one row per environment. Default: "rows"; "risks" for parts that receive only
        the gradients of the environments.
        """
        return "rows"

    def switch_steps(self) -> Mapping[str, int]:
        """Return the step where each step-number hyperparameter takes effect, by hyperparameter name.

        A step-number hyperparameter says when training changes, such as `warm_up` of TRM. The returned step
        is the first one after the change, counted from 0. It may differ from the hyperparameter's value: in
        ERM++, it is `head_steps` + 1. The default values of these hyperparameters are scaled to the length of
        the run, like the step numbers in schedules.
        """
        return {}

    def coefficient_at(self, step: int) -> float:
        """Return the coefficient of this part in the loss at a given step, before normalization.

        If `Composition.normalize_loss` is set, the whole loss is then divided by the maximum of all parts'
        coefficients whenever this maximum exceeds 1.
        """
        del step
        return 1.0


class RiskAggregator(Part):
    """Base class of rules that combine the environments' risks into one risk."""

    @abstractmethod
    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Float[Tensor, ""], State]:
        """Return the combined risk to minimize, and the new state.

        Args:
            predicted: Batch with predictions, losses, and risks of all environments.
            state: Current state of this aggregator.
        """


def as_coefficient(value: Schedule | str | float, where: str) -> Schedule:
    """Convert a number or a string such as "step(1, 1e4, at=190)" to a coefficient schedule.

    Args:
        value: Schedule, number or string.
        where: Name of the part, for error messages.

    Raises:
        EnvariantError: If the value is not a schedule, or negative at some step.
    """
    course = schedule(value)
    course.check_not_negative(f"{where}: coefficient")
    return course


class _WithCoefficient(Part, ABC):
    """Base class of penalties: parts multiplied by a coefficient, which may change during training."""

    coefficient: Schedule

    def __post_init__(self) -> None:
        if not hasattr(self, "coefficient"):
            raise EnvariantError(
                f"{type(self).__name__}: a penalty must have a field named coefficient, such as "
                f"`coefficient: Schedule = Constant(1.0)`"
            )
        object.__setattr__(self, "coefficient", as_coefficient(self.coefficient, type(self).__name__))
        # Parts of other packages may declare their coefficient as a number.
        specs.validate(self, only={f.name for f in fields(cast("Any", self))} - {"coefficient"})

    def coefficient_at(self, step: int) -> float:
        return self.coefficient(step)


class Penalty(_WithCoefficient):
    """Base class of penalties that are computed from the predictions of a batch."""

    @abstractmethod
    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Float[Tensor, ""], State]:
        """Return the penalty, before it is multiplied by its coefficient, and the new state.

        Args:
            predicted: Batch with predictions, losses, and risks of all environments.
            state: Current state of this penalty.
        """


class GradientPenalty(_WithCoefficient):
    """Base class of penalties that are computed from the gradients of the environments' risks.

    The gradient of such a penalty contains second derivatives of the risks, which `Composition` computes.
    """

    def requires(self) -> Requirement:
        return "risks"

    @abstractmethod
    def penalty(self, gradients: Mapping[str, Tensor], state: State) -> tuple[Float[Tensor, ""], State]:
        """Return the penalty, before it is multiplied by its coefficient, and the new state.

        Args:
            gradients: Gradients of the environments' risks by parameter name, `[environments, *shape]`.
            state: Current state of this penalty.
        """


class TrainingStep(Part):
    """Base class of training steps that do more than minimize risks and penalties, such as nested updates.

    Use `batch.risk` and `batch.mean` for averages: they give all environments equal weight. A mean over all
    rows of the batch would give more weight to larger environments.

    Attributes:
        returns_updates: Whether `gradients` returns parameter updates instead of gradients for the run's
            optimizer. If true, `gradients` must apply weight decay itself: it adds `context.weight_decay`
            times each parameter to the gradient of this parameter.
        aggregates_risk: Whether the step computes its risk by `batch.risk`, and therefore supports risk
            aggregators other than the mean.
    """

    returns_updates: ClassVar[bool] = False
    aggregates_risk: ClassVar[bool] = False

    @abstractmethod
    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """Return gradients, new state and metrics; see `Algorithm.gradients`."""


class GradientAggregator(Part):
    """Base class of rules that combine the environments' gradients into one gradient."""

    def requires(self) -> Requirement:
        return "risks"

    @abstractmethod
    def combine(
        self, gradients: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """Return one combined gradient per parameter, the new state and metrics.

        Args:
            gradients: Gradients of the environments' risks by parameter name, `[environments, *shape]`.
            state: Current state of this aggregator.
            context: Step number, learning rate and random numbers.
        """


class EnvironmentInference(Part):
    """Base class of methods that infer environments from a reference model's predictions before training.

    Attributes:
        count: Number of inferred environments.
        reference_steps: Number of training steps of the reference model; 0 for the run's number of steps.
        reference_l2: Weight of the squared parameter norm in the reference model's loss.
    """

    count: ClassVar[int] = 2
    reference_steps: int
    reference_l2: float

    def requires(self) -> Requirement:
        # Environments are inferred before training.
        return "risks"

    @property
    def environment_names(self) -> tuple[str, ...]:
        """Names of the inferred environments."""
        return tuple(f"inferred {number + 1}" for number in range(self.count))

    @abstractmethod
    def environments(
        self, logits: Float[Tensor, "rows *c"], targets: Shaped[Tensor, " rows"], task: Task
    ) -> Int[Tensor, " rows"]:
        """Return, for each row, the index of its inferred environment, counted from 0.

        Args:
            logits: Logits of the reference model for every row.
            targets: Target of every row.
            task: Prediction task.
        """


def featurizer_and_head(module: nn.Module, name: str) -> tuple[nn.Module, nn.Module]:
    """Return the submodules `featurizer` and `head` of a model.

    Args:
        module: Model with the two submodules.
        name: Name of the algorithm, for the error message.

    Raises:
        EnvariantError: If the model has no submodule `featurizer` or no submodule `head`.
    """
    if not all(hasattr(module, part) for part in ("featurizer", "head")):
        raise EnvariantError(f"{name}: the model needs submodules named featurizer and head")
    return module.get_submodule("featurizer"), module.get_submodule("head")
