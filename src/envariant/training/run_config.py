"""What all replicas of a run share, and the networks with which each of them starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import nn

from envariant.algorithms.base import TrainContext, featurizer_and_head
from envariant.core.counter_rng import mixed, private_random_numbers
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.training import precision
from envariant.training.augmentation import RandomAffine
from envariant.training.evaluator import Adapt
from envariant.training.network import ModelBuilder, Network
from envariant.training.optimizers import OptimizerConfig
from envariant.training.replicas import Replica


@final
@dataclass(frozen=True)
class RunConfig:
    """What all replicas of a run share.

    Attributes:
        model: builds the network.
        optimizer: the update rule.
        steps: updates of each replica.
        batch_size: rows of each training environment a step, drawn with replacement; None is all rows.
        evaluate_every: steps between measurements; the first and the last step are measured anyway.
        precision: "auto", "float32", "bfloat16" or "tf32".
        augmentation: of training inputs.
        test: names of held-out environments; None is the data's own choice.
        device: where to train.
        compiled: whether to compile each program.
        freeze: "features" to train the head alone.
        adapt: test-time adaptation to each environment before its rows are predicted.
    """

    model: ModelBuilder
    optimizer: OptimizerConfig
    steps: int
    batch_size: int | None
    evaluate_every: int
    precision: str
    augmentation: RandomAffine | None
    test: tuple[str, ...] | None
    device: torch.device
    compiled: bool = False
    freeze: str | None = None
    adapt: Adapt | None = None

    def measures_at(self, step: int) -> bool:
        """Whether every environment is to be measured after so many updates."""
        return step % self.evaluate_every == 0 or step == self.steps


def network(environments: EnvironmentSet, replica: Replica, plan: RunConfig) -> tuple[Network, TrainContext]:
    """The replica's network with its initial weights, and what the algorithm is told of it and the data."""
    module, setting = module_of(environments, replica, plan)
    net = Network(
        module,
        environments.task,
        precision.resolve(plan.precision, plan.device, module, environments.task),
        plan.device,
        needs_features=replica.algorithm.needs_features,
        input_shape=environments.input_shape,
    )
    setting = replace(setting, features=net.features)
    net.adopt(own_networks(replica, setting, plan.device))
    return net, setting


def own_networks(replica: Replica, context: TrainContext, device: torch.device) -> Mapping[str, nn.Module]:
    """The networks that the replica's algorithm has of its own, with their initial weights."""
    # Another seed than the model's, whose weights are then the same with any algorithm.
    with private_random_numbers(mixed(replica.seeds.initialization) >> 1, device):
        return replica.algorithm.auxiliary_networks(context)


def module_of(
    environments: EnvironmentSet, replica: Replica, plan: RunConfig
) -> tuple[nn.Module, TrainContext]:
    """The model as the algorithm wants it, and what the algorithm may know beforehand."""
    task = environments.task
    with private_random_numbers(replica.seeds.initialization, plan.device):
        module: object = plan.model(environments.input_shape, task.outputs)
        if not isinstance(module, nn.Module):
            raise EnvariantError(f"model: must be or make a torch.nn.Module; got {type(module).__name__}")
        inference = replica.algorithm.environment_inference
        training = [name for name, role in environments.roles(plan.test).items() if role == "train"]
        setting = TrainContext(
            tuple(training) if inference is None else inference.environment_names,
            # Inferred environments have no sizes before they are inferred.
            tuple(len(environments[name]) for name in training) if inference is None else (),
            task,
            input_shape=tuple(environments.input_shape),
            linear_head=isinstance(getattr(module, "head", None), nn.Linear),
            build=lambda shape: plan.model(shape, task.outputs),
        )
        module = replica.algorithm.wrap_model(module, setting)
    if plan.freeze is not None:
        featurizer_and_head(module, "freeze")[0].requires_grad_(False)
    return module, setting
