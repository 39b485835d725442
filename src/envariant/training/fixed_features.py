"""Features that never change during training, computed once instead of at every step.

With `freeze="features"`, only the head is trained. In full batches, its inputs are the same at every step, so
the features can take the place of the inputs. Results are the same except for rounding.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.algorithms.base import Algorithm
from envariant.algorithms.composition import Composition
from envariant.models import FeaturizerAndHead
from envariant.training.batch_sampler import BatchSampler
from envariant.training.memory_budget import available
from envariant.training.network import Network
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig
from envariant.training.zero_columns import is_plain

# Share of the available memory that the features may occupy.
_SHARE = 0.25


def are_fixed(network: Network, algorithm: Algorithm, config: RunConfig) -> bool:
    """Return whether all steps of a run use the same features, and only through the model.

    Args:
        network: Network of the run.
        algorithm: Algorithm of the run. Training steps may change the inputs, as Mixup does.
        config: Settings of the run.
    """
    return (
        "features" in (config.freeze or "")
        and config.batch_size is None
        and config.augmentation is None
        and isinstance(network.module, FeaturizerAndHead)
        and is_plain(network.module)
        and isinstance(algorithm, Composition)
        and algorithm.training_step is None
        # Parts of other authors may use the inputs themselves.
        and all(type(part).__module__.startswith("envariant.") for part in algorithm.parts)
        and not network.layers
    )


def replace(
    batches: BatchSampler,
    network: Network,
    buffers: Mapping[str, Tensor],
    replica: Replica,
    config: RunConfig,
) -> bool:
    """Replace the inputs of full batches by their features if possible, and return whether this was done.

    Args:
        batches: Sampler of the training batches.
        network: Network of the stack.
        buffers: Buffers of all replicas, which include the weights of a frozen featurizer.
        replica: First replica of the stack.
        config: Settings of the run.
    """
    if not are_fixed(network, replica.algorithm, config):
        return False
    inputs, _ = batches.at(0)
    replicas = len(next(iter(buffers.values())))
    features: list[Float[Tensor, "rows width"]] = []
    for k in range(replicas):
        own = {name: values[k] for name, values in buffers.items()}
        features.append(network.featurized(own, inputs if batches.axes[0] is None else inputs[k]))
        if k == 0 and features[0].nbytes * replicas > _SHARE * available(network.device):
            return False
    batches.replace(torch.stack(features))
    return True
