"""An algorithm made of parts: any weighting with any penalties and any gradient combination.

The one thing worth explaining is how a penalty that couples environments, such as the variance of their
risks, meets a rule that wants one gradient an environment, such as AND-mask. By the chain rule the
gradient of the whole loss is a sum over environments, ∇L = Σ_e (∂L/∂z_e)(∂z_e/∂θ), z_e being what the
model gives for the rows of e. So L is differentiated once with respect to the outputs, and each
environment's share is carried back through the model on its own. For the mean risk, E times that share is
exactly g_e = ∇R_e; for everything else it is the natural extension, and every combination is possible.
A penalty on the gradients themselves goes the same way: ∇P = Σ_e (∂g_e/∂θ)ᵀ ∂P/∂g_e, a Hessian of each
environment times a vector.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vjp

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
from envariant.algorithms.risk_aggregators.mean import Mean
from envariant.core.conversion import joined
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule
from envariant.core.step_context import StepContext
from envariant.core.tasks import Regression

P = TypeVar("P", Penalty, GradientPenalty)


@final
@dataclass(frozen=True)
class Composition(Algorithm):
    """L = [ weighting(R) + Σ_k c_k(t)·P_k + l2·‖θ‖² ] / divisor, its gradient combined over environments.

    Attributes:
        weighting: risks to one risk.
        penalties: each with its coefficient.
        combination: gradients of the environments to one gradient.
        l2: weight of the squared norm of all parameters *inside* the loss, as in the IRM code. It is no
            environment's evidence, so its gradient is added after the combination.
        normalize_loss: divide the whole loss by the largest coefficient once that exceeds 1, as the IRM and REx
            code do, to keep gradients in range.
        training_step: what makes the whole step in place of all these but l2, if anything does.
        inference: what finds the environments to train on, if they are not the data's own.
    """

    risk_aggregator: RiskAggregator = field(default_factory=Mean)
    penalties: tuple[Penalty | GradientPenalty, ...] = ()
    gradient_aggregator: GradientAggregator = field(default_factory=MeanGradient)
    l2: float = 0.0
    normalize_loss: bool = False
    training_step: TrainingStep | None = None
    environment_inference: EnvironmentInference | None = None

    def __post_init__(self) -> None:
        wanted = {"risk_aggregator": RiskAggregator, "gradient_aggregator": GradientAggregator}
        for key, kind in wanted.items():
            if not isinstance(getattr(self, key), kind):
                raise EnvariantError(
                    f"Composition: {key} must be a {kind.__name__}; got {getattr(self, key)!r} "
                    f"(penalties go into penalties=(…,))"
                )
        if not isinstance(self.penalties, tuple) or not all(
            isinstance(penalty, Penalty | GradientPenalty) for penalty in self.penalties
        ):
            raise EnvariantError("Composition: penalties must be a tuple of penalties, as in (VREx(),)")
        if (
            self.training_step is not None
            and replace(self, training_step=None, environment_inference=None, l2=0.0) != Composition()
        ):
            raise EnvariantError(
                f"{self.training_step.name}: is a training step, which makes its own steps and takes no other parts"
            )
        if not 0 <= self.l2 < math.inf:
            raise EnvariantError(f"Composition: l2 must be at least 0; got {self.l2:g}")

    def __add__(self, other: object) -> "Composition":
        """Both at once: their penalties together, and whichever weighting and combination is not a mean.

        Raises:
            EnvariantError: both bring a weighting or a combination, or a penalty twice.
        """
        if not isinstance(other, Composition):
            raise EnvariantError(f"{self.name} + {getattr(other, 'name', other)}: only compositions add up")
        for training_step in (self.training_step, other.training_step):
            if training_step is not None:
                raise EnvariantError(
                    f"{self.name} + {other.name}: {training_step.name} is a training step, which makes its own steps "
                    f"and takes no other parts"
                )
        twice = {p.name for p in self.penalties} & {p.name for p in other.penalties}
        if twice:
            raise EnvariantError(f"{self.name} + {other.name}: the penalty {sorted(twice)[0]} stands twice")
        return Composition(
            self._either(other, "risk_aggregator", Mean()),
            self.penalties + other.penalties,
            self._either(other, "gradient_aggregator", MeanGradient()),
            self._either(other, "l2", 0.0),
            self.normalize_loss or other.normalize_loss,
            environment_inference=self._either(other, "environment_inference", None),
        )

    def _either(self, other: "Composition", key: str, usual: Any) -> Any:
        """The one of two settings that is not the usual one."""
        own, theirs = getattr(self, key), getattr(other, key)
        if own not in (usual, theirs) and theirs != usual:
            names = " and ".join(getattr(value, "name", f"{value}") for value in (own, theirs))
            raise EnvariantError(
                f"{self.name} + {other.name}: there can be one {key}, and both bring one ({names})"
            )
        return theirs if own == usual else own

    @property
    def parts(self) -> tuple[Part, ...]:
        """Weighting, penalties and combination, or the procedure; then what finds the environments."""
        last = () if self.environment_inference is None else (self.environment_inference,)
        if self.training_step is not None:
            return (self.training_step, *last)
        return (self.risk_aggregator, *self.penalties, self.gradient_aggregator, *last)

    @property
    def non_default_parts(self) -> tuple[Part, ...]:
        """The parts that say something: a plain mean is left out, unless there is nothing else."""
        said = tuple(part for part in self.parts if not isinstance(part, Mean | MeanGradient))
        return said or (self.risk_aggregator,)

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.non_default_parts)

    @property
    def minimum_environments(self) -> int:
        # Those that are found are always two.
        return (
            1
            if self.environment_inference is not None
            else max(part.minimum_environments for part in self.parts)
        )

    @property
    def needs_features(self) -> bool:
        return any(part.needs_features for part in self.parts)

    @property
    def finds_environments(self) -> EnvironmentInference | None:
        return self.environment_inference

    @property
    def returns_updates(self) -> bool:
        return self.training_step is not None and self.training_step.returns_updates

    @property
    def stochastic(self) -> bool:
        return any(part.stochastic for part in self.parts)

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

    def _numbered(self, kind: type[P]) -> list[tuple[int, P]]:
        """The penalties of one kind, with their places among all parts."""
        return [(i, part) for i, part in enumerate(self.penalties, start=1) if isinstance(part, kind)]

    def _coefficients(self, step: int, like: Tensor) -> dict[str, Tensor]:
        """What each coefficient is at this step: a number that follows a schedule is worth recording."""
        parts = (part for part in self.parts if isinstance(getattr(part, "coefficient", None), Schedule))
        return {f"{part.name} coefficient": like.new_zeros(()) + part.coefficient_at(step) for part in parts}

    def init(self, params: Parameters, context: TrainContext) -> State:
        for part in self.parts:
            if part.needs_classes and isinstance(context.task, Regression):
                raise EnvariantError(f"{part.name}: needs classes; the task is regression")
        return {str(i): part.init(params, context) for i, part in enumerate(self.parts)}

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        if self.training_step is not None:
            return self._by_training_step(self.training_step, model, params, batch, state, context)
        step, names = context.step, model.auxiliary_networks
        divisor = (
            _largest([1.0, *(part.coefficient_at(step) for part in self.parts)])
            if self.normalize_loss
            else 1.0
        )
        # What belongs to the parts' own networks; the model's parameters act through its outputs alone.
        own = {name: value for name, value in params.items() if name.split(".")[0] in names}

        def loss(features: Tensor, logits: Tensor, own: Parameters) -> tuple[Tensor, tuple[State, Metrics]]:
            auxiliary_networks = {name: partial(model.network, name, own) for name in names}
            predicted = batch.predicted(features, logits, context, auxiliary_networks)
            states: dict[str, Any] = dict(state)
            total, states["0"] = self.risk_aggregator.risk(predicted, state["0"])
            metrics = {"risk": total.detach()}
            for key, part in self._numbered(Penalty):
                seen = replace(predicted, context=context.of_part(key))
                value, states[str(key)] = part.penalty(seen, state[str(key)])
                total = total + part.coefficient_at(step) * value
                metrics[f"{part.name} penalty"] = value.detach()
            return total / divisor, (states, metrics)

        # Environments go through the model one at a time only if their gradients are wanted apart.
        apart = not isinstance(self.gradient_aggregator, MeanGradient)
        pieces = batch.split(batch.inputs) if apart else (batch.inputs,)
        outputs, pullbacks = zip(*(vjp(_on(model, piece), params) for piece in pieces), strict=True)
        features, logits = (joined(output) for output in zip(*outputs, strict=True))
        (*cotangents, direct), (states, metrics) = grad(loss, argnums=(0, 1, 2), has_aux=True)(
            features, logits, own
        )
        if apart:
            shares = zip(*map(batch.split, cotangents), strict=True)
            each = [pull(share)[0] for pull, share in zip(pullbacks, shares, strict=True)]
        else:
            each = [pullbacks[0](tuple(cotangents))[0]]
        for key, part in self._numbered(GradientPenalty):
            value, states[str(key)], terms = _of_gradients(part, model, params, batch, state[str(key)])
            metrics[f"{part.name} penalty"] = value
            weight = part.coefficient_at(step) / divisor
            terms = terms if apart else [_summed(terms)]
            each = [
                {name: g + weight * term[name] for name, g in share.items()}
                for share, term in zip(each, terms, strict=True)
            ]
        if apart:
            shared = [name for name in params if name not in own]
            stacked = {name: torch.stack([g[name] for g in each]) * len(each) for name in shared}
            place = str(len(self.penalties) + 1)
            own_turn = context.of_part(len(self.penalties) + 1)
            gradient, states[place], told = self.gradient_aggregator.combine(stacked, states[place], own_turn)
            metrics |= told
        else:
            gradient = each[0]
        metrics |= self._coefficients(step, metrics["risk"])
        gradient = {**gradient, **direct}
        decay = 2 * self.l2 / divisor
        return {name: gradient[name] + decay * value for name, value in params.items()}, states, metrics

    def _by_training_step(
        self,
        training_step: TrainingStep,
        model: Model,
        params: Parameters,
        batch: EnvironmentBatch,
        state: State,
        context: StepContext,
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        gradient, new, metrics = training_step.gradients(model, params, batch, state["0"], context)
        # What moves itself moves at the run's rate; so does the decay.
        decay = 2 * self.l2 * (context.learning_rate if training_step.returns_updates else 1.0)
        found = {name: gradient[name] + decay * value for name, value in params.items()}
        return found, {**state, "0": new}, metrics


def _of_gradients(
    part: GradientPenalty, model: Model, params: Parameters, batch: EnvironmentBatch, state: State
) -> tuple[Tensor, State, list[dict[str, Tensor]]]:
    """A penalty on gradients, the new state, and each environment's share of the penalty's gradient."""

    def risk_of(inputs: Tensor, targets: Tensor) -> Callable[[Parameters], Tensor]:
        return lambda params: batch.task.losses(model(params, inputs)[1], targets).mean()

    rows = zip(batch.split(batch.inputs), batch.split(batch.targets), strict=True)
    gradients, pullbacks = zip(*(vjp(grad(risk_of(*each)), params) for each in rows), strict=True)
    stacked = {name: torch.stack([g[name] for g in gradients]) for name in params}
    directions, (value, new) = grad_and_value(part.penalty, has_aux=True)(stacked, state)
    shares = [
        pull({name: direction[e] for name, direction in directions.items()})[0]
        for e, pull in enumerate(pullbacks)
    ]
    return value.detach(), new, shares


def _summed(shares: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([share[name] for share in shares]).sum(dim=0) for name in shares[0]}


def _largest(factors: Sequence[float | Tensor]) -> Any:
    """The largest factor, whether they are numbers or, one a replica, tensors."""
    numbers = [coefficient_at for coefficient_at in factors if not isinstance(coefficient_at, Tensor)]
    tensors = [coefficient_at for coefficient_at in factors if isinstance(coefficient_at, Tensor)]
    largest: Any = max(numbers)
    for coefficient_at in tensors:
        largest = torch.clamp(coefficient_at, min=largest)
    return largest


def _on(model: Model, inputs: Tensor) -> Callable[[Parameters], tuple[Tensor, Tensor]]:
    return lambda params: model(params, inputs)
