"""TRM: what is learned from one environment should transfer to the others, seen through a head of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn
from torch.func import grad

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainContext, TrainingStep
from envariant.algorithms.training_steps import adam
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, LogUniform
from envariant.core.step_context import StepContext

_INNER_RATE, _TERMS, _BOUND = 0.1, 10, 10.0


@final
@dataclass(frozen=True)
class TRM(TrainingStep):
    """R + (1/E) Σ_Q [P_Q − λ·⟨H_Q⁻¹ ∂P_Q, ∂R_Q⟩], P_Q = Σ_{i≠Q} α_Qi·R_i(w_Q). Xu & Jaakkola 2021.

    Every environment Q has a linear head w_Q, fitted to it by gradient descent on fixed features before
    each step; P_Q is its risk in the others, weighted by α, which grows where that risk is large. The
    second term is how the head that is best for Q moves with the features, by a Neumann series for the
    inverse Hessian. For the first `warm_up` steps it is ERM. Featurizer and head have an Adam each. In the
    released code a slip doubles the series' second term and drops its first; here it is the series.

    Attributes:
        weight: λ.
        warm_up: steps of plain ERM.
        rate: η, of the weights α.
        inner_steps: of gradient descent of the heads, at a rate of 0.1.
    """

    name: ClassVar[str] = "trm"
    paper: ClassVar[str] = "Xu & Jaakkola 2021, arXiv 2110.09940"
    minimum_environments: ClassVar[int] = 2
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True
    returns_updates: ClassVar[bool] = True
    weight: Annotated[float, LogUniform(1e-5, 1e0)] = 1e-4
    warm_up: Annotated[int, Choice((1, 10, 100, 200, 1000, 10000))] = 200
    rate: Annotated[float, LogUniform(1e-3, 1e-1)] = 1e-2
    inner_steps: int = 30

    def __post_init__(self) -> None:
        if self.inner_steps < 0:
            raise EnvariantError(f"TRM: inner_steps must be at least 0; got {self.inner_steps}")

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
        targets = batch.split(batch.targets)
        warm = torch.as_tensor(context.step < self.warm_up, device=batch.targets.device)
        shares = state["shares"] / state["shares"].sum(dim=1, keepdim=True)
        fixed = [part.detach() for part in batch.split(model(params, batch.inputs)[0])]

        def risk_of(q: int, own: Parameters, i: int, features: Tensor) -> Tensor:
            """R_i of the head w_q."""
            return task.losses(task.logits(model.network(_head(q), own, features)), targets[i]).mean()

        def own_risk(q: int, own: Parameters) -> Tensor:
            return risk_of(q, own, q, fixed[q])

        heads = [adam.part(params, _head(q)) for q in range(count)]
        for _ in range(self.inner_steps):
            heads = [descended(partial(own_risk, q), head) for q, head in enumerate(heads)]

        def loss(own: Parameters) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            features, logits = model({**params, **own}, batch.inputs)
            h, terms, seen = batch.split(features), list[Tensor](), list[Tensor]()
            for q, head in enumerate(heads):
                others = [i for i in range(count) if i != q]

                def away(head: Parameters, q: int = q, others: list[int] = others) -> Tensor:
                    return torch.stack([shares[q, i] * risk_of(q, head, i, h[i]) for i in others]).sum()

                def here(weight: Tensor, q: int = q, head: Parameters = head) -> Tensor:
                    return risk_of(q, {**head, f"{_head(q)}.weight": weight}, q, h[q])

                def settled(weight: Tensor, q: int = q, head: Parameters = head) -> Tensor:
                    return risk_of(q, {**head, f"{_head(q)}.weight": weight}, q, fixed[q])

                key = f"{_head(q)}.weight"
                direction = grad(away)(head)[key].detach()
                response = neumann(settled, head[key], direction)
                slope = grad(here)(head[key])
                terms.append(away(head) - self.weight * (response.detach() * slope).sum())
                seen += [risk_of(q, head, i, h[i]).detach() for i in range(count)]
            risk = task.losses(logits, batch.targets).mean()
            total = risk + torch.where(warm, 0.0, torch.stack(terms).mean())
            return total, (risk.detach(), torch.stack(seen).reshape(count, count))

        some = adam.part(params, "featurizer", "head")
        gradient, (risk, seen) = grad(loss, has_aux=True)(some)
        rate = context.learning_rate
        new, ahead = dict(state), dict(params)
        for name in ("featurizer", "head"):
            ahead, new[name] = adam.step(ahead, adam.part(gradient, name), state[name], rate)
        grown = shares * torch.exp(self.rate * shares * seen)
        new["shares"] = torch.where(warm, state["shares"], grown)
        fitted = {name: value for head in heads for name, value in head.items()}
        ahead |= adam.chosen(warm, adam.part(params, *map(_head, range(count))), fitted)
        return adam.moved(params, ahead), new, {"risk": risk}


def descended(risk: Callable[[Parameters], Tensor], head: Parameters) -> dict[str, Tensor]:
    """A head after one step of gradient descent."""
    slope = grad(risk)(head)
    return {name: value - _INNER_RATE * slope[name] for name, value in head.items()}


def neumann(risk: Callable[[Tensor], Tensor], weight: Tensor, direction: Tensor) -> Tensor:
    """Σ_{k=0}^{10} (I − H)^k v, H the Hessian of a risk in a weight; ends with the first sum above 10."""

    def along(at: Tensor, v: Tensor) -> Tensor:
        return (grad(risk)(at) * v).sum()

    term, total = direction, direction
    stopped = total.max() > _BOUND
    for _ in range(_TERMS):
        term = term - grad(along)(weight, term)
        total = torch.where(stopped, total, total + term)
        stopped = stopped | (total.max() > _BOUND)
    return total


def _head(environment: int) -> str:
    return f"trm-head-{environment}"
