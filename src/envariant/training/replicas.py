"""A replica is one training run inside a batch of runs: its own data draw, initial weights and settings.

Three seeds, not one: two algorithms compared at replica k see the same data draw and, with one model, the
same initial weights and batches, so that what differs between them is the algorithm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
from torch import Tensor

from envariant.algorithms.base import Algorithm
from envariant.core.counter_rng import step_key
from envariant.core.environments import EnvironmentSet
from envariant.core.schedules import Schedule


@final
@dataclass(frozen=True)
class Seeds:
    """Where a replica's randomness comes from; each below 2³²."""

    data: int
    initialization: int
    order: int

    @classmethod
    def of(cls, seed: int, replica: int) -> "Seeds":
        """Seeds that depend on the run's seed and the replica's number and on nothing else."""
        data, initialization, order = np.random.SeedSequence([seed, replica]).generate_state(3)
        return cls(int(data), int(initialization), int(order))

    def at(self, step: int) -> int:
        """A seed for what a module draws itself in one step, such as dropout.

        Counting instead of carrying a generator's state means that a resumed run, or one in other
        company, draws the same numbers.
        """
        # torch takes seeds as signed 64-bit numbers.
        return step_key(self.order, step) >> 1


@final
@dataclass(frozen=True, eq=False)
class Start:
    """Where a replica starts.

    Attributes:
        params: of the model, by name; what is not among them is as freshly drawn.
        environments: to train on, in place of those of its data draw.
    """

    params: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    environments: EnvironmentSet | None = None


@final
@dataclass(frozen=True)
class Replica:
    """What one replica does its own way; everything else is in the plan that all share.

    Attributes:
        index: its number, from 0.
        seeds: of its data draw, initial weights and batch order.
        algorithm: with this replica's hyperparameters.
        learning_rate, weight_decay: of the optimizer.
        prepared: makes its start, which may take long; None is as freshly drawn.
    """

    index: int
    seeds: Seeds
    algorithm: Algorithm
    learning_rate: Schedule | float
    weight_decay: float
    prepared: Callable[[], Start] | None = field(default=None, compare=False)

    @cached_property
    def start(self) -> Start:
        """Its start, made when it is first asked for."""
        return Start() if self.prepared is None else self.prepared()
