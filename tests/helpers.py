"""The table that enrols an algorithm in every test: one row a recipe, with the properties it claims.

To enrol a new recipe, add a row to `ENROLLED`: its settings for the tests, its update written a second
time in the plainest way there is, and what it claims (spec, "Properties worth a test for every
algorithm"). The problems are small, float64 and uneven: 5, 9 and 4 rows.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor, nn
from torch.func import functional_call

from envariant.algorithms import Composition, TrainContext, recipe
from envariant.core.environments import EnvironmentBatch, PredictedBatch
from envariant.core.step_context import START, StepContext
from envariant.core.tasks import Binary, Multiclass, Regression, Task

Params = Mapping[str, Tensor]
Loss = Callable[[Params], Tensor]
Differentiate = Callable[[Loss, Params], dict[str, Tensor]]

ORDER_OF_ENVIRONMENTS = "the order of the environments does not matter"
ORDER_OF_ROWS = "the order of rows within an environment does not matter"
IDENTICAL = "identical environments give zero penalty"
ONE_IS_ERM = "one environment equals ERM"
SHIFT = "a constant added to all logits of a row changes nothing with cross-entropy"


def train_context(environments: int | tuple[int, ...], task: Task, **fields: Any) -> TrainContext:
    """A context for environments of given sizes, or for a number of environments with 10 rows each."""
    sizes = (10,) * environments if isinstance(environments, int) else environments
    return TrainContext(tuple(f"environment {e}" for e in range(len(sizes))), sizes, task, **fields)


class _Small(nn.Module):
    """The network of the problems as a module, for algorithms that change or copy it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.featurizer = _TanhLinear(inputs, 4)
        self.head = nn.Linear(4, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.featurizer(inputs))


class _TanhLinear(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(super().forward(inputs))


def part_of(params: Params, name: str) -> dict[str, Tensor]:
    """The parameters of one network, by their names in it."""
    return {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}


@dataclass(frozen=True)
class Problem:
    """A batch, and a small smooth network as a pure function of its parameters: a `Model`.

    `own` are an algorithm's own networks, whose parameters are then among `params`. `module` is the same
    network as the algorithm changed it, if it did.
    """

    task: Task
    batch: EnvironmentBatch
    params: Params
    own: Mapping[str, nn.Module] = field(default_factory=dict)
    module: nn.Module | None = None

    @property
    def auxiliary_networks(self) -> tuple[str, ...]:
        return tuple(self.own)

    @property
    def context(self) -> TrainContext:
        return train_context(
            self.batch.sizes,
            self.task,
            features=4,
            input_shape=(3,),
            linear_head=True,
            build=lambda shape: _Small(shape[0], self.task.outputs),
        )

    def __call__(self, params: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.module is None:
            features = torch.tanh(inputs @ params["featurizer.weight"].T + params["featurizer.bias"])
        elif hasattr(self.module, "featurizer"):
            features = self._part("featurizer", params, inputs)
        else:
            held = {name: params[name] for name, _ in self.module.named_parameters()}
            return inputs[:, :0], self.task.logits(functional_call(self.module, held, (inputs,)))
        return features, self.head(params, features)

    def head(self, params: Params, features: Tensor) -> Tensor:
        if self.module is not None:
            return self.task.logits(self._part("head", params, features))
        return self.task.logits(features @ params["head.weight"].T + params["head.bias"])

    def _part(self, name: str, params: Params, inputs: Tensor) -> Tensor:
        return functional_call(self.module.get_submodule(name), part_of(params, name), (inputs,))

    def network(self, name: str, params: Params, inputs: Tensor) -> Tensor:
        return functional_call(self.own[name], part_of(params, name), (inputs,))

    def with_networks_of(self, algorithm: Composition) -> "Problem":
        """The same problem, with what the algorithm makes of the network and the networks that it brings."""
        with torch.random.fork_rng():
            torch.manual_seed(5)
            plain = _Small(3, self.task.outputs).double()
            plain.load_state_dict(self.params)
            module = algorithm.wrap_model(plain, self.context).double()
            own = {name: net.double() for name, net in algorithm.auxiliary_networks(self.context).items()}
        params = {name: value.detach() for name, value in module.named_parameters()}
        added = {f"{n}.{k}": v.detach() for n, net in own.items() for k, v in net.named_parameters()}
        changed = params.keys() != self.params.keys()
        return replace(self, own=own, params={**params, **added}, module=module if changed else None)

    def losses(self, params: Params, e: int) -> Tensor:
        """The loss of every row of an environment, from the formulas and nothing of the package's."""
        inputs, targets = self.environments()[e]
        z = self(params, inputs)[1]
        if isinstance(self.task, Binary):
            return F.softplus(z) - targets * z
        if isinstance(self.task, Multiclass):
            return -z.log_softmax(dim=1)[range(len(z)), targets]
        return (z - targets) ** 2

    def features(self, params: Params) -> list[Tensor]:
        return [self(params, x)[0] for x, _ in self.environments()]

    def environment_risk(self, params: Params, e: int, scale: Tensor | float = 1.0) -> Tensor:
        """R_e of the logits times `scale`, from the formulas and nothing of the package's."""
        inputs, targets = self.environments()[e]
        z = self(params, inputs)[1] * scale
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
        return replace(self, batch=EnvironmentBatch(inputs, targets, sizes, self.task))

    def environments(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(*map(self.batch.split, (self.batch.inputs, self.batch.targets)), strict=True))

    def first(self, environments: int) -> "Problem":
        return self.with_batch(self.environments()[:environments])


def update(
    algorithm: Composition,
    problem: Problem,
    *,
    context: StepContext = START,
    params: Params | None = None,
) -> dict[str, Tensor]:
    """The gradients of one step from a fresh state."""
    params = problem.params if params is None else params
    state = algorithm.init(params, problem.context)
    return algorithm.gradients(problem, params, problem.batch, state, context)[0]


def cpu_of_children() -> float:
    """Seconds of processor time of processes that this one has waited for: what neighbors do is not in it."""
    times = os.times()
    return times.children_user + times.children_system


@dataclass(frozen=True)
class Bare:
    """A function `(params, inputs) → (features, logits)` as a model without parts or further networks."""

    function: Callable[[Params, Tensor], tuple[Tensor, Tensor]]
    auxiliary_networks: tuple[str, ...] = ()

    def __call__(self, params: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(params, inputs)


def assert_same(a: Params, b: Params, tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=tolerance, atol=tolerance)


def assert_same_bits(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


def predicted(
    task: Task,
    logits: Tensor,
    targets: Tensor,
    sizes: tuple[int, ...],
    features: Tensor | None = None,
    context: StepContext = START,
) -> PredictedBatch:
    """What a weighting or penalty sees when a model gives these logits and features."""
    batch = EnvironmentBatch(torch.zeros(len(logits), 1), targets, sizes, task)
    return batch.predicted(
        logits.new_zeros(len(logits), 0) if features is None else features, logits, context
    )


def with_risks(risks: Tensor, context: StepContext = START) -> PredictedBatch:
    """Environments of one row each whose risks are these: squared errors of their roots against 0."""
    targets = torch.zeros_like(risks)
    return predicted(Regression(), risks.sqrt(), targets, (1,) * len(risks), context=context)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, *expected: float) -> None:
    """Equal to what the spec prints, six digits of each number."""
    torch.testing.assert_close(found, vector(*expected).reshape(found.shape), rtol=1e-5, atol=1e-12)


# Inputs of the spec's numeric checks.
A, LABELS_A = torch.tensor([[1, 2], [3, 0], [2, 4]], dtype=torch.float64), torch.tensor([0, 1, 0])
B, LABELS_B = torch.tensor([[0, 1], [1, 1], [2, -2]], dtype=torch.float64), torch.tensor([1, 1, 0])
Z3 = torch.tensor([[1, -0.5, 0.2], [0.3, 0.8, -1], [-0.7, 0.1, 1.5], [0, 2, -0.4]], dtype=torch.float64)
Y3 = torch.tensor([0, 1, 2, 0])
X1, LABELS_1 = torch.tensor([[1, 2], [0, 1], [-1, 1]], dtype=torch.float64), torch.tensor([0, 1, 1])
X2, LABELS_2 = torch.tensor([[2, 0], [1, -1], [0, 0.5]], dtype=torch.float64), torch.tensor([1, 0, 1])
M_WEIGHT, M_BIAS = torch.tensor([[0.5, -0.2], [0.1, 0.3]], dtype=torch.float64), vector(0, 0.1)
Q = torch.tensor([[1, 0], [0.5, 1], [-1, 0.5], [0, 2], [1, 1]], dtype=torch.float64)
LABELS_Q, OWNERS_Q = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 1, 0, 0, 1])
ZB, YB = torch.tensor([0.5, -1, 2, 0.3], dtype=torch.float64), vector(1, 0, 0, 1)
G = torch.tensor([[1, -2, 0.5, 0], [2, -1, -0.5, 0.3], [3, -3, 1, 0.1]], dtype=torch.float64)


def two_environments(
    weight: Tensor = M_WEIGHT, bias: Tensor = M_BIAS, context: StepContext = START
) -> PredictedBatch:
    """A and B as features, under a linear head."""
    features = torch.cat([A, B])
    logits = features @ weight.T + bias
    targets = torch.cat([LABELS_A, LABELS_B])
    return predicted(Multiclass(len(bias)), logits, targets, (3, 3), features, context)


def autograd(loss: Loss, params: Params) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))


def central_differences(loss: Loss, params: Params, width: float = 1e-4) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(value) for name, value in params.items()}
    for name, value in params.items():
        for i in range(value.numel()):
            bump = torch.zeros_like(value)
            bump.view(-1)[i] = width
            far, up, down, low = (
                float(loss({**params, name: value + k * bump}).detach()) for k in (2, 1, -1, -2)
            )
            # Four points, so that what is left is of the order of width⁴.
            found[name].view(-1)[i] = (low - far + 8 * (up - down)) / (12 * width)
    return found


def _problem(task: Task, targets: Callable[[Tensor], Tensor]) -> Problem:
    generator = torch.Generator().manual_seed(7)

    def sample(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = (5, 9, 4)
    inputs, noise = sample(sum(sizes), 3), sample(sum(sizes), 3)
    params = {
        "featurizer.weight": sample(4, 3),
        "featurizer.bias": sample(4),
        "head.weight": sample(task.outputs, 4),
        "head.bias": sample(task.outputs),
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
        at_zero: what it is once its coefficients are 0, bit for bit; None if it has none.
        plain: settings without the loss-wide extras (rescaling, sparsity) under which `claims` hold.
        zero: the settings that make its coefficients 0.
        problems: those on which it means something.
    """

    settings: Mapping[str, Any]
    reference: Callable[[Problem, Differentiate], dict[str, Tensor]]
    claims: frozenset[str]
    at_zero: Composition | None = None
    plain: Mapping[str, Any] = field(default_factory=dict)
    zero: Mapping[str, float] = field(default_factory=lambda: {"coefficient": 0.0})
    problems: tuple[str, ...] = ("binary", "multiclass", "regression")

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


def _mean_and(penalty: Callable[[Problem, Params], Tensor]) -> Any:
    """R̄ + l2·‖θ‖² + λ·penalty, for the recipes that divide by nothing."""

    def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
        return differentiate(
            lambda p: problem.risks(p).sum() / 3 + _L2 * _square_norm(p) + _LAMBDA * penalty(problem, p),
            problem.params,
        )

    return reference


def _divided(reference: Any) -> Any:
    """The same, divided by λ."""

    def divided(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
        return {name: g / _LAMBDA for name, g in reference(problem, differentiate).items()}

    return divided


def _groupdro(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    grown = [math.exp(0.5 * float(r)) for r in problem.risks(problem.params)]
    shares = [g / sum(grown) for g in grown]

    def loss(p: Params) -> Tensor:
        return sum(q * r for q, r in zip(shares, problem.risks(p), strict=True)) + _L2 * _square_norm(p)

    return differentiate(loss, problem.params)


def smooth_quantile(risks: list[float], alpha: float) -> float:
    """The α-quantile of the Gaussian kernel density estimate with EQRM's bandwidth, by root finding."""
    mean = sum(risks) / len(risks)
    sd = math.sqrt(sum((r - mean) ** 2 for r in risks) / (len(risks) - 1))
    b = 1.06 * sd * len(risks) ** -0.2

    def above(k: float) -> float:
        return sum(norm.cdf((k - r) / b) for r in risks) / len(risks) - alpha

    return brentq(above, min(risks) - 10 * b, max(risks) + 10 * b, xtol=1e-14)


def slopes_of_quantile(risks: list[float], alpha: float) -> list[float]:
    """∂k/∂R_e where F(k, R) = α stays: −(∂F/∂R_e)/(∂F/∂k), by autograd."""
    k, r = vector(smooth_quantile(risks, alpha)).requires_grad_(), vector(*risks).requires_grad_()
    b = 1.06 * r.std() * len(risks) ** -0.2
    by_k, by_r = torch.autograd.grad(torch.special.ndtr((k - r) / b).mean(), [k, r])
    return (-by_r / by_k).tolist()


def _eqrm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    slopes = slopes_of_quantile(problem.risks(problem.params).tolist(), 0.7)

    def loss(p: Params) -> Tensor:
        return sum(s * r for s, r in zip(slopes, problem.risks(p), strict=True)) + _L2 * _square_norm(p)

    return differentiate(loss, problem.params)


def _risk_interpolation(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    return differentiate(lambda p: problem.risks(p).max() + _L2 * _square_norm(p), problem.params)


def covariance(h: Tensor) -> Tensor:
    centered = h - h.mean(dim=0)
    return centered.T @ centered / (len(h) - 1)


def coral_distance(x: Tensor, y: Tensor) -> Tensor:
    means = ((x.mean(dim=0) - y.mean(dim=0)) ** 2).mean()
    return means + ((covariance(x) - covariance(y)) ** 2).mean()


def mmd_distance(x: Tensor, y: Tensor, lowest: int = -3) -> Tensor:
    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = ((a[:, None] - b[None]) ** 2).sum(dim=2)
        return sum(torch.exp(-(10.0**k) * squared) for k in range(lowest, 4)).mean()

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def _over_pairs(distance: Callable[[Tensor, Tensor], Tensor]) -> Any:
    return _mean_and(
        lambda problem, p: sum(distance(x, y) for x, y in combinations(problem.features(p), 2)) / 3
    )


def _over_cuts(distance: Callable[[Tensor, Tensor], Tensor]) -> Any:
    def penalty(problem: Problem, p: Params) -> Tensor:
        # The only penalty of its composition, hence part 1.
        stochastic = START.of_part(1).uniform(3, like=problem.batch.inputs).tolist()
        cuts = [int(u * size) for u, size in zip(stochastic, problem.batch.sizes, strict=True)]
        halves = [(h[:s], h[s:]) for h, s in zip(problem.features(p), cuts, strict=True)]
        return distance(*(torch.cat(part) for part in zip(*halves, strict=True)))

    return _mean_and(penalty)


def _sd(problem: Problem, p: Params) -> Tensor:
    return (problem(p, problem.batch.inputs)[1] ** 2).mean()


def _bottleneck(problem: Problem, p: Params) -> Tensor:
    return sum(torch.diag(covariance(h)).mean() for h in problem.features(p)) / 3


def _ib_irm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        slopes = sum(problem.slope(p, e) ** 2 for e in range(3)) / 3
        whole = problem.risks(p).sum() / 3 + _L2 * _square_norm(p)
        return (whole + _LAMBDA * slopes + 0.5 * _bottleneck(problem, p)) / _LAMBDA

    return differentiate(loss, problem.params)


def _fishr(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def row_gradients(p: Params, e: int) -> Tensor:
        """Of the head, row by row, as PyTorch finds them."""
        inputs, targets = problem.environments()[e]
        features = problem(p, inputs)[0]

        def loss(head: tuple[Tensor, Tensor], h: Tensor, y: Tensor) -> Tensor:
            z = problem.task.logits(h[None] @ head[0].T + head[1])
            return problem.task.losses(z, y[None])[0]

        rows = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(
            (p["head.weight"], p["head.bias"]), features, targets
        )
        return torch.cat([g.flatten(1) for g in rows], dim=1)

    def penalty(p: Params) -> Tensor:
        v = torch.stack([row_gradients(p, e).var(dim=0, correction=0) for e in range(3)])
        return ((v - v.mean(dim=0)) ** 2).mean()

    def loss(p: Params) -> Tensor:
        return (problem.risks(p).sum() / 3 + _L2 * _square_norm(p) + _LAMBDA * penalty(p)) / _LAMBDA

    return differentiate(loss, problem.params)


def _rdm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    worst = int(problem.risks(problem.params).argmax())

    def loss(p: Params) -> Tensor:
        each = [problem.losses(p, e) for e in range(3)]
        own, pooled = each[worst], torch.cat(each)
        match = mmd_distance(own[:, None], pooled[:, None], lowest=-4)
        whole = problem.risks(p).sum() / 3 + _L2 * _square_norm(p)
        return whole + _LAMBDA * match + 0.5 * (own.var() + pooled.var())

    return differentiate(loss, problem.params)


def _clove(problem: Problem, p: Params) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for inputs, targets in problem.environments():
        z = problem(p, inputs)[1]
        probabilities = torch.stack([-z / 2, z / 2], dim=1).softmax(dim=1) if z.dim() == 1 else z.softmax(1)
        f, guess = probabilities.max(dim=1)
        c = (guess == targets.long()).double()
        for i in range(len(f)):
            for j in range(len(f)):
                closeness = torch.exp(-(f[i] - f[j]).abs() / 0.4)
                total = total + (c[i] - f[i]) * (c[j] - f[j]) * closeness / len(f) ** 2 / 3
    return total


def _cad(conditional: bool) -> Any:
    def penalty(problem: Problem, p: Params) -> Tensor:
        h, targets = problem(p, problem.batch.inputs)[0], problem.batch.targets.tolist()
        owners = [e for e, size in enumerate(problem.batch.sizes) for _ in range(size)]
        values = []
        for i in range(len(h)):
            others = [k for k in range(len(h)) if k != i]
            alike = [k for k in others if targets[k] == targets[i]]
            among = alike if conditional else others
            wanted = [k for k in among if owners[k] != owners[i]]
            if alike and wanted:
                up, all_ = (sum(torch.exp(h[i] @ h[k] / 0.1) for k in some) for some in (wanted, among))
                values.append(-0.1 / 0.07 * torch.log(up / all_))
        return sum(values) / len(values) if values else torch.zeros((), dtype=torch.float64)

    return _mean_and(penalty)


def _selfreg(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    context, like = START.of_part(1), problem.batch.inputs
    rows = len(like)
    share = context.symmetric_beta(0.5, draw=2, like=like)
    targets = problem.batch.targets.tolist()
    partners = []
    for draw in (0, 1):
        order = context.permutation(rows, draw=draw, like=like).tolist()
        partner = {}
        for value in set(targets):
            own = [i for i in range(rows) if targets[i] == value]
            partner |= dict(zip(own, [i for i in order if targets[i] == value], strict=True))
        partners.append([partner[i] for i in range(rows)])
    held = min(1.0, float(torch.cat([problem.losses(problem.params, e) for e in range(3)]).mean()))

    def loss(p: Params) -> Tensor:
        h, o = problem(p, problem.batch.inputs)
        q = problem.network("selfreg-projection", p, h)
        first, second = partners

        def mix(v: Tensor) -> Tensor:
            return share * v[first] + (1 - share) * v[second]

        alone = ((o - o[first]) ** 2).mean() + 0.3 * ((h - q[first]) ** 2).mean()
        together = ((o - mix(o)) ** 2).mean() + 0.3 * ((h - mix(q)) ** 2).mean()
        penalty = held * (share * alone + (1 - share) * together)
        return problem.risks(p).sum() / 3 + _L2 * _square_norm(p) + _LAMBDA * penalty

    return differentiate(loss, problem.params)


def _of_environments(problem: Problem, differentiate: Differentiate) -> list[dict[str, Tensor]]:
    return [
        differentiate(lambda p, e=e: problem.environment_risk(p, e), problem.params)
        for e in range(len(problem.batch.sizes))
    ]


def _sand_mask(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    each = _of_environments(problem, differentiate)
    found: dict[str, Tensor] = {}
    for name, value in problem.params.items():
        entries = list(zip(*(g[name].flatten().tolist() for g in each), strict=True))
        masks = []
        for g in entries:
            agreement = abs(sum((x > 0) - (x < 0) for x in g)) / 3
            mean = sum(g) / 3
            variance = sum((x - mean) ** 2 for x in g) / 2
            masks.append(max(0.0, math.tanh(0.4 / variance * (agreement - 0.5))))
        share = 1e-10 + sum(masks) / len(masks)
        masked = [m * sum(g) / 3 / share for m, g in zip(masks, entries, strict=True)]
        found[name] = torch.tensor(masked, dtype=value.dtype).reshape(value.shape) + 2 * _L2 * value
    return found


def _pcgrad(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    each = _of_environments(problem, differentiate)
    flat = [torch.cat([g.flatten() for g in share.values()]) for share in each]
    order = START.of_part(1).permutation(3, like=flat[0]).tolist()
    kept = []
    for e in range(3):
        own = flat[e].clone()
        for f in order:
            if f != e and float(own @ flat[f]) < 0:
                own -= (own @ flat[f]) / (flat[f] @ flat[f]) * flat[f]
        kept.append(own)
    parts = (sum(kept) / 3).split([value.numel() for value in problem.params.values()])
    return {
        name: part.reshape(value.shape) + 2 * _L2 * value
        for (name, value), part in zip(problem.params.items(), parts, strict=True)
    }


RATE = 1e-3
"""The learning rate of a step by hand."""


def torch_adam(params: Params, *gradients: Params, **settings: Any) -> dict[str, Tensor]:
    """Where PyTorch's Adam takes parameters along these gradients, one after another; the rest stays."""
    leaves = {name: params[name].detach().clone().requires_grad_() for name in gradients[0]}
    optimizer = torch.optim.Adam(leaves.values(), lr=RATE, **settings)
    for gradient in gradients:
        for name, leaf in leaves.items():
            leaf.grad = gradient[name].detach().clone()
        optimizer.step()
    return {**params, **{name: leaf.detach() for name, leaf in leaves.items()}}


def _moved(before: Params, after: Params) -> dict[str, Tensor]:
    return {name: value - after[name] for name, value in before.items()}


def of(params: Params, *prefixes: str) -> dict[str, Tensor]:
    return {k: v for k, v in params.items() if k.split(".")[0] in prefixes}


def _of_rows(problem: Problem, params: Params, e: int, rows: int) -> Tensor:
    return problem.losses(params, e)[:rows].mean()


def _mixup(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    like, sizes = problem.batch.inputs, problem.batch.sizes
    order = START.permutation(3, like=like).tolist()
    shares = START.symmetric_beta(0.7, 3, draw=1, like=like)

    def loss(p: Params) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for k, share in enumerate(shares):
            i, j = order[k], order[(k + 1) % 3]
            rows = min(sizes[i], sizes[j])
            (x, y), (other, also) = (problem.environments()[e] for e in (i, j))
            mixed = problem(p, share * x[:rows] + (1 - share) * other[:rows])[1]
            for weight, targets in ((share, y), (1 - share, also)):
                total = total + weight * problem.task.losses(mixed, targets[:rows]).mean() / 3
        return total + _L2 * _square_norm(p)

    return differentiate(loss, problem.params)


def percentile(values: list[float], share: float) -> float:
    """Linear between order statistics."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])


def _rsc(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    params, task = problem.params, problem.task
    targets, weight = problem.batch.targets, params["head.weight"]
    features, logits = problem(params, problem.batch.inputs)
    # The slope of the true class's logit is its row of the weight; of the only one, with the class's sign.
    slopes = (2 * targets - 1)[:, None] * weight if isinstance(task, Binary) else weight[targets]
    muted = torch.tensor([[x < percentile(row, 0.5) for x in row] for row in slopes.tolist()]).double()
    before = torch.exp(-task.losses(logits, targets))
    after = torch.exp(-task.losses(problem.head(params, features * muted), targets))
    lost = (before - after).tolist()
    stays = [x < percentile(lost, 0.6) for x in lost]
    mask = torch.stack([torch.ones_like(m) if free else m for m, free in zip(muted, stays, strict=True)])

    def loss(p: Params) -> Tensor:
        h = problem(p, problem.batch.inputs)[0]
        return task.losses(problem.head(p, h * mask), targets).mean() + _L2 * _square_norm(p)

    return differentiate(loss, params)


def _mldg(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    order, sizes = START.permutation(3, like=problem.batch.inputs).tolist(), problem.batch.sizes
    total = {name: 2 * _L2 * value for name, value in problem.params.items()}
    j = order[2]
    for i in order[:2]:
        rows = min(sizes[i], sizes[j])
        own = differentiate(lambda p, i=i, n=rows: _of_rows(problem, p, i, n), problem.params)
        there = torch_adam(problem.params, own)
        other = differentiate(lambda p, n=rows: _of_rows(problem, p, j, n), there)
        total = {name: g + (own[name] + 0.5 * other[name]) / 3 for name, g in total.items()}
    return total


def _fish(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=RATE)
    for e in range(3):
        found = differentiate(lambda p, e=e: problem.environment_risk(p, e), leaves)
        for name, leaf in leaves.items():
            leaf.grad = found[name].detach()
        optimizer.step()
    return {name: 0.5 * (value - leaves[name].detach()) for name, value in problem.params.items()}


def _dann(conditional: bool) -> Any:
    """The model's turn: it comes first, and the discriminator stays as it is."""

    def reference(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
        rest = of(problem.params, "featurizer", "head")
        targets = problem.batch.targets
        owners = torch.tensor([e for e, size in enumerate(problem.batch.sizes) for _ in range(size)])

        def loss(p: Params) -> Tensor:
            every = {**problem.params, **p}
            h, z = problem(every, problem.batch.inputs)
            if not h.requires_grad:
                h = h.requires_grad_()
            weights = [1 / len(h)] * len(h)
            u = h
            if conditional:
                u = h + every["dann-embedding.weight"][targets.long()]
                labels = [int(y) for y in targets]
                weights = [1 / (labels.count(y) * (max(labels) + 1)) for y in labels]
            scores = problem.network("dann-discriminator", every, u)
            each = -scores.log_softmax(dim=1)[range(len(u)), owners]
            slopes = torch.autograd.grad(each.sum(), [u], create_graph=True)[0]
            told = (torch.tensor(weights, dtype=torch.float64) * each).sum()
            told = told + 0.3 * (slopes**2).sum() / len(u)
            return problem.task.losses(z, targets).mean() - 2.0 * told

        gradient = differentiate(loss, rest)
        return _moved(problem.params, torch_adam(problem.params, gradient, betas=(0.5, 0.9)))

    return reference


def _sagnet(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    batch, task = problem.batch, problem.task
    rows = len(batch.targets)

    def parted(h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m, v = h.mean(dim=1, keepdim=True), h.var(dim=1, keepdim=True)
        return (h - m) / (v + 1e-5) ** 0.5, m, v

    def order(turn: int) -> Tensor:
        return START.permutation(rows, draw=2 * turn, like=batch.inputs)

    def content(p: Params) -> Tensor:
        n, m, v = parted(problem(p, batch.inputs)[0])
        a, other = START.uniform(rows, 1, draw=1, like=batch.inputs), order(0)
        mixed = n * (a * v + (1 - a) * v[other] + 1e-5) ** 0.5 + a * m + (1 - a) * m[other]
        return task.losses(problem.head(p, mixed), batch.targets).mean()

    def style(p: Params, turn: int) -> Tensor:
        h = problem(p, batch.inputs)[0]
        _, m, v = parted(h)
        fixed = parted(problem({k: t.detach() for k, t in start.items()}, batch.inputs)[0])[0].detach()
        return task.logits(problem.network("sagnet-style", p, fixed[order(turn)] * (v + 1e-5) ** 0.5 + m))

    def flat(p: Params) -> Tensor:
        z = style(p, 2)
        two = torch.stack([torch.zeros_like(z), z], dim=1) if z.dim() == 1 else z
        return -0.4 * two.log_softmax(dim=1).mean()

    start = dict(problem.params)
    first = differentiate(content, of(start, "featurizer", "head"))
    there = torch_adam(start, first)
    start = there
    second = differentiate(
        lambda p: task.losses(style({**there, **p}, 1), batch.targets).mean(), of(there, "sagnet-style")
    )
    there = torch_adam(there, second)
    third = differentiate(lambda p: flat({**there, **p}), of(there, "featurizer"))
    both = torch_adam(problem.params, of(first, "featurizer"), third)
    return _moved(problem.params, {**there, **of(both, "featurizer")})


def _transfer(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    batch = problem.batch
    first = differentiate(
        lambda p: torch.cat([problem.losses(p, e) for e in range(3)]).mean(), problem.params
    )
    there = torch_adam(problem.params, first)

    def gap(p: Params) -> Tensor:
        h = problem({**there, **p}, batch.inputs)[0]
        each = batch.split(problem.task.losses(problem.head(problem.params, h), batch.targets))
        risks = torch.stack([losses.mean() for losses in each])
        return 3.0 * (risks.max() - risks.min())

    second = differentiate(gap, of(there, "featurizer"))
    both = torch_adam(problem.params, of(first, "featurizer"), second)
    return _moved(problem.params, {**there, **of(both, "featurizer")})


def _affine(params: Params, name: str, inputs: Tensor) -> Tensor:
    return inputs @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _mtl(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        total = _L2 * _square_norm(p)
        for x, y in problem.environments():
            h = torch.tanh(_affine(p, "featurizer", x))
            # The first moving mean: what was there before is 0.
            context = 0.8 * h.sum(dim=0, keepdim=True).repeat(len(h), 1) / len(h)
            z = problem.task.logits(_affine(p, "head.linear", torch.cat([h, context], dim=1)))
            total = total + problem.task.losses(z, y).mean()
        return total

    return differentiate(loss, problem.params)


def _arm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    def loss(p: Params) -> Tensor:
        each = []
        for x, y in problem.environments():
            hidden = x
            for layer in (1, 3):
                hidden = _affine(p, f"context.{layer}", hidden).relu()
            context = _affine(p, "context.5", hidden).mean() * torch.ones(len(x), 1, dtype=x.dtype)
            h = torch.tanh(_affine(p, "model.featurizer", torch.cat([x, context], dim=1)))
            each.append(problem.task.losses(problem.task.logits(_affine(p, "model.head", h)), y))
        return torch.cat(each).mean() + _L2 * _square_norm(p)

    return differentiate(loss, problem.params)


def _erm_plus(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    """While the head warms up."""

    def loss(p: Params) -> Tensor:
        return torch.cat([problem.losses({**problem.params, **p}, e) for e in range(3)]).mean()

    gradient = differentiate(loss, of(problem.params, "head"))
    # At twice the run's rate Adam goes twice as far.
    moved = _moved(problem.params, torch_adam(problem.params, gradient))
    return {name: 2 * far for name, far in moved.items()}


def _urm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    batch, task, like = problem.batch, problem.task, problem.batch.inputs
    rows, start, name = len(like), problem.params, "urm-discriminator"

    def features(p: Params) -> Tensor:
        return torch.tanh(torch.tanh(_affine(p, "featurizer.0", like)))

    def answers(p: Params, values: Tensor) -> Tensor:
        hidden = F.leaky_relu(_affine(p, f"{name}.0", values))
        return _affine(p, f"{name}.4", F.leaky_relu(_affine(p, f"{name}.2", hidden))).flatten()

    def entropy(z: Tensor, target: Tensor) -> Tensor:
        return (F.softplus(z) - target * z).mean()

    def blur(draw: int) -> Tensor:
        return 0.2 * START.uniform(rows, draw=draw, like=like)

    def model(p: Params) -> Tensor:
        h = features(p)
        risk = task.losses(task.logits(_affine(p, "head", h)), batch.targets).mean()
        return risk + 0.3 * entropy(answers({**start, **p}, h), 1 - blur(0))

    def discriminator(p: Params) -> Tensor:
        noise = 2 * START.uniform(rows, 4, draw=1, like=like) - 1
        own = entropy(answers(p, noise), 1 - blur(2))
        return own + 0.3 * entropy(answers(p, features(start)), blur(3))

    there = torch_adam(start, differentiate(model, of(start, "featurizer", "head")))
    learned = torch_adam(start, differentiate(discriminator, of(start, name)))
    return _moved(start, {**there, **of(learned, name)})


def _trm(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    """With the Hessian of a head as a matrix and the inner descent as autograd makes it."""
    task, start = problem.task, problem.params
    names = [f"trm-head-{q}" for q in range(3)]
    targets = [y for _, y in problem.environments()]
    fixed = [h.detach() for h in problem.features(start)]

    def risk(weight: Tensor, bias: Tensor, h: Tensor, i: int) -> Tensor:
        return task.losses(task.logits(h @ weight.T + bias), targets[i]).mean()

    heads = []
    for q, name in enumerate(names):
        head = [start[f"{name}.weight"], start[f"{name}.bias"]]
        for _ in range(2):
            leaves = [value.clone().requires_grad_() for value in head]
            slopes = torch.autograd.grad(risk(*leaves, fixed[q], q), leaves)
            head = [v - 0.1 * g for v, g in zip(head, slopes, strict=True)]
        heads.append([value.detach() for value in head])

    responses = []
    for q, (weight, bias) in enumerate(heads):
        leaf = weight.clone().requires_grad_()
        away = sum(risk(leaf, bias, fixed[i], i) for i in range(3) if i != q) / 2
        direction = torch.autograd.grad(away, [leaf])[0].flatten()
        hessian = torch.autograd.functional.hessian(
            lambda w, q=q, b=bias: risk(w.reshape(task.outputs, 4), b, fixed[q], q), weight.flatten()
        )
        step = torch.eye(len(hessian), dtype=hessian.dtype) - hessian
        total = torch.zeros_like(direction)
        for k in range(11):
            total = total + torch.linalg.matrix_power(step, k) @ direction
            # For squared errors the series diverges, and is cut off.
            if float(total.max()) > 10:
                break
        responses.append(total.reshape(weight.shape))

    def loss(p: Params) -> Tensor:
        every = {**start, **p}
        h = problem.features(every)
        total = torch.cat([problem.losses(every, e) for e in range(3)]).mean()
        for q, (weight, bias) in enumerate(heads):
            leaf = weight.clone().requires_grad_()
            slope = torch.autograd.grad(risk(leaf, bias, h[q], q), [leaf], create_graph=True)[0]
            away = sum(risk(weight, bias, h[i], i) for i in range(3) if i != q) / 2
            total = total + (away - 0.01 * (responses[q] * slope).sum()) / 3
        return total

    gradient = differentiate(loss, of(start, "featurizer", "head"))
    there = torch_adam(start, gradient)
    for name, (weight, bias) in zip(names, heads, strict=True):
        there |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return _moved(start, there)


def _adrmx(problem: Problem, differentiate: Differentiate) -> dict[str, Tensor]:
    """The model's turn, which is the first if the discriminator takes one of two."""
    batch, task, start = problem.batch, problem.task, problem.params
    x, targets = batch.inputs, batch.targets.long().tolist()
    owners = [e for e, size in enumerate(batch.sizes) for _ in range(size)]

    def deep(p: Params, name: str, h: Tensor) -> Tensor:
        for layer in (0, 2):
            h = _affine(p, f"{name}.{layer}", h).relu()
        return _affine(p, f"{name}.4", h)

    def entropy(z: Tensor, classes: list[int]) -> Tensor:
        return -z.log_softmax(dim=1)[range(len(z)), classes].mean()

    def contrast(h: Tensor) -> Tensor:
        unit = h / h.norm(dim=1, keepdim=True)
        total, counted = torch.zeros((), dtype=h.dtype), 0
        for i in range(len(h)):
            e = torch.exp(unit @ unit[i] / 0.07) / 2
            below = sum(e[k] for k in range(len(h)) if k != i) + 1e-5
            alike = [k for k in range(len(h)) if k != i and targets[k] == targets[i]]
            if alike:
                counted += 1
                total = total - sum(torch.log(e[k] / below + 1e-5) for k in alike) / len(alike)
        return total / (counted + 1)

    numbers = START.uniform(len(x), like=x).tolist()

    def loss(p: Params) -> Tensor:
        every = {**start, **p}
        h = torch.tanh(_affine(every, "featurizer", x))
        d = torch.tanh(_affine(every, "adrmx-environment", x))
        c = h - d

        def risk(name: str, v: Tensor, y: Tensor) -> Tensor:
            return task.losses(task.logits(deep(every, name, v)), y).mean()

        total = risk("head", h, batch.targets) + risk("adrmx-difference-head", c, batch.targets)
        total = total + 0.7 * entropy(deep(every, "adrmx-environment-head", d), owners)
        remixed = torch.zeros((), dtype=h.dtype)
        for y in range(max(2, task.outputs)):
            i, j = sorted((k for k in range(len(x)) if targets[k] == y), key=lambda k: numbers[k])[:2]
            remixed = remixed + risk("head", (c[i] + d[j])[None], batch.targets[i : i + 1])
        total = total + 0.4 * remixed / max(2, task.outputs)
        total = total + 0.6 * (contrast(h) + contrast(c))
        scores = problem.network("adrmx-discriminator", every, c)
        return total - 0.75 * entropy(scores, owners)

    rest = {k: v for k, v in start.items() if k.split(".")[0] != "adrmx-discriminator"}
    gradient = differentiate(loss, rest)
    return _moved(start, torch_adam(start, gradient, betas=(0.5, 0.9)))


_ORDERS = {ORDER_OF_ENVIRONMENTS, ORDER_OF_ROWS}
_USUAL = _ORDERS | {SHIFT}
_WEIGHTED = {"coefficient": _LAMBDA, "l2": _L2}
_UNDIVIDED = {"normalize_loss": False}
_ADVERSARIAL = {"weight": 2.0, "gradient_penalty": 0.3, "width": 8}


def _penalized(reference: Any, claims: set[str], **more: Any) -> Enrolled:
    return Enrolled(_WEIGHTED, reference, frozenset(claims), at_zero=Composition(), **more)


ENROLLED: dict[str, Enrolled] = {
    "erm": Enrolled({"l2": _L2}, _erm, frozenset(_USUAL | {ONE_IS_ERM})),
    "groupdro": Enrolled({"rate": 0.5, "l2": _L2}, _groupdro, frozenset(_USUAL | {ONE_IS_ERM})),
    "eqrm": Enrolled(
        {"quantile": 0.7, "burn_in": 0, "slope": "exact", "l2": _L2}, _eqrm, frozenset(_USUAL | {ONE_IS_ERM})
    ),
    "mm-rex": _penalized(_mm_rex, _USUAL | {ONE_IS_ERM}, plain=_UNDIVIDED),
    "risk-interpolation": Enrolled({"l2": _L2}, _risk_interpolation, frozenset(_USUAL | {ONE_IS_ERM})),
    "irm": _penalized(_irm, _USUAL),
    "vrex": _penalized(_vrex, _USUAL | {IDENTICAL, ONE_IS_ERM}, plain=_UNDIVIDED),
    "coral": _penalized(_over_pairs(coral_distance), _USUAL | {IDENTICAL, ONE_IS_ERM}),
    "mmd": _penalized(_over_pairs(mmd_distance), _USUAL | {IDENTICAL, ONE_IS_ERM}),
    "causirl-coral": _penalized(_over_cuts(coral_distance), {SHIFT}),
    "causirl-mmd": _penalized(_over_cuts(mmd_distance), {SHIFT}),
    "sd": _penalized(_mean_and(_sd), _ORDERS),
    "ib-erm": _penalized(_mean_and(_bottleneck), _USUAL),
    "ib-irm": Enrolled(
        {"irm_coefficient": _LAMBDA, "ib_coefficient": 0.5, "l2": _L2},
        _ib_irm,
        frozenset(_USUAL),
        at_zero=Composition(),
        zero={"irm_coefficient": 0.0, "ib_coefficient": 0.0},
    ),
    "iga": _penalized(_iga, _USUAL | {IDENTICAL, ONE_IS_ERM}),
    "fishr": _penalized(_fishr, _USUAL | {IDENTICAL, ONE_IS_ERM}, plain=_UNDIVIDED),
    "rdm": Enrolled(
        {"rdm_coefficient": _LAMBDA, "variance_coefficient": 0.5, "l2": _L2},
        _rdm,
        frozenset(_USUAL),
        at_zero=Composition(),
        zero={"rdm_coefficient": 0.0, "variance_coefficient": 0.0},
    ),
    "clove": _penalized(_divided(_mean_and(_clove)), _USUAL, problems=("binary", "multiclass")),
    "cad": _penalized(_cad(conditional=False), _USUAL | {ONE_IS_ERM}),
    "condcad": _penalized(_cad(conditional=True), _USUAL | {ONE_IS_ERM}),
    "selfreg": _penalized(_selfreg, set()),
    "and-mask": Enrolled(
        {"threshold": 1.0, "l2": _L2},
        _and_mask,
        frozenset(_USUAL | {ONE_IS_ERM}),
        plain={"inverse_sparsity": False},
    ),
    "sand-mask": Enrolled({"threshold": 0.5, "steepness": 0.4, "l2": _L2}, _sand_mask, frozenset(_USUAL)),
    "pcgrad": Enrolled({"l2": _L2}, _pcgrad, frozenset({ORDER_OF_ROWS, SHIFT, ONE_IS_ERM})),
    "mixup": Enrolled({"alpha": 0.7, "l2": _L2}, _mixup, frozenset({SHIFT, ONE_IS_ERM})),
    "rsc": Enrolled(
        {"features": 0.5, "rows": 0.4, "l2": _L2}, _rsc, frozenset(_USUAL), problems=("binary", "multiclass")
    ),
    "mldg": Enrolled({"beta": 0.5, "meta_test_environments": 1, "l2": _L2}, _mldg, frozenset({SHIFT})),
    "fish": Enrolled({"meta_rate": 0.5}, _fish, frozenset({ORDER_OF_ROWS, SHIFT})),
    "dann": Enrolled(_ADVERSARIAL, _dann(conditional=False), frozenset({ORDER_OF_ROWS, SHIFT})),
    "cdann": Enrolled(
        _ADVERSARIAL,
        _dann(conditional=True),
        frozenset({ORDER_OF_ROWS, SHIFT}),
        problems=("binary", "multiclass"),
    ),
    "sagnet": Enrolled({"weight": 0.4}, _sagnet, frozenset({SHIFT}), problems=("binary", "multiclass")),
    "transfer": Enrolled({"weight": 3.0}, _transfer, frozenset(_USUAL)),
    "mtl": Enrolled({"memory": 0.8, "l2": _L2}, _mtl, frozenset(_USUAL)),
    "arm": Enrolled({"width": 4, "l2": _L2}, _arm, frozenset(_USUAL)),
    "trm": Enrolled(
        {"warm_up": 0, "inner_steps": 2, "weight": 0.01}, _trm, frozenset({ORDER_OF_ROWS, SHIFT})
    ),
    "adrmx": Enrolled(
        {"contrast": 0.6, "environment": 0.7, "remix": 0.4, "discriminator_steps": 1, "depth": 2, "width": 8},
        _adrmx,
        frozenset({SHIFT}),
        problems=("binary", "multiclass"),
    ),
    "erm++": Enrolled({"head_rate": 2.0, "average_from": 3}, _erm_plus, frozenset(_USUAL)),
    "urm": Enrolled({"weight": 0.3, "width": 6, "smoothing": 0.2}, _urm, frozenset({SHIFT})),
    "eiil": Enrolled(
        # Few steps, so that the first model is not right everywhere.
        {**_WEIGHTED, "reference_steps": 5},
        _irm,
        frozenset(_USUAL),
        at_zero=Composition(),
    ),
}


def every_case(which: Callable[[str, Enrolled], bool] = lambda name, row: True) -> Any:
    """A test with an algorithm's name and a problem, for all that are enrolled and to which `which` applies."""
    cases = [
        pytest.param(name, PROBLEMS[problem], id=f"{name}-{problem}")
        for name, row in ENROLLED.items()
        if which(name, row)
        for problem in row.problems
    ]
    return pytest.mark.parametrize(("name", "problem"), cases)


def those_that_claim(claim: str) -> Any:
    """A test for the enrolled algorithms that claim something."""
    return every_case(lambda _, row: claim in row.claims)
