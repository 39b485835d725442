"""Where an algorithm may start from, other than freshly drawn weights: a model trained before it.

`erm` learns what is easy; `rfc` trains several models, each where those before it are wrong, and one that
imitates them all, so that the features it ends with hold more than the easiest way to be right.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from envariant import specs
from envariant.algorithms import Composition, Mean, Worst
from envariant.algorithms.contract import Metrics, Model, Parameters, Procedure, Setting, State
from envariant.environments import Environment, EnvironmentBatch, EnvironmentSet
from envariant.errors import EnvariantError
from envariant.models.contract import xavier
from envariant.now import Now
from envariant.tasks import Regression, Task


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


class Initialiser(ABC):
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
class FromERM(Initialiser):
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
class RFC(Initialiser):
    """Rich features. Zhang, Lopez-Paz, Bottou 2022 (arXiv 2203.15516), with the constants of its release.

    A first model by ERM, stopped early. Then in every further round a new model that minimises the largest
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
        first = fit(environments, Composition(Mean(over="rows"), l2=self.l2), self.first_steps)
        answers, right = [predictions(first.logits(inputs), task)], [_right(first, inputs, targets, task)]
        while len(answers) < self.rounds:
            groups = EnvironmentSet("groups", tuple(_groups(inputs, targets, right)), task)
            # Rows of a group are as many as there are, so a model that was always right leaves one.
            found = fit(groups, Composition(Worst(), l2=self.l2), self.steps)
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
        fitted = fit(imitated, Composition(procedure=_Imitation(), l2=self.l2), self.synthesis_steps).weights
        heads = [_head_name(k) for k in range(self.rounds)]
        own = {key: value for key, value in fitted.items() if key.split(".")[0] not in heads}
        mean = {
            f"head.{key}": torch.stack([fitted[f"{name}.{key}"] for name in heads]).mean(dim=0)
            for key in ("weight", "bias")
        }
        return {**own, **mean}


@final
@dataclass(frozen=True)
class _Imitation(Procedure):
    """(1/K) Σ_k mean_i ℓ(w_k·h_i, ŷ_ik): one featurizer, a head for the answers of each model.

    The environments hold the same rows with the answers of one model each.
    """

    name: ClassVar[str] = "imitation"
    paper: ClassVar[str] = "Zhang, Lopez-Paz, Bottou 2022, arXiv 2203.15516"
    needs_features: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = True

    def networks(self, setting: Setting) -> Mapping[str, nn.Module]:
        return {
            _head_name(k): xavier(nn.Linear(setting.features, setting.task.outputs))
            for k in range(setting.environments)
        }

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, now: Now
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


INITIALISERS: dict[str, type[Initialiser]] = {cls.name: cls for cls in (FromERM, RFC)}


def initialiser_named(text: str | None) -> Initialiser | None:
    """What `rfc` or `erm(steps=200)` names; None for none.

    Raises:
        EnvariantError: there is no such initialiser, or it has no such setting.
    """
    return None if text is None else specs.build("init", text, INITIALISERS)
