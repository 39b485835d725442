"""Settings shared by all replicas of a run, and each replica's initial network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from envariant.algorithms.base import TrainContext, featurizer_and_head
from envariant.core.counter_rng import mixed, private_random_numbers
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError, first_line
from envariant.training import precision
from envariant.training.augmentation import Augmentation
from envariant.training.averaging.base import Averaging
from envariant.training.clipping import Clipping
from envariant.training.early_stopping import Patience
from envariant.training.evaluator import Adapt
from envariant.training.keep_rules import KeepLast, KeepRule
from envariant.training.memory_budget import is_out_of_memory, require
from envariant.training.network import BATCH_NORMS, ModelBuilder, Network
from envariant.training.optimizers import OptimizerConfig
from envariant.training.replicas import Replica


@final
@dataclass(frozen=True)
class RunConfig:
    """Settings shared by all replicas of a run.

    Attributes:
        model: Function that builds the network.
        optimizer: Configuration of the optimizer.
        steps: Number of updates of each replica.
        batch_size: Rows of each training environment per step, sampled with replacement; None for all rows.
        evaluate_every: Number of steps between evaluations. The model is also evaluated before the first step
            and after the last step.
        precision: Precision of matrix products: "auto", "float32", "bfloat16" or "tf32".
        augmentation: Augmentation of training inputs, or None.
        test: Names of the test environments; None for the default test environments of the data set.
        device: Device used for training.
        compiled: Whether to compile each step program.
        freeze: "features" to train only the head, "batch-norm" to keep the statistics of BatchNorm layers,
            "features + batch-norm" for both, or None.
        adapt: Function that adapts the model to an environment before prediction, or None.
        clip: Gradient clipping, or None.
        accumulate: Number of batches whose gradients are averaged for each update.
        average: Rule for averaging the weights over training steps; predictions use the average. None for no
            averaging.
        keep: Rule that selects the steps at which weights are saved.
        stop_early: Rule for early stopping, or None.
    """

    model: ModelBuilder
    optimizer: OptimizerConfig
    steps: int
    batch_size: int | None
    evaluate_every: int
    precision: str
    augmentation: Augmentation | None
    test: tuple[str, ...] | None
    device: torch.device
    compiled: bool = False
    freeze: str | None = None
    adapt: Adapt | None = None
    clip: Clipping | None = None
    accumulate: int = 1
    average: Averaging | None = None
    keep: KeepRule = field(default=KeepLast())
    stop_early: Patience | None = None

    def measures_at(self, step: int) -> bool:
        """Return whether all environments are evaluated at a step.

        Args:
            step: Number of completed updates.
        """
        return step % self.evaluate_every == 0 or step == self.steps or self.keep.keeps(step)


def network(
    environments: EnvironmentSet, replica: Replica, config: RunConfig
) -> tuple[Network, TrainContext]:
    """Return the network of a replica with its initial weights, and the replica's `TrainContext`.

    Args:
        environments: Environments of the replica.
        replica: Replica with its seeds and algorithm.
        config: Settings of the run.

    Raises:
        EnvariantError: If data, model and algorithm are incompatible.
    """
    module, context = module_of(environments, replica, config)
    frozen = "batch-norm" in (config.freeze or "")
    if frozen and not any(isinstance(part, BATCH_NORMS) for part in module.modules()):
        raise EnvariantError(
            f'freeze: model {type(module).__name__} has no BatchNorm layers; leave out "batch-norm"'
        )
    net = Network(
        module,
        environments.task,
        precision.resolve(config.precision, config.device, module, environments.task),
        config.device,
        needs_features=replica.algorithm.needs_features,
        input_shape=environments.input_shape,
        layers=replica.algorithm.layers_used,
        frozen_batch_norm=frozen,
    )
    context = replace(context, features=net.features, layers=net.layers)
    net.adopt(auxiliary_networks(replica, context, config.device))
    return net, context


def auxiliary_networks(
    replica: Replica, context: TrainContext, device: torch.device
) -> Mapping[str, nn.Module]:
    """Return the auxiliary networks of a replica's algorithm, with their initial weights.

    Args:
        replica: Replica with its seeds and algorithm.
        context: Environments, task and model of the run, passed to the algorithm.
        device: Device used for training.
    """
    with torch.device("meta"):
        networks = replica.algorithm.auxiliary_networks(context).values()
    numbers = sum(value.numel() for network in networks for value in network.parameters())
    what = f"{replica.algorithm.name} with auxiliary networks of {numbers:,} parameters"
    require(4 * numbers, device, what, "make them smaller")
    # Not the model's seed, so that the model's weights are the same with every algorithm.
    with private_random_numbers(mixed(replica.seeds.initialization) >> 1, device):
        return replica.algorithm.auxiliary_networks(context)


def built(model: ModelBuilder, input_shape: Sequence[int], outputs: int) -> nn.Module:
    """Build a module, and initialize its lazy layers, whose shapes depend on the inputs.

    Args:
        model: Function that builds the module.
        input_shape: Shape of one row of inputs.
        outputs: Number of outputs per row.

    Raises:
        EnvariantError: If the module cannot be built, the result is not a module, or a lazy layer cannot be
            initialized.
    """
    try:
        module: object = model(input_shape, outputs)
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise EnvariantError("memory: the network does not fit; use a smaller one") from error
        if isinstance(error, RuntimeError):
            raise
        raise EnvariantError(
            f"model: cannot be built ({first_line(error)}); pass a function without required arguments that "
            f"returns a new module, or a module"
        ) from error
    if not isinstance(module, nn.Module):
        raise EnvariantError(f"model: must be a torch.nn.Module, or return one; got {type(module).__name__}")
    if _is_lazy(module):
        name, training, reason = type(module).__name__, module.training, "forward does not use it"
        try:
            with torch.no_grad():
                module.eval()(torch.zeros(2, *input_shape))
        except Exception as error:
            reason = first_line(error)
        if _is_lazy(module):
            raise EnvariantError(
                f"model {name}: a lazy layer cannot be initialized with inputs of shape "
                f"{tuple(input_shape)} ({reason}); give its size, as in Linear in place of LazyLinear"
            )
        module.train(training)
    return module


def _is_lazy(module: nn.Module) -> bool:
    return any(map(is_lazy, (*module.parameters(), *module.buffers())))


def module_of(
    environments: EnvironmentSet, replica: Replica, config: RunConfig
) -> tuple[nn.Module, TrainContext]:
    """Return the replica's model, adapted by `Algorithm.wrap_model`, and the replica's `TrainContext`.

    Args:
        environments: Environments of the replica.
        replica: Replica with its seeds and algorithm.
        config: Settings of the run.

    Raises:
        EnvariantError: If the model is not a module, or the algorithm does not support it.
    """
    task = environments.task
    with private_random_numbers(replica.seeds.initialization, config.device):
        module = built(config.model, environments.input_shape, task.outputs)
        inference = replica.algorithm.environment_inference
        training = [name for name, role in environments.roles(config.test).items() if role == "train"]
        context = TrainContext(
            tuple(training) if inference is None else inference.environment_names,
            # Inferred environments have no sizes before they are inferred.
            tuple(len(environments[name]) for name in training) if inference is None else (),
            task,
            input_shape=tuple(environments.input_shape),
            linear_head=isinstance(getattr(module, "head", None), nn.Linear),
            build=lambda shape: built(config.model, shape, task.outputs),
        )
        module = replica.algorithm.wrap_model(module, context)
    if "features" in (config.freeze or ""):
        featurizer_and_head(module, "freeze")[0].requires_grad_(False)
    return module, context
