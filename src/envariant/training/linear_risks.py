"""Linear models in full batches: train on the risks of environments instead of on rows.

Many algorithms depend on the rows of an environment only through its risk R_e and the derivatives of R_e. For
a linear model with the logistic or the squared loss, these have short formulas (`risk_functions`), which need
about half the passes over the rows that automatic differentiation of each row's loss needs. The algorithm
then receives a batch with one row per environment, and a model that maps this row to the risk.

The squared loss needs even less: R_e is a quadratic form in the weights. The matrix X of an environment's
rows is replaced by the factor R of its decomposition X = QR, because ‖Xθ‖² = ‖Rθ‖². A step then takes the
same time for any number of rows.

Results are the same except for rounding.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from envariant.algorithms.base import Algorithm, GradientPenalty, Requirement
from envariant.algorithms.composition import Composition
from envariant.core.tasks import Binary, Regression, Task
from envariant.models import FeaturizerAndHead
from envariant.models.linear import LinearLayer
from envariant.training.batch_sampler import BatchSampler
from envariant.training.memory_budget import available
from envariant.training.network import Network
from envariant.training.risk_functions import Curve, Softplus, Square
from envariant.training.risk_model import BIAS, WEIGHT, RiskModel
from envariant.training.run_config import RunConfig

# Environments are padded to the size of the largest one. More padding would cost more than the formulas save.
_MOST_PADDING = 1.25
# With more columns, the decomposition of the rows would take as long as many steps.
_MOST_COLUMNS = 256
# Share of the available memory that the rows may occupy.
_SHARE = 0.25


_CURVES: Mapping[type[Task], Curve] = {Binary: Softplus(), Regression: Square()}


def requirement(algorithm: Algorithm) -> Requirement:
    """Return the largest requirement of the parts of an algorithm; see `Part.requires`.

    Args:
        algorithm: Algorithm of a run.
    """
    if not isinstance(algorithm, Composition):
        return "rows"
    required = {part.requires() for part in algorithm.parts}
    if "rows" in required:
        return "rows"
    if "derivatives" not in required:
        return "risks"
    # The gradient of a gradient penalty would need a third derivative.
    mixed = any(isinstance(part, GradientPenalty) for part in algorithm.penalties)
    return "rows" if mixed else "derivatives"


def apply_to(network: Network, algorithm: Algorithm, config: RunConfig) -> bool:
    """Return whether all steps of a run depend on the rows only through the risks of a linear model.

    Args:
        network: Network of the run.
        algorithm: Algorithm of the run.
        config: Settings of the run.
    """
    module = network.module
    return (
        config.batch_size is None
        and config.augmentation is None
        and requirement(algorithm) != "rows"
        and isinstance(module, FeaturizerAndHead)
        and type(module.featurizer) is nn.Flatten
        and type(module.head) is LinearLayer
        and network.params.keys() == {WEIGHT, BIAS}
        and network.precision == "float32"
        and type(network.task) in _CURVES
        and network.task.has_default_loss
    )


def replace(
    batches: BatchSampler, network: Network, algorithm: Algorithm, config: RunConfig
) -> RiskModel | None:
    """Replace the inputs of full batches by one row per environment, and return the model of these rows.

    Return None, and replace nothing, if a step needs the rows. With the logistic loss, also if environments
    differ in size so much that padding would add more than a quarter, or if the rows do not fit in a quarter
    of the available memory; with the squared loss, also if there are more than 256 columns.

    Args:
        batches: Sampler of the training batches.
        network: Network of the stack.
        algorithm: Algorithm of the stack.
        config: Settings of the run.
    """
    if not apply_to(network, algorithm, config):
        return None
    curve, sizes = _CURVES[type(network.task)], batches.sizes
    inputs, targets = batches.at(0)
    inputs = inputs.flatten(1 if batches.axes[0] is None else 2)
    padded = len(sizes) * max(sizes)
    if isinstance(curve, Square):
        possible = inputs.shape[-1] <= _MOST_COLUMNS
    else:
        fits = inputs.nbytes * padded / sum(sizes) <= _SHARE * available(network.device)
        possible = fits and padded <= _MOST_PADDING * sum(sizes)
    if not possible:
        return None
    shared = batches.axes[0] is None
    draws = [(inputs, targets)] if shared else list(zip(inputs, targets, strict=True))
    batches.replace(torch.stack([_environments(*draw, sizes, curve) for draw in draws]))
    return RiskModel(curve, derivatives=requirement(algorithm) == "derivatives")


def _environments(inputs: Tensor, targets: Tensor, sizes: Sequence[int], curve: Curve) -> Tensor:
    """Return the inputs of `RiskModel`, `[environments, rows, columns]`.

    The first column is the share of each row in the risk; see `risk_and_gradient`.
    """
    of_environments = zip(inputs.split(sizes), targets.split(sizes), strict=True)
    parts = [_weighted_columns(*each, curve) for each in of_environments]
    result = inputs.new_zeros(len(sizes), max(map(len, parts)), 1 + parts[0].shape[1])
    for own, part, size in zip(result, parts, sizes, strict=True):
        own[: len(part), 0] = 1 / size
        own[: len(part), 1:] = part
    return result


def _weighted_columns(inputs: Tensor, targets: Tensor, curve: Curve) -> Tensor:
    """Return rows X with u = X·θ, where θ consists of bias, weights and, for the squared loss, 1."""
    constant = torch.ones_like(inputs[:, :1])
    if isinstance(curve, Softplus):
        # log(1 + e^(−z)) for target 1 and log(1 + e^z) for target 0.
        return (1 - 2 * targets)[:, None] * torch.cat([constant, inputs], dim=1)
    # With the constant first, the other rows of the factor R do not depend on the means of the columns.
    whole = torch.cat([constant, inputs, -targets[:, None]], dim=1).double()
    return torch.linalg.qr(whole, mode="r").R.to(inputs.dtype)
