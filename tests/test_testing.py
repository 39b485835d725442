"""The checks for outside authors accept what is right and name what is wrong."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import grad_and_value

from envariant.algorithms import Algorithm, EnvironmentInference, Penalty, TrainingStep
from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.core.schedules import Constant, Schedule
from envariant.core.tasks import Binary
from envariant.data import colored_digits
from envariant.testing import check_algorithm, check_source


@dataclass(frozen=True)
class Good(Penalty):
    """The variance of the risks, as an outside author writes it."""

    name = "good"
    paper = "none"
    minimum_environments = 2
    coefficient: Schedule = Constant(2.0)

    def penalty(self, predicted, state):
        return predicted.risks.var(correction=0), state


@dataclass(frozen=True)
class Step(TrainingStep):
    """Gradient descent on the mean risk; subclasses break one property each."""

    name = "broken"
    paper = "none"
    share: float = 0.5

    def gradients(self, model, params, batch, state, context):
        def loss(params):
            return self.mean(batch, batch.task.losses(model(params, batch.inputs)[1], batch.targets))

        gradient, value = grad_and_value(loss)(params)
        return self.changed(gradient, model, params, batch, state, context, value)

    def mean(self, batch, losses):
        return batch.risk(losses)

    def changed(self, gradient, model, params, batch, state, context, value):
        return {k: self.share * g for k, g in gradient.items()}, state, {"risk": value.detach()}


class OverRows(Step):
    def mean(self, batch, losses):
        return losses.mean()


class OverRowsAsDeclared(OverRows):
    depends_on_sizes = True


class HalfFrozen(Step):
    def changed(self, gradient, *others):
        return {k: g * (k.startswith("featurizer")) for k, g in gradient.items()}, {}, {}


class WithoutDecay(Step):
    returns_updates = True


class WithDecay(Step):
    returns_updates = True

    def changed(self, gradient, model, params, batch, state, context, value):
        return {k: g + context.weight_decay * params[k] for k, g in gradient.items()}, {}, {}


class Renamed(Step):
    def changed(self, gradient, *others):
        return {f"my {k}": g for k, g in gradient.items()}, {}, {}


class Reshaped(Step):
    def changed(self, gradient, *others):
        return {k: g[None] for k, g in gradient.items()}, {}, {}


class Infinite(Step):
    def changed(self, gradient, *others):
        return {k: g / 0 for k, g in gradient.items()}, {}, {}


class Attached(Step):
    def changed(self, gradient, *others):
        return gradient, {}, {"risk": torch.ones((), requires_grad=True)}


class Global(Step):
    def changed(self, gradient, *others):
        return {k: g + 0 * torch.randn(()) for k, g in gradient.items()}, {}, {}


class InPlace(Step):
    def changed(self, gradient, model, params, *others):
        for value in params.values():
            value.mul_(1.1)
        return gradient, {}, {}


@dataclass(frozen=True)
class Remembering(Step):
    memory: list[float] = field(default_factory=list, hash=False)

    def changed(self, gradient, *others):
        self.memory.append(1.0)
        return {k: g * len(self.memory) for k, g in gradient.items()}, {}, {}


class Growing(Step):
    def changed(self, gradient, *others):
        return gradient, {"new": torch.zeros(2)}, {}


class Branching(Step):
    def changed(self, gradient, model, params, batch, state, context, value):
        share = self.share if self.share > 0.2 else 0.0
        return {k: share * g for k, g in gradient.items()}, {}, {}


class BranchingOnTheStep(Step):
    def changed(self, gradient, model, params, batch, state, context, value):
        return {k: g * (2.0 if context.step > 1 else 1.0) for k, g in gradient.items()}, {}, {}


class BranchingOnParameters(Step):
    def changed(self, gradient, model, params, *others):
        largest = max(params.values(), key=lambda value: float(value.detach().abs().max()))
        return {k: g + 0 * largest.sum() for k, g in gradient.items()}, {}, {}


class Looking(Step):
    def changed(self, gradient, model, params, batch, state, context, value):
        size = model(params, batch.inputs)[0].square().mean()
        return {k: g * (1 + size) for k, g in gradient.items()}, {}, {}


class Undeclared(Step):
    def changed(self, gradient, model, params, batch, state, context, value):
        noise = context.uniform(like=value)
        return {k: g * noise for k, g in gradient.items()}, {}, {}


class ThreeAtLeast(Step):
    def changed(self, gradient, model, params, batch, *others):
        third = batch.split(batch.targets)[2].sum()
        return {k: g + 0 * third for k, g in gradient.items()}, {}, {}


class Evaluated(Step):
    def eval_params(self, params, state):
        return {"other": torch.zeros(2)}


class Picky(Step):
    def init(self, params, context):
        from envariant.core.errors import EnvariantError

        raise EnvariantError("picky: accepts no task")


BROKEN = [
    (Renamed, "a step must run without errors (KeyError"),
    (Reshaped, "must have the shape and dtype of the parameter"),
    (Infinite, "must be finite"),
    (Attached, "gradients and metrics must be detached"),
    (Global, "must draw random numbers from its context, not from the global generator"),
    (InPlace, "a step must"),
    (Remembering, "a step must be deterministic, but equal inputs give different gradients"),
    (Growing, "the state must keep the keys, shapes and dtypes of init"),
    (Branching, "must run under torch.func.vmap, without a Python branch on a tensor or hyperparameter"),
    (BranchingOnTheStep, "must be recordable as tensor operations, without a Python branch"),
    (BranchingOnParameters, "must run under torch.func.vmap, without a Python branch"),
    (Looking, "reads features, so it must declare needs_features"),
    (ThreeAtLeast, "must work with minimum_environments = 1"),
    (OverRows, "use batch.risk or batch.mean instead of means over rows, or declare depends_on_sizes"),
    (HalfFrozen, "the gradients of head are always 0, but weight decay would change these parameters"),
    (WithoutDecay, "must add context.weight_decay times the parameters to their gradients"),
    (Evaluated, "eval_params must return the names and shapes of the parameters"),
    (Picky, "must accept binary, multiclass or regression targets, but rejects all"),
]


@pytest.mark.parametrize(
    "algorithm", [Good(), Step(), OverRowsAsDeclared(), WithDecay(), "vrex + and-mask"], ids=str
)
def test_correct_algorithms_pass(algorithm):
    check_algorithm(algorithm)


@pytest.mark.parametrize(("cls", "message"), BROKEN, ids=[cls.__name__ for cls, _ in BROKEN])
def test_the_violated_property_is_named(cls, message):
    with pytest.raises(AssertionError) as error:
        check_algorithm(cls())
    assert message in str(error.value)
    assert "broken" in str(error.value)
    assert "\n" not in str(error.value)


def test_undeclared_random_numbers_are_rejected_with_the_remedy():
    with pytest.raises(Exception, match="draws random numbers"):
        check_algorithm(Undeclared())


@dataclass(frozen=True)
class Sorted(EnvironmentInference):
    """Environments by logit; `offset` makes their numbers invalid."""

    name = "sorted"
    paper = "none"
    reference_steps: int = 2
    reference_l2: float = 0.0
    offset: int = 0

    def environments(self, logits, targets, task):
        score = logits.reshape(len(logits), -1)[:, 0]
        return (score > score.median()).long() + self.offset


def test_environment_inference_is_checked():
    check_algorithm(Sorted())
    with pytest.raises(AssertionError, match="must return one integer from 0 to 1 per row"):
        check_algorithm(Sorted(offset=1))


class Reordered(Algorithm):
    name = "reordered"
    minimum_environments, needs_features = 1, False

    def init(self, params, context):
        return {}

    def gradients(self, model, params, batch, state, context):
        return {key: params[key] for key in sorted(params, reverse=True)}, state, {}


def test_gradients_have_the_order_of_the_parameters():
    with pytest.raises(
        AssertionError, match="gradients must have the names of the parameters in their order"
    ):
        check_algorithm(Reordered())


class Nameless(Algorithm):
    name = "two\nlines"
    minimum_environments, needs_features = 1, False

    def init(self, params, context):
        return {}

    def gradients(self, model, params, batch, state, context):
        return dict(params), state, {}


def test_a_name_is_one_line_of_text():
    with pytest.raises(AssertionError, match="name must be one line of printable text"):
        check_algorithm(Nameless())


class Source(EnvironmentSource):
    """Two environments drawn from a seed; `fault` breaks one property."""

    name = "drawn"

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.calls = 0
        self.buffer: Any = None

    def identity(self) -> str:
        return f"drawn {self.calls if self.fault == 'identity' else ''}"

    def sample(self, seed: int) -> EnvironmentSet:
        self.calls += 1
        generator = np.random.default_rng(self.calls if self.fault == "seed" else seed)
        if self.fault == "global":
            np.random.rand()
        environments = []
        for name in ("a", "c" if self.fault == "names" and seed else "b"):
            inputs = torch.from_numpy(generator.normal(size=(6, 2))).float()
            if self.fault == "aliasing":
                # Every sample writes to the same memory.
                self.buffer = inputs if self.buffer is None else self.buffer.copy_(inputs)
                inputs = self.buffer
            environments.append(Environment(name, inputs, torch.tensor([0.0, 1] * 3)))
        return EnvironmentSet(self.name, tuple(environments), Binary())

    def with_test_environments(self, test):
        return Other() if self.fault == "test" else self


class Other(Source):
    def sample(self, seed):
        return replace(super().sample(seed), environments=super().sample(seed).environments[:1])


@pytest.mark.parametrize("source", [Source(), colored_digits(), Source().sample(0)], ids=lambda s: s.name)
def test_correct_sources_pass(source):
    check_source(source)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("seed", r"sample\(0\) must return bit-identical data at every call"),
        ("global", "must draw random numbers from its seed, not from a global generator"),
        ("identity", "identity must be the same for a copy, and after sampling"),
        ("aliasing", r"later calls of sample must not change the data that sample\(0\) returned"),
        ("names", "every seed must give the same environment names, roles, task and input shape"),
        ("test", r"with_test_environments\(\('b',\)\) must keep the environments"),
    ],
)
def test_the_fault_of_a_source_is_named(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_source(Source(fault))
