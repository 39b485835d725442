"""Core data types: `Environment`, `EnvironmentSet` and `EnvironmentSource`.

An environment is a named set of rows from one distribution: a hospital, a year, a camera. The choice of test
environments is *not* part of the data; it is an option of each experiment. Environments may differ in size.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from envariant.core import conversion, environment_display, image_rows, specs
from envariant.core.attributes import ROW_GROUP, WEIGHT
from envariant.core.batches import EnvironmentBatch, PredictedBatch
from envariant.core.dataset_rows import read_items
from envariant.core.defaults import DefaultSettings, ReferenceScores
from envariant.core.display import Displayed, Summary, views
from envariant.core.environment import RESERVED, Environment
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.input_store import check_compatible, image_store
from envariant.core.tasks import Task, check_losses

__all__ = [
    "RESERVED",
    "ROW_GROUP",
    "WEIGHT",
    "DefaultSettings",
    "Environment",
    "EnvironmentBatch",
    "EnvironmentSet",
    "EnvironmentSource",
    "PredictedBatch",
    "ReferenceScores",
]


class EnvironmentSource(Displayed, ABC):
    """Base class of data sources; a data source returns a set of environments for a given seed."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the source in options and stored results."""

    def identity(self) -> str:
        """Return an identifier of the data: a content hash, or name and settings, but no file path.

        Sources that read files override this method so that moving a file does not change the identifier.
        """
        return self.name

    @abstractmethod
    def sample(self, seed: int) -> "EnvironmentSet":
        """Return the environments of one data draw.

        Args:
            seed: Random seed; the same seed gives bit-identical data.
        """

    def default_settings(self, algorithm: str) -> DefaultSettings:
        """Return the default training settings for these data and an algorithm.

        Args:
            algorithm: Name of the algorithm.
        """
        return DefaultSettings()

    def with_test_environments(self, test: Sequence[str] | None) -> "EnvironmentSource":
        """Return a copy of the source whose preprocessing is not fitted on the test environments.

        Preprocessing, such as scaling columns, must be fitted on the training environments only. Sources
        without such preprocessing are returned unchanged.

        Args:
            test: Names of the test environments. Default: the default test environments of the data.
        """
        return self

    @property
    def columns(self) -> Mapping[str, slice]:
        """Mapping from table columns to their positions in the inputs; empty if the data are not a table."""
        return {}

    def plot(self, seed: int = 0, most: int = 12) -> Any:
        """Return a picture of the data: sample images, or the distribution of each column, by environment.

        Args:
            seed: Seed of the data draw.
            most: Largest number of images per environment, or of columns.
        """
        return views().plot_data(self, seed, most)

    def _display(self) -> Summary:
        return Summary(type(self).__name__, {"name": self.name, "environments": "see sample(seed), plot()"})


@final
@dataclass(frozen=True, eq=False, repr=False)
class EnvironmentSet(EnvironmentSource):
    """Set of environments with the same task and input shape.

    A set is also a data source; `sample` returns the set itself for every seed.

    Attributes:
        label: Name of the set.
        environments: The environments, in a fixed order.
        task: Prediction task of all environments.
        test: Names of the default test environments.
        known: Theoretical scores of the data set, such as the score of random guessing.
        validation: Names of validation environments, whose rows are held out from training environments.
        classes: Labels of the classes, in the order of their indices; empty if targets are numbers.
    """

    label: str
    environments: tuple[Environment, ...]
    task: Task
    test: tuple[str, ...] = ()
    known: ReferenceScores = field(default_factory=ReferenceScores)
    validation: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise EnvariantError(
                f"{self.label}: task must be Binary(), Multiclass(classes=…) or Regression()"
            )
        specs.check_value(self.label, str, "EnvironmentSet: label")
        is_list = isinstance(self.environments, list | tuple)
        if not is_list or not all(isinstance(each, Environment) for each in self.environments):
            raise EnvariantError(f"{self.label}: environments must be a tuple of Environment objects")
        if not self.environments:
            raise EnvariantError(f"{self.label}: has no environments")
        if repeated := {name for name in self.names if self.names.count(name) > 1}:
            raise EnvariantError(f"{self.label}: environment name '{sorted(repeated)[0]}' is used twice")
        check_compatible({each.name: each.input_store for each in self.environments}, self.label)
        object.__setattr__(self, "environments", tuple(map(self._cast, self.environments)))
        check_losses(self.task, self.environments[0].targets)
        self.roles(self.test)

    def _cast(self, environment: Environment) -> Environment:
        where, targets = f"environment '{environment.name}'", environment.targets
        expected = (len(environment), *self.task.target_shape)
        if targets.shape != expected:
            raise EnvariantError(
                f"{where}: {len(environment)} rows of inputs need targets of shape {expected}; "
                f"got {tuple(targets.shape)}"
            )
        cast = self.task.cast(targets, where)
        if cast is targets:
            return environment
        store, origin = environment.input_store, environment.origin
        return Environment(environment.name, store, cast, environment.attributes, origin)

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        targets: Any,
        environments: Any,
        *,
        task: Task | None = None,
        label: str = "arrays",
        test: Sequence[Any] = (),
        names: Mapping[Any, str] | None = None,
        sample_weight: Any = None,
    ) -> "EnvironmentSet":
        """Build a set of environments from arrays and a column of environment labels.

        Environments are sorted numerically if all labels are numbers, otherwise alphabetically.

        Args:
            inputs: Numbers `[rows, …]`: an array, a tensor, a data frame or lists. Byte images are scaled to
                [0, 1].
            targets: Targets `[rows]` or `[rows, outputs]`. If `task` is None, the values determine the task.
                Shape `[rows]`: two distinct values give a binary task; text, and integers with at most 20
                distinct values, give a multiclass task; other numbers give a regression task. Shape
                `[rows, outputs]`: values that are all 0 or 1 give a multi-label task; other numbers give a
                regression with several outputs. The set's attribute `classes` contains the labels of the
                classes, in order.
            environments: Environment label of each row `[rows]`, of any type.
            task: Prediction task. Default: inferred from the targets. With a given task, numeric targets are
                used unchanged.
            label: Name of the set.
            test: Labels of the default test environments.
            names: Environment names by environment label. Default: the label is the name.
            sample_weight: Sampling weight of each row `[rows]`, at least 0. Default: equal weights.

        Raises:
            EnvariantError: If lengths differ, a value is missing, or inputs are not numbers.
        """
        rows = image_rows.prepared(conversion.tensor_of(inputs, f"{label}: inputs"), label)
        encoded, task, classes = conversion.targets_of(targets, task, label)
        what = f"{label}: environments"
        codes, labels = conversion.coded(conversion.column_of(environments, what), what)
        n = len(rows) if rows.dim() else 0
        lengths = {"inputs": n, "targets": len(encoded), "environments": len(codes)}
        attributes: dict[str, Tensor] = {}
        if sample_weight is not None:
            attributes[WEIGHT] = conversion.tensor_of(sample_weight, f"{label}: sample_weight")
            lengths["sample_weight"] = attributes[WEIGHT].numel()
        conversion.check_lengths(lengths, label)
        renamed = {conversion.text_of(key): name for key, name in (names or {}).items()}
        for key in renamed:
            if key not in labels:
                raise unknown_name("environment", key, labels, where=label)
        conversion.warn_of_look_alikes(renamed.values(), what)
        parts: list[Environment] = []
        for code, text in enumerate(labels):
            index = torch.from_numpy(np.flatnonzero(codes == code)).to(rows.device)
            name, own = renamed.get(text, text), index.cpu()
            kept = {key: values[own] for key, values in attributes.items()}
            parts.append(Environment(name, image_store(rows[index]), encoded[own], kept))
        tests = tuple(renamed.get(name, name) for name in map(conversion.text_of, conversion.several(test)))
        return cls(label, tuple(parts), task, test=tests, classes=classes)

    @classmethod
    def from_datasets(
        cls,
        datasets: Mapping[str, Any],
        *,
        task: Task | None = None,
        label: str = "datasets",
        test: Sequence[str] = (),
    ) -> "EnvironmentSet":
        """Build a set of environments from PyTorch datasets, one per environment.

        Args:
            datasets: Datasets by environment name. Each item is a tuple of input and target; additional
                entries are ignored. Each dataset is read once, but rows with random transforms are read
                whenever they are used.
            task: Prediction task. Default: inferred from the targets.
            label: Name of the set.
            test: Names of the default test environments.

        Raises:
            EnvariantError: If a dataset is empty, or items differ in shape or are not numbers.
        """
        if not isinstance(datasets, Mapping):
            raise EnvariantError(f"{label}: datasets must be a mapping from names to datasets")
        read = {name: read_items(dataset, f"{label}: '{name}'") for name, dataset in datasets.items()}
        if not read:
            raise EnvariantError(f"{label}: has no environments")
        conversion.warn_of_look_alikes(map(str, datasets), f"{label}: environments")
        together = [target for _, (targets,) in read.values() for target in targets]
        encoded, task, classes = conversion.targets_of(together, task, label)
        sizes = [len(targets) for _, (targets,) in read.values()]
        parts = [
            Environment(name, image_store(inputs), targets)
            for (name, (inputs, _)), targets in zip(read.items(), encoded.split(sizes), strict=True)
        ]
        return cls(label, tuple(parts), task, test=conversion.several(test), classes=classes)

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,
        *,
        inputs: str | Sequence[str],
        target: str | Sequence[str],
        environment: str,
        task: Task | None = None,
        label: str = "dataset",
        test: Sequence[Any] = (),
        sample_weight: str | None = None,
    ) -> "EnvironmentSet":
        """Build a set of environments from a Hugging Face dataset, a data frame or a dictionary of columns.

        Args:
            dataset: Object whose columns are accessed as `dataset[name]`.
            inputs: Name of a column of numbers, arrays or images, or names of several such columns to
                concatenate.
            target: Name of the column to predict, or names of several numeric columns.
            environment: Name of the column of environment labels.
            task: Prediction task. Default: inferred from the targets.
            label: Name of the set.
            test: Labels of the default test environments.
            sample_weight: Name of the column of sampling weights. Default: equal weights.

        Raises:
            EnvariantError: If a column or a value is missing, lengths differ, or inputs are not numbers.
        """
        chosen, predicted = conversion.several(inputs), conversion.several(target)
        if not chosen or not predicted:
            raise EnvariantError(f"{label}: {'target' if chosen else 'inputs'} must name at least one column")
        names = (*chosen, *predicted, environment, *(() if sample_weight is None else (sample_weight,)))
        read = {name: conversion.column_of_table(dataset, name, label) for name in names}
        rows = conversion.side_by_side(read, chosen, label)
        targets = conversion.side_by_side(read, predicted, label) if predicted[1:] else read[predicted[0]]
        weights = None if sample_weight is None else read[sample_weight]
        return cls.from_arrays(
            rows, targets, read[environment], task=task, label=label, test=test, sample_weight=weights
        )

    @property
    def name(self) -> str:
        return self.label

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the environments, in order."""
        return tuple(environment.name for environment in self.environments)

    @property
    def input_shape(self) -> torch.Size:
        """Shape of one row of inputs."""
        return self.environments[0].input_store.shape

    def sample(self, seed: int) -> "EnvironmentSet":
        return self

    def _display(self) -> Summary:
        roles, store = self.roles(), self.environments[0].input_store
        parts = [environment_display.Part(e.name, roles[e.name], e.targets) for e in self.environments]
        return environment_display.of_set(self.label, self.task, store, parts, self.classes)

    def __getitem__(self, name: str) -> Environment:
        for environment in self.environments:
            if environment.name == name:
                return environment
        raise unknown_name("environment", name, self.names, where=self.label)

    def identity(self) -> str:
        return self.fingerprint()

    def fingerprint(self) -> str:
        """Return a digest of names, inputs, targets, row attributes and task loss."""
        digest = hashlib.blake2b(self.task.identity().encode(), digest_size=16)
        for environment in self.environments:
            digest.update(environment.name.encode())
            for chunk in environment.input_store.chunks():
                digest.update(chunk)
            known = environment.attributes
            extra = [known[name] for name in (WEIGHT, ROW_GROUP) if name in known]
            for part in (environment.targets, *extra):
                digest.update(part.cpu().contiguous().numpy().tobytes())
            # Other attributes define groups (`by-group`).
            for name in sorted(known.keys() - {WEIGHT, ROW_GROUP}):
                digest.update(name.encode())
                digest.update(known[name].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def roles(self, test: Sequence[str] | None = None) -> dict[str, str]:
        """Return the role of each environment, "train", "validation" or "test", in order.

        Args:
            test: Names of the test environments. Default: the default test environments of the set.

        Raises:
            EnvariantError: If a name is unknown, or there is no training environment.
        """
        test_environments = self.test if test is None else test
        if isinstance(test_environments, str):
            raise EnvariantError(
                f"{self.label}: test environments must be a tuple of names, as in ('{test_environments}',)"
            )
        for name in test_environments:
            if name not in self.names:
                raise unknown_name("environment", name, self.names, where=self.label)
            if test_environments.count(name) > 1:
                raise EnvariantError(f"{self.label}: test environment '{name}' is named twice; name it once")
        if {*test_environments, *self.validation} >= set(self.names):
            raise EnvariantError(f"{self.label}: all environments are held out; none is left to train on")
        known = {**dict.fromkeys(self.validation, "validation"), **dict.fromkeys(test_environments, "test")}
        return {name: known.get(name, "train") for name in self.names}
