"""The words that every room of the house speaks: environments, sets of them, and batches of their rows.

An environment is a name and rows drawn from one distribution: a hospital, a year, a camera, a color
bias. Which environments are trained on and which are held out is *not* part of them; it is decided by
each experiment. Sizes may differ everywhere, because real data are uneven.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from envariant.core import conversion
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.step_context import START, StepContext
from envariant.core.tasks import Task

RESERVED = frozenset({"worst", "*"})
"""Names that no environment may have: tables and histories use them for something else."""

WEIGHT = "weight"
"""An attribute of rows: how often each is drawn into minibatches, beside the others of its environment."""


@final
@dataclass(frozen=True, eq=False)
class Environment:
    """A name and its rows.

    Attributes:
        name: what people call it, on one line.
        inputs: `[rows, *input_shape]`, at least two axes; numbers of any kind become float32.
        targets: `[rows]`, numbers, as the task wants them.
        attributes: more that is known of each row, `[rows]` each, such as its digit and color. Models
            never see it; figures and diagnostics do.
    """

    name: str
    inputs: Float[Tensor, "rows *input_shape"]
    targets: Shaped[Tensor, " rows"]
    attributes: Mapping[str, Shaped[Tensor, " rows"]] = field(default_factory=dict[str, Tensor])
    origin: str = ""

    def __post_init__(self) -> None:
        where = f"environment '{self.name}'"
        if not isinstance(self.name, str) or self.name in RESERVED or not self.name.isprintable():
            raise EnvariantError(
                f"{where}: a name must be one line of text and not {' or '.join(sorted(RESERVED))}"
            )
        inputs = conversion.tensor_of(self.inputs, f"{where}: inputs")
        if inputs.is_complex() or inputs.dim() < 2:
            raise EnvariantError(
                f"{where}: inputs must be real numbers of shape [rows, …]; got shape {tuple(inputs.shape)}"
            )
        object.__setattr__(self, "inputs", inputs.to(torch.float32))
        object.__setattr__(self, "targets", conversion.tensor_of(self.targets, f"{where}: targets"))
        rows = len(self.inputs)
        if rows == 0:
            raise EnvariantError(f"{where}: has no rows; leave it out")
        if self.targets.shape != (rows,):
            raise EnvariantError(
                f"{where}: {rows} rows of inputs need targets of shape ({rows},); "
                f"got {tuple(self.targets.shape)}"
            )
        for key, values in self.attributes.items():
            if len(values) != rows:
                raise EnvariantError(f"{where}: attribute '{key}' has {len(values)} values for {rows} rows")
        weights = self.attributes.get(WEIGHT, torch.ones(1))
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool(weights.any()):
            raise EnvariantError(
                f"{where}: weights must be at least 0 and not all 0; mend them or leave them out"
            )
        bad = ~torch.isfinite(self.inputs).flatten(1).all(dim=1)
        if bool(bad.any()):
            raise EnvariantError(
                f"{where}: inputs hold NaN or infinity in {int(bad.sum())} of {rows} rows "
                f"(first: row {int(bad.nonzero()[0])}); fill in or remove them"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the rows at `index`, or of all: the one way to an environment's rows."""
        if index is None:
            return self.inputs, self.targets
        return self.inputs[index], self.targets[index]


@final
@dataclass(frozen=True)
class DefaultSettings:
    """What the protocol of some data uses for one algorithm, so that a bare command repeats the paper.

    Attributes:
        hyperparameters: of the algorithm, by name.
        model, optimizer: as written on the command line.
        steps: optimizer updates.
        batch_size: rows of each environment a step; None is all of them.
        source: where these settings come from.
    """

    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str = "mlp(hidden=64)"
    optimizer: str = "adam"
    steps: int = 500
    learning_rate: float = 1e-3
    batch_size: int | None = None
    source: str = "the library's general defaults"


class EnvironmentSource(ABC):
    """Something environments can be drawn from: a construction with a seed, or a fixed set."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The text that names this source on the command line and in stored results."""

    def identity(self) -> str:
        """Return what identifies these data wherever they are stored: a content hash, or a name with settings.

        A source that reads files overrides this, so that a moved file is still the same data.
        """
        return self.name

    @abstractmethod
    def sample(self, seed: int) -> "EnvironmentSet":
        """The environments of one data draw; the same seed gives the same bits."""

    def default_settings(self, algorithm: str) -> DefaultSettings:
        """Settings that suit these data and the algorithm of that name."""
        del algorithm
        return DefaultSettings()

    def with_test_environments(self, test: Sequence[str] | None) -> "EnvironmentSource":
        """The same data for an experiment that holds these environments out.

        Where inputs are made from the data themselves, as columns are scaled, only what is trained on may
        have a say in it; most sources are the same whatever is held out.
        """
        del test
        return self

    @property
    def columns(self) -> Mapping[str, slice]:
        """Where the numbers of each column of a table lie among the inputs; empty where there are none."""
        return {}


@final
@dataclass(frozen=True)
class ReferenceScores:
    """What theory says about a set, in the task's metric: guessing, and the best invariant predictor."""

    chance: float | None = None
    optimum: float | None = None


@final
@dataclass(frozen=True, eq=False)
class EnvironmentSet(EnvironmentSource):
    """Environments that share a task and an input shape.

    A set is also a source: one that draws itself whatever the seed.

    Attributes:
        label: the name of the set.
        environments: in a fixed order.
        task: what is predicted.
        test: names of the environments held out unless an experiment says otherwise.
        known: what theory says.
        validation: names of those that are measured as training environments are, and not trained on.
        classes: what the targets' numbers stand for, in order; empty where they stand for themselves.
    """

    label: str
    environments: tuple[Environment, ...]
    task: Task
    test: tuple[str, ...] = ()
    known: ReferenceScores = ReferenceScores()
    validation: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise EnvariantError(
                f"{self.label}: task must be Binary(), Multiclass(classes=…) or Regression()"
            )
        if not self.environments:
            raise EnvariantError(f"{self.label}: has no environments")
        repeated = {name for name in self.names if self.names.count(name) > 1}
        if repeated:
            raise EnvariantError(f"{self.label}: environment name '{sorted(repeated)[0]}' is used twice")
        for environment in self.environments:
            if environment.inputs.shape[1:] != self.input_shape:
                raise EnvariantError(
                    f"{self.label}: environment '{environment.name}' has inputs of shape "
                    f"{tuple(environment.inputs.shape[1:])}, '{self.names[0]}' has {tuple(self.input_shape)}"
                )
        object.__setattr__(self, "environments", tuple(map(self._cast, self.environments)))
        self.roles(self.test)

    def _cast(self, environment: Environment) -> Environment:
        targets = self.task.cast(environment.targets, f"environment '{environment.name}'")
        if targets is environment.targets:
            # To make it anew would be to look at every number again.
            return environment
        return Environment(
            environment.name, environment.inputs, targets, environment.attributes, environment.origin
        )

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
    ) -> "EnvironmentSet":
        """A set from rows and a column that says where each of them came from.

        Environments come in order: by number where their labels are numbers, else by text.

        Args:
            inputs: `[rows, …]`, numbers: an array, a tensor, a data frame or lists.
            targets: `[rows]`. Two different values are a binary task; words, and whole numbers of which
                at most 20 are different, are classes; everything else is a regression. Classes are
                numbered in order, and `classes` of the set says which is which.
            environments: `[rows]`, labels of any kind.
            task: what is predicted, if not what the targets suggest; numbers are then taken as they are.
            label: the name of the set.
            test: labels of the environments held out by default.
            names: what environments are called, by label; those left out are called by their label.

        Raises:
            EnvariantError: lengths differ, a value is missing, or inputs are no numbers.
        """
        rows = conversion.tensor_of(inputs, f"{label}: inputs")
        found, decided, classes = conversion.targets_of(targets, task, label)
        codes, labels = conversion.coded(conversion.column_of(environments, f"{label}: environments"))
        many = len(rows) if rows.dim() else 0
        lengths = {"inputs": many, "targets": len(found), "environments": len(codes)}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{length} {what}" for what, length in lengths.items())
            raise EnvariantError(f"{label}: a row needs one of each; got {told}")
        called = {conversion.text_of(key): name for key, name in (names or {}).items()}
        for key in called:
            if key not in labels:
                raise unknown_name("environment", key, labels, where=label)
        parts: list[Environment] = []
        for code, text in enumerate(labels):
            index = torch.from_numpy(np.flatnonzero(codes == code)).to(rows.device)
            parts.append(Environment(called.get(text, text), rows[index], found[index.cpu()]))
        test_environments = tuple(
            called.get(text, text) for text in map(conversion.text_of, conversion.several(test))
        )
        return cls(label, tuple(parts), decided, test=test_environments, classes=classes)

    @classmethod
    def from_datasets(
        cls,
        datasets: Mapping[str, Any],
        *,
        task: Task | None = None,
        label: str = "datasets",
        test: Sequence[str] = (),
    ) -> "EnvironmentSet":
        """A set from PyTorch datasets, one an environment; each is read through once.

        Args:
            datasets: by the name of the environment; each item is an input and a target, and what follows
                is left aside.
            task: as in `from_arrays`.
            label: the name of the set.
            test: names of the environments held out by default.

        Raises:
            EnvariantError: a dataset is empty, or an item is no pair of numbers like those before it.
        """
        read = {
            name: conversion.items_of(dataset, f"{label}: '{name}'") for name, dataset in datasets.items()
        }
        if not read:
            raise EnvariantError(f"{label}: has no environments")
        together = [target for _, targets in read.values() for target in targets]
        found, decided, classes = conversion.targets_of(together, task, label)
        sizes = [len(targets) for _, targets in read.values()]
        parts = [
            Environment(name, inputs, targets)
            for (name, (inputs, _)), targets in zip(read.items(), found.split(sizes), strict=True)
        ]
        return cls(label, tuple(parts), decided, test=conversion.several(test), classes=classes)

    @classmethod
    def from_huggingface(
        cls,
        dataset: Any,
        *,
        inputs: str | Sequence[str],
        target: str,
        environment: str,
        task: Task | None = None,
        label: str = "dataset",
        test: Sequence[Any] = (),
    ) -> "EnvironmentSet":
        """A set from a Hugging Face dataset, or anything else that gives a column by its name.

        Args:
            dataset: of which `dataset[name]` is a column; a data frame or a dictionary will do.
            inputs: the name of a column of numbers or arrays, or the names of several, laid side by side.
            target: the name of the column to predict.
            environment: the name of the column that says where a row came from.
            task: as in `from_arrays`.
            label: the name of the set.
            test: labels of the environments held out by default.

        Raises:
            EnvariantError: there is no such column, or what `from_arrays` would say of it.
        """
        chosen = conversion.several(inputs)
        if not chosen:
            raise EnvariantError(f"{label}: inputs must name a column")
        columns = {
            name: conversion.column_of_table(dataset, name, label) for name in (*chosen, target, environment)
        }
        parts = [conversion.tensor_of(columns[name], f"{label}: column '{name}'") for name in chosen]
        flat = [part[:, None] if part.dim() == 1 else part for part in parts]
        try:
            rows = conversion.joined(flat, dim=1)
        except (RuntimeError, IndexError):
            shapes = ", ".join(f"'{name}' {tuple(p.shape)}" for name, p in zip(chosen, flat, strict=True))
            raise EnvariantError(f"{label}: columns cannot lie side by side: {shapes}") from None
        return cls.from_arrays(rows, columns[target], columns[environment], task=task, label=label, test=test)

    @property
    def name(self) -> str:
        return self.label

    @property
    def names(self) -> tuple[str, ...]:
        """The environments' names, in order."""
        return tuple(environment.name for environment in self.environments)

    @property
    def input_shape(self) -> torch.Size:
        """The shape of one row of inputs."""
        return self.environments[0].inputs.shape[1:]

    def sample(self, seed: int) -> "EnvironmentSet":
        del seed
        return self

    def __getitem__(self, name: str) -> Environment:
        for environment in self.environments:
            if environment.name == name:
                return environment
        raise unknown_name("environment", name, self.names, where=self.label)

    def identity(self) -> str:
        return self.fingerprint()

    def fingerprint(self) -> str:
        """A digest of every name, input and target: the same for the same data, wherever they lie."""
        digest = hashlib.blake2b(digest_size=16)
        for environment in self.environments:
            digest.update(environment.name.encode())
            weights = [environment.attributes[WEIGHT]] if WEIGHT in environment.attributes else []
            for part in (*environment.rows(), *weights):
                digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def roles(self, test: Sequence[str] | None = None) -> dict[str, str]:
        """Every environment's role, "train", "validation" or "test", in order.

        Args:
            test: names to hold out; None holds out the set's own default.

        Raises:
            EnvariantError: a name is unknown, or nothing is left to train on.
        """
        test_environments = self.test if test is None else test
        if isinstance(test_environments, str):
            raise EnvariantError(
                f"{self.label}: names to hold out must be a tuple, as in ('{test_environments}',)"
            )
        for name in test_environments:
            if name not in self.names:
                raise unknown_name("environment", name, self.names, where=self.label)
        if {*test_environments, *self.validation} >= set(self.names):
            raise EnvariantError(f"{self.label}: all environments are held out; none is left to train on")
        known = {**dict.fromkeys(self.validation, "validation"), **dict.fromkeys(test_environments, "test")}
        return {name: known.get(name, "train") for name in self.names}


Networks = Mapping[str, Callable[[Tensor], Tensor]]
"""Networks that belong to an algorithm, not to the model, as functions of their inputs."""


@final
@dataclass(frozen=True, eq=False)
class EnvironmentBatch:
    """Rows of several environments laid end to end, environment by environment.

    Attributes:
        inputs: `[rows, *input_shape]`.
        targets: `[rows]`.
        sizes: rows of each environment, in order; they may differ.
        task: what is predicted.
    """

    inputs: Shaped[Tensor, "rows *input_shape"]
    targets: Shaped[Tensor, " rows"]
    sizes: tuple[int, ...]
    task: Task

    def split(self, values: Shaped[Tensor, "rows *shape"]) -> tuple[Tensor, ...]:
        """`values`, one tensor an environment."""
        return values.split(self.sizes)

    def per_environment_mean(
        self, values: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "environments *shape"]:
        """The mean of `values` over the rows of each environment: the one way to a risk per environment."""
        if len(set(self.sizes)) == 1:
            # Equal sizes need no gather: a reshape, which costs nothing and vectorises.
            apart = values.reshape(len(self.sizes), self.sizes[0], *values.shape[1:])
            # What `mean` does in float32, but for its derivative, which divides once for every row.
            return apart.sum(dim=1) / self.sizes[0]
        return torch.stack([part.sum(dim=0) / len(part) for part in self.split(values)])

    def environment_of_rows(self) -> Int[Tensor, " rows"]:
        """The number of each row's environment."""
        device = self.targets.device
        return torch.arange(len(self.sizes), device=device).repeat_interleave(
            torch.tensor(self.sizes, device=device), output_size=sum(self.sizes)
        )

    def predicted(
        self,
        features: Float[Tensor, "rows width"],
        logits: Float[Tensor, "rows *c"],
        context: StepContext = START,
        auxiliary_networks: "Networks | None" = None,
    ) -> "PredictedBatch":
        """The batch together with what a model says of it."""
        losses = self.task.losses(logits, self.targets)
        risks = self.per_environment_mean(losses)
        return PredictedBatch(self, features, logits, losses, risks, context, auxiliary_networks or {})


@final
@dataclass(frozen=True, eq=False)
class PredictedBatch:
    """A batch and what the model made of it: all that a weighting or a penalty may look at.

    Attributes:
        batch: the rows.
        features: `[rows, width]`, what the featurizer gives and the head reads.
        logits: `[rows]` or `[rows, classes]`.
        losses: `[rows]`, in nats or squared units of the target.
        risks: `[environments]`, the mean loss of each environment.
        context: the step, and its random numbers.
        networks: those that the part who looks has of its own, as functions, by name.
    """

    batch: EnvironmentBatch
    features: Float[Tensor, "rows width"]
    logits: Float[Tensor, "rows *c"]
    losses: Float[Tensor, " rows"]
    risks: Float[Tensor, " environments"]
    context: StepContext = START
    auxiliary_networks: Networks = field(default_factory=dict[str, Callable[[Tensor], Tensor]])

    def multiplier_derivatives(self) -> Float[Tensor, " rows"]:
        """Every row's derivative of its loss with respect to a multiplier of its logits, at 1."""
        return self.batch.task.multiplier_derivatives(self.logits, self.batch.targets)
