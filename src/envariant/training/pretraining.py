"""Pretraining of the initial weights.

`erm` trains one model, which learns the features that are easiest to learn. `jtt` trains a second model, in
which the errors of a first one have more weight. `rfc` (rich feature construction) trains several models,
each with more weight on the errors of the earlier models. Finally, it trains one model that imitates all
these models and thus learns more features.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, final

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from envariant.algorithms import Composition, PooledMean, WorstCaseRisk
from envariant.algorithms.base import EnvironmentInference
from envariant.core import specs
from envariant.core.attributes import CLASS_WEIGHT, WEIGHT, training_weights
from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task
from envariant.training.imitation import Imitation, head_name
from envariant.training.initializer import Fit, Fitted, Initializer
from envariant.training.keep_rules import KeepLast
from envariant.training.linear_probe import LinearProbe
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica, Start
from envariant.training.run_config import RunConfig, module_of
from envariant.training.stored_start import FromRun


@dataclass(frozen=True)
class NetworkPretraining(Initializer):
    """Base class of methods that train networks of the run's architecture.

    Attributes:
        batch_size: Rows of each environment per step; None for the batch size of the run.
        learning_rate: Learning rate of all networks; None for the learning rate of the run.
    """

    batch_size: PositiveInt | None = field(default=None, kw_only=True)
    learning_rate: PositiveFloat | None = field(default=None, kw_only=True)

    def weights(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        own = fit.but(batch_size=self.batch_size, learning_rate=self.learning_rate)
        return self.trained(environments, own, seed)

    @abstractmethod
    def trained(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        """Return the weights; see `weights` for arguments and errors.

        Args:
            environments: Training environments.
            fit: Function that trains a model with the batch size and learning rate of the method.
            seed: Seed of all randomness other than weight initialization and batch order.
        """


@final
@dataclass(frozen=True)
class FromERM(NetworkPretraining):
    """Pretraining by ERM.

    Attributes:
        steps: Number of updates.
        l2: Coefficient of the squared parameter norm in the loss.
    """

    name: ClassVar[str] = "erm"
    steps: PositiveInt = 100
    l2: NonNegativeFloat = 0.0011

    @property
    def total_steps(self) -> int:
        return self.steps

    def trained(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        del seed
        return fit(environments, Composition(l2=self.l2), self.steps).weights


@final
@dataclass(frozen=True)
class JTT(NetworkPretraining):
    """Pretraining on the errors of a first model. Liu et al. 2021 (arXiv 2107.09044), Algorithm 1.

    The first model is trained by ERM and stopped early, so that it uses the features that are easiest to
    learn. The second model does not continue the first, but is trained from the same initial weights. It
    minimizes the mean of two risks: that of the rows which the first model predicts incorrectly, and that of
    all other rows. Errors thus have the same total weight as the other rows. In the paper, their weight is a
    hyperparameter, and the second model is the result, not the start of another training.

    `batch_size` is the number of rows per step of each training environment for the first model, and of each
    of the two groups of rows for the second.

    Attributes:
        first_steps: Number of updates of the first model.
        steps: Number of updates of the second model.
        l2: Coefficient of the squared parameter norm in the loss of both models.
    """

    name: ClassVar[str] = "jtt"
    first_steps: PositiveInt = 20
    steps: PositiveInt = 100
    l2: NonNegativeFloat = 0.0011

    @property
    def total_steps(self) -> int:
        return self.first_steps + self.steps

    def trained(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        del seed
        task, pooled = _classification(environments, self.name), _pooled(environments)
        first = fit(environments, Composition(PooledMean(), l2=self.l2), self.first_steps)
        right = _is_right(first, pooled, task)
        if right.all() or not right.any():
            raise EnvariantError(
                f"{self.name}: after {self.first_steps} steps, the first model predicts all rows "
                f"{'correctly' if right.all() else 'wrongly'}, so there are no errors to learn from; change "
                f"first_steps"
            )
        groups = EnvironmentSet("groups", tuple(_groups(pooled, [right])), task)
        return fit(groups, Composition(l2=self.l2), self.steps).weights


@final
@dataclass(frozen=True)
class RFC(NetworkPretraining):
    """Rich feature construction. Zhang, Lopez-Paz, Bottou 2022 (arXiv 2203.15516); defaults as in their code.

    The first model is trained by ERM and stopped early. Each later round trains a new model that minimizes
    the largest mean loss over groups of rows. Each earlier model defines two groups: the rows that it
    predicts correctly, and those that it predicts incorrectly. Finally, one featurizer with one head per
    model is trained to imitate the predictions of all models. For this training, half of the rows are sampled
    from those on which all models are correct or all are incorrect. The other half is sampled from the
    remaining rows. The initial weights are this featurizer and the mean of the heads.

    `batch_size` is the number of rows per step of each environment for the first model, of each group of rows
    for later models, and of the rows for each head of the imitating model.

    Attributes:
        rounds: Number of models to imitate.
        first_steps: Number of updates of the first model.
        steps: Number of updates of each later model.
        synthesis_steps: Number of updates of the imitating model.
        l2: Coefficient of the squared parameter norm in the loss of each model.
    """

    name: ClassVar[str] = "rfc"
    rounds: Annotated[int, Field(ge=1, le=100)] = 2
    first_steps: PositiveInt = 51
    steps: PositiveInt = 501
    synthesis_steps: PositiveInt = 501
    l2: NonNegativeFloat = 0.0011

    @property
    def total_steps(self) -> int:
        return self.first_steps + (self.rounds - 1) * self.steps + self.synthesis_steps

    def trained(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        task, pooled = _classification(environments, self.name), _pooled(environments)
        model = fit(environments, Composition(PooledMean(), l2=self.l2), self.first_steps)
        answers, right = [_predicted(model, pooled, task)], [_is_right(model, pooled, task)]
        while len(answers) < self.rounds:
            # A model without errors gives one group instead of two.
            groups = EnvironmentSet("groups", tuple(_groups(pooled, right)), task)
            model = fit(groups, Composition(WorstCaseRisk(), l2=self.l2), self.steps)
            answers.append(_predicted(model, pooled, task))
            right.append(_is_right(model, pooled, task))
        index = balanced_rows(torch.stack(right), torch.Generator().manual_seed(seed))
        inputs = pooled.input_store.select(index)
        imitated = EnvironmentSet(
            "answers",
            tuple(Environment(f"answers {k + 1}", inputs, answer[index]) for k, answer in enumerate(answers)),
            task,
        )
        imitation = Composition(training_step=Imitation(full_batches=fit.batch_size is None), l2=self.l2)
        weights = fit(imitated, imitation, self.synthesis_steps).weights
        heads = [head_name(k) for k in range(self.rounds)]
        featurizer = {key: value for key, value in weights.items() if key.split(".")[0] not in heads}
        mean_head = {
            f"head.{key}": torch.stack([weights[f"{name}.{key}"] for name in heads]).mean(dim=0)
            for key in ("weight", "bias")
        }
        return {**featurizer, **mean_head}


def _classification(environments: EnvironmentSet, name: str) -> Task:
    """Return the task, which must be classification."""
    task = environments.task
    if isinstance(task, Regression) or task.target_shape:
        raise EnvariantError(
            f"{name}: needs a classification task, because it groups rows by correct and wrong predictions; "
            "the task is regression"
        )
    return task


def balanced_rows(right: Tensor, generator: torch.Generator) -> Tensor:
    """Sample row indices with replacement, half of them from rows on which all models agree.

    Models agree on a row if all of them are correct or all are incorrect. The other half is sampled
    from rows that only some models predict correctly. If one of the two kinds of rows does not occur,
    all indices are sampled from the other kind. The result has as many indices as there are rows.

    Args:
        right: Mask of correct predictions, `[models, rows]`.
        generator: Random number generator.
    """
    alike = (right == right[0]).all(dim=0)
    rows = right.shape[1]
    places = [chosen.nonzero().flatten() for chosen in (alike, ~alike)]
    counts = [rows // 2, rows - rows // 2] if all(map(len, places)) else [rows * bool(len(p)) for p in places]
    return torch.cat(
        [
            place[torch.randint(len(place), (count,), generator=generator)]
            for place, count in zip(places, counts, strict=True)
            if count
        ]
    )


def predictions(logits: Tensor, task: Task) -> Tensor:
    """Return the predicted class of each row, in the type of the task's targets.

    Args:
        logits: Logits `[rows]` or `[rows, classes]`.
        task: Classification task.
    """
    return (logits > 0).float() if task.outputs == 1 else logits.argmax(dim=1)


def _pooled(environments: EnvironmentSet) -> Environment:
    """Return all rows with their weights as one environment; leave out rows of weight 0."""
    stores = [e.input_store for e in environments.environments]
    rows = torch.cat([store.gather() for store in stores])
    targets = torch.cat([e.targets for e in environments.environments])
    attributes = [e.attributes for e in environments.environments]
    weights = {
        name: torch.cat([own[name] for own in attributes])
        for name in (WEIGHT, CLASS_WEIGHT)
        if all(name in own for own in attributes)
    }
    pooled = Environment("all rows", stores[0].with_rows(rows), targets, weights)
    total = training_weights(weights)
    return pooled if total is None or bool(total.all()) else pooled.select(total.nonzero().flatten())


def _predicted(model: Fitted, rows: Environment, task: Task) -> Tensor:
    return predictions(model.logits(rows.input_store.gather()), task)


def _is_right(model: Fitted, rows: Environment, task: Task) -> Tensor:
    return task.scores(model.logits(rows.input_store.gather()), rows.targets) > 0.5


def _groups(rows: Environment, right: list[Tensor]) -> list[Environment]:
    """Return each model's correctly and incorrectly predicted rows as environments, if not empty."""
    return [
        rows.select(selected.nonzero().flatten(), name=f"{word} {k + 1}")
        for k, is_right in enumerate(right)
        for word, selected in (("right", is_right), ("wrong", ~is_right))
        if bool(selected.any())
    ]


INITIALIZERS: dict[str, type[Initializer]] = {
    cls.name: cls for cls in (FromERM, JTT, RFC, LinearProbe, FromRun)
}


def initializer_named(text: str | None) -> Initializer | None:
    """Convert a string such as `rfc` or `erm(steps=200)` to a pretraining method.

    Args:
        text: Name with optional settings in parentheses; None is returned unchanged.

    Raises:
        EnvariantError: If the name or a setting is unknown.
    """
    return None if text is None else specs.build("init", text, INITIALIZERS)


def prepared(
    replica: Replica,
    source: EnvironmentSource,
    config: RunConfig,
    initializer: Initializer | None,
    on_progress: Callable[[int, int, int], None],
) -> Replica:
    """Return a copy of a replica whose pretraining runs when `Replica.start` is first accessed.

    Pretraining provides initial weights, inferred environments, or both.

    Args:
        replica: Replica without pretraining.
        source: Data source of the replica.
        config: Settings of the run.
        initializer: Pretraining method for the initial weights, or None.
        on_progress: Function called after every pretraining step with the index of the replica, the number of
            completed steps and the total number of steps.
    """
    inference = replica.algorithm.environment_inference
    if inference is None and initializer is None:
        return replica

    def start() -> Start:
        sample = source.sample(replica.seeds.data)
        roles = sample.roles(config.test)
        training = tuple(e for e in sample.environments if roles[e.name] == "train")
        environments = EnvironmentSet(sample.label, training, sample.task)
        steps = 0 if inference is None else inference.reference_steps or config.steps
        steps += 0 if initializer is None else initializer.total_steps
        done = itertools.count(1)
        fit = Fitting(replica, config, lambda: on_progress(replica.index, next(done), steps))
        inferred = None if inference is None else _inferred(environments, inference, fit, config.steps)
        params = {} if initializer is None else initializer.weights(environments, fit, replica.seeds.order)
        return Start(params, inferred)

    return replace(replica, prepared=start)


@final
@dataclass(frozen=True, eq=False)
class Fitting(Fit):
    """Function that trains new models with a replica's seeds and learning rate.

    A learning-rate schedule starts at step 0 for each model.

    Attributes:
        replica: Replica whose seeds and learning rate are used.
        config: Settings of the run.
        on_step: Function called after every step.
    """

    replica: Replica
    config: RunConfig
    on_step: Callable[[], None] = lambda: None

    @property
    def batch_size(self) -> int | None:
        return self.config.batch_size

    def but(self, *, batch_size: int | None, learning_rate: float | None) -> "Fitting":
        config, replica = replace(self.config, batch_size=batch_size or self.batch_size), self.replica
        if learning_rate is not None:
            groups = replace(replica.groups, rates=None)
            replica = replace(replica, learning_rate=learning_rate, groups=groups)
        return replace(self, replica=replica, config=config)

    def __call__(self, environments: EnvironmentSet, algorithm: Composition, steps: int) -> Fitted:
        replica, config = self.replica, self.config
        groups = replace(replica.groups, decays=None)
        alone = replace(replica, algorithm=algorithm, weight_decay=0.0, prepared=None, groups=groups)
        own_config = replace(
            config,
            steps=steps,
            test=(),
            freeze=None,
            evaluate_every=steps,
            compiled=False,
            adapt=None,
            average=None,
            keep=KeepLast(),
            stop_early=None,
        )
        stack = ReplicaStack(environments, (alone,), own_config)
        for _ in range(steps):
            stack.advance()
            self.on_step()
        rows = stack.measure()
        state = stack.checkpoint().states()[replica.index]
        if stack.failed or state.failure is not None or not rows:
            raise EnvariantError(f"replica {replica.index}: pretraining failed, because {state.failure}")
        weights = {**state.params, **state.buffers}
        return Fitted(weights, lambda inputs: stack.outputs(inputs)[0].to(inputs.device))

    def initial(self, environments: EnvironmentSet) -> nn.Module:
        return module_of(environments, self.replica, replace(self.config, test=(), freeze=None))[0]


def _inferred(
    environments: EnvironmentSet, inference: EnvironmentInference, fit: Fit, steps: int
) -> EnvironmentSet:
    """Divide all rows into new environments, based on the predictions of a reference model."""
    erm = Composition(PooledMean(), l2=inference.reference_l2)
    reference, pooled = fit(environments, erm, inference.reference_steps or steps), _pooled(environments)
    logits = reference.logits(pooled.input_store.gather())
    numbers = inference.environments(logits, pooled.targets, environments.task)
    parts: list[Environment] = []
    for number, name in enumerate(inference.environment_names):
        index = (numbers == number).nonzero().flatten()
        if not len(index):
            raise EnvariantError(
                f"{inference.name}: the reference model predicts all rows correctly, or all rows wrongly, so "
                f"no second environment is found; reduce reference_steps"
            )
        parts.append(pooled.select(index, name=name))
    return EnvironmentSet(environments.label, tuple(parts), environments.task)
