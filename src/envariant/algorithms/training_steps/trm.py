"""TRM: learn features for which a head fitted in one environment has a low risk in the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn
from torch.func import grad

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Choice, LogUniform
from envariant.core.step_context import StepContext

_INNER_RATE, _TERMS, _BOUND = 0.1, 10, 10.0


@final
@dataclass(frozen=True)
class TRM(TrainingStep):
    """Loss R + (1/E) Σ_Q [P_Q − λ·⟨H_Q⁻¹ ∂P_Q, ∂R_Q⟩], P_Q = Σ_{i≠Q} α_Qi·R_i(w_Q). Xu & Jaakkola 2021.

    R is the risk, E the number of environments, and R_i the risk of environment i. Every environment Q has a
    linear head w_Q, which is fitted to Q by gradient descent on fixed features before each step. P_Q is the
    sum of the risks of w_Q in the other environments i, each weighted by α_Qi, which increases with the risk.
    ∂ is the derivative with respect to w_Q. The last term accounts for the dependence of the optimal w_Q on
    the features; the inverse Hessian H_Q⁻¹ of R_Q is approximated by a Neumann series. The first `warm_up`
    steps are ERM. Featurizer and head have separate Adam optimizers; `l2` does not apply to the heads w_Q.
    The released code has two errors: it counts the second term of the Neumann series twice and omits the
    first, and it multiplies the weights by exp(η·α_Qi·R_i) instead of exp(η·R_i). Here, the series is
    correct, but the weights are updated as in the released code.

    Attributes:
        weight: λ, weight of the last term.
        warm_up: Number of initial ERM steps.
        rate: η, step size of the weights α.
        inner_steps: Number of gradient descent steps to fit the heads w_Q, with learning rate 0.1.
    """

    name: ClassVar[str] = "trm"
    paper: ClassVar[str] = "Xu & Jaakkola 2021, arXiv 2110.09940"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    weight: Annotated[NonNegativeFloat, LogUniform(1e-5, 1e0)] = 1e-4
    warm_up: Annotated[NonNegativeInt, Choice((1, 10, 100, 200, 1000, 10000))] = 200
    rate: Annotated[NonNegativeFloat, LogUniform(1e-3, 1e-1)] = 1e-2
    inner_steps: Annotated[int, Field(ge=0, le=1000)] = 30

    def switch_steps(self) -> Mapping[str, int]:
        return {"warm_up": self.warm_up}

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        return {
            _head(q): nn.Linear(context.features, context.task.outputs) for q in range(context.environments)
        }

    def init(self, params: Parameters, context: TrainContext) -> State:
        like, count = next(iter(params.values())), context.environments
        return {
            "shares": like.new_ones(count, count) - torch.eye(count, dtype=like.dtype, device=like.device),
            "featurizer": adam.moments(adam.part(params, "featurizer")),
            "head": adam.moments(adam.part(params, "head")),
        }

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        count, task = len(batch.sizes), batch.task
        warm_up = torch.as_tensor(context.step < self.warm_up, device=batch.targets.device)
        shares = state["shares"] / state["shares"].sum(dim=1, keepdim=True)
        fixed = [part.detach() for part in batch.split(model(params, batch.inputs)[0])]
        heads = _Heads(model, batch)
        fitted = [
            heads.fitted(q, adam.part(params, _head(q)), fixed[q], self.inner_steps) for q in range(count)
        ]

        def loss(own: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model({**params, **own}, batch.inputs)
            h = batch.split(features)
            terms = [
                heads.transfer(q, head, h, fixed[q], shares[q], self.weight) for q, head in enumerate(fitted)
            ]
            risks = [
                heads.risk(q, head, i, h[i]).detach() for q, head in enumerate(fitted) for i in range(count)
            ]
            risk = batch.risk(task.losses(logits, batch.targets))
            total = risk + torch.where(warm_up, 0.0, torch.stack(terms).mean())
            return total, (risk.detach(), torch.stack(risks).reshape(count, count))

        own = adam.part(params, "featurizer", "head")
        gradient, (risk, risks) = grad(loss, has_aux=True)(own)
        new, after = dict(state), dict(params)
        for name in ("featurizer", "head"):
            own_gradient = adam.part(gradient, name)
            after, new[name] = adam.step(after, own_gradient, state[name], context)
        grown = shares * torch.exp(self.rate * shares * risks)
        new["shares"] = torch.where(warm_up, state["shares"], grown)
        after |= adam.where(
            warm_up,
            adam.part(params, *map(_head, range(count))),
            {name: value for head in fitted for name, value in head.items()},
        )
        return adam.update(params, after), new, {"risk": risk}


@final
@dataclass(frozen=True)
class _Heads:
    """Risks and gradient steps of the linear heads w_Q of all environments, on one batch."""

    model: Model
    batch: EnvironmentBatch

    def risk(self, q: int, head: Parameters, i: int, features: Tensor) -> Tensor:
        """Return the risk of environment q's head in environment i."""
        task, targets = self.batch.task, self.batch.split(self.batch.targets)[i]
        return task.losses(task.logits(self.model.network(_head(q), head, features)), targets).mean()

    def fitted(self, q: int, head: Parameters, features: Tensor, steps: int) -> Parameters:
        """Return the head of environment q after gradient descent on the risk of environment q.

        Args:
            q: Index of the environment.
            head: Parameters of the head before the descent.
            features: Features of the rows of environment q.
            steps: Number of steps.
        """
        for _ in range(steps):
            head = descended(lambda head: self.risk(q, head, q, features), head)
        return head

    def transfer(
        self,
        q: int,
        head: Parameters,
        features: Sequence[Tensor],
        fixed: Tensor,
        shares: Tensor,
        weight: Any,
    ) -> Tensor:
        """Return the term P_Q − λ·⟨H_Q⁻¹ ∂P_Q, ∂R_Q⟩ of `TRM` for one environment Q.

        Args:
            q: Index of the environment Q.
            head: Parameters of w_Q.
            features: Features of the rows of every environment.
            fixed: Features of the rows of environment Q, without gradient.
            shares: Weights α_Qi of all environments i.
            weight: Weight λ of the last term.
        """
        key, others = f"{_head(q)}.weight", [i for i in range(len(features)) if i != q]

        def other_risks(head: Parameters) -> Tensor:
            return torch.stack([shares[i] * self.risk(q, head, i, features[i]) for i in others]).sum()

        def own_risk(weight: Tensor, features: Tensor) -> Tensor:
            return self.risk(q, {**head, key: weight}, q, features)

        direction = grad(other_risks)(head)[key].detach()
        response = neumann(partial(own_risk, features=fixed), head[key], direction)
        slope = grad(own_risk)(head[key], features[q])
        return other_risks(head) - weight * (response.detach() * slope).sum()


def descended(risk: Callable[[Parameters], Tensor], head: Parameters) -> dict[str, Tensor]:
    """Return the head's parameters after one step of gradient descent on a risk."""
    slope = grad(risk)(head)
    return {name: value - _INNER_RATE * slope[name] for name, value in head.items()}


def neumann(risk: Callable[[Tensor], Tensor], weight: Tensor, direction: Tensor) -> Tensor:
    """Approximate H⁻¹v by the Neumann series Σ_{k=0}^{10} (I − H)^k v.

    The sum ends early, at the first k ≥ 1 for which an entry of the sum exceeds 10 in absolute value.

    Args:
        risk: Function of the head's weight whose Hessian is H.
        weight: Head's weight at which H is evaluated.
        direction: Vector v, in the shape of `weight`.
    """

    def along(at: Tensor, v: Tensor) -> Tensor:
        return (grad(risk)(at) * v).sum()

    term, total = direction, direction
    stopped = torch.zeros((), dtype=torch.bool, device=weight.device)
    for _ in range(_TERMS):
        term = term - grad(along)(weight, term)
        total = torch.where(stopped, total, total + term)
        stopped = stopped | (total.abs().max() > _BOUND)
    return total


def _head(environment: int) -> str:
    return f"trm-head-{environment}"
