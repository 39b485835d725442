"""Algorithms composed of any risk aggregator, any penalties and any gradient aggregator.

Some penalties, such as the variance of the risks, depend on all environments together. Some gradient
aggregators, such as AND-mask, need one gradient per environment. By the chain rule, the gradient of the
whole loss L splits into one term per environment, ∇L = Σ_e (∂L/∂z_e)(∂z_e/∂θ), where θ are the parameters
and z_e the model outputs on the rows of environment e. L is differentiated once with respect to the outputs,
and each environment's term is propagated back through the model separately. If L is the mean of E risks R_e,
then E times the term of environment e is exactly its gradient g_e = ∇R_e. For any other loss, E times the
term takes the place of g_e, so any penalties can be combined with any gradient aggregator. The gradient of
a gradient penalty P is computed in the same way: ∇P = Σ_e (∂g_e/∂θ)ᵀ ∂P/∂g_e, a Hessian-vector product per
environment.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast, final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.func import grad, vjp

from envariant.algorithms.base import (
    Algorithm,
    EnvironmentInference,
    GradientAggregator,
    GradientPenalty,
    Metrics,
    Model,
    Parameters,
    Part,
    Penalty,
    RiskAggregator,
    State,
    TrainContext,
    TrainingStep,
)
from envariant.algorithms.gradient_aggregators.mean import MeanGradient
from envariant.algorithms.gradient_terms import added, check_gradient, number_and_state, penalty_terms, summed
from envariant.algorithms.risk_aggregators.mean import MeanRisk, PooledMean
from envariant.algorithms.risk_aggregators.sum import SumRisk
from envariant.algorithms.risk_aggregators.worst import WorstCaseRisk
from envariant.core import specs
from envariant.core.conversion import joined
from envariant.core.environments import EnvironmentBatch, PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule
from envariant.core.step_context import StepContext
from envariant.core.tasks import Regression

P = TypeVar("P", Penalty, GradientPenalty)

RISK_AGGREGATORS: Mapping[str, RiskAggregator] = {
    part.name: part for part in (MeanRisk(), PooledMean(), SumRisk(), WorstCaseRisk())
}
"""Values of the setting `risk_aggregator`: all aggregators without hyperparameters."""


@final
@dataclass(frozen=True)
class Composition(Algorithm):
    """Algorithm that minimizes the loss L = [ A(R_1 … R_E) + Σ_k c_k(t)·P_k + l2·‖θ‖² ] / divisor.

    A is the risk aggregator, R_1 … R_E are the risks of the E environments, c_k(t) is the coefficient of
    penalty P_k at step t, and θ are the parameters. The divisor is 1 unless `normalize_loss` is set.

    Attributes:
        risk_aggregator: Rule that combines the environments' risks into one risk.
        penalties: Penalties, each with its coefficient schedule.
        gradient_aggregator: Rule that combines the environments' gradients into one gradient.
        l2: Weight of the squared norm of all parameters *inside* the loss, as in the IRM code. The gradient
            of this term is added after gradient aggregation, because it does not depend on the environment. A
            training step with `returns_updates` adds this gradient to the gradients that its own optimizers
            receive.
        normalize_loss: Whether to divide the whole loss by the largest coefficient of its parts (without
            `l2`) whenever that exceeds 1. As in the code of IRM and REx, this avoids very large gradients.
        training_step: Training step that replaces the penalties and the gradient aggregator. If it sets
            `aggregates_risk`, it minimizes the risk of `risk_aggregator`. None: no training step.
        environment_inference: Method that infers the training environments; None to use the environments of
            the data.
    """

    risk_aggregator: RiskAggregator = field(default_factory=MeanRisk)
    penalties: tuple[Penalty | GradientPenalty, ...] = ()
    gradient_aggregator: GradientAggregator = field(default_factory=MeanGradient)
    l2: NonNegativeFloat = 0.0
    normalize_loss: bool = False
    training_step: TrainingStep | None = None
    environment_inference: EnvironmentInference | None = None

    def __post_init__(self) -> None:
        kinds = {"risk_aggregator": RiskAggregator, "gradient_aggregator": GradientAggregator}
        for key, kind in kinds.items():
            if not isinstance(getattr(self, key), kind):
                raise EnvariantError(
                    f"Composition: {key} must be a {kind.__name__}, got {getattr(self, key)!r} "
                    f"(penalties belong in penalties=(…,))"
                )
        if not isinstance(self.penalties, tuple) or not all(
            isinstance(penalty, Penalty | GradientPenalty) for penalty in self.penalties
        ):
            raise EnvariantError("Composition: penalties must be a tuple of penalties, as in (VREx(),)")
        if (step := self.training_step) is not None:
            risk_only = Composition(self.risk_aggregator, l2=self.l2)
            if replace(self, training_step=None, environment_inference=None) != risk_only:
                raise EnvariantError(
                    f"{step.name}: is a training step and cannot be combined with other parts"
                )
            # Others have a state, which a step with several risks could not update.
            possible = tuple(RISK_AGGREGATORS.values()) if step.aggregates_risk else (MeanRisk(),)
            if self.risk_aggregator not in possible:
                names = ", ".join(part.name for part in possible)
                raise EnvariantError(
                    f"{step.name}: risk_aggregator must be one of {names}, got {self.risk_aggregator.name}"
                )
        specs.validate(self, only=("l2", "normalize_loss"))

    def __add__(self, other: object) -> "Composition":
        """Compose two algorithms: keep the penalties of both, and every other part that is not a default.

        Raises:
            EnvariantError: If both algorithms have a penalty of the same name, both set the same field (such
                as the risk aggregator), or one of them has a training step.
        """
        if not isinstance(other, Composition):
            raise EnvariantError(
                f"{self.name} + {getattr(other, 'name', other)}: only compositions can be composed"
            )
        for training_step in (self.training_step, other.training_step):
            if training_step is not None:
                raise EnvariantError(
                    f"{self.name} + {other.name}: {training_step.name} is a training step and cannot be "
                    f"combined with other parts"
                )
        repeated = {p.name for p in self.penalties} & {p.name for p in other.penalties}
        if repeated:
            raise EnvariantError(
                f"{self.name} + {other.name}: the penalty {sorted(repeated)[0]} occurs twice"
            )
        return Composition(
            self._either(other, "risk_aggregator", MeanRisk()),
            self.penalties + other.penalties,
            self._either(other, "gradient_aggregator", MeanGradient()),
            self._either(other, "l2", 0.0),
            self.normalize_loss or other.normalize_loss,
            environment_inference=self._either(other, "environment_inference", None),
        )

    def _either(self, other: "Composition", key: str, default: Any) -> Any:
        """Return a field's value from the algorithm that sets this field; the default if neither sets it."""
        first, second = getattr(self, key), getattr(other, key)
        if first not in (default, second) and second != default:
            names = " and ".join(getattr(value, "name", f"{value}") for value in (first, second))
            raise EnvariantError(
                f"{self.name} + {other.name}: only one {key} is possible, but both parts set one ({names})"
            )
        return second if first == default else first

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of the algorithm; environment inference is included only if it is set.

        With a training step, the order is: training step, risk aggregator, environment inference. Without
        one, the order is: risk aggregator, penalties, gradient aggregator, environment inference.
        """
        last = () if self.environment_inference is None else (self.environment_inference,)
        if self.training_step is not None:
            return (self.training_step, self.risk_aggregator, *last)
        return (self.risk_aggregator, *self.penalties, self.gradient_aggregator, *last)

    @property
    def non_default_parts(self) -> tuple[Part, ...]:
        """Parts other than the defaults `MeanRisk` and `MeanGradient`; if there are none, only `MeanRisk`."""
        parts = tuple(part for part in self.parts if not isinstance(part, MeanRisk | MeanGradient))
        return parts or (self.risk_aggregator,)

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.non_default_parts)

    @property
    def minimum_environments(self) -> int:
        # Environment inference works with any number of given environments.
        if self.environment_inference is not None:
            return 1
        return max(part.minimum_environments for part in self.parts)

    @property
    def needs_features(self) -> bool:
        return any(part.needs_features for part in self.parts)

    @property
    def returns_updates(self) -> bool:
        return self.training_step is not None and self.training_step.returns_updates

    @property
    def layers_used(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.layers_used()))

    @property
    def stochastic(self) -> bool:
        return any(part.stochastic for part in self.parts)

    @property
    def depends_on_sizes(self) -> bool:
        return any(part.depends_on_sizes for part in self.parts)

    @property
    def default_average(self) -> str | None:
        declared = dict.fromkeys(part.default_average for part in self.parts if part.default_average)
        if len(declared) > 1:
            raise EnvariantError(
                f"{self.name}: only one average is possible, but its parts declare {' and '.join(declared)}"
            )
        return next(iter(declared), None)

    @property
    def predicts_with_own_weights(self) -> bool:
        return any(type(part).eval_params is not Part.eval_params for part in self.parts)

    def schedules(self) -> Mapping[str, Schedule]:
        """Return the schedules of all parts, by names such as "vrex coefficient"."""
        return {
            f"{part.name} {f.name}": value
            for part in self.parts
            if dataclasses.is_dataclass(part)
            for f in dataclasses.fields(cast("Any", part))
            if isinstance(value := getattr(part, f.name), Schedule)
        }

    def switch_steps(self) -> Mapping[str, tuple[int, int]]:
        """Return all hyperparameters that are step numbers, by names such as "trm warm_up".

        Each entry is a pair: the hyperparameter's value, and the step given by `Part.switch_steps`.
        """
        return {
            f"{part.name} {key}": (getattr(part, key), step)
            for part in self.parts
            for key, step in part.switch_steps().items()
        }

    def wrap_model(self, module: nn.Module, context: TrainContext) -> nn.Module:
        if any(part.needs_linear_head for part in self.parts) and not context.linear_head:
            raise EnvariantError(f"{self.name}: the model's head must be one linear layer")
        for part in self.parts:
            module = part.wrap_model(module, context)
        return module

    def eval_params(self, params: Parameters, state: State) -> Parameters:
        for i, part in enumerate(self.parts):
            params = part.eval_params(params, state[str(i)])
        return params

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        return {name: net for part in self.parts for name, net in part.auxiliary_networks(context).items()}

    def init(self, params: Parameters, context: TrainContext) -> State:
        for part in self.parts:
            if part.needs_classes and isinstance(context.task, Regression):
                raise EnvariantError(f"{part.name}: needs a classification task, but the task is regression")
            if (part.needs_classes or part.needs_one_target) and context.task.target_shape:
                raise EnvariantError(
                    f"{part.name}: supports only one target per row, but the task is {context.task.name}"
                )
        return {str(i): part.init(params, context) for i, part in enumerate(self.parts)}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        if self.training_step is not None:
            return self._gradients_of_step(self.training_step, model, params, batch, state, context)
        divisor = self.divisor(context.step)
        networks = model.auxiliary_networks
        # Parameters of auxiliary networks. The model's parameters affect the loss only through its outputs.
        own = {name: value for name, value in params.items() if name.split(".")[0] in networks}

        def loss(features: Tensor, logits: Tensor, own: Parameters) -> tuple[Tensor, tuple[State, Metrics]]:
            functions = {name: partial(model.network, name, own) for name in networks}
            value, states, metrics = self.loss(batch.predicted(features, logits, context, functions), state)
            return value, (states, metrics)

        # Environments pass through the model one at a time only if the aggregator needs separate gradients.
        separate = not isinstance(self.gradient_aggregator, MeanGradient)
        pieces = batch.split(batch.inputs) if separate else (batch.inputs,)
        outputs, pullbacks = zip(*(vjp(_on(model, piece), params) for piece in pieces), strict=True)
        features, logits = (joined(output) for output in zip(*outputs, strict=True))
        (*cotangents, own_gradient), (new, risk_metrics) = grad(loss, argnums=(0, 1, 2), has_aux=True)(
            features, logits, own
        )
        states, metrics = dict(new), dict(risk_metrics)
        if separate:
            shares = zip(*map(batch.split, cotangents), strict=True)
            each = [pull(share)[0] for pull, share in zip(pullbacks, shares, strict=True)]
        else:
            each = [pullbacks[0](tuple(cotangents))[0]]
        for key, part in self._numbered(GradientPenalty):
            value, states[str(key)], terms = penalty_terms(part, model, params, batch, state[str(key)])
            metrics[f"{part.name} penalty"] = value
            weight = part.coefficient_at(context.step) / divisor
            each = added(each, terms if separate else [summed(terms)], weight)
        gradient = each[0]
        if separate:
            shared = [name for name in params if name not in own]
            stacked = {name: torch.stack([g[name] for g in each]) for name in shared}
            gradient, states, aggregator_metrics = self.aggregate(stacked, states, context)
            metrics |= aggregator_metrics
        metrics |= self.coefficients(context.step, metrics["risk"])
        gradient = {**gradient, **own_gradient}
        decay = 2 * self.l2 / divisor
        return {name: gradient[name] + decay * value for name, value in params.items()}, states, metrics

    def loss(
        self, predicted: PredictedBatch, state: State, gradients: Parameters | None = None
    ) -> tuple[Tensor, State, Metrics]:
        """Return the loss [ A(R_1 … R_E) + Σ_k c_k(t)·P_k ] / divisor of a batch, the new state and metrics.

        Args:
            predicted: Batch with predictions, losses, and risks of all environments.
            state: State of the algorithm.
            gradients: Gradients of the environments' risks by parameter name, `[environments, *shape]`. If
                they are None, the loss has no gradient penalties.
        """
        context, states = predicted.context, dict(state)
        aggregator = self.risk_aggregator
        total, states["0"] = number_and_state(aggregator, aggregator.risk(predicted, state["0"]))
        metrics = {"risk": total.detach()}
        for key, part in enumerate(self.penalties, start=1):
            if isinstance(part, Penalty):
                own_view = replace(predicted, context=context.of_part(key))
                result = part.penalty(own_view, state[str(key)])
            elif gradients is not None:
                result = part.penalty(gradients, state[str(key)])
            else:
                continue
            value, states[str(key)] = number_and_state(part, result)
            total = total + part.coefficient_at(context.step) * value
            metrics[f"{part.name} penalty"] = value.detach()
        return total / self.divisor(context.step), states, metrics

    def _numbered(self, kind: type[P]) -> list[tuple[int, P]]:
        """Return the penalties of one class, each with its index in `parts`."""
        return [(i, part) for i, part in enumerate(self.penalties, start=1) if isinstance(part, kind)]

    def divisor(self, step: Any) -> Any:
        """Return the divisor of the loss at a step; see `normalize_loss`."""
        if not self.normalize_loss:
            return 1.0
        return _largest([1.0, *(part.coefficient_at(step) for part in self.parts)])

    def coefficients(self, step: int, like: Tensor) -> dict[str, Tensor]:
        """Return the value of each scheduled coefficient at a step, as metrics."""
        parts = (part for part in self.parts if isinstance(getattr(part, "coefficient", None), Schedule))
        return {f"{part.name} coefficient": like.new_zeros(()) + part.coefficient_at(step) for part in parts}

    def aggregate(
        self, shares: Mapping[str, Tensor], state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], dict[str, Any], Metrics]:
        """Combine the environments' shares of a gradient, and return one gradient, the new state and metrics.

        Args:
            shares: Contribution of each environment to the gradient of the loss by parameter name,
                `[environments, *shape]`; the contributions add up to the gradient.
            state: State of the algorithm.
            context: Step number, learning rate and random numbers.
        """
        number = len(self.penalties) + 1
        stacked = {name: share * len(share) for name, share in shares.items()}
        gradient, new, metrics = self.gradient_aggregator.combine(
            stacked, state[str(number)], context.of_part(number)
        )
        check_gradient(self.gradient_aggregator, gradient, {name: g[0] for name, g in shares.items()})
        return gradient, {**state, str(number): new}, metrics

    def _gradients_of_step(
        self,
        training_step: TrainingStep,
        model: Model,
        params: Parameters,
        batch: EnvironmentBatch,
        state: State,
        context: StepContext,
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        aggregator, decay = self.risk_aggregator, 2 * self.l2

        def risk(losses: Tensor) -> Tensor:
            nothing, risks = losses.new_zeros(len(losses), 0), batch.per_environment_mean(losses)
            predicted = PredictedBatch(batch, nothing, nothing, losses, risks, context)
            return aggregator.risk(predicted, state["1"])[0]

        own = batch if isinstance(aggregator, MeanRisk) else replace(batch, aggregator=risk)
        gradient, new, metrics = training_step.gradients(
            model, params, own, state["0"], replace(context, weight_decay=decay)
        )
        check_gradient(training_step, gradient, params)
        if not training_step.returns_updates:
            gradient = {name: gradient[name] + decay * value for name, value in params.items()}
        return gradient, {**state, "0": new}, metrics


def _largest(factors: Sequence[float | Tensor]) -> Any:
    """Return the largest of several coefficients: numbers or, in a replica stack, tensors."""
    largest: Any = max(factor for factor in factors if not isinstance(factor, Tensor))
    for factor in factors:
        if isinstance(factor, Tensor):
            largest = torch.clamp(factor, min=largest)
    return largest


def _on(model: Model, inputs: Tensor) -> Callable[[Parameters], tuple[Tensor, Tensor]]:
    return lambda params: model(params, inputs)
