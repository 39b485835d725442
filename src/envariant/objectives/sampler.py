"""`EnvironmentSampler`: batches with rows of every environment, for PyTorch's `DataLoader`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

from envariant.core import conversion, counter_rng, row_sampling
from envariant.core.errors import EnvariantError, shown, unknown_name
from envariant.objectives.processes import is_distributed

# First stream of the permutations, above the streams that a training step uses.
_PERMUTATIONS = 2**20
# Stream of the choice of environments.
_ENVIRONMENTS = 2**20 - 1
_LARGEST = 2**62


@final
class EnvironmentSampler(Sampler[list[int]]):
    """Sampler of batches with the same number of rows from every environment.

    Pass it to `torch.utils.data.DataLoader(dataset, batch_sampler=sampler)`. A batch depends only on the seed
    and on the number of the batch. With the default settings, it has the rows that `envariant.train` uses
    with the same seed. In a distributed run, each process gets its part of the batch.

    Args:
        environments: Environment, or any other group, of each item of the data set, `[items]`: numbers or
            text.
        batch_size: Rows of each environment per batch, summed over all processes. A mapping from environment
            to number of rows gives some environments more weight.
        weights: Sampling weight of each item within its environment, at least 0, `[items]`. Default: equal
            weights.
        replacement: Whether rows are sampled with replacement. If not, all rows of an environment are used
            once, in random order, before one is used again.
        per_batch: Number of randomly chosen environments in each batch. Default: all environments.
        batches: Number of batches per epoch. Default: the smallest number of batches with at least as many
            rows as the data set.
        seed: Random seed; equal in all processes.
        processes: Number of processes. Default: those of `torch.distributed`, or 1.
        rank: Index of this process. Default: that of `torch.distributed`, or 0.

    Attributes:
        names: Names of the environments, in the order of their rows in a batch.
        step: Number of batches that have been returned.

    Raises:
        EnvariantError: If an argument is not valid.

    Example:
        >>> import envariant
        >>> sampler = envariant.EnvironmentSampler(["a", "b", "a", "a"], batch_size=2)
        >>> [len(batch) for batch in sampler]
        [4]
    """

    def __init__(
        self,
        environments: Any,
        batch_size: int | Mapping[Any, int],
        *,
        weights: Any = None,
        replacement: bool = True,
        per_batch: int | None = None,
        batches: int | None = None,
        seed: int = 0,
        processes: int | None = None,
        rank: int | None = None,
    ) -> None:
        column = conversion.column_of(environments, "sampler: environments")
        codes, self.names = conversion.coded(column, "sampler: environments")
        owners = torch.from_numpy(codes)
        self._items = owners.argsort(stable=True)
        self._sizes: list[int] = torch.bincount(owners).tolist()
        self._starts = row_sampling.first_rows(self._sizes)
        self._counts = _counts(batch_size, self.names)
        self._replacement, self._per_batch = replacement, per_batch
        together = is_distributed()
        self._processes = processes if processes is not None else dist.get_world_size() if together else 1
        self._rank = rank if rank is not None else dist.get_rank() if together else 0
        self._check(batches)
        if weights is not None and not replacement:
            raise EnvariantError("sampler: weights need replacement=True")
        self._bounds = None if weights is None else self._weight_bounds(weights)
        # A batch has `rows` / (number of environments) rows on average; whole numbers avoid rounding.
        rows = sum(self._counts) * (len(self.names) if per_batch is None else per_batch)
        self._batches = -(-len(owners) * len(self.names) // rows) if batches is None else batches
        self._seed, self.step = seed, 0
        # Permutation of an environment's rows by environment, with the number of its pass over the rows.
        self._permutations: dict[int, tuple[int, Tensor]] = {}

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        """Return the remaining batches of the current epoch, or those of the next epoch."""
        end = (self.step // self._batches + 1) * self._batches
        while self.step < end:
            self.step += 1
            yield self.at(self.step - 1)

    def at(self, step: int) -> list[int]:
        """Return the items of one batch, grouped by environment.

        Args:
            step: Number of the batch, from 0, counted over all epochs.
        """
        key = counter_rng.step_keys([self._seed], step, 1, torch.device("cpu"))[0, 0]
        chosen = list(range(len(self.names)))
        if self._per_batch is not None:
            order = counter_rng.uniforms(key, _ENVIRONMENTS, len(chosen)).argsort()
            chosen = sorted(order[: self._per_batch].tolist())
        counts = torch.tensor([self._counts[e] for e in chosen])
        if not self._replacement:
            rows = torch.cat([self._without_replacement(e, step) for e in chosen])
        elif self._bounds is not None:
            points = row_sampling.weighted_points(key, torch.tensor(chosen).repeat_interleave(counts))
            rows = torch.searchsorted(self._bounds, points, right=True)
        else:
            below, starts = (
                torch.tensor([values[e] for e in chosen]).repeat_interleave(counts)
                for values in (self._sizes, self._starts)
            )
            rows = row_sampling.uniform_rows(key, below, starts)
        parts = rows.split(counts.tolist())
        own = [part.view(self._processes, -1)[self._rank] for part in parts]
        return self._items[torch.cat(own)].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Continue with the first batch of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.step = epoch * self._batches

    def state_dict(self, batches: int | None = None) -> dict[str, int]:
        """Return the state with which `load_state_dict` resumes.

        Args:
            batches: Number of batches used since the first epoch. Default: the number of batches returned. A
                `DataLoader` with worker processes requests batches in advance, so pass the number then.
        """
        return {"step": self.step if batches is None else batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume from a state returned by `state_dict`.

        Args:
            state: State of a sampler with the same arguments; the number of processes may differ.
        """
        self.step = int(state["step"])

    def _without_replacement(self, environment: int, step: int) -> Tensor:
        size, count = self._sizes[environment], self._counts[environment]
        first, last = step * count, (step + 1) * count
        parts = [
            self._permutation(environment, number)[max(0, first - number * size) : last - number * size]
            for number in range(first // size, (last - 1) // size + 1)
        ]
        return torch.cat(parts) + self._starts[environment]

    def _permutation(self, environment: int, number: int) -> Tensor:
        known, permutation = self._permutations.get(environment, (-1, torch.empty(0)))
        if known != number:
            key = counter_rng.step_keys([self._seed], number, 1, torch.device("cpu"))[0, 0]
            below = torch.full((self._sizes[environment],), _LARGEST)
            permutation = counter_rng.integers(key, _PERMUTATIONS + environment, below).argsort()
            self._permutations[environment] = number, permutation
        return permutation

    def _weight_bounds(self, weights: Any) -> Tensor:
        values = conversion.tensor_of(weights, "sampler: weights").double().flatten()
        conversion.check_lengths({"environments": len(self._items), "weights": len(values)}, "sampler")
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise EnvariantError("sampler: weights must be finite numbers of at least 0")
        parts = values[self._items].split(self._sizes)
        for name, part in zip(self.names, parts, strict=True):
            if not part.sum() > 0:
                raise EnvariantError(f"sampler: all weights of environment '{name}' are 0")
        return row_sampling.weight_bounds(parts)

    def _check(self, batches: int | None) -> None:
        per_batch, names, processes = self._per_batch, self.names, self._processes
        _check_count(processes, "processes")
        if batches is not None:
            _check_count(batches, "batches")
        if not 0 <= self._rank < processes:
            raise EnvariantError(f"sampler: rank must be from 0 to {processes - 1}; got {self._rank}")
        if per_batch is not None:
            _check_count(per_batch, "per_batch")
            if per_batch > len(names):
                raise EnvariantError(f"sampler: per_batch must be at most {len(names)}; got {per_batch}")
            if not self._replacement:
                raise EnvariantError("sampler: per_batch needs replacement=True")
        for name, count in zip(names, self._counts, strict=True):
            if count % processes:
                raise EnvariantError(
                    f"sampler: the {count} rows of environment '{name}' cannot be divided among {processes} "
                    f"processes; use a multiple of {processes} as batch_size"
                )


def _counts(batch_size: Any, names: Sequence[str]) -> list[int]:
    """Return the number of rows of each environment in a batch."""
    if not isinstance(batch_size, Mapping):
        _check_count(batch_size, "batch_size")
        return [batch_size] * len(names)
    given = {conversion.text_of(name): count for name, count in batch_size.items()}
    for name, count in given.items():
        if name not in names:
            raise unknown_name("environment", name, names, where="sampler: batch_size")
        _check_count(count, f"batch_size of '{name}'")
    if missing := [name for name in names if name not in given]:
        raise EnvariantError(f"sampler: batch_size has no number of rows for environment '{missing[0]}'")
    return [given[name] for name in names]


def _check_count(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise EnvariantError(f"sampler: {what} must be a whole number of at least 1; got {shown(value)}")
