"""Mixin for the modules of PyTorch Lightning.

Nothing is imported from Lightning, so the mixin works with the packages `lightning` and `pytorch_lightning`.
"""

from abc import ABC
from typing import Any

from torch import Tensor, nn

from envariant.core.errors import EnvariantError
from envariant.integrations.data_loader import EnvironmentDataLoader
from envariant.integrations.step_loss import as_objective, recorded_features, step_loss

__all__ = ["EnvironmentDataLoader", "ObjectiveMixin"]


class ObjectiveMixin(ABC):
    """Mixin that gives a `LightningModule` the loss of an objective.

    Name it before the module: `class Classifier(ObjectiveMixin, LightningModule)`. Assign an objective to the
    attribute `objective` in `__init__`, and call `objective_loss` in `training_step`. The state of the
    algorithm is then part of Lightning's checkpoints. The optimizer must get `self.parameters()` if the
    algorithm has networks of its own.

    Attributes:
        objective: Objective of training.

    Example:
        >>> class Classifier(ObjectiveMixin, LightningModule):  # doctest: +SKIP
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.network, self.objective = nn.Linear(4, 2), envariant.objective("vrex")
        ...
        ...     def training_step(self, batch, _):
        ...         inputs, targets, environments = batch
        ...         return self.objective_loss(self.network, inputs, targets, environments)
    """

    # Attributes of the Lightning module.
    global_step: int
    log_dict: Any

    objective: Any

    def objective_loss(
        self,
        network: nn.Module,
        inputs: Any,
        targets: Tensor,
        environments: Tensor,
        *,
        head: str | None = None,
        log: str | None = "train/",
    ) -> Tensor:
        """Return the loss of a batch for `training_step`, and log loss, risks and penalties.

        Args:
            network: Trained network, a submodule that does not contain the objective. It is called with
                `inputs` and returns the logits.
            inputs: Inputs of the network.
            targets: Targets, `[rows]` or `[rows, outputs]`.
            environments: Number of the environment of each row, `[rows]`.
            head: Name of the network's last layer, whose inputs are the features. Default: the
                `torch.nn.Linear` that the network lists last.
            log: Prefix of the logged names; None logs nothing.

        Raises:
            EnvariantError: If shapes or values are not valid, or the network contains the objective.
        """
        objective = as_objective(self.objective)
        if any(module is objective for module in network.modules()):
            raise EnvariantError(
                "objective_loss: the network contains the objective; pass a submodule of the Lightning module"
            )
        with recorded_features(objective, network, head) as features:
            logits = network(inputs)
        loss = step_loss(
            objective,
            network,
            logits,
            targets,
            environments,
            features=features.values,
            step=self.global_step,
        )
        if log is not None:
            self.log_dict({f"{log}{name}": value for name, value in objective.metrics().items()})
        return loss
