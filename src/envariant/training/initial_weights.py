"""Initial parameters and buffers of all replicas of a stack."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from envariant.algorithms.base import TrainContext
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.training.batch_sampler import StackingError
from envariant.training.content_hash import constants
from envariant.training.network import Network
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig, auxiliary_networks, module_of


def initial_weights(
    network: Network,
    sets: Sequence[EnvironmentSet],
    replicas: Sequence[Replica],
    config: RunConfig,
    context: TrainContext,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the initial weights of all replicas.

    Args:
        network: Network of the first replica, with its initial weights.
        sets: Environments of each replica.
        replicas: Replicas of the stack.
        config: Settings shared by all replicas.
        context: Environments, task and model of the run, passed to the algorithms.

    Returns:
        Matrix of all parameters, `[replicas, numbers]`; views of this matrix by parameter name,
        `[replicas, *shape]`; and buffers by name, `[replicas, *shape]`.

    Raises:
        StackingError: If the models differ in more than the values of parameters and buffers.
        EnvariantError: If a pretrained parameter does not have the same shape as in the model.
    """
    expected = constants(network.module)
    weights = [(network.params, network.buffers)]
    for environments, replica in zip(sets[1:], replicas[1:], strict=True):
        module, _ = module_of(environments, replica, config)
        if constants(module) != expected:
            raise StackingError(
                "the models differ in more than parameters and buffers (register tensors as buffers)"
            )
        params, buffers = network.weights(module)
        auxiliary = network.auxiliary_weights(auxiliary_networks(replica, context, config.device))
        weights.append(({**params, **auxiliary}, buffers))
    weights = [
        (_pretrained(params, replica), _pretrained(buffers, replica))
        for (params, buffers), replica in zip(weights, replicas, strict=True)
    ]
    shapes = {name: value.shape for name, value in network.params.items()}
    if any({name: value.shape for name, value in params.items()} != shapes for params, _ in weights):
        raise StackingError("the models differ in the shapes of their parameters")
    flat = torch.stack([torch.cat([value.flatten() for value in params.values()]) for params, _ in weights])
    parts = flat.split([shape.numel() for shape in shapes.values()], dim=1)
    views = {
        name: part.view(len(weights), *shape)
        for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }
    buffers = {name: torch.stack([own[name] for _, own in weights]) for name in network.buffers}
    return flat, views, buffers


def stacked(trees: Sequence[Any]) -> Any:
    """Stack tensors, or nested mappings of tensors with equal keys, along a new first axis."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.stack(list(trees))
    return {key: stacked([tree[key] for tree in trees]) for key in first}


def restored(initial: Mapping[str, Any], saved: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Move saved tensors to a device, and restore empty mappings, which saved files omit.

    Args:
        initial: Nested mappings of tensors with the structure of the result.
        saved: Saved tensors, in nested mappings with the structure of `initial`.
        device: Device of the result.
    """
    return {
        key: restored(value, saved.get(key, {}), device)
        if isinstance(value, Mapping)
        else saved[key].to(device)
        for key, value in initial.items()
    }


def _pretrained(values: Mapping[str, Tensor], replica: Replica) -> dict[str, Tensor]:
    """Return the initial weights of a replica, with pretrained weights where they exist."""
    pretrained = replica.start.params
    for name in values.keys() & pretrained.keys():
        if pretrained[name].shape != values[name].shape:
            raise EnvariantError(
                f"init: '{name}' has shape {tuple(pretrained[name].shape)} in the pretrained model and "
                f"{tuple(values[name].shape)} in the model that starts from it; use the same model"
            )
    return {
        name: pretrained[name].to(value) if name in pretrained else value for name, value in values.items()
    }
