"""Averaged weights of a replica stack, and the BatchNorm statistics that belong to them."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envariant.core.counter_rng import private_random_numbers
from envariant.training import precision
from envariant.training.averaging.base import Averaging, State
from envariant.training.batch_sampler import BatchSampler
from envariant.training.evaluator import Weights
from envariant.training.network import BATCH_NORMS, Network
from envariant.training.step_program import Axis, over_replicas

MOST_BATCHES = 500
"""Largest number of batches from which BatchNorm statistics are computed."""


@final
class AveragedWeights:
    """Averaged weights of all replicas of a stack.

    Args:
        rule: Averaging rule.
        params: Initial parameters of all replicas, `[replicas, numbers]`.
        views: Views of `params` by parameter name.
    """

    def __init__(
        self, rule: Averaging, params: Float[Tensor, "replicas numbers"], views: Mapping[str, Tensor]
    ) -> None:
        self.rule = rule
        self._shapes = {name: view.shape for name, view in views.items()}
        self.state: State = rule.init(params)
        self._statistics: tuple[int, Weights] = (-1, {})

    def update(
        self, params: Float[Tensor, "replicas numbers"], alive: Bool[Tensor, " replicas"], step: int
    ) -> None:
        """Update the averages with the weights after a training step; skip replicas that no longer train.

        Args:
            params: Parameters of all replicas.
            alive: Mask of the replicas that were updated.
            step: Number of completed updates, including this one.
        """
        new = self.rule.update(self.state, params, step)
        if alive.device.type != "cpu" or not bool(alive.all()):
            new = {
                name: value
                if value is self.state[name]
                else torch.where(alive.view(-1, *(1,) * (value.dim() - 1)), value, self.state[name])
                for name, value in new.items()
            }
        self.state = new

    def evaluate(self, params: Float[Tensor, "replicas numbers"], losses: Float[Tensor, " replicas"]) -> None:
        """Update the averages after an evaluation; see `Averaging.evaluate`."""
        self.state = self.rule.evaluate(self.state, params, losses)

    def load(self, saved: State) -> None:
        """Restore the state from a checkpoint.

        Args:
            saved: Tensors of the state, by name.

        Raises:
            KeyError: If the checkpoint was written with another averaging rule.
        """
        self.state = {name: saved[name].to(value.device) for name, value in self.state.items()}
        self._statistics = -1, {}

    def weights(
        self, network: Network, buffers: Weights, batches: BatchSampler, step: int, seed: int
    ) -> tuple[Weights, Weights]:
        """Return the averaged parameters and the buffers for prediction, `[replicas, *shape]` each.

        BatchNorm statistics for the averaged parameters are computed from at most one epoch of training
        batches. They are cached until the next step.

        Args:
            network: Network of the stack.
            buffers: Buffers of the network with the current (not averaged) parameters.
            batches: Sampler of the training batches.
            step: Number of completed updates.
            seed: Seed of the random numbers of the network, such as dropout masks.
        """
        parts = self.state["average"].split([shape[1:].numel() for shape in self._shapes.values()], dim=1)
        params = {
            name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        if not network.changing or not step:
            return params, buffers
        if self._statistics[0] != step:
            drawing = private_random_numbers(seed, network.device) if network.stochastic else nullcontext()
            inputs = (batches.at(number)[0] for number in range(min(MOST_BATCHES, batches.of_a_pass)))
            with drawing:
                self._statistics = step, batch_statistics(network, params, buffers, inputs, batches.axes[0])
        return params, self._statistics[1]


def batch_statistics(
    network: Network,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    axis: Axis,
) -> dict[str, Tensor]:
    """Return the buffers with BatchNorm statistics computed for the given parameters.

    As in PyTorch's `update_bn`, the statistics are averaged over batches that the network processes in
    training mode. Other buffers stay unchanged.

    Args:
        network: Network of the stack.
        params: Parameters, `[replicas, *shape]` each.
        buffers: Buffers, `[replicas, *shape]` each.
        batches: Inputs of training batches.
        axis: Axis of the replicas in the inputs: 0, or None if all replicas share them.
    """
    norms = {name: part for name, part in network.module.named_modules() if isinstance(part, BATCH_NORMS)}
    names = [
        f"{name}.{key}"
        for name in norms
        for key in ("running_mean", "running_var")
        if f"{name}.{key}" in network.changing
    ]
    if not names:
        return dict(buffers)
    replicas = len(buffers[names[0]])

    def of_batch(
        params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensor
    ) -> dict[str, Tensor]:
        changed = {name: buffers[name].clone() for name in sorted(network.changing)}
        network.forward(params, {**buffers, **changed}, inputs, training=True, replicas=replicas)
        return {name: changed[name] for name in names}

    together = over_replicas(of_batch, (0, 0, axis), replicas)
    momenta = {name: part.momentum for name, part in norms.items()}
    means: dict[str, Tensor] = {}
    try:
        # With momentum 1, the running statistics are those of the last batch.
        for part in norms.values():
            part.momentum = 1.0
        with torch.no_grad(), precision.multiplying(network.precision, network.device):
            for count, inputs in enumerate(batches):
                for name, value in together(params, buffers, inputs).items():
                    means[name] = value if not count else means[name] + (value - means[name]) / (count + 1)
    finally:
        for name, part in norms.items():
            part.momentum = momenta[name]
    return {**buffers, **means}
