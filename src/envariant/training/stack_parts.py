"""Create the training rows, the batch sampler and the optimizer of a replica stack."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from envariant.algorithms import Algorithm, Composition, MeanGradient
from envariant.core.environments import EnvironmentSet
from envariant.models import FeaturizerAndHead
from envariant.training.batch_sampler import BatchSampler, Rows
from envariant.training.network import Network
from envariant.training.optimizers import SGD, StackedOptimizer
from envariant.training.parameter_groups import segmented
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig


def training_rows(
    rows: Rows, sets: Sequence[EnvironmentSet], replicas: Sequence[Replica], device: torch.device
) -> Rows:
    """Return the training rows; if environments were inferred, the rows are grouped by inferred environment.

    Args:
        rows: Rows of all environments.
        sets: Environments of each replica.
        replicas: Replicas of the stack.
        device: Device on which the rows are stored.
    """
    if not any(replica.start.environments for replica in replicas):
        return rows
    inferred = [replica.start.environments or sample for replica, sample in zip(replicas, sets, strict=True)]
    return Rows(inferred, inferred[0].roles(()), device)


def sampler(rows: Rows, network: Network, replicas: Sequence[Replica], config: RunConfig) -> BatchSampler:
    """Return the sampler of the training batches.

    Args:
        rows: Training rows.
        network: Network of the stack.
        replicas: Replicas of the stack.
        config: Settings shared by all replicas.
    """
    full_batch = config.batch_size is None and config.augmentation is None
    # The library's models begin with a matrix product, which rounds inputs to bfloat16 at every step.
    rounds = network.precision == "bfloat16" and isinstance(network.module, FeaturizerAndHead)
    return BatchSampler(
        rows,
        [replica.seeds.order for replica in replicas],
        config.batch_size,
        config.augmentation,
        torch.bfloat16 if full_batch and rounds else torch.float32,
        skips_zeros=network.skips_zeros and _passes_whole_batches(replicas[0].algorithm, config),
    )


def _passes_whole_batches(algorithm: Algorithm, config: RunConfig) -> bool:
    """Return whether a run on the CPU passes the whole batch through the model at once."""
    return (
        isinstance(algorithm, Composition)
        and algorithm.training_step is None
        # Other aggregators need the gradients of single environments.
        and isinstance(algorithm.gradient_aggregator, MeanGradient)
        and config.device.type == "cpu"
        # A compiled program would be compiled again for replicas with other numbers of zeros.
        and not config.compiled
    )


def new_optimizer(
    net: Network,
    params: Tensor,
    views: Mapping[str, Tensor],
    replicas: Sequence[Replica],
    config: RunConfig,
) -> StackedOptimizer:
    """Return the optimizer of the stack.

    Args:
        net: Network of the stack.
        params: Parameters of all replicas, `[replicas, numbers]`.
        views: Views of `params` by parameter name.
        replicas: Replicas of the stack.
        config: Settings shared by all replicas.
    """
    if replicas[0].algorithm.returns_updates:
        return StackedOptimizer(SGD(), params, [1.0] * len(replicas), [0.0] * len(replicas))
    rates, decays, segments = segmented(
        [
            r.groups.assigned(net.module, net.params, net.auxiliary, r.learning_rate, r.weight_decay)
            for r in replicas
        ]
    )
    shapes = [value.shape[1:] for value in views.values()]
    return StackedOptimizer(config.optimizer, params, rates, decays, shapes, segments)
