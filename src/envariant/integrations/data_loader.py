"""`EnvironmentDataLoader`: a PyTorch data loader that resumes within an epoch."""

from collections.abc import Mapping
from typing import Any, final

from torch.utils.data import DataLoader, Dataset

from envariant.core.errors import EnvariantError, shown
from envariant.objectives import EnvironmentSampler


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

    def __iter__(self) -> Any:
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
