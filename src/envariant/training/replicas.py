"""Replicas: independent runs, each with its own seeds and hyperparameters.

A replica has three seeds, derived from the base seed of the run and the index of the replica. In runs with
the same base seed, replicas with the same index use the same data draw and the same batches, whatever the
algorithm; with the same model, they also use the same initial weights. Their results therefore differ only
because of the algorithm.
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
from envariant.training.parameter_groups import ParameterGroups


@final
@dataclass(frozen=True)
class Seeds:
    """Seeds of one replica, each below 2³².

    Attributes:
        data: Seed of the data draw.
        initialization: Seed of the initial weights.
        order: Seed of the batches, of augmentation and of an algorithm's random numbers.
    """

    data: int
    initialization: int
    order: int

    @classmethod
    def of(cls, seed: int, replica: int, *, shared_init: bool = False) -> "Seeds":
        """Derive the seeds of a replica from the base seed of the run.

        Args:
            seed: Base random seed of the run.
            replica: Index of the replica, from 0.
            shared_init: Whether data and initial weights are those of replica 0.
        """
        data, initialization, order = np.random.SeedSequence([seed, replica]).generate_state(3)
        if shared_init:
            first = cls.of(seed, 0)
            data, initialization = first.data, first.initialization
        return cls(int(data), int(initialization), int(order))

    def at(self, step: int) -> int:
        """Return the seed of the random numbers, such as dropout masks, that a module uses in one step.

        The seed depends on the step, not on a generator state, so resumed runs use the same numbers.

        Args:
            step: Number of completed updates.
        """
        # torch takes seeds as signed 64-bit numbers.
        return step_key(self.order, step) >> 1


@final
@dataclass(frozen=True, eq=False)
class Start:
    """Result of pretraining: initial weights and inferred environments.

    Attributes:
        params: Pretrained parameters and buffers by name; other parameters keep their initial values.
        environments: Inferred training environments; None to use the training environments of the data.
    """

    params: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    environments: EnvironmentSet | None = None


@final
@dataclass(frozen=True)
class Replica:
    """Seeds, algorithm and learning rate of one replica; all replicas of a run share a `RunConfig`.

    Attributes:
        index: Index of the replica, from 0.
        seeds: Seeds of data draw, initial weights and batches.
        algorithm: Algorithm with the hyperparameters of this replica.
        learning_rate: Learning rate, a number or a schedule.
        weight_decay: Weight decay of the optimizer.
        groups: Learning rates and weight decays by parameter group.
        prepared: Function that runs the pretraining; None if there is no pretraining.
    """

    index: int
    seeds: Seeds
    algorithm: Algorithm
    learning_rate: Schedule | float
    weight_decay: float
    prepared: Callable[[], Start] | None = field(default=None, compare=False)
    groups: ParameterGroups = field(default_factory=ParameterGroups)

    @cached_property
    def start(self) -> Start:
        """Result of the pretraining, which runs on first access."""
        return Start() if self.prepared is None else self.prepared()
