"""Where an algorithm may start from, other than freshly drawn weights: a model trained before it.

`erm` learns what is easy; `rfc` trains several models, each where those before it are wrong, and one that
imitates them all, so that the features it ends with hold more than the easiest way to be right.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant.algorithms import Composition, PooledMean, WorstCaseRisk
from envariant.algorithms.base import (
    EnvironmentInference,
    Metrics,
    Model,
    Parameters,
    State,
    TrainContext,
    TrainingStep,
)
from envariant.core import specs
from envariant.core.environments import Environment, EnvironmentBatch, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.step_context import StepContext
from envariant.core.tasks import Regression, Task
from envariant.models.base import xavier
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica, Start
from envariant.training.run_config import RunConfig


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model.

    Attributes:
        weights: parameters and buffers, by name.
        logits: what it says of rows of inputs.
    """

    weights: Mapping[str, Tensor]
    logits: Callable[[Tensor], Tensor]


class Fit(Protocol):
    """Trains a newly drawn model of the run's kind on some environments for some steps."""

    def __call__(self, environments: EnvironmentSet, algorithm: Composition, steps: int) -> Fitted: ...


class Initializer(ABC):
    """Makes the weights that an algorithm starts from."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def total_steps(self) -> int:
        """Of training, all models together."""

    @abstractmethod
    def weights(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        """Parameters and buffers of the run's model, by name.

        Args:
            environments: those that are trained on.
            fit: trains a model of the run's kind.
            seed: of what is drawn besides.

        Raises:
            EnvariantError: the task or the model is not one it knows.
        """


@final
@dataclass(frozen=True)
class FromERM(Initializer):
    """ERM for some steps.

    Attributes:
        steps: of training.
        l2: weight of the squared norm in the loss.
    """

    name: ClassVar[str] = "erm"
    steps: int = 100
    l2: float = 0.0011

    def __post_init__(self) -> None:
        _check(self.name, steps=self.steps)

    @property
    def total_steps(self) -> int:
        return self.steps

    def weights(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        del seed
        return fit(environments, Composition(l2=self.l2), self.steps).weights


@final
@dataclass(frozen=True)
class RFC(Initializer):
    """Rich features. Zhang, Lopez-Paz, Bottou 2022 (arXiv 2203.15516), with the constants of its release.

    A first model by ERM, stopped early. Then in every further round a new model that minimizes the largest
    mean loss over groups: each earlier model cuts all rows into those on which it is right and those on
    which it is wrong. Last, one featurizer with a head for each of those models learns to answer as they
    do; half of its rows are drawn from those on which they are all right or all wrong, half from the
    others. The algorithm starts from that featurizer and the mean of the heads.

    Attributes:
        rounds: models to be imitated.
        first_steps: of the first model.
        steps: of each other one.
        synthesis_steps: of the one that imitates.
        l2: weight of the squared norm in all these losses.
    """

    name: ClassVar[str] = "rfc"
    rounds: int = 2
    first_steps: int = 51
    steps: int = 501
    synthesis_steps: int = 501
    l2: float = 0.0011

    def __post_init__(self) -> None:
        _check(
            self.name,
            rounds=self.rounds,
            first_steps=self.first_steps,
            steps=self.steps,
            synthesis_steps=self.synthesis_steps,
        )

    @property
    def total_steps(self) -> int:
        return self.first_steps + (self.rounds - 1) * self.steps + self.synthesis_steps

    def weights(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        task = environments.task
        if isinstance(task, Regression):
            raise EnvariantError("rfc: needs classes, to tell right from wrong; the task is regression")
        rows = [e.rows() for e in environments.environments]
        inputs, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
        first = fit(environments, Composition(PooledMean(), l2=self.l2), self.first_steps)
        answers, right = [predictions(first.logits(inputs), task)], [_right(first, inputs, targets, task)]
        while len(answers) < self.rounds:
            groups = EnvironmentSet("groups", tuple(_groups(inputs, targets, right)), task)
            # Rows of a group are as many as there are, so a model that was always right leaves one.
            found = fit(groups, Composition(WorstCaseRisk(), l2=self.l2), self.steps)
            answers.append(predictions(found.logits(inputs), task))
            right.append(_right(found, inputs, targets, task))
        index = balanced_rows(torch.stack(right), torch.Generator().manual_seed(seed))
        imitated = EnvironmentSet(
            "answers",
            tuple(
                Environment(f"answers {k + 1}", inputs[index], answer[index])
                for k, answer in enumerate(answers)
            ),
            task,
        )
        fitted = fit(
            imitated, Composition(training_step=_Imitation(), l2=self.l2), self.synthesis_steps
        ).weights
        heads = [_head_name(k) for k in range(self.rounds)]
        own = {key: value for key, value in fitted.items() if key.split(".")[0] not in heads}
        mean = {
            f"head.{key}": torch.stack([fitted[f"{name}.{key}"] for name in heads]).mean(dim=0)
            for key in ("weight", "bias")
        }
        return {**own, **mean}


@final
@dataclass(frozen=True)
class _Imitation(TrainingStep):
    """(1/K) Σ_k mean_i ℓ(w_k·h_i, ŷ_ik): one featurizer, a head for the answers of each model.

    The environments hold the same rows with the answers of one model each.
    """

    name: ClassVar[str] = "imitation"
    paper: ClassVar[str] = "Zhang, Lopez-Paz, Bottou 2022, arXiv 2203.15516"
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        return {
            _head_name(k): xavier(nn.Linear(context.features, context.task.outputs))
            for k in range(context.environments)
        }

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        inputs, answers = batch.split(batch.inputs)[0], batch.split(batch.targets)

        def loss(params: Parameters) -> Tensor:
            features, _ = model(params, inputs)
            losses = [
                batch.task.losses(batch.task.logits(model.network(_head_name(k), params, features)), answer)
                for k, answer in enumerate(answers)
            ]
            return torch.stack(losses).mean()

        gradient, value = grad_and_value(loss)(params)
        return gradient, state, {"risk": value.detach()}


def balanced_rows(right: Tensor, generator: torch.Generator) -> Tensor:
    """As many row numbers as there are rows: half from those on which all models are right or all wrong.

    Args:
        right: `[models, rows]`, whether each model is right.
        generator: draws, with replacement.
    """
    alike = (right == right[0]).all(dim=0)
    rows = right.shape[1]
    places = [chosen.nonzero().flatten() for chosen in (alike, ~alike)]
    # Where one kind is missing, the other gives all.
    counts = [rows // 2, rows - rows // 2] if all(map(len, places)) else [rows * bool(len(p)) for p in places]
    return torch.cat(
        [
            place[torch.randint(len(place), (count,), generator=generator)]
            for place, count in zip(places, counts, strict=True)
            if count
        ]
    )


def predictions(logits: Tensor, task: Task) -> Tensor:
    """The class that is predicted for each row, in the type of the task's targets."""
    return (logits > 0).float() if task.outputs == 1 else logits.argmax(dim=1)


def _right(fitted: Fitted, inputs: Tensor, targets: Tensor, task: Task) -> Tensor:
    return task.scores(fitted.logits(inputs), targets) > 0.5


def _groups(inputs: Tensor, targets: Tensor, right: list[Tensor]) -> list[Environment]:
    """For each model so far the rows on which it is right and those on which it is wrong; none is empty."""
    return [
        Environment(f"{word} {k + 1}", inputs[chosen], targets[chosen])
        for k, ok in enumerate(right)
        for word, chosen in (("right", ok), ("wrong", ~ok))
        if bool(chosen.any())
    ]


def _head_name(k: int) -> str:
    return f"imitating-head-{k}"


def _check(name: str, **counts: int) -> None:
    for key, value in counts.items():
        if value < 1:
            raise EnvariantError(f"{name}: {key} must be at least 1; got {value}")


INITIALISERS: dict[str, type[Initializer]] = {cls.name: cls for cls in (FromERM, RFC)}


def initializer_named(text: str | None) -> Initializer | None:
    """What `rfc` or `erm(steps=200)` names; None for none.

    Raises:
        EnvariantError: there is no such initializer, or it has no such setting.
    """
    return None if text is None else specs.build("init", text, INITIALISERS)


def prepared(
    replica: Replica,
    source: EnvironmentSource,
    plan: RunConfig,
    initializer: Initializer | None,
    on_progress: Callable[[int, int, int], None],
) -> Replica:
    """The replica, with its start where it needs one; nothing is trained before that is asked for.

    Args:
        replica: which one.
        source: where it draws its data.
        plan: of the run.
        initializer: of its weights, if any.
        on_progress: is called at every step with the replica's number, how many were made and how many there are.
    """
    inference = replica.algorithm.environment_inference
    if inference is None and initializer is None:
        return replica

    def start() -> Start:
        drawn = source.sample(replica.seeds.data)
        roles = drawn.roles(plan.test)
        training = tuple(e for e in drawn.environments if roles[e.name] == "train")
        own = EnvironmentSet(drawn.label, training, drawn.task)
        steps = 0 if inference is None else inference.reference_steps or plan.steps
        steps += 0 if initializer is None else initializer.total_steps
        made = itertools.count(1)
        fit = fitting(replica, plan, lambda: on_progress(replica.index, next(made), steps))
        found = None if inference is None else _inferred(own, inference, fit, plan.steps)
        params = {} if initializer is None else initializer.weights(own, fit, replica.seeds.order)
        return Start(params, found)

    return replace(replica, prepared=start)


def fitting(replica: Replica, plan: RunConfig, stepped: Callable[[], None] = lambda: None) -> Fit:
    """Trains one more model of the run's kind, from the replica's seeds and at its learning rate.

    Args:
        replica: which one.
        plan: of the run.
        stepped: is called after every step.
    """

    def fit(environments: EnvironmentSet, algorithm: Composition, steps: int) -> Fitted:
        own = replace(replica, algorithm=algorithm, weight_decay=0.0, prepared=None)
        alone = replace(plan, steps=steps, test=(), freeze=None, evaluate_every=steps, compiled=False)
        group = ReplicaStack(environments, (own,), alone)
        for _ in range(steps):
            group.advance()
            stepped()
        rows = group.measure()
        state = group.checkpoint().states()[replica.index]
        if group.failed or state.failure is not None or not rows:
            raise EnvariantError(f"replica {replica.index}: before its first step, {state.failure}")
        weights = {**state.params, **state.buffers}
        return Fitted(weights, lambda inputs: group.outputs(inputs)[0].to(inputs.device))

    return fit


def _inferred(own: EnvironmentSet, inference: EnvironmentInference, fit: Fit, steps: int) -> EnvironmentSet:
    """The rows of all training environments, dealt out anew by a first model's answers."""
    reference = fit(
        own, Composition(PooledMean(), l2=inference.reference_l2), inference.reference_steps or steps
    )
    inputs, targets = (torch.cat(parts) for parts in zip(*(e.rows() for e in own.environments), strict=True))
    owners = inference.environments(reference.logits(inputs), targets, own.task)
    found: list[Environment] = []
    for number in range(inference.count):
        index = (owners == number).nonzero().flatten()
        if not len(index):
            raise EnvariantError(
                f"{inference.name}: the first model is right everywhere, or wrong everywhere, so no second "
                f"environment is found; give it fewer steps with reference_steps"
            )
        found.append(Environment(inference.environment_names[number], inputs[index], targets[index]))
    return EnvironmentSet(own.label, tuple(found), own.task)
