"""`JoinedBatch`: the rows of all processes in one step, grouped by environment."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from envariant.core.batches import Networks
from envariant.core.environments import EnvironmentBatch, PredictedBatch
from envariant.core.step_context import StepContext
from envariant.core.tasks import Regression, Task
from envariant.objectives.grouping import Grouping
from envariant.objectives.processes import Processes


@final
@dataclass(frozen=True, eq=False)
class JoinedBatch:
    """Batch of one step: the model's outputs in this process, and the grouping of all processes' rows.

    Attributes:
        logits: Logits of the rows of this process, `[rows]` or `[rows, outputs]`; losses if `task` is None.
        features: Features of the rows of this process, `[rows, width]`; width 0 if they are not needed.
        targets: Targets of the rows of all processes.
        environments: Identifiers of the environments of the rows of all processes.
        grouping: Grouping of the rows of all processes.
        processes: Processes that share the batch.
        task: Prediction task; None if the loss of each row is given instead of logits and targets.
        context: Step number and random numbers.
        names: Names of the environments that have rows.
        present: Indices of the environments that have rows; None if all have.
    """

    logits: Float[Tensor, "rows *c"]
    features: Float[Tensor, "rows width"]
    targets: Shaped[Tensor, "all *target_shape"]
    environments: Int[Tensor, " all"]
    grouping: Grouping
    processes: Processes
    task: Task | None
    context: StepContext
    names: tuple[str, ...]
    present: Int[Tensor, " present"] | None

    def predicted(
        self,
        logits: Float[Tensor, "all *c"],
        features: Float[Tensor, "all width"],
        networks: Networks | None = None,
    ) -> PredictedBatch:
        """Return the batch in the form that the parts of an algorithm receive.

        Args:
            logits: Logits of the rows of all processes; losses if `task` is None.
            features: Features of the rows of all processes.
            networks: Auxiliary networks by name.
        """
        grouped, sizes = self.grouping.grouped, self.grouping.sizes
        logits, targets = grouped(logits), grouped(self.targets)
        # Inputs are not known here; features of width 0 have no order.
        nothing = features[:, :0]
        features = grouped(features) if features.shape[1] else features
        # The task of given losses is not used.
        task = Regression() if self.task is None else self.task
        batch = EnvironmentBatch(nothing, targets, sizes, task, present=self.present)
        if self.task is not None:
            return batch.predicted(features, task.logits(logits), self.context, networks)
        return PredictedBatch(
            batch, features, features, logits, batch.per_environment_mean(logits), self.context
        )

    def environment_losses(self) -> list[Float[Tensor, ""]]:
        """Return what the rows of this process contribute to the risk of each environment, in order."""
        own = self.environments[self.processes.own]
        if self.task is None:
            losses = self.logits
        else:
            losses = self.task.losses(self.task.logits(self.logits), self.targets[self.processes.own])
        return [
            torch.where(own == number, losses, 0).sum() / size
            for number, size in zip(self.grouping.ids, self.grouping.sizes, strict=True)
        ]

    def own_rows(self, environment: int) -> Float[Tensor, " rows"]:
        """Return a mask of the rows of this process: 1 for the rows of one environment, else 0.

        Args:
            environment: Position of the environment in `grouping.ids`.
        """
        own = self.environments[self.processes.own] == self.grouping.ids[environment]
        return own.to(self.logits.dtype)
