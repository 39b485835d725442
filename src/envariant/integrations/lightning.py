"""Mixin for the modules of PyTorch Lightning, and a data loader that resumes within an epoch.

Nothing is imported from Lightning, so the mixin works with the packages `lightning` and `pytorch_lightning`.
"""

from abc import ABC
from collections.abc import Iterator, Mapping
from typing import Any, final

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from envariant.core.errors import EnvariantError, shown
from envariant.integrations.step_loss import as_objective, recorded_features, step_loss
from envariant.objectives import EnvironmentSampler


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


@final
class EnvironmentDataLoader(DataLoader[Any]):
    """Data loader of an `EnvironmentSampler` that resumes with the next batch, also within an epoch.

    Lightning stores its state in checkpoints. In a distributed run, the sampler divides the batches among the
    processes, so create the trainer with `use_distributed_sampler=False`.

    Args:
        dataset: Data set with a length.
        sampler: Sampler of batches.
        options: Other arguments of `torch.utils.data.DataLoader`, such as `num_workers`.

    Raises:
        EnvariantError: If the sampler is not an `EnvironmentSampler`.

    Example:
        >>> import envariant, torch
        >>> rows = torch.utils.data.TensorDataset(torch.arange(4.0), torch.tensor([0, 0, 1, 1]))
        >>> sampler = envariant.EnvironmentSampler([0, 0, 1, 1], batch_size=1)
        >>> len(EnvironmentDataLoader(rows, sampler))
        2
    """

    def __init__(self, dataset: Dataset[Any], sampler: EnvironmentSampler, **options: Any) -> None:
        if not isinstance(sampler, EnvironmentSampler):
            raise EnvariantError(
                f"EnvironmentDataLoader: sampler must be an EnvironmentSampler; got {shown(sampler)}"
            )
        super().__init__(dataset, batch_sampler=sampler, **options)
        self._environments = sampler
        self._used = sampler.step

    def __iter__(self) -> Iterator[Any]:
        """Return the remaining batches of the current epoch, or those of the next epoch."""
        # Worker processes have requested batches in advance that were not used.
        self._environments.load_state_dict({"step": self._used})
        for batch in super().__iter__():
            self._used += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches that were returned."""
        return self._environments.state_dict(self._used)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from a state returned by `state_dict`.

        Args:
            state: State of a loader with the same sampler.
        """
        self._used = int(state["step"])
