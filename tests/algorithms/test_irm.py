"""IRM's penalty: the spec's numbers, the closed form against two differentiations, and its origin."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from algorithms.problems import PROBLEMS, train_context
from algorithms.spec_values import Y3, YB, Z3, ZB, Bare, close, predicted, vector
from envariant.algorithms import IRM, Composition
from envariant.core.environments import EnvironmentBatch
from envariant.core.step_context import START
from envariant.core.tasks import Binary, Multiclass, Regression


def penalty(task, logits, targets, sizes=None):
    return IRM(1.0).penalty(predicted(task, logits, targets, sizes or (len(logits),)), {})[0]


def test_values_of_the_specification_for_a_binary_environment():
    one = predicted(Binary(), ZB, YB, (4,))
    close(one.risks, 0.867155)
    close(one.multiplier_derivatives(), -0.188770, -0.268941, 1.76159, -0.127667)
    close(one.multiplier_derivatives().mean(), 0.294054)
    close(penalty(Binary(), ZB, YB), 0.0864676)
    close(
        torch.func.grad(lambda z: penalty(Binary(), z, YB))(ZB), -0.0382327, 0.0106344, 0.160375, -0.0517858
    )


def test_value_of_the_specification_for_the_rescaled_loss():
    """The composition gives gradients only, so its loss is summed up along the way from logits 0."""
    algorithm = Composition(penalties=(IRM(1e4),), normalize_loss=True)
    batch = EnvironmentBatch(torch.zeros(4, 1, dtype=torch.float64), YB, (4,), Binary())
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))

    def slope_at(share):
        def forward(params, inputs):
            return inputs[:, :0], params["z"]

        return (
            algorithm.gradients(
                Bare(forward),
                {"z": share * ZB},
                batch,
                algorithm.init({}, train_context(1, batch.task)),
                START,
            )[0]["z"]
            @ ZB
        )

    along = sum(w / 2 * slope_at((t + 1) / 2) for t, w in zip(nodes, weights, strict=True))
    close(math.log(2) / 1e4 + along, 0.0865543)


def test_values_of_the_specification_for_three_classes():
    close(predicted(Multiclass(3), Z3, Y3, (4,)).multiplier_derivatives().mean(), 0.103399)
    close(penalty(Multiclass(3), Z3, Y3), 0.0106913)


LOSSES = {
    "binary": (Binary(), F.binary_cross_entropy_with_logits),
    "multiclass": (Multiclass(3), F.cross_entropy),
    "regression": (Regression(), F.mse_loss),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_closed_form_equals_differentiation_in_a_multiplier(name):
    (task, loss), problem = LOSSES[name], PROBLEMS[name]
    sizes, targets = problem.batch.sizes, problem.batch.targets
    logits = problem(problem.params, problem.batch.inputs)[1].requires_grad_()
    slopes = []
    for z, y in zip(logits.split(sizes), targets.split(sizes), strict=True):
        multiplier = torch.ones((), dtype=torch.float64, requires_grad=True)
        slopes += torch.autograd.grad(loss(multiplier * z, y), [multiplier], create_graph=True)
    by_autograd = sum(s**2 for s in slopes) / len(slopes)
    by_formula = penalty(task, logits, targets, sizes)
    torch.testing.assert_close(by_formula, by_autograd, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(p, [logits])[0] for p in (by_formula, by_autograd)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def halves(task, logits, targets, sizes=None):
    part = IRM(1.0, form="halves")
    return part.penalty(predicted(task, logits, targets, sizes or (len(logits),)), {})[0]


def test_values_of_the_specification_for_half_batches():
    two_classes = torch.stack([torch.zeros_like(ZB), ZB], dim=1)
    close(halves(Multiclass(2), two_classes, YB.long()), -0.155949)
    close(halves(Binary(), ZB, YB), -0.155949)
    derivatives = predicted(Multiclass(3), Z3, Y3, (4,)).multiplier_derivatives()
    close(derivatives[::2].mean(), -0.424486)
    close(derivatives[1::2].mean(), 0.631284)
    close(halves(Multiclass(3), Z3, Y3), -0.267971)


def test_an_environment_of_one_row_has_no_half_batch_penalty():
    assert float(halves(Binary(), ZB[:1], YB[:1])) == 0.0


def test_half_batches_are_unbiased():
    """Averaged over all equal splits: the squared mean less Var(d)/N (spec, properties)."""
    d = predicted(Binary(), ZB, YB, (4,)).multiplier_derivatives()
    orders = [torch.tensor(order) for order in itertools.permutations(range(4))]
    mean = torch.stack([halves(Binary(), ZB[o], YB[o]) for o in orders]).mean()
    torch.testing.assert_close(mean, d.mean() ** 2 - d.var() / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("task", "targets", "risk", "slopes", "penalty"),
    [
        (Binary(), (1, 0, 1, 0), 0.444623, (-0.108223, -0.145202), 0.0327958),
        (Regression(), (1, -1, 0, -2), 0.1225, (0.395, -0.55), 0.458525),
    ],
)
def test_values_of_the_specification_for_two_dummies(task, targets, risk, slopes, penalty):
    rows = torch.tensor([[1, 0], [0, 1], [1, 1], [-1, 2]], dtype=torch.float64)
    outputs = rows @ vector(0.5, -1.0) + 0.1
    close(outputs, 0.6, -0.9, -0.4, -2.4)
    seen = predicted(task, outputs, vector(*targets), (4,))
    found = IRM(1.0, form="dummies").penalty(seen, {})[0]
    close(seen.risks[0], risk)
    by_dummy = torch.func.grad(lambda d: task.losses(d[0] * outputs + d[1], vector(*targets)).mean())
    close(by_dummy(vector(1, 0)), *slopes)
    close(found, penalty)
    if task == Binary():
        close(0.1 * seen.risks.mean() + 0.9 * found, 0.0739785)


def test_the_constant_predictor_has_no_penalty():
    assert float(penalty(Binary(), torch.zeros(4, dtype=torch.float64), YB)) == 0.0
    assert float(penalty(Multiclass(3), torch.full_like(Z3, 0.7), Y3)) < 1e-30


def least_squares():
    generator = torch.Generator().manual_seed(3)
    phi = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = phi @ vector(1.0, -2.0, 0.5, 0.0) + torch.randn(30, generator=generator, dtype=torch.float64)
    return phi, y


def distance(phi, y, w):
    """The report's D(Φ, w) = ‖ΦᵀY − ΦᵀΦw‖²."""
    return (phi.T @ y - phi.T @ phi @ w).square().sum()


def risk_gradient(phi, y, w):
    batch = EnvironmentBatch(phi, y, (len(y),), Regression())
    algorithm = Composition()
    state = algorithm.init({"w": w}, train_context(1, batch.task))
    return algorithm.gradients(Bare(lambda p, x: (x[:, :0], x @ p["w"])), {"w": w}, batch, state, START)[0][
        "w"
    ]


def test_the_reports_distance_is_the_squared_half_gradient_of_least_squares():
    """Step 5 of the report's derivation: D(w) = ‖½ ∂/∂w ‖Φw − Y‖²‖²; the risk is that norm over n."""
    phi, y = least_squares()
    w = vector(0.3, 0.1, -1.0, 2.0)
    half = len(y) * risk_gradient(phi, y, w) / 2
    torch.testing.assert_close(half.square().sum(), distance(phi, y, w), rtol=1e-12, atol=0)


def test_the_reports_distance_vanishes_where_the_normal_equations_hold_and_only_there():
    phi, y = least_squares()
    best = torch.linalg.solve(phi.T @ phi, phi.T @ y)
    assert float(distance(phi, y, best)) < 1e-20
    assert float(risk_gradient(phi, y, best).norm()) < 1e-10
    assert float(penalty(Regression(), phi @ best, y)) < 1e-20
    assert float(distance(phi, y, best + 0.01)) > 1e-3
    assert float(penalty(Regression(), phi @ (best + 0.01), y)) > 1e-7


def test_the_penalty_is_the_reports_distance_at_the_multiplier_one():
    phi, y = least_squares()
    logits = phi @ vector(0.3, 0.1, -1.0, 2.0)
    expected = distance(logits[:, None], y, vector(1.0)) * (2 / len(y)) ** 2
    torch.testing.assert_close(penalty(Regression(), logits, y), expected, rtol=1e-12, atol=0)
