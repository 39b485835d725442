"""The table that enrols an algorithm in every test: one row a recipe, with the properties it claims.

To enrol a new recipe, add a row to `ENROLLED`: its settings for the tests, its update written a second
time in the plainest way there is, and what it claims (spec, "Properties worth a test for every
algorithm"). The problems are small, float64 and uneven: 5, 9 and 4 rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from envariant.algorithms import Composition, recipe
from envariant.environments import EnvironmentBatch, PredictedBatch
from envariant.tasks import Binary, Multiclass, Regression, Task

Params = Mapping[str, Tensor]
Loss = Callable[[Params], Tensor]
Differentiate = Callable[[Loss, Params], dict[str, Tensor]]

ORDER_OF_ENVIRONMENTS = "the order of the environments does not matter"
ORDER_OF_ROWS = "the order of rows within an environment does not matter"
IDENTICAL = "identical environments give zero penalty"
ONE_IS_ERM = "one environment equals ERM"


@dataclass(frozen=True)
class Problem:
    """A batch, and a small smooth network as a pure function of its parameters."""

    task: Task
    batch: EnvironmentBatch
    params: Params

    def forward(self, params: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(inputs @ params["in.weight"].T + params["in.bias"])
        return features, self.task.logits(features @ params["out.weight"].T + params["out.bias"])

    def environment_risk(self, params: Params, e: int, scale: Tensor | float = 1.0) -> Tensor:
        """R_e of the logits times `scale`, from the formulas and nothing of the package's."""
        inputs, targets = self.environments()[e]
        z = self.forward(params, inputs)[1] * scale
        if isinstance(self.task, Binary):
            return (F.softplus(z) - targets * z).mean()
        if isinstance(self.task, Multiclass):
            return -z.log_softmax(dim=1)[range(len(z)), targets].mean()
        return ((z - targets) ** 2).mean()

    def risks(self, params: Params) -> Tensor:
        return torch.stack([self.environment_risk(params, e) for e in range(len(self.batch.sizes))])

    def slope(self, params: Params, e: int) -> Tensor:
        """∂R_e/∂s for a scalar s that multiplies the logits; differentiable again, as in the IRM code."""
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        risk = self.environment_risk(params, e, scale)
        return torch.autograd.grad(risk, [scale], create_graph=True)[0]

    def with_batch(self, environments: list[tuple[Tensor, Tensor]]) -> "Problem":
        inputs, targets = (torch.cat(parts) for parts in zip(*environments, strict=True))
        sizes = tuple(len(x) for x, _ in environments)
        return Problem(self.task, EnvironmentBatch(inputs, targets, sizes, self.task), self.params)

    def environments(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(*map(self.batch.split, (self.batch.inputs, self.batch.targets)), strict=True))

    def first(self, environments: int) -> "Problem":
        return self.with_batch(self.environments()[:environments])


def update(
    algorithm: Composition,
    problem: Problem,
    *,
    step: int = 0,
    forward: Any = None,
    params: Params | None = None,
) -> dict[str, Tensor]:
    """The gradients of one step from a fresh state."""
    params = problem.params if params is None else params
    state = algorithm.init(params, len(problem.batch.sizes))
    return algorithm.gradients(forward or problem.forward, params, problem.batch, state, step)[0]


def assert_same(a: Params, b: Params, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=tolerance, atol=tolerance)


def assert_same_bits(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def predicted(task: Task, logits: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> PredictedBatch:
    """What a weighting or penalty sees when a model gives these logits."""
    batch = EnvironmentBatch(torch.zeros(len(logits), 1), targets, sizes, task)
    return batch.predicted(logits.new_zeros(len(logits), 0), logits)


def with_risks(risks: Tensor) -> PredictedBatch:
    """Environments of one row each whose risks are these: squared errors of their roots against 0."""
    return predicted(Regression(), risks.sqrt(), torch.zeros_like(risks), (1,) * len(risks))


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def autograd(loss: Loss, params: Params) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))


def central_differences(loss: Loss, params: Params, width: float = 1e-5) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(value) for name, value in params.items()}
    for name, value in params.items():
        for i in range(value.numel()):
            bump = torch.zeros_like(value)
            bump.view(-1)[i] = width
            up, down = (loss({**params, name: value + sign * bump}).detach() for sign in (1, -1))
            found[name].view(-1)[i] = float(up - down) / (2 * width)
    return found


def _problem(task: Task, targets: Callable[[Tensor], Tensor]) -> Problem:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = (5, 9, 4)
    inputs, noise = draw(sum(sizes), 3), draw(sum(sizes), 3)
    params = {
        "in.weight": draw(4, 3),
        "in.bias": draw(4),
        "out.weight": draw(task.outputs, 4),
        "out.bias": draw(task.outputs),
    }
    return Problem(task, EnvironmentBatch(inputs, targets(inputs + noise), sizes, task), params)


PROBLEMS = {
    "binary": _problem(Binary(), lambda x: (x[:, 0] > 0).double()),
    "multiclass": _problem(Multiclass(3), lambda x: x.argmax(dim=1)),
    "regression": _problem(Regression(), lambda x: x[:, 0] - 0.5 * x[:, 1]),
}


@dataclass(frozen=True)
class Enrolled:
    """One algorithm as the tests run it.

    Attributes:
        settings: of the recipe; chosen so that every term weighs.
        reference: the update by another road, given a way to differentiate.
        claims: properties it has; those it does not claim it need not have.
        at_zero: what it is once its coefficient is 0, bit for bit; None if it has no coefficient.
    """

    settings: Mapping[str, Any]
    reference: Callable[[Problem, Differentiate], dict[str, Tensor]]
    claims: frozenset[str]
    at_zero: Composition | None = None
    plain: Mapping[str, Any] = field(default_factory=dict)
    """Settings without the loss-wide extras (rescaling, sparsity) under which `claims` hold."""

    def built(self, name: str, **changes: Any) -> Composition:
        return recipe(name).build({**self.settings, **changes})


_LAMBDA, _L2 = 3.0, 0.02


def _square_norm(params: Params) -> Tensor:
    return sum((value**2).sum() for value in params.values())


def _erm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    return differentiate(lambda p: problem.risks(p).sum() / 3 + _L2 * _square_norm(p), problem.params)


def _irm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        penalty = sum(problem.slope(p, e) ** 2 for e in range(3)) / 3
        return (problem.risks(p).sum() / 3 + _L2 * _square_norm(p) + _LAMBDA * penalty) / _LAMBDA

    return differentiate(loss, problem.params)


def _vrex(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        r = problem.risks(p)
        variance = (r**2).sum() / 3 - (r.sum() / 3) ** 2
        return (r.sum() / 3 + _L2 * _square_norm(p) + _LAMBDA * variance) / _LAMBDA

    return differentiate(loss, problem.params)


def _mm_rex(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    least = (1 - _LAMBDA) / 3  # λ_min, from κ = 1 − E·λ_min

    def loss(p: Params) -> Tensor:
        r = problem.risks(p)
        return ((1 - 3 * least) * r.max() + least * r.sum() + _L2 * _square_norm(p)) / _LAMBDA

    return differentiate(loss, problem.params)


def _iga(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        leaves = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in p.items()}
        each = [
            torch.cat([
                g.flatten()
                for g in torch.autograd.grad(
                    problem.environment_risk(leaves, e), list(leaves.values()), create_graph=True
                )
            ])
            for e in range(3)
        ]  # fmt: skip
        # The sum of squared distances from the mean is that of all pairs, divided by their number.
        pairs = sum(((each[e] - each[f]) ** 2).sum() for e in range(3) for f in range(e)) / 3
        return problem.risks(leaves).sum() / 3 + _L2 * _square_norm(leaves) + _LAMBDA * pairs

    return differentiate(loss, problem.params)


def _and_mask(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    each = [differentiate(lambda p, e=e: problem.environment_risk(p, e), problem.params) for e in range(3)]
    found: dict[str, Tensor] = {}
    for name, value in problem.params.items():
        entries = list(zip(*(g[name].flatten().tolist() for g in each), strict=True))
        kept = [all(x > 0 for x in g) or all(x < 0 for x in g) for g in entries]
        share = 1e-10 + sum(kept) / len(kept)
        masked = [sum(g) / 3 / share if keep else 0.0 for g, keep in zip(entries, kept, strict=True)]
        found[name] = torch.tensor(masked, dtype=value.dtype).reshape(value.shape) + 2 * _L2 * value
    return found


_BOTH_ORDERS = {ORDER_OF_ENVIRONMENTS, ORDER_OF_ROWS}
_WEIGHTED = {"coefficient": _LAMBDA, "l2": _L2}

ENROLLED: dict[str, Enrolled] = {
    "erm": Enrolled({"l2": _L2}, _erm, frozenset(_BOTH_ORDERS | {ONE_IS_ERM})),
    "irm": Enrolled(_WEIGHTED, _irm, frozenset(_BOTH_ORDERS), at_zero=Composition()),
    "vrex": Enrolled(
        _WEIGHTED,
        _vrex,
        frozenset(_BOTH_ORDERS | {IDENTICAL, ONE_IS_ERM}),
        at_zero=Composition(),
        plain={"rescale": False},
    ),
    "mm-rex": Enrolled(
        _WEIGHTED,
        _mm_rex,
        frozenset(_BOTH_ORDERS | {ONE_IS_ERM}),
        at_zero=Composition(),
        plain={"rescale": False},
    ),
    "iga": Enrolled(
        _WEIGHTED, _iga, frozenset(_BOTH_ORDERS | {IDENTICAL, ONE_IS_ERM}), at_zero=Composition()
    ),
    "and-mask": Enrolled(
        {"threshold": 1.0, "l2": _L2},
        _and_mask,
        frozenset(_BOTH_ORDERS | {ONE_IS_ERM}),
        plain={"inverse_sparsity": False},
    ),
}


def claiming(claim: str) -> list[str]:
    """The enrolled algorithms that claim it."""
    return [name for name, row in ENROLLED.items() if claim in row.claims]
