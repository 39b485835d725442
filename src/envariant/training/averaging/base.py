"""Base class of averaging rules, and the running mean."""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.algorithms import rescaled_step
from envariant.core import specs
from envariant.core.specs import Percent

State = Mapping[str, Tensor]
"""Tensors by name; the first axis is the replica axis. The averaged weights have the name "average"."""


class Averaging(ABC):
    """Base class of averaging rules: frozen dataclasses with a `name`.

    The weights θ of all replicas form a matrix `[replicas, numbers]`. Every rule treats each row separately.
    The average of a replica therefore does not depend on whether it trains alone or in a stack.

    Attributes:
        name: Name of the rule in the option `average`, such as `ema`.
        needs_validation: Whether the rule uses the validation loss.
    """

    name: ClassVar[str]
    needs_validation: ClassVar[bool] = False

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def __str__(self) -> str:
        return specs.describe(self.name, self)

    def resolve(self, steps: int) -> Self:
        """Return the rule with percentages converted to step numbers.

        Args:
            steps: Number of updates of the run.
        """
        changes = {
            f.name: math.floor(value.value * steps / 100 + 0.5)
            for f in dataclasses.fields(cast("Any", self))
            if isinstance(value := getattr(self, f.name), Percent)
        }
        return dataclasses.replace(cast("Any", self), **changes) if changes else self

    def rescale(self, old: int, new: int) -> Self:
        """Return the rule with its step number `start` scaled to another run length.

        Rules without `start`, or with `start` as a percentage, are returned unchanged.

        Args:
            old: Number of steps for which `start` was chosen.
            new: Number of steps of the run.
        """
        start = getattr(self, "start", None)
        if not isinstance(start, int) or old == new:
            return self
        return dataclasses.replace(cast("Any", self), start=rescaled_step(start, old, new))

    def init(self, params: Float[Tensor, "replicas numbers"]) -> State:
        """Return the state before the first update.

        Args:
            params: Initial weights.
        """
        return {"average": params.clone()}

    @abstractmethod
    def update(self, state: State, params: Float[Tensor, "replicas numbers"], step: int) -> State:
        """Return the state after an update.

        Args:
            state: State before the update.
            params: Weights after the update.
            step: Number of completed updates, including this one.
        """

    def evaluate(
        self,
        state: State,
        params: Float[Tensor, "replicas numbers"],
        losses: Float[Tensor, " replicas"],
    ) -> State:
        """Return the state after an evaluation. Default: unchanged.

        Args:
            state: State before the evaluation.
            params: Current weights.
            losses: Validation loss of the current weights; NaN for replicas that are no longer trained.
        """
        del params, losses
        return state

    def ended(self, state: State, replica: int) -> str | None:
        """Return why later updates of a replica cannot change its average; None if they can.

        Args:
            state: State after an evaluation.
            replica: Index of the replica in the stack.
        """
        del state, replica
        return None


def running_mean(mean: Tensor, newest: Tensor, earlier: int) -> Tensor:
    """Return the mean of `earlier` + 1 values: θ̃ + (θ − θ̃) / (n + 1), or θ if n is 0.

    Args:
        mean: Mean θ̃ of the earlier values.
        newest: New value θ.
        earlier: Number n of earlier values.
    """
    return newest.clone() if earlier == 0 else torch.add(mean, (newest - mean) / (earlier + 1))
