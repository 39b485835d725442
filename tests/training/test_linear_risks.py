"""Linear models in full batches: the formulas of the risks give the results of the rows, except for rounding."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import envariant
from benchmarks import step_timing
from envariant.algorithms import RECIPES, Composition, Penalty, recipe
from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.core.schedules import Constant, Schedule
from envariant.core.tasks import Binary, Regression
from envariant.training import linear_risks, step_program
from envariant.training.replica_stack import ReplicaStack
from envariant.training.risk_functions import Softplus, Square, risk_and_gradient
from envariant.training.risk_model import RiskModel

EQUAL, UNEQUAL, VERY_UNEQUAL = (60, 60, 60), (60, 50, 55), (200, 20, 30)
TASKS = {"binary": Binary(), "regression": Regression()}


def environments(task, sizes=EQUAL, seed=0, columns=4):
    """Return environments whose rows differ in mean, scale and label noise, and a test environment."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for e, size in enumerate((*sizes, 10)):
        inputs = torch.randn(size, columns, generator=generator) * (1 + e) + torch.arange(columns) * e
        noise = torch.randn(size, generator=generator) * (1 + e)
        targets = inputs @ torch.linspace(-1, 1, columns) - e + noise
        own = (targets > 0).float() if isinstance(task, Binary) else targets
        parts.append(Environment(f"e{e}", inputs, own))
    return EnvironmentSet("rows", tuple(parts), task, test=(f"e{len(sizes)}",))


@pytest.fixture
def uses(monkeypatch):
    """Count the calls of the model that replaces the rows."""
    calls = []
    original = RiskModel.__call__
    monkeypatch.setattr(RiskModel, "__call__", lambda *values: calls.append(1) or original(*values))
    return calls


def trained(data, algorithm, **options):
    settings = {"model": "linear", "steps": 8, "learning_rate": 0.03, "evaluate_every": 8, "n_seeds": 2}
    return envariant.train(data, algorithm, batch_size=None, **settings | options)


def weights(result):
    return torch.cat([p.flatten() for k in range(2) for p in result.model(k).parameters()])


def both_ways(monkeypatch, data, algorithm, **options):
    """Train with the formulas and with the rows."""
    fast = trained(data, algorithm, **options)
    monkeypatch.setattr(linear_risks, "apply_to", lambda *_: False)
    return fast, trained(data, algorithm, **options)


SUFFICIENT = [name for name in RECIPES if linear_risks.requirement(recipe(name).build({})) != "rows"]


def test_algorithms_of_risks_and_gradients_are_known():
    """CORAL, Fishr, SD and all training steps, for example, use the rows."""
    assert set(SUFFICIENT) == {
        "erm", "groupdro", "eqrm", "mm-rex", "risk-interpolation", "irm", "vrex", "iga", "and-mask",
        "sand-mask", "pcgrad", "eiil",
    }  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "algorithm",
    [
        *SUFFICIENT, "erm(l2=0.1, risk_aggregator=pooled)", "irm(coefficient=3, form=dummies)",
        "vrex + and-mask(threshold=0.3)", "irm(coefficient=3) + pcgrad", "iga(coefficient=0.1) + vrex + groupdro",
    ],
)  # fmt: skip
def test_formulas_agree_with_rows(uses, monkeypatch, task, algorithm):
    equal = len(algorithm) % 2 and "pooled" not in algorithm
    data = environments(TASKS[task], EQUAL if equal else UNEQUAL)
    recorded = algorithm in ("irm", "iga", "and-mask")
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1 if recorded else 10**9)
    fast, slow = both_ways(monkeypatch, data, algorithm, evaluate_every=4)
    assert uses
    torch.testing.assert_close(weights(fast), weights(slow), rtol=1e-4, atol=1e-4)
    risks = [list(result.history.query("metric == 'risk'").value) for result in (fast, slow)]
    assert risks[0] == pytest.approx(risks[1], rel=1e-4)
    assert risks[0][0] != pytest.approx(risks[0][-1], rel=1e-2)


@dataclass(frozen=True)
class MeanSquaredLogit(Penalty):
    """Penalty of another author, which does not declare what it needs."""

    name: ClassVar[str] = "msl"
    paper: ClassVar[str] = "these tests"
    coefficient: Schedule = Constant(1.0)

    def penalty(self, predicted, state):
        return predicted.logits.square().mean(), state


@pytest.mark.parametrize(
    ("algorithm", "sizes", "task", "options"),
    [
        ("irm(form=halves)", EQUAL, "binary", {}),
        ("irm + iga", EQUAL, "binary", {}),  # would need third derivatives
        ("sd", EQUAL, "regression", {}),
        ("mixup", EQUAL, "binary", {}),
        (Composition(penalties=(MeanSquaredLogit(),)), EQUAL, "regression", {}),
        ("vrex", VERY_UNEQUAL, "binary", {}),
        ("vrex", EQUAL, "binary", {"batch_size": 20}),
        ("vrex", EQUAL, "binary", {"model": "mlp(hidden=4)"}),
        ("vrex", EQUAL, "binary", {"loss": "focal"}),
        ("vrex", EQUAL, "regression", {"loss": "huber"}),
        ("vrex", EQUAL, "regression", {"precision": "bfloat16"}),
    ],
)
def test_rows_are_used_where_formulas_do_not_apply(uses, algorithm, sizes, task, options):
    settings = {"model": "linear", "batch_size": None, "steps": 2, "evaluate_every": 2} | options
    envariant.train(environments(TASKS[task], sizes), algorithm, **settings)
    assert not uses


def test_squared_loss_needs_one_row_per_column(uses, monkeypatch):
    """The time of a step does not depend on the number of rows, nor on the sizes of the environments."""
    shapes = []
    monkeypatch.setattr(
        RiskModel,
        "batch",
        lambda self, inputs, own=RiskModel.batch: shapes.append(inputs.shape) or own(self, inputs),
    )
    fast, slow = both_ways(monkeypatch, environments(TASKS["regression"], VERY_UNEQUAL), "vrex")
    torch.testing.assert_close(weights(fast), weights(slow), rtol=1e-4, atol=1e-4)
    assert {shape[1] for shape in shapes} == {6}
    assert uses
    uses.clear()
    trained(environments(TASKS["regression"], columns=257), "vrex", steps=1, evaluate_every=1)
    assert not uses


def test_means_far_from_zero_do_not_lose_precision(monkeypatch):
    data = environments(TASKS["regression"], (500, 500), seed=1)
    shifted = [Environment(e.name, e.inputs + 100, e.targets + 50) for e in data.environments]
    data = EnvironmentSet("shifted", tuple(shifted), data.task, test=data.test)
    fast, slow = both_ways(monkeypatch, data, "erm", steps=30, evaluate_every=30)
    losses = [result.history.query("metric == 'loss'").value for result in (fast, slow)]
    assert list(losses[0]) == pytest.approx(list(losses[1]), rel=1e-3)


class Draws(EnvironmentSource):
    """Source with other rows for every seed."""

    name = "draws"

    def sample(self, seed):
        return environments(TASKS["binary"], UNEQUAL, seed)


def test_replicas_with_rows_of_their_own(uses, monkeypatch):
    fast, slow = both_ways(monkeypatch, Draws(), "iga", execution="stacked")
    assert uses
    torch.testing.assert_close(weights(fast), weights(slow), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*weights(slow).chunk(2), atol=1e-2)


def test_resumed_stack_is_bit_identical():
    case = replace(step_timing.CASES["linear-irm-x20"], rows=50, replicas=3)
    whole = case.stack()
    whole.advance()
    saved = whole.checkpoint().clone()
    resumed = ReplicaStack(case.data(), case.build_replicas(), case.run_config(), saved)
    for stack in (whole, resumed):
        stack.advance()
    params = [stack.checkpoint().params for stack in (whole, resumed)]
    assert all(torch.equal(value, params[1][name]) for name, value in params[0].items())


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([Softplus(), Square()]), st.integers(0, 3))
def test_derivatives_are_those_of_the_risk(seed, curve, padding):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    weights, vectors = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    padded = torch.cat([rows, rows.new_zeros(padding, 3)])
    shares = torch.cat([rows.new_full((7,), 1 / 7), rows.new_zeros(padding)])

    def risk(own):
        return curve.value(rows @ own).mean()

    def formulas(own):
        return risk_and_gradient(own, padded, shares, curve)

    value, gradient = vmap(formulas)(weights)
    torch.testing.assert_close(value, vmap(risk)(weights))
    torch.testing.assert_close(gradient, vmap(grad(risk))(weights))

    def product(own, vector):
        return grad(lambda at: (grad(risk)(at) * vector).sum())(own)

    def by_formula(own, vector):
        return grad(lambda at: (formulas(at)[1] * vector).sum())(own)

    torch.testing.assert_close(vmap(by_formula)(weights, vectors), vmap(product)(weights, vectors))
    torch.testing.assert_close(by_formula(weights[0], vectors[0]), product(weights[0], vectors[0]))


def test_large_margins_have_finite_risks_and_gradients():
    rows, shares = torch.tensor([[1e5], [-1e5]]), torch.tensor([0.5, 0.5])
    risk, gradient = risk_and_gradient(torch.ones(1), rows, shares, Softplus())
    assert risk == 5e4
    assert gradient == 5e4


def test_programs_do_not_repeat_operations_and_keep_changes_in_place():
    def twice(x):
        return x.sin() * x.sin() + (x * 1).sum() - (x * 1.0).sum()

    def in_place(x):
        y = x.sin()
        y += 1
        return y * x.sin()

    for function, sines in ((twice, 1), (in_place, 2)):
        recorded = step_program._without_repetitions(make_fx(function)(torch.ones(2)))
        assert len(recorded.graph.find_nodes(op="call_function", target=torch.ops.aten.sin.default)) == sines
        x = torch.tensor([0.5, 2.0])
        assert torch.equal(recorded(x), function(x))
