"""The words that every room of the house speaks: environments, sets of them, and batches of their rows.

An environment is a name and rows drawn from one distribution: a hospital, a year, a camera, a colour
bias. Which environments are trained on and which are held out is *not* part of them; it is decided by
each experiment. Sizes may differ everywhere, because real data are uneven.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from envariant.errors import EnvariantError, unknown_name
from envariant.now import START, Now
from envariant.tasks import Task

RESERVED = frozenset({"worst", "*"})
"""Names that no environment may have: tables and histories use them for something else."""


@final
@dataclass(frozen=True, eq=False)
class Environment:
    """A name and its rows.

    Attributes:
        name: what people call it, on one line.
        inputs: `[rows, *input_shape]`, at least two axes; numbers of any kind become float32.
        targets: `[rows]`, numbers, as the task wants them.
        attributes: more that is known of each row, `[rows]` each, such as its digit and colour. Models
            never see it; figures and diagnostics do.
    """

    name: str
    inputs: Float[Tensor, "rows *input_shape"]
    targets: Shaped[Tensor, " rows"]
    attributes: Mapping[str, Shaped[Tensor, " rows"]] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        where = f"environment '{self.name}'"
        if not isinstance(self.name, str) or self.name in RESERVED or not self.name.isprintable():
            raise EnvariantError(
                f"{where}: a name must be one line of text and not {' or '.join(sorted(RESERVED))}"
            )
        inputs = _tensor(self.inputs, f"{where}: inputs")
        if inputs.is_complex() or inputs.dim() < 2:
            raise EnvariantError(
                f"{where}: inputs must be real numbers of shape [rows, …]; got shape {tuple(inputs.shape)}"
            )
        object.__setattr__(self, "inputs", inputs.to(torch.float32))
        object.__setattr__(self, "targets", _tensor(self.targets, f"{where}: targets"))
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
class Suggestion:
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

    @abstractmethod
    def draw(self, seed: int) -> "EnvironmentSet":
        """The environments of one data draw; the same seed gives the same bits."""

    def suggestion(self, algorithm: str) -> Suggestion:
        """Settings that suit these data and the algorithm of that name."""
        del algorithm
        return Suggestion()

    def holding_out(self, test: Sequence[str] | None) -> "EnvironmentSource":
        """The same data for an experiment that holds these environments out.

        Where inputs are made from the data themselves, as columns are scaled, only what is trained on may
        have a say in it; most sources are the same whatever is held out.
        """
        del test
        return self


@final
@dataclass(frozen=True)
class Known:
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
    """

    label: str
    environments: tuple[Environment, ...]
    task: Task
    test: tuple[str, ...] = ()
    known: Known = Known()
    validation: tuple[str, ...] = ()

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
        cast = tuple(
            Environment(e.name, e.inputs, self.task.cast(e.targets, f"environment '{e.name}'"), e.attributes)
            for e in self.environments
        )
        object.__setattr__(self, "environments", cast)
        self.roles(self.test)

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

    def draw(self, seed: int) -> "EnvironmentSet":
        del seed
        return self

    def __getitem__(self, name: str) -> Environment:
        for environment in self.environments:
            if environment.name == name:
                return environment
        raise unknown_name("environment", name, self.names, where=self.label)

    def fingerprint(self) -> str:
        """A digest of every name, input and target: the same for the same data, wherever they lie."""
        digest = hashlib.blake2b(digest_size=16)
        for environment in self.environments:
            digest.update(environment.name.encode())
            for part in environment.rows():
                digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def roles(self, test: Sequence[str] | None = None) -> dict[str, str]:
        """Every environment's role, "train", "validation" or "test", in order.

        Args:
            test: names to hold out; None holds out the set's own default.

        Raises:
            EnvariantError: a name is unknown, or nothing is left to train on.
        """
        held_out = self.test if test is None else test
        if isinstance(held_out, str):
            raise EnvariantError(f"{self.label}: names to hold out must be a tuple, as in ('{held_out}',)")
        for name in held_out:
            if name not in self.names:
                raise unknown_name("environment", name, self.names, where=self.label)
        if {*held_out, *self.validation} >= set(self.names):
            raise EnvariantError(f"{self.label}: all environments are held out; none is left to train on")
        known = {**dict.fromkeys(self.validation, "validation"), **dict.fromkeys(held_out, "test")}
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
            return values.reshape(len(self.sizes), self.sizes[0], *values.shape[1:]).mean(dim=1)
        return torch.stack([part.mean(dim=0) for part in self.split(values)])

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
        now: Now = START,
        networks: "Networks | None" = None,
    ) -> "PredictedBatch":
        """The batch together with what a model says of it."""
        losses = self.task.losses(logits, self.targets)
        risks = self.per_environment_mean(losses)
        return PredictedBatch(self, features, logits, losses, risks, now, networks or {})


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
        now: the step, and its random numbers.
        networks: those that the part who looks has of its own, as functions, by name.
    """

    batch: EnvironmentBatch
    features: Float[Tensor, "rows width"]
    logits: Float[Tensor, "rows *c"]
    losses: Float[Tensor, " rows"]
    risks: Float[Tensor, " environments"]
    now: Now = START
    networks: Networks = field(default_factory=dict[str, Callable[[Tensor], Tensor]])

    def multiplier_derivatives(self) -> Float[Tensor, " rows"]:
        """Every row's derivative of its loss with respect to a multiplier of its logits, at 1."""
        return self.batch.task.multiplier_derivatives(self.logits, self.batch.targets)


def _tensor(values: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise EnvariantError(
            f"{what} must be numbers in a tensor, an array or a list; encode words as numbers first"
        ) from None


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows laid end to end; a single part is returned as it is, for a copy would cost as much as a pass."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
