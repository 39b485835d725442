"""What a second implementation of an algorithm consists of, and pieces that several of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from algorithms.problems import Differentiate, Params, Problem
from envariant.algorithms import Composition, recipe

ORDER_OF_ENVIRONMENTS = "the order of the environments does not matter"
ORDER_OF_ROWS = "the order of rows within an environment does not matter"
IDENTICAL = "identical environments give zero penalty"
ONE_IS_ERM = "one environment equals ERM"
SHIFT = "a constant added to all logits of a row changes nothing with cross-entropy"
ORDERS = frozenset({ORDER_OF_ENVIRONMENTS, ORDER_OF_ROWS})
USUAL = ORDERS | {SHIFT}

LAMBDA, L2 = 3.0, 0.02
WEIGHTED = {"coefficient": LAMBDA, "l2": L2}
UNDIVIDED = {"normalize_loss": False}

Reference = Callable[[Problem, Differentiate], dict[str, Tensor]]
"""An update by another implementation, given a way to differentiate."""


@dataclass(frozen=True)
class Enrolled:
    """An algorithm as the tests run it.

    Attributes:
        settings: Settings of the recipe, chosen so that every term matters.
        reference: Second implementation of the update.
        claims: Properties that the algorithm has.
        at_zero: Algorithm that it equals, bit for bit, with coefficients of 0; None if it has none.
        plain: Settings of the loss as a whole under which the claims hold.
        zero: Settings that make its coefficients 0.
        problems: Names of the problems on which it is defined.
    """

    settings: Mapping[str, Any]
    reference: Reference
    claims: frozenset[str]
    at_zero: Composition | None = None
    plain: Mapping[str, Any] = field(default_factory=dict)
    zero: Mapping[str, float] = field(default_factory=lambda: {"coefficient": 0.0})
    problems: tuple[str, ...] = ("binary", "multiclass", "regression")

    def built(self, name: str, **changes: Any) -> Composition:
        return recipe(name).build({**self.settings, **changes})


def penalized(reference: Reference, claims: frozenset[str] | set[str], **more: Any) -> Enrolled:
    """Return an algorithm whose only term besides the risk is a penalty."""
    return Enrolled(WEIGHTED, reference, frozenset(claims), at_zero=Composition(), **more)


def mean_of_means(problem: Problem, values: Tensor) -> Tensor:
    """Return the mean over environments of the mean of values given for all rows in order."""
    ends = [sum(problem.batch.sizes[: e + 1]) for e in range(len(problem.batch.sizes))]
    parts = [values[end - size : end] for end, size in zip(ends, problem.batch.sizes, strict=True)]
    return sum(part.mean() for part in parts) / len(parts)


def square_norm(params: Params) -> Tensor:
    return sum((value**2).sum() for value in params.values())


def mean_and(penalty: Callable[[Problem, Params], Tensor]) -> Reference:
    """Return the reference of R̄ + l2·‖θ‖² + λ·penalty."""

    def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
        return differentiate(
            lambda p: problem.risks(p).sum() / 3 + L2 * square_norm(p) + LAMBDA * penalty(problem, p),
            problem.params,
        )

    return reference


def divided(reference: Reference) -> Reference:
    """Return a reference divided by λ."""

    def scaled(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
        return {name: g / LAMBDA for name, g in reference(problem, differentiate).items()}

    return scaled


def environment_gradients(problem: Problem, differentiate: Differentiate) -> list[dict[str, Tensor]]:
    """Return the gradient of each environment's risk."""
    return [
        differentiate(lambda p, e=e: problem.environment_risk(p, e), problem.params)
        for e in range(len(problem.batch.sizes))
    ]


RATE = 1e-3
"""The learning rate of a step by hand."""


def torch_adam(params: Params, *gradients: Params, l2: float = 0.0, **settings: Any) -> dict[str, Tensor]:
    """Return the parameters after steps of PyTorch's Adam along gradients; the others are unchanged.

    The gradient of l2·‖θ‖² is PyTorch's weight decay.
    """
    settings["weight_decay"] = 2 * l2
    leaves = {name: params[name].detach().clone().requires_grad_() for name in gradients[0]}
    optimizer = torch.optim.Adam(leaves.values(), lr=RATE, **settings)
    for gradient in gradients:
        for name, leaf in leaves.items():
            leaf.grad = gradient[name].detach().clone()
        optimizer.step()
    return {**params, **{name: leaf.detach() for name, leaf in leaves.items()}}


def moved(before: Params, after: Params) -> dict[str, Tensor]:
    return {name: value - after[name] for name, value in before.items()}


def part_of(params: Params, *prefixes: str) -> dict[str, Tensor]:
    return {k: v for k, v in params.items() if k.split(".")[0] in prefixes}


def affine(params: Params, name: str, inputs: Tensor) -> Tensor:
    return inputs @ params[f"{name}.weight"].T + params[f"{name}.bias"]
