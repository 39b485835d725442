"""The procedures: the spec's numbers, and what none of them may do."""

from dataclasses import dataclass

import pytest
import torch

import envariant
from algorithms.problems import PROBLEMS, assert_same, train_context
from algorithms.spec_values import (
    LABELS_1,
    LABELS_A,
    LABELS_B,
    LABELS_Q,
    M_BIAS,
    M_WEIGHT,
    OWNERS_Q,
    X1,
    A,
    B,
    Bare,
    Q,
    close,
    vector,
)
from envariant.algorithms import (
    ADRMX,
    DANN,
    MLDG,
    MTL,
    RSC,
    TRM,
    Composition,
    Fish,
    VREx,
    recipe,
)
from envariant.algorithms.training_steps.adrmx import contrast, pairs_within_classes
from envariant.algorithms.training_steps.context import ROWS as CONTEXT
from envariant.algorithms.training_steps.context import GroupMeans
from envariant.algorithms.training_steps.dann import class_weights
from envariant.algorithms.training_steps.miro import FIRST_RAW
from envariant.algorithms.training_steps.miro import penalty as miro_penalty
from envariant.algorithms.training_steps.mixup import mixed_risk
from envariant.algorithms.training_steps.sagnet import with_content_of, with_style_of
from envariant.algorithms.training_steps.transfer import project, risk_gap
from envariant.algorithms.training_steps.trm import neumann
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.step_context import StepContext
from envariant.core.tasks import Multiclass, Regression

ROWS, LABELS = torch.cat([A, B]), torch.cat([LABELS_A, LABELS_B])
BATCH = EnvironmentBatch(ROWS, LABELS, (3, 3), Multiclass(2))


@dataclass(frozen=True)
class StepInputs:
    """Features as they are, linear heads and networks with the spec's weights."""

    weight: torch.Tensor = M_WEIGHT
    bias: torch.Tensor = M_BIAS
    auxiliary_networks: tuple[str, ...] = ("dann-discriminator", "dann-embedding")

    def __call__(self, params, inputs):
        return inputs, self.head(params, inputs)

    def head(self, params, features):
        return features @ self.weight.T + self.bias

    def network(self, name, params, inputs):
        if name == "dann-embedding":
            return torch.tensor([[0.1, 0.2], [-0.3, 0.4]], dtype=torch.float64)[inputs]
        return inputs @ torch.tensor([[1, 0], [0, 0.5]], dtype=torch.float64) + vector(0, 0.1)


def test_mixup():
    model = Bare(lambda _, x: (x[:, :0], x))
    close(mixed_risk(model, {}, BATCH, torch.tensor([1, 0]), vector(0.3, 0.3)), 0.997736)


@pytest.mark.parametrize(
    ("conditional", "entropy", "penalty", "whole", "generator"),
    [
        (False, 0.974404, 0.403401, 1.17610, -0.303614),
        (True, 0.910154, 0.363448, 1.09188, -0.219388),
    ],
)
def test_dann_and_cdann(conditional, entropy, penalty, whole, generator):
    owners, model = BATCH.environment_of_rows(), StepInputs()

    def told(weight):
        part = DANN(gradient_penalty=weight, conditional=conditional)
        return part.discriminator_loss(model, {}, ROWS, BATCH, owners)

    close(told(0.0), entropy)
    close(told(1.0) - told(0.0), penalty)
    close(told(0.5), whole)
    risk = BATCH.task.losses(model.head({}, ROWS), LABELS).mean()
    close(risk, 0.872490)
    close(risk - told(0.5), generator)


def test_cdanns_weights():
    close(class_weights(torch.tensor([0, 0, 2]), vector(1, 1, 1), 4), 1 / 6, 1 / 6, 1 / 3)
    close(class_weights(torch.tensor([0, 0, 2]), vector(3, 1, 5), 4), 1 / 4, 1 / 12, 1 / 3)


def test_discriminator_and_model_are_updated_in_turn():
    """DomainBed's order: with k = 1 the model first, then in turn; with k = 2 discriminator first, then 2 to 1."""
    problem = PROBLEMS["binary"]
    for turns, expected in ((1, "MDMDMD"), (2, "DMDDMD")):
        algorithm = Composition(training_step=DANN(discriminator_steps=turns, width=8))
        fitted = problem.with_networks_of(algorithm)
        params, state, seen = fitted.params, algorithm.init(fitted.params, fitted.context), ""
        for step in range(6):
            moved, state, _ = algorithm.gradients(fitted, params, fitted.batch, state, StepContext.at(step))
            params = {name: value - moved[name] for name, value in params.items()}
            who = {name.split(".")[0] for name, far in moved.items() if bool(far.any())}
            seen += {("dann-discriminator",): "D", ("featurizer", "head"): "M"}[tuple(sorted(who))]
        assert seen == expected
        assert float(state["0"]["model"]["count"]) == seen.count("M")


def test_transfer():
    found = project({"w": torch.tensor([[3.0, 0], [0, 4]])}, {"w": torch.zeros(2, 2)}, 2.0)["w"]
    close(found.double(), 1.2, 0, 0, 1.6)
    inside = {"w": torch.tensor([[0.3, 0], [0, 0.4]])}
    assert torch.equal(project(inside, {"w": torch.zeros(2, 2)}, 2.0)["w"], inside["w"])
    logits = torch.tensor([[1, 0], [0, 1], [0, 0]], dtype=torch.float64)
    batch = EnvironmentBatch(logits, torch.zeros(3, dtype=torch.long), (1, 1, 1), Multiclass(2))
    plain = StepInputs(torch.eye(2, dtype=torch.float64), vector(0, 0))
    close(risk_gap(plain, {}, logits, batch), 1.0)


def test_rsc():
    h = torch.tensor([[1, 2, 0.5], [0.2, -1, 1], [1.5, 0.1, 0.3]], dtype=torch.float64)
    targets = torch.tensor([0, 1, 1])
    weight = torch.tensor([[1, -0.5, 0.2], [-0.3, 0.8, 0.4]], dtype=torch.float64)
    batch, model = EnvironmentBatch(h, targets, (3,), Multiclass(2)), StepInputs(weight, vector(0, 0.1))
    part, logits = RSC(), model.head({}, h)
    muted = part.feature_mask(model, {}, h, batch)
    close(muted, 0, 1, 1, 1, 0, 1, 1, 0, 1)
    before, after = (torch.exp(-batch.task.losses(z, targets)) for z in (logits, model.head({}, h * muted)))
    close(before - after, 0.125101, -0.289025, 0.0166893)
    mask = part.mask(model, {}, h, logits, batch)
    close(mask, 0, 1, 1, 1, 1, 1, 1, 1, 1)
    close(batch.task.losses(logits, targets).mean(), 1.68173)
    close(batch.task.losses(model.head({}, h * mask), targets).mean(), 2.06760)


def test_sagnets_style_and_content():
    rows = torch.tensor([[1, 2, 3, 6], [0, -1, 1, 4], [2, 2, 0, 0]], dtype=torch.float64)
    order = torch.tensor([1, 2, 0])
    close(
        with_style_of(rows, order, vector(0.25, 0.5, 1)[:, None]),
        *(-0.5, 0.5, 1.5, 4.5, 0.198216, -0.603568, 1, 3.40535, 2, 2, 0, 0),
    )
    content = (2, 1, 3, 6, 2.87082, 2.87082, -0.870824, -0.870824, -0.0690478, 0.465476, 1, 2.60357)
    torch.testing.assert_close(
        with_content_of(rows, order), vector(*content).reshape(3, 4), rtol=1e-5, atol=1e-6
    )


def quadratics(*centers):
    """R_e(θ) = ½(θ − c_e)², as squared errors of one row an environment."""
    half = 0.5**0.5
    inputs = torch.full((len(centers), 1), half, dtype=torch.float64)
    targets = half * vector(*centers)
    batch = EnvironmentBatch(inputs, targets, (1,) * len(centers), Regression())
    return Bare(lambda p, x: (x[:, :0], x[:, 0] * p["w"])), batch, {"w": vector(0)[0]}


def test_fish():
    model, batch, params = quadratics(1, 3)
    part = Fish(meta_rate=0.5)
    state = part.init(params, train_context(2, Regression()))
    for expected in (0.0960930, 0.185065, 0.273543):
        moved, state, _ = part.gradients(model, params, batch, state, StepContext.at(0, learning_rate=0.1))
        params = {"w": params["w"] - moved["w"]}
        close(params["w"], expected)


@pytest.mark.parametrize(("meta_test_environments", "expected"), [(1, 0.0666667), (2, -1.3)])
def test_mldg(meta_test_environments, expected):
    model, batch, params = quadratics(1, 3, -2)
    # A step whose random order is the one that is there.
    steps = (StepContext.at(step, learning_rate=0.1) for step in range(100))
    context = next(n for n in steps if n.permutation(3, like=params["w"]).tolist() == [0, 1, 2])
    close(MLDG(1.0, meta_test_environments).gradients(model, params, batch, {}, context)[0]["w"], expected)


def test_mldg_with_two_environments_has_one_meta_test_environment():
    model, batch, params = quadratics(1, 3)
    found = MLDG(1.0, meta_test_environments=2).gradients(model, params, batch, {}, StepContext.at(0))[0]["w"]
    assert float(found) != 0


def test_a_training_step_takes_no_other_parts():
    with pytest.raises(EnvariantError, match="fish: is a training step and cannot be combined"):
        Composition(penalties=(VREx(),), training_step=Fish())
    with pytest.raises(EnvariantError, match=r"fish \+ vrex: fish is a training step and cannot"):
        recipe("fish + vrex")


def test_adrmxs_contrast():
    close(contrast(Q, LABELS_Q, OWNERS_Q), 6.46941)
    # Whoever has no other of its class is left out, and leaves no NaN in the gradient.
    lonely = torch.arange(5)
    assert float(contrast(Q, lonely, OWNERS_Q)) == 0
    assert not bool(torch.func.grad(lambda q: contrast(q, lonely, OWNERS_Q))(Q).any())


def test_adrmx_remixes_two_rows_of_each_class_that_has_two():
    targets, numbers = torch.tensor([0, 1, 0, 0, 2, 1]), torch.tensor([0.9, 0.3, 0.2, 0.5, 0.1, 0.8])
    first, second, met = pairs_within_classes(targets, numbers, Multiclass(3))
    assert met.tolist() == [True, True, False]
    assert [(int(i), int(j)) for i, j in zip(first[:2], second[:2], strict=True)] == [(2, 3), (1, 5)]


def test_adrmx_updates_its_discriminator_in_two_of_three_steps():
    algorithm = Composition(training_step=ADRMX(depth=2, width=4))
    fitted = PROBLEMS["binary"].with_networks_of(algorithm)
    params, state, seen = fitted.params, algorithm.init(fitted.params, fitted.context), ""
    for step in range(6):
        moved, state, _ = algorithm.gradients(fitted, params, fitted.batch, state, StepContext.at(step))
        params = {name: value - moved[name] for name, value in params.items()}
        who = {name.split(".")[0] for name, far in moved.items() if bool(far.any())}
        seen += "D" if who == {"adrmx-discriminator"} else "M" * ("adrmx-discriminator" not in who)
    # n = 1, …, 6 and n mod 3 < 2.
    assert seen == "DMDDMD"


class Means:
    """Features of which a head reads nothing: all that moves is MTL's embedding."""

    auxiliary_networks = ()

    def __call__(self, params, inputs):
        return inputs, inputs[:, 0] * params["w"]

    def head(self, params, features):
        return features[:, 0] * params["w"]


def test_mtls_embedding():
    part, params = MTL(memory=0.99), {"w": vector(0)[0]}
    state = part.init(params, train_context(1, Regression(), features=2))
    for rows, expected in (([[1, 3], [3, 1]], (1.98, 1.98)), ([[0, 0], [2, 0]], (1.0098, 0.0198))):
        inputs = torch.tensor(rows, dtype=torch.float64)
        batch = EnvironmentBatch(inputs, vector(0, 0), (2,), Regression())
        _, state, _ = part.gradients(Means(), params, batch, state, StepContext.at(0))
        close(state["embeddings"], *expected)


def test_context_for_prediction_is_the_mean_over_neighboring_rows():
    means, values = GroupMeans(), torch.randn(2 * CONTEXT + 7, 3, dtype=torch.float64)
    torch.testing.assert_close(means(values), values.mean(dim=0).expand_as(values))
    found = means.eval()(values)
    for start, end in ((0, CONTEXT), (CONTEXT, 2 * CONTEXT), (2 * CONTEXT, 2 * CONTEXT + 7)):
        torch.testing.assert_close(found[start:end], values[start:end].mean(dim=0).expand(end - start, 3))


def test_erm_plus_plus_trains_only_the_head_first():
    algorithm = recipe("erm++").build({"head_steps": 2})
    problem = PROBLEMS["binary"]
    params, state, seen = problem.params, algorithm.init(problem.params, problem.context), []
    for step in range(5):
        moved, state, _ = algorithm.gradients(problem, params, problem.batch, state, StepContext.at(step))
        params = {name: value - moved[name] for name, value in params.items()}
        seen.append({name.split(".")[0] for name, far in moved.items() if bool(far.any())})
    # Everything trains once more than n updates were made.
    assert seen == [{"head"}] * 3 + [{"featurizer", "head"}] * 2
    assert [float(state["0"][kind]["count"]) for kind in ("head", "all")] == [3, 2]


def test_trms_neumann_series():
    def risk(weight):
        return Multiclass(2).losses(X1 @ weight.T, LABELS_1).mean()

    direction = vector(0.1, -0.2, 0.3, 0.05).reshape(2, 2)
    close(neumann(risk, M_WEIGHT, direction), 1.91431, -0.910993, 2.48569, -0.739007)


def test_trms_series_ends_with_the_first_sum_above_the_bound():
    found = neumann(lambda w: -0.5 * (w**2).sum(), vector(1), vector(1))
    close(found, 15)  # 1 + 2 + 4 + 8
    close(neumann(lambda w: -0.5 * (w**2).sum(), vector(1), vector(-1)), -15)
    # The first sum that is compared with the bound has two terms, as in the released code.
    close(neumann(lambda w: -0.5 * (w**2).sum(), vector(1), vector(11)), 33)


def test_trm_is_erm_during_warm_up_and_then_fits_its_heads():
    def moved(step):
        algorithm = Composition(training_step=TRM(warm_up=3))
        problem = PROBLEMS["binary"].with_networks_of(algorithm)
        state = algorithm.init(problem.params, problem.context)
        found, after, _ = algorithm.gradients(
            problem, problem.params, problem.batch, state, StepContext.at(step)
        )
        return found, torch.equal(after["0"]["shares"], state["0"]["shares"])

    problem = PROBLEMS["binary"]
    plain = recipe("erm++").build({"head_steps": -1})
    erm = plain.gradients(
        problem, problem.params, problem.batch, plain.init(problem.params, problem.context), StepContext.at(2)
    )[0]
    (warm, still), (after, also) = moved(2), moved(3)
    assert_same({name: warm[name] for name in erm}, erm, 1e-12)
    assert still
    assert not also
    assert not any(bool(warm[name].any()) for name in warm if name.startswith("trm-head"))
    assert all(bool(after[name].any()) for name in after if name.startswith("trm-head"))


def test_arms_frozen_context_network_has_no_trained_parameters():
    for trained in (True, False):
        algorithm = recipe("arm").build({"trained": trained, "width": 4, "l2": 0.1})
        fitted = PROBLEMS["binary"].with_networks_of(algorithm)
        assert trained == any(name.startswith("context.") for name in fitted.params)
        gradients = fitted.step(algorithm)[0]
        assert all(bool(gradient.any()) for gradient in gradients.values())


def test_neither_l2_nor_weight_decay_changes_arms_frozen_context_network():
    def context(steps):
        result = envariant.train(
            "colored-digits",
            recipe("arm").build({"trained": False, "width": 4, "l2": 0.1}),
            model="linear",
            steps=steps,
            learning_rate=0.1,
            weight_decay=0.1,
            batch_size=8,
        )
        return dict(result.model(0).named_parameters())

    first, last = context(1), context(3)
    moved = {name for name, value in first.items() if not torch.equal(value, last[name])}
    assert moved
    assert not any("context." in name for name in moved)
    assert any("context." in name for name in first)


@pytest.mark.parametrize("name", ["adrmx", "cdann", "rsc", "sagnet"])
def test_algorithms_that_need_classes_reject_regression(name):
    with pytest.raises(EnvariantError, match=r"needs a classification task, but the task is regression"):
        recipe(name).default.init({"any": vector(0)}, train_context(2, Regression(), features=3))


def test_miro_penalty_and_slope_of_the_spec():
    features = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]], dtype=torch.float64)
    before = torch.tensor([[0.5, 2.0], [0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    raw = torch.tensor([FIRST_RAW], dtype=torch.float64, requires_grad=True)
    value = miro_penalty(features, before, raw)
    value.backward()
    close(value.detach(), 1.5570407868)
    close(raw.grad[0], -2.1013071991)
