"""Optimizers: bit by bit what PyTorch's own do, for every replica at its own learning rate."""

from functools import partial

import pytest
import torch

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.schedules import schedule
from envariant.core.tasks import Regression
from envariant.models import model_config
from envariant.training import engine
from envariant.training.engine import Evaluated
from envariant.training.execution import SEQUENTIAL, Execution
from envariant.training.optimizers import SGD, StackedOptimizer, optimizer_config
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

CPU = torch.device("cpu")
STACKED = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
)
SEPARATE = (torch.optim.ASGD, torch.optim.Adafactor)


def own(cls):
    """The class itself, with rate and decay by keyword."""
    return lambda p, lr, wd: cls(p, lr=lr, weight_decay=wd)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("adam", lambda p, lr, wd: torch.optim.Adam(p, lr, weight_decay=wd)),
        ("adam(epsilon=0.1)", lambda p, lr, wd: torch.optim.Adam(p, lr, eps=0.1, weight_decay=wd)),
        ("adamw", lambda p, lr, wd: torch.optim.AdamW(p, lr, weight_decay=wd)),
        ("sgd", lambda p, lr, wd: torch.optim.SGD(p, lr, weight_decay=wd)),
        (
            "sgd(momentum=0.9,nesterov=true)",
            lambda p, lr, wd: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True, weight_decay=wd),
        ),
        *((cls, own(cls)) for cls in STACKED),
        *((cls, own(cls)) for cls in SEPARATE),
        (
            partial(torch.optim.RMSprop, momentum=0.9, centered=True),
            lambda p, lr, wd: torch.optim.RMSprop(p, lr, momentum=0.9, centered=True, weight_decay=wd),
        ),
        (
            partial(torch.optim.NAdam, decoupled_weight_decay=True),
            lambda p, lr, wd: torch.optim.NAdam(p, lr, decoupled_weight_decay=True, weight_decay=wd),
        ),
    ],
)
def test_each_replica_is_updated_as_by_its_own_pytorch_optimizer(text, reference):
    rates, decays = [0.1, 0.003, 0.02], [0.0, 0.01, 0.3]
    ours = torch.linspace(-2, 2, 15).view(3, 5)
    theirs = list(ours.clone())
    updates = StackedOptimizer(optimizer_config(text), ours, rates, decays)
    optimizers = [reference([p], lr, wd) for p, lr, wd in zip(theirs, rates, decays, strict=True)]
    for step in range(6):
        if step == 3:  # A new optimizer resumes from the state of the first.
            state = {key: value.clone() for key, value in updates.state().items()}
            updates = StackedOptimizer(optimizer_config(text), ours, rates, decays)
            updates.load(state)
        gradients = torch.sin(torch.arange(15.0) + step).view(3, 5)
        updates.apply(gradients, torch.ones(3, dtype=torch.bool), step)
        for k, optimizer in enumerate(optimizers):
            theirs[k].grad = gradients[k].clone()
            optimizer.step()
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["adam", "adamw", "sgd(momentum=0.9)", torch.optim.RMSprop, torch.optim.ASGD]
)
def test_diverged_replica_is_frozen_and_others_are_unaffected(text):
    def trained(alive):
        params = torch.ones(3, 4)
        updates = StackedOptimizer(optimizer_config(text), params, [0.1] * 3, [0.1] * 3)
        for step in range(4):
            context = torch.tensor(alive) if step > 1 else torch.ones(3, dtype=torch.bool)
            gradients = torch.arange(12.0).view(3, 4).cos() * context[:, None]
            updates.apply(gradients, context, step)
            if step == 1:
                before = params.clone()
        return before, params

    _, undisturbed = trained([True, True, True])
    before, params = trained([True, False, True])
    assert torch.equal(params[1], before[1])
    assert torch.equal(params[[0, 2]], undisturbed[[0, 2]])


def test_adam_reset_starts_a_new_adam_at_that_step():
    def trained(text, steps):
        for step in steps:
            updates.apply(torch.sin(torch.arange(6.0) + step).view(2, 3), alive, step)

    alive, ours, theirs = torch.ones(2, dtype=torch.bool), torch.ones(2, 3), torch.ones(2, 3)
    updates = StackedOptimizer(optimizer_config("adam(reset=3)"), ours, [0.1] * 2, [0.0] * 2)
    trained(ours, range(6))
    for steps in (range(3), range(3, 6)):
        updates = StackedOptimizer(optimizer_config("adam"), theirs, [0.1] * 2, [0.0] * 2)
        trained(theirs, steps)
    assert torch.equal(ours, theirs)
    with pytest.raises(EnvariantError, match="adam: reset must be at least 0, got -1"):
        optimizer_config("adam(reset=-1)")


def test_stackable_classes_share_one_optimizer_and_others_do_not():
    assert all(optimizer_config(cls).stackable for cls in STACKED)
    assert not any(optimizer_config(cls).stackable for cls in SEPARATE)
    assert not optimizer_config(partial(torch.optim.Adam, decoupled_weight_decay=True)).stackable
    assert optimizer_config(partial(torch.optim.Adam, betas=(0.5, 0.9))).stackable

    class Mine(torch.optim.SGD):
        pass

    assert not optimizer_config(Mine).stackable, "a subclass may do anything"
    config = SGD(momentum=0.5)
    assert optimizer_config(config) is config


def test_separate_optimizers_see_the_shapes_of_the_parameters():
    """Adafactor keeps one number per row and column of a matrix; of a vector it would keep all."""
    shapes = [torch.Size([4, 3]), torch.Size([4])]
    ours = torch.linspace(-1, 1, 32).view(2, 16)
    theirs = [[row[:12].view(4, 3).clone(), row[12:].clone()] for row in ours]
    stack = StackedOptimizer(optimizer_config(torch.optim.Adafactor), ours, [0.1, 0.2], [0.0] * 2, shapes)
    optimizers = [
        torch.optim.Adafactor(p, lr=lr, weight_decay=0.0) for p, lr in zip(theirs, (0.1, 0.2), strict=True)
    ]
    for step in range(4):
        gradients = torch.cos(torch.arange(32.0) + step).view(2, 16)
        stack.apply(gradients, torch.ones(2, dtype=torch.bool), step)
        for params, optimizer, gradient in zip(theirs, optimizers, gradients, strict=True):
            params[0].grad, params[1].grad = gradient[:12].view(4, 3).clone(), gradient[12:].clone()
            optimizer.step()
    expected = torch.stack([torch.cat([p.flatten() for p in params]) for params in theirs])
    assert torch.equal(ours, expected)
    assert stack.state()["0.row_var"].shape[:2] == (2, 4)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("adam(beta1=2)", r"adam: beta1 must be in \[0, 1\), got 2"),
        ("sgd(nesterov=true)", "sgd: nesterov needs a momentum above 0, such as momentum=0.9"),
        ("sgd(momentum=-1)", r"sgd: momentum must be in \[0, 1\), got -1"),
        ("adam(beta1=a)", "beta1 must be a number"),
        ("adm", "did you mean 'adam'"),
        (torch.optim.LBFGS, "LBFGS needs a closure at every step"),
        (partial(torch.optim.Adam, lr=1.0), "Adam must not fix lr; set learning_rate instead"),
        (partial(torch.optim.SGD, weight_decay=1.0), "SGD must not fix weight_decay"),
        (3, "must be a name, a torch.optim class or functools.partial of one; got 3"),
        (torch.nn.Linear, "must be a name, a torch.optim class"),
    ],
)
def test_invalid_optimizer_is_rejected(optimizer, message):
    with pytest.raises(EnvariantError, match=message):
        optimizer_config(optimizer)


def test_unusable_settings_of_a_class_are_reported():
    config = optimizer_config(partial(torch.optim.RMSprop, alpha=-1))
    with pytest.raises(EnvariantError, match="RMSprop\\(alpha=-1\\) cannot be built \\(Invalid alpha value"):
        StackedOptimizer(config, torch.zeros(2, 3), [0.1] * 2, [0.0] * 2)
    with pytest.raises(EnvariantError, match="Rprop cannot be built .*weight_decay"):
        StackedOptimizer(optimizer_config(torch.optim.Rprop), torch.zeros(2, 3), [0.1] * 2, [0.1] * 2)


def line() -> EnvironmentSet:
    x = torch.linspace(-1, 1, 40)[:, None]
    parts = tuple(
        Environment(name, x + shift, 3 * x[:, 0] + shift) for name, shift in (("a", 0.0), ("b", 0.3))
    )
    return EnvironmentSet("line", parts, Regression())


def run(rates, optimizer, execution, steps=9):
    """Final weights of linear models by ERM, one per learning rate."""
    config = RunConfig(
        model_config("linear").build,
        optimizer_config(optimizer),
        steps,
        None,
        steps,
        "float32",
        None,
        (),
        CPU,
    )
    erm = envariant.algorithms.recipe("erm").build({})
    replicas = [Replica(k, Seeds.of(0, k), erm, rate, 0.0) for k, rate in enumerate(rates)]
    events = [e for e in engine.run(line(), replicas, config, execution) if isinstance(e, Evaluated)]
    return {k: s.params for e in events if e.finished for k, s in e.checkpoint().states().items()}


RATES = [schedule(text) for text in ("step(0.1, 0.01, at=4)", "linear(0.2, 0, until=8)", "0.05")]


@pytest.mark.parametrize(
    "execution", [SEQUENTIAL, Execution("stacked", 3, "")], ids=["sequential", "stacked"]
)
@pytest.mark.parametrize("optimizer", ["sgd(momentum=0.9)", "adam", torch.optim.Rprop, torch.optim.ASGD])
def test_learning_rate_schedules_match_a_plain_loop(optimizer, execution):
    ours = run(RATES, optimizer, execution)
    classes = {"sgd(momentum=0.9)": partial(torch.optim.SGD, momentum=0.9), "adam": torch.optim.Adam}
    data = line()
    inputs, targets = (torch.cat([getattr(e, k) for e in data.environments]) for k in ("inputs", "targets"))
    start = run([1e-30] * 3, "sgd", SEQUENTIAL, steps=1)
    for k, rate in enumerate(RATES):
        module = torch.nn.Linear(1, 1)
        module.load_state_dict({name.removeprefix("head."): value for name, value in start[k].items()})
        rule = classes.get(optimizer, optimizer)(module.parameters(), lr=rate(0))
        for step in range(9):
            rule.param_groups[0]["lr"] = rate(step)
            rule.zero_grad()
            (module(inputs)[:, 0] - targets).square().mean().backward()
            rule.step()
        for name, value in module.named_parameters():
            torch.testing.assert_close(ours[k][f"head.{name}"], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "execution", [SEQUENTIAL, Execution("stacked", 2, "")], ids=["sequential", "stacked"]
)
def test_constant_schedule_is_bit_identical_to_a_number(execution):
    numbers, schedules = (
        run([0.1, 0.003], "adam", execution),
        run([schedule("0.1"), schedule("0.003")], "adam", execution),
    )
    for k, params in numbers.items():
        assert all(torch.equal(value, schedules[k][name]) for name, value in params.items())


def test_algorithms_see_the_learning_rate_of_the_step():
    """Fish moves by inner steps at the run's learning rate: at rate 0 it stays."""
    config = RunConfig(
        model_config("linear").build, optimizer_config("adam"), 4, None, 1, "float32", None, (), CPU
    )
    fish = envariant.algorithms.recipe("fish").build({})
    replicas = [Replica(0, Seeds.of(0, 0), fish, schedule("step(0.1, 0, at=2)"), 0.0)]
    losses = {}
    for event in engine.run(line(), replicas, config, SEQUENTIAL):
        if isinstance(event, Evaluated):
            losses[event.step] = [row.value for row in event.rows if row.metric == "loss"]
    assert losses[0] != losses[1] != losses[2]
    assert losses[2] == losses[3] == losses[4]
