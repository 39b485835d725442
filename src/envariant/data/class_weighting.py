"""Data source that weights training rows by class; minibatches and predictors use the weights."""

from dataclasses import dataclass
from typing import final

import torch

from envariant.core import specs
from envariant.core.attributes import CLASS_WEIGHT, WEIGHT
from envariant.core.class_weights import ClassWeights
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.data.derived_source import DerivedSource


@final
@dataclass(frozen=True)
class ClassWeighting(DerivedSource):
    """Data source whose training rows have class weights.

    Balanced weights are computed from the class counts over all training environments together.

    Attributes:
        source: Data source to weight.
        weights: Class weights.
        test: Names of the test environments. Default: the default test environments of the data source.
    """

    weights: ClassWeights
    test: tuple[str, ...] | None = None

    def identity(self) -> str:
        settings = {"weights": str(self.weights)} | ({} if self.test is None else {"test": self.test})
        return str(specs.Spec("class-weighting", (self.source.identity(),), settings))

    def sample(self, seed: int) -> EnvironmentSet:
        sample = self.source.sample(seed)
        task, roles = sample.task, sample.roles(self.test)
        if task.chance is None or task.target_shape:
            raise EnvariantError(
                f"class_weights: requires a binary or multiclass task, but the task is {task.name}"
            )
        count = max(2, task.outputs)
        classes = sample.classes or tuple(map(str, range(count)))
        training = [each for each in sample.environments if roles[each.name] == "train"]
        totals = torch.zeros(count, dtype=torch.float64)
        for each in training:
            own = each.attributes.get(WEIGHT)
            rows = None if own is None else own.double().cpu()
            totals += torch.bincount(each.targets.long().cpu(), rows, count)
        weights = torch.tensor(self.weights.of(classes, totals.tolist()), dtype=torch.float64)
        return EnvironmentSet(
            sample.label,
            tuple(
                self._weighted(each, weights) if roles[each.name] == "train" else each
                for each in sample.environments
            ),
            task,
            test=tuple(name for name, role in roles.items() if role == "test"),
            known=sample.known,
            validation=sample.validation,
            classes=sample.classes,
        )

    def _weighted(self, environment: Environment, weights: torch.Tensor) -> Environment:
        own = weights.to(environment.targets.device)[environment.targets.long()]
        sampling = environment.attributes.get(WEIGHT)
        if not bool((own if sampling is None else own * sampling).any()):
            raise EnvariantError(
                f"class_weights: all rows of environment '{environment.name}' have weight 0; give one of its "
                f"classes a weight, or leave the environment out"
            )
        return Environment(
            environment.name,
            environment.input_store,
            environment.targets,
            {**environment.attributes, CLASS_WEIGHT: own},
            environment.origin,
        )
