"""`envariant.objective`: the gradients of the engine in a plain training loop, for every method."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, final

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import envariant
from envariant.algorithms import (
    IGA,
    RECIPES,
    AndMask,
    Composition,
    GroupDRO,
    RiskAggregator,
    VREx,
    as_algorithm,
)
from envariant.core import counter_rng
from envariant.core.errors import EnvariantError
from envariant.core.step_context import StepContext
from envariant.objectives import Objective
from envariant.objectives.requirements import has_loss
from envariant.testing import TASKS, Problem

COMPOSED = (
    "vrex + coral",
    "irm(l2=0.01)",
    "iga + sand-mask",
    "vrex + fishr + and-mask(threshold=0.5)",
    "selfreg + pcgrad",
)
TOLERANCE = 1e-12


class Net(nn.Module):
    """The example network of `envariant.testing.Problem`, which returns features and logits."""

    def __init__(self, outputs=1):
        super().__init__()
        self.featurizer, self.head = nn.Linear(3, 4), nn.Linear(4, outputs)

    def forward(self, inputs):
        features = torch.tanh(self.featurizer(inputs))
        return features, self.head(features)


@final
@dataclass(frozen=True)
class Stubborn(RiskAggregator):
    name: ClassVar[str] = "stubborn"

    def init(self, params, context):
        return {"risks": torch.zeros(context.environments)}

    def risk(self, predicted, state):
        return predicted.risks.mean(), {"risks": predicted.risks.detach()}


def step_of(objective, net, inputs, targets, environments, step=None):
    """Return the loss and the gradients of one step by name, however the algorithm computes them."""
    net.zero_grad()
    objective.zero_grad()
    features, logits = net(inputs)
    if has_loss(objective.algorithm):
        loss = objective(logits, targets, environments, features=features, model=net, step=step)
        loss.backward()
    else:
        loss = objective.backward(net, logits, targets, environments, features=features, step=step)
    named = (*net.named_parameters(), *objective.networks.named_parameters())
    return loss.detach(), {name: parameter.grad for name, parameter in named}


def usable(names):
    for name in names:
        algorithm = as_algorithm(name)
        if algorithm.training_step is None and algorithm.environment_inference is None:
            yield name


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("name", [*usable(RECIPES), *COMPOSED])
def test_gradients_of_every_method_equal_those_of_the_engine(name, task):
    """Three steps in a row, with rows in any order, so that states and schedules are compared as well."""
    algorithm, problem = as_algorithm(name), Problem.example(task)
    try:
        algorithm.init(problem.params, problem.context)
    except EnvariantError:
        pytest.skip("the method does not support this task")
    problem = problem.with_networks_of(algorithm)
    net = Net(task.outputs).double()
    net.load_state_dict({key: problem.params[key] for key in net.state_dict()})
    objective = envariant.objective(name, loss=task, features=4, environments=3, seed=5)
    objective.networks.double().load_state_dict(
        {k: v for k, v in problem.params.items() if k not in net.state_dict()}
    )
    generator, state = torch.Generator().manual_seed(1), algorithm.init(problem.params, problem.context)
    for number, step in enumerate((0, 150, 151)):
        batch = problem.batch
        order = torch.randperm(len(batch.targets), generator=generator)
        rows = (batch.inputs[order], batch.targets[order], batch.environment_of_rows()[order])
        # The engine groups rows by environment; algorithms that pair rows depend on their order.
        grouped = rows[2].argsort(stable=True)
        engine = replace(problem, batch=replace(batch, inputs=rows[0][grouped], targets=rows[1][grouped]))
        key = counter_rng.step_keys([5], number, 1, torch.device("cpu"))[0, 0]
        expected, state, metrics = engine.step(algorithm, StepContext(step, key=key), state=state)
        loss, gradients = step_of(objective, net, *rows, step)
        assert gradients.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(gradients[key], value, rtol=TOLERANCE, atol=TOLERANCE)
        reported = objective.metrics()
        assert reported["loss"] == pytest.approx(float(loss))
        for key, value in metrics.items():
            assert reported[key] == pytest.approx(float(value), rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize("name", [name for name in RECIPES if as_algorithm(name).training_step])
def test_training_steps_refer_to_the_trainer(name):
    with pytest.raises(EnvariantError, match=r"is a training step.* envariant\.train\(data, algorithm\)"):
        envariant.objective(name)


def batch_of(seed, rows=24, environments=3):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    targets = (torch.rand(rows, generator=generator) < 0.5).double()
    return inputs, targets, torch.arange(rows) % environments


@settings(max_examples=20)
@given(st.permutations(range(24)))
def test_the_order_of_the_rows_does_not_matter(order):
    torch.manual_seed(0)
    net, batch = Net().double(), batch_of(0)
    order = torch.tensor(order)
    losses = [
        step_of(envariant.objective("irm + vrex + coral"), net, *rows)[0]
        for rows in (batch, tuple(tensor[order] for tensor in batch))
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)


def test_group_dro_raises_only_the_weights_of_environments_in_the_batch():
    """Sagawa et al. 2020, algorithm 1: an absent group keeps its weight up to the normalization."""
    objective, weights = (
        envariant.objective(GroupDRO(rate=0.5), environments=3),
        torch.full((3,), 1 / 3).double(),
    )
    for number, present in enumerate(([0, 1, 2], [0, 2], [1], [0, 1, 2])):
        _, targets, environments = batch_of(number)
        keep = torch.isin(environments, torch.tensor(present))
        logits = torch.randn(24, generator=torch.Generator().manual_seed(number), dtype=torch.float64)[keep]
        risks = torch.zeros(3).double()
        for e in present:
            own = environments[keep] == e
            risks[e] = F.binary_cross_entropy_with_logits(logits[own], targets[keep][own])
        weights[present] *= torch.exp(0.5 * risks[present])
        weights /= weights.sum()
        loss = objective(logits, targets[keep], environments[keep])
        assert float(loss) == pytest.approx(float(weights @ risks), rel=1e-6)


def test_fishr_keeps_the_moving_average_of_an_absent_environment():
    objective = envariant.objective("fishr(coefficient=1)", environments=3)
    net, averages = Net().double(), []
    for number, absent in enumerate((-1, 1, 2)):
        rows = tuple(t[batch_of(number)[2] != absent] for t in batch_of(number))
        step_of(objective, net, *rows)
        averages.append(objective.state_dict()["state.1/weight"].clone())
    assert [[bool((a[e] == b[e]).all()) for e in range(3)] for a, b in pairwise(averages)] == [
        [False, True, False],
        [False, False, True],
    ]


@pytest.mark.parametrize("name", [*usable(RECIPES), *COMPOSED])
def test_every_method_accepts_batches_without_some_environments(name):
    """Including a batch of a single environment, which no penalty can compare with another."""
    torch.manual_seed(0)
    net = Net().double()
    objective = envariant.objective(name, features=4, loss=envariant.Binary(), environments=3)
    objective.networks.double()
    for number, present in enumerate(([0, 2], [1], [0, 1, 2])):
        rows = batch_of(number)
        keep = torch.isin(rows[2], torch.tensor(present))
        loss, gradients = step_of(objective, net, *(each[keep] for each in rows), step=150)
        assert all(bool(value.isfinite().all()) for value in (loss, *gradients.values()))


def test_a_part_that_ignores_absent_environments_is_reported():
    """Its state has one entry per environment, and shrinks to those in the batch."""
    objective = envariant.objective(Composition(Stubborn()), environments=2)
    logits, targets = torch.zeros(4), torch.ones(4)
    objective(logits, targets, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(EnvariantError, match=r"stubborn: the shape of the state changed.*batch\.of_present"):
        objective(logits, targets, torch.tensor([0, 0, 0, 0]))


def test_a_risk_of_absent_environments_does_not_enter_the_penalty():
    logits, targets, environments = batch_of(3)[0][:, 0], batch_of(3)[1], batch_of(3)[2]
    keep = environments != 1
    risks = [
        F.binary_cross_entropy_with_logits(logits[environments == e], targets[environments == e])
        for e in (0, 2)
    ]
    loss = envariant.objective(VREx(coefficient=3.0), environments=3)(
        logits[keep], targets[keep], environments[keep]
    )
    expected = torch.stack(risks).mean() + 3 * torch.stack(risks).var(correction=0)
    assert float(loss) == pytest.approx(float(expected))


def test_environments_are_learned_from_the_batches():
    """An environment seen for the first time in a later batch starts from its initial state."""
    objective = envariant.objective(GroupDRO(rate=1.0))
    known = envariant.objective(GroupDRO(rate=1.0), environments=("2018", "2019", "2020"))
    for number, ids in enumerate(([2019, 2018], [2020, 2018], [2018, 2019, 2020])):
        logits = torch.randn(12, generator=torch.Generator().manual_seed(number))
        environments = torch.tensor(ids).repeat(6)[:12]
        targets = torch.ones(12)
        objective(logits, targets, environments)
        known(logits, targets, environments - 2018)
    assert objective.environments == ("2018", "2019", "2020")
    assert objective.metrics()["risk 2020"] == pytest.approx(known.metrics()["risk 2020"])
    assert {key: value.shape for key, value in objective.state_dict().items() if "log" in key} == {
        "state.0/log_weights": (3,)
    }


def test_numbers_beyond_the_given_environments_are_an_error():
    with pytest.raises(EnvariantError, match=r"environments must be numbers from 0 to 1; got 2"):
        envariant.objective("vrex", environments=2)(torch.zeros(3), torch.zeros(3), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("saved_after", [0, 1, 3])
def test_a_resumed_objective_gives_bit_identical_losses(saved_after, tmp_path):
    """State, step and random numbers: the composition has all three."""
    text = "groupdro + fishr(coefficient=step(0, 1, at=2)) + causirl-mmd"
    net, objective, losses = Net().double(), envariant.objective(text), []
    for number in range(5):
        if number == saved_after:
            torch.save(objective.state_dict(), tmp_path / "objective.pt")
        losses.append(step_of(objective, net, *batch_of(number))[0])
    again = envariant.objective(text)
    again.load_state_dict(torch.load(tmp_path / "objective.pt", weights_only=True))
    assert losses[saved_after:] == [step_of(again, net, *batch_of(k))[0] for k in range(saved_after, 5)]


def test_a_resumed_objective_keeps_its_task():
    """Rows of 0 and 1 alone do not make a regression binary after a restart, nor after an evaluation."""
    objective, zeros, ids = envariant.objective("erm"), torch.zeros(2), torch.tensor([0, 1])
    objective.eval()(zeros, torch.tensor([0.0, 1.0]), ids)
    objective.train()(zeros, torch.tensor([0.5, 1.0]), ids)
    again = envariant.objective("erm")
    again.load_state_dict(objective.state_dict())
    for each in (objective, again):
        assert float(each(zeros, torch.tensor([0.0, 1.0]), ids)) == 0.5


@pytest.mark.parametrize(
    ("logits", "targets", "loss"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 2]), None),
        (torch.zeros(2, 3), torch.tensor([[0.0, 1, 1], [1, 0, 1]]), None),
        (torch.zeros(2, 3), torch.tensor([[0.5, 1, 1], [1, 0, 1]]), "huber"),
    ],
)
def test_every_inferred_task_is_restored(logits, targets, loss):
    first, again = (envariant.objective("erm", loss=loss) for _ in range(2))
    first(logits, targets, torch.tensor([0, 1]))
    again.load_state_dict(first.state_dict())
    assert type(again._task) is type(first._task)
    assert again(logits, targets, torch.tensor([0, 1])) == first(logits, targets, torch.tensor([0, 1]))


def test_a_failed_call_changes_nothing():
    objective = envariant.objective("erm", environments=2)
    with pytest.raises(EnvariantError, match="from 0 to 1"):
        objective(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.tensor([0, 5]))
    assert float(objective(torch.zeros(2), torch.tensor([0.5, 1.0]), torch.tensor([0, 1]))) == pytest.approx(
        0.625
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: o([0.1, 0.2], torch.ones(2), torch.tensor([0, 1])), "logits must be a tensor"),
        (lambda o: o.backward_losses(Net(), {0: 0.5}), "losses of environment 0 must be a tensor"),
        (
            lambda o: o.backward_losses(Net(), {"a": torch.ones(1)}),
            "environments must be whole numbers; got 'a'",
        ),
    ],
)
def test_values_that_are_no_tensors_are_reported(call, message):
    with pytest.raises(EnvariantError, match=message):
        call(envariant.objective("vrex"))


def test_gradient_penalties_need_gradients_also_in_evaluation():
    objective, net = envariant.objective("iga").eval(), Net().double()
    x, y, e = batch_of(0)
    with torch.no_grad(), pytest.raises(EnvariantError, match=r"outside of torch.no_grad\(\)"):
        objective(net(x)[1], y, e, model=net)


def test_a_state_of_other_environments_is_rejected():
    saved = envariant.objective("groupdro", environments=3).state_dict()
    with pytest.raises(EnvariantError, match=r"the saved state has 3 environments, but the objective has 2"):
        envariant.objective("groupdro", environments=2).load_state_dict(saved)


def test_the_state_moves_with_the_module():
    objective = envariant.objective("groupdro + fishr")
    step_of(objective, Net().double(), *batch_of(0))
    assert {value.device.type for value in objective.to("meta").state.buffers()} == {"meta"}


def test_a_copy_has_a_state_of_its_own():
    objective, net = envariant.objective("groupdro"), Net().double()
    step_of(objective, net, *batch_of(0))
    before = copy.deepcopy(objective)
    step_of(objective, net, *batch_of(1))
    assert not torch.equal(
        before.state.tree()["0"]["log_weights"], objective.state.tree()["0"]["log_weights"]
    )


def test_evaluation_changes_neither_state_nor_step():
    objective, net = envariant.objective("groupdro + mmd"), Net().double()
    step_of(objective, net, *batch_of(0))
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    with torch.no_grad():
        first, second = (
            objective.eval()(net(x)[1], y, e, features=net(x)[0]) for x, y, e in (batch_of(1), batch_of(1))
        )
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[key]) for key, value in objective.state_dict().items())


def test_evaluation_in_a_new_environment_does_not_add_it():
    objective, net = envariant.objective("groupdro"), Net().double()
    x, y, e = batch_of(0)
    step_of(objective, net, x, y, e)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    loss = objective.eval()(net(x)[1], y, e + 100)
    assert loss.isfinite()
    assert {"risk 100", "risk 101"} <= set(objective.metrics())
    after = objective.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_step_defaults_to_the_number_of_earlier_batches():
    objective, coefficients = envariant.objective("vrex(coefficient=step(1, 5, at=2))"), []
    for _ in range(4):
        objective(torch.zeros(4), torch.ones(4), torch.tensor([0, 1, 0, 1]))
        coefficients.append(objective.metrics()["vrex coefficient"])
    assert coefficients == [1, 1, 5, 5]


def test_relative_schedules_need_the_length_of_the_run():
    objective = envariant.objective("vrex(coefficient=step(1, 5, at=50%))", steps=4)
    assert objective.algorithm.penalties[0].coefficient(2) == 5
    with pytest.raises(EnvariantError, match=r"depends on the length of the run; pass steps="):
        envariant.objective("vrex(coefficient=step(1, 5, at=50%))")


def test_losses_are_in_single_precision_under_autocast():
    net, rows = Net(), tuple(t.float() if t.is_floating_point() else t for t in batch_of(0))
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = net(rows[0])
        assert logits.dtype == torch.bfloat16
        loss = envariant.objective("vrex + coral")(logits, *rows[1:], features=features)
    expected = envariant.objective("vrex + coral")(logits.float(), *rows[1:], features=features.float())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_training_step_gives_the_same_losses():
    """The sizes of the environments change at every step."""
    net = nn.Linear(3, 1)

    def losses(wrap):
        objective = envariant.objective("groupdro + mmd(1.0)")

        @wrap
        def step(x, y, e):
            features = x * 2
            return objective(net(features), y, e, features=features).detach()

        return [
            step(x.float(), y, e)
            for x, y, e in (batch_of(k, rows=20 + k, environments=1 + k % 3) for k in range(4))
        ]

    compiled = losses(lambda step: torch.compile(step, backend="eager"))
    assert compiled == losses(lambda step: step)


def test_losses_of_the_loop_replace_logits_and_targets():
    """AND-mask from losses, as with a model whose loss is not one of the library's."""
    torch.manual_seed(0)
    (x, y, e), net = batch_of(0), Net().double()
    algorithm = Composition(penalties=(VREx(2.0), IGA(0.1)), gradient_aggregator=AndMask(threshold=0.3))
    expected = step_of(envariant.objective(algorithm), net, x, y, e)
    net.zero_grad()
    losses = F.binary_cross_entropy_with_logits(net(x)[1][:, 0], y, reduction="none")
    objective = envariant.objective(algorithm)
    loss = objective.backward_losses(net, {k: losses[e == k] for k in range(3)})
    torch.testing.assert_close(loss, expected[0])
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[1][name])


def test_gradients_accumulate_until_they_are_set_to_zero():
    net, rows = Net().double(), batch_of(0)
    _, once = step_of(envariant.objective("and-mask"), net, *rows)
    once = {name: value.clone() for name, value in once.items()}
    features, logits = net(rows[0])
    envariant.objective("and-mask").backward(net, logits, *rows[1:], features=features)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name])


@pytest.mark.parametrize(
    ("logits", "targets", "loss", "name"),
    [
        (torch.zeros(4), torch.tensor([0, 1, 0, 1]), None, "binary"),
        (torch.zeros(4, 1), torch.tensor([[0.0], [1.0], [0.0], [1.0]]), None, "binary"),
        (torch.zeros(4), torch.tensor([True, False, True, False]), None, "binary"),
        (torch.zeros(4), torch.tensor([0.5, 1.0, 0.0, 1.0]), None, "regression"),
        (torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0]), "mse", "regression"),
        (torch.zeros(4, 3), torch.tensor([0, 2, 1, 1]), None, "multiclass"),
        (torch.zeros(4, 2), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]]), None, "multi-label"),
        (torch.zeros(4, 2), torch.randn(4, 2), "huber(delta=2)", "multi-output regression"),
    ],
)
def test_the_task_is_inferred_from_logits_targets_and_loss(logits, targets, loss, name):
    objective = envariant.objective("erm", loss=loss)
    value = objective(logits, targets, torch.tensor([0, 0, 1, 1]))
    assert objective._task is not None
    assert (objective._task.name, value.isfinite().item()) == (name, True)


def test_a_loss_function_of_the_user_is_used():
    logits, targets = torch.randn(6), torch.randn(6)
    loss = envariant.objective("erm", loss=lambda z, y: (z - y).abs())(logits, targets, torch.arange(6) % 2)
    torch.testing.assert_close(loss, (logits - targets).abs().mean())


@pytest.mark.parametrize("name", ["irm(coefficient=3)", "fishr(coefficient=3)", "iga(coefficient=3)"])
def test_penalties_on_derivatives_differentiate_a_loss_function_of_the_user(name):
    """The same loss, once with the library's derivatives and once with those of automatic differentiation."""
    torch.manual_seed(0)
    net, rows = Net().double(), batch_of(1)

    def own(z, y):
        return F.binary_cross_entropy_with_logits(z, y, reduction="none")

    loss, gradients = step_of(envariant.objective(name, loss=own), net, *rows)
    gradients = {key: value.clone() for key, value in gradients.items()}
    expected, reference = step_of(envariant.objective(name), net, *rows)
    torch.testing.assert_close(loss, expected)
    for key, value in reference.items():
        torch.testing.assert_close(gradients[key], value)


def test_pooled_risk_is_the_mean_over_all_rows_of_full_batches():
    logits, targets = torch.randn(7), torch.ones(7)
    environments = torch.tensor([0, 0, 1, 1, 1, 1, 1])
    loss = envariant.objective("erm(risk_aggregator=pooled)", sizes=(2, 5))(logits, targets, environments)
    torch.testing.assert_close(loss, F.softplus(-logits).mean())


def test_the_parameters_of_auxiliary_networks_belong_to_the_objective():
    objective = envariant.objective("selfreg", features=4, loss=envariant.Binary())
    assert len(list(objective.parameters())) > 0
    with pytest.raises(EnvariantError, match=r"selfreg: trains a network of its own; pass features="):
        envariant.objective("selfreg")


def test_the_representation_names_the_algorithm():
    assert "vrex + coral, environments=2" in repr(envariant.objective("vrex + coral", environments=2))
    assert isinstance(envariant.objective(VREx()), Objective)
    assert envariant.objective("erm").metrics() == {}
