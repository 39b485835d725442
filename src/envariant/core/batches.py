"""Batches of rows from several environments, with or without a model's predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from envariant.core.step_context import START, StepContext
from envariant.core.tasks import Task

Networks = Mapping[str, Callable[[Tensor], Tensor]]
"""Auxiliary networks of an algorithm by name; each is a function of its inputs."""


@final
@dataclass(frozen=True, eq=False)
class EnvironmentBatch:
    """Batch of rows from several environments, concatenated in the order of the environments.

    Attributes:
        inputs: Inputs `[rows, *input_shape]`.
        targets: Targets `[rows, *target_shape]`.
        sizes: Number of rows of each environment, in order; sizes may differ.
        task: Prediction task.
        aggregator: Function that maps the losses of all rows to the risk. Default: the mean over
            environments.
        present: Indices of the training environments that have rows in the batch; None if all of them have.
            `sizes` lists these environments only.
    """

    inputs: Shaped[Tensor, "rows *input_shape"]
    targets: Shaped[Tensor, "rows *target_shape"]
    sizes: tuple[int, ...]
    task: Task
    aggregator: Callable[[Tensor], Tensor] | None = None
    present: Int[Tensor, " present"] | None = None

    def of_present(self, values: Shaped[Tensor, "environments *shape"]) -> Shaped[Tensor, "present *shape"]:
        """Select, from one value per training environment, those of the environments in the batch."""
        return values if self.present is None else values[self.present]

    def with_present(
        self, values: Shaped[Tensor, "environments *shape"], new: Shaped[Tensor, "present *shape"]
    ) -> Shaped[Tensor, "environments *shape"]:
        """Replace the values of the environments in the batch; those of absent environments stay the same.

        Args:
            values: One value per training environment.
            new: New values of the environments in the batch, in the order of `sizes`.
        """
        return new if self.present is None else values.index_copy(0, self.present, new)

    def split(self, values: Shaped[Tensor, "rows *shape"]) -> tuple[Tensor, ...]:
        """Split per-row values into one tensor per environment."""
        return values.split(self.sizes)

    def per_environment_mean(
        self, values: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "environments *shape"]:
        """Return the mean of per-row values in each environment, `[environments, *shape]`."""
        if len(set(self.sizes)) == 1:
            # Equal sizes need a reshape only, which costs nothing and vectorizes.
            apart = values.reshape(len(self.sizes), self.sizes[0], *values.shape[1:])
            # Equal to `mean` in float32, but the derivative of `mean` divides once for every row.
            return apart.sum(dim=1) / self.sizes[0]
        return torch.stack([part.sum(dim=0) / len(part) for part in self.split(values)])

    def mean(self, values: Float[Tensor, "rows *shape"]) -> Float[Tensor, ""]:
        """Return the mean of per-row values, with the same total weight for every environment."""
        # With equal sizes all rows have equal weight, and one sum over all rows is faster.
        return (values if len(set(self.sizes)) == 1 else self.per_environment_mean(values)).mean()

    def row_weights(self, like: Tensor) -> Float[Tensor, " rows"]:
        """Return row weights that give every environment the same total; with equal sizes, all weights are 1.

        Args:
            like: Tensor with the dtype and device of the result.
        """
        largest = max(self.sizes)
        return torch.cat([like.new_full((size,), largest / size) for size in self.sizes])

    def risk(self, losses: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
        """Combine the losses of all rows into the risk to minimize, using the algorithm's risk aggregator."""
        return self.mean(losses) if self.aggregator is None else self.aggregator(losses)

    def environment_of_rows(self) -> Int[Tensor, " rows"]:
        """Return the index of the environment of each row, counted from 0."""
        device = self.targets.device
        return torch.arange(len(self.sizes), device=device).repeat_interleave(
            torch.tensor(self.sizes, device=device), output_size=sum(self.sizes)
        )

    def predicted(
        self,
        features: Float[Tensor, "rows width"],
        logits: Float[Tensor, "rows *c"],
        context: StepContext = START,
        auxiliary_networks: Networks | None = None,
    ) -> "PredictedBatch":
        """Return the batch with a model's predictions, losses and risks.

        Args:
            features: Input of the model's head; its width is 0 if no part of the algorithm needs features.
            logits: Output of the model.
            context: Step number, learning rate and random numbers of the step.
            auxiliary_networks: Auxiliary networks by name, for use by the penalty (or other part of the
                algorithm) that receives the batch.
        """
        losses = self.task.losses(logits, self.targets)
        risks = self.per_environment_mean(losses)
        return PredictedBatch(self, features, logits, losses, risks, context, auxiliary_networks or {})


@final
@dataclass(frozen=True, eq=False)
class PredictedBatch:
    """Batch with a model's predictions: the input of risk aggregators and penalties.

    Attributes:
        batch: Batch of inputs and targets.
        features: Input of the model's head, `[rows, width]`.
        logits: Output of the model, `[rows]` or `[rows, outputs]`.
        losses: Loss of each row, `[rows]`: in nats for classification, in squared units of the target for
            regression.
        risks: Mean loss of each environment `[environments]`.
        context: Step number, learning rate and random numbers of the step.
        auxiliary_networks: Auxiliary networks by name, as functions, for use by the penalty (or other part of
            the algorithm) that receives the batch.
    """

    batch: EnvironmentBatch
    features: Float[Tensor, "rows width"]
    logits: Float[Tensor, "rows *c"]
    losses: Float[Tensor, " rows"]
    risks: Float[Tensor, " environments"]
    context: StepContext = START
    auxiliary_networks: Networks = field(default_factory=dict[str, Callable[[Tensor], Tensor]])

    def multiplier_derivatives(self) -> Float[Tensor, " rows"]:
        """Return ∂ℓ(s·z)/∂s at s = 1 for each row, `[rows]`, where ℓ is the loss and z are the logits."""
        return self.batch.task.multiplier_derivatives(self.logits, self.batch.targets)
