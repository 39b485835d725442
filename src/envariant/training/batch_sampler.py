"""The rows that replicas see at each step, gathered for all of them at once.

Environments lie end to end in one tensor, one copy for all replicas that draw the same data, so that a
step's rows are a single gather whatever the number of replicas and environments.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from envariant.core import counter_rng, step_context
from envariant.core.environments import WEIGHT, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.training.augmentation import RandomAffine


@final
class StackingError(Exception):
    """Why replicas cannot lie side by side."""


Axis = int | None
"""Where the replicas lie in a tensor: axis 0, or None where all share it."""

# Numbers drawn at once: enough that drawing costs nothing beside a step, few enough to fit in a cache.
_DRAWN_AT_ONCE = 2**16


@final
class Rows:
    """Every environment's rows, training environments first.

    Args:
        sets: what each replica drew; the same object several times is kept once.
        roles: "train" or "test" by environment.
        device: where the rows lie.

    Attributes:
        axis: of the replicas in what `of` returns.
        training: names of the training environments, in order.
        sizes: rows by environment.
        chances: `[1 or replicas, training rows]`, where rows have weights: up to which number each is drawn.

    Raises:
        StackingError: two replicas' environments differ in size, so that they cannot lie side by side.
    """

    def __init__(
        self, sets: Sequence[EnvironmentSet], roles: Mapping[str, str], device: torch.device
    ) -> None:
        distinct = list({id(drawn): drawn for drawn in sets}.values())
        if len(distinct) not in (1, len(sets)):
            distinct = list(sets)
        self.axis: Axis = None if len(distinct) == 1 else 0
        self.training = tuple(name for name, role in roles.items() if role == "train")
        names = sorted(roles, key=lambda name: roles[name] != "train")
        self.sizes = {name: len(distinct[0][name]) for name in names}
        if any({n: len(drawn[n]) for n in names} != self.sizes for drawn in distinct):
            raise StackingError("environments differ in size from draw to draw")
        ends = list(accumulate(self.sizes.values()))
        self._places = {
            name: slice(end - self.sizes[name], end) for name, end in zip(names, ends, strict=True)
        }
        rows = [[drawn[name].rows() for name in names] for drawn in distinct]
        inputs, targets = ([torch.cat([r[i] for r in each]) for each in rows] for i in (0, 1))
        self._inputs, self._targets = torch.stack(inputs).to(device), torch.stack(targets).to(device)
        self.chances = self._chances(distinct, device)

    def _chances(self, sets: Sequence[EnvironmentSet], device: torch.device) -> Tensor | None:
        """Where each training row begins to be drawn: the k-th environment's chances fill k to k + 1."""
        places = [[drawn[name] for name in self.training] for drawn in sets]
        weighted = {WEIGHT in e.attributes for each in places for e in each}
        if True not in weighted:
            return None
        if len(weighted) > 1:
            raise EnvariantError("environments: rows of some have weights and rows of others have none")
        ends: list[Tensor] = []
        for each in places:
            sums = [e.attributes[WEIGHT].double().cumsum(0) for e in each]
            ends.append(torch.cat([k + (total / total[-1]) for k, total in enumerate(sums)]))
        return torch.stack(ends).to(device)

    def of(self, names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of neighboring environments, with the replicas along `axis`."""
        place = slice(self._places[names[0]].start, self._places[names[-1]].stop)
        found = self._inputs[:, place], self._targets[:, place]
        return found if self.axis == 0 else (found[0][0], found[1][0])

    def gather(self, index: Int[Tensor, "replicas rows"]) -> tuple[Tensor, Tensor]:
        """Training rows by number, for each replica its own: `[replicas, rows, …]`."""
        if self.axis == 0:
            index = index + torch.arange(len(index), device=index.device)[:, None] * self._inputs.shape[1]
        flat = index.flatten()
        return (
            self._inputs.flatten(0, 1).index_select(0, flat).unflatten(0, index.shape),
            self._targets.flatten().index_select(0, flat).unflatten(0, index.shape),
        )


@final
class BatchSampler:
    """What each step trains on.

    Args:
        rows: the data.
        seeds: of the batch order, one a replica.
        batch_size: rows of each training environment, drawn with replacement; None is all rows.
        augmentation: of the inputs.
        dtype: in which a full batch is kept; every step would convert it to the same numbers.

    Attributes:
        sizes: rows of each training environment in a batch.
        axes: of the replicas in inputs and targets.
    """

    def __init__(
        self,
        rows: Rows,
        seeds: Sequence[int],
        batch_size: int | None,
        augmentation: RandomAffine | None,
        dtype: torch.dtype,
    ) -> None:
        self._rows, self._seeds, self._augmentation = rows, tuple(seeds), augmentation
        sizes = [rows.sizes[name] for name in rows.training]
        self.sizes = tuple(size if batch_size is None else batch_size for size in sizes)
        self._inputs, self._targets = rows.of(rows.training)
        self._device = self._targets.device
        if batch_size is None:
            self._inputs = self._inputs.to(dtype)
            self.axes = (rows.axis if augmentation is None else 0, rows.axis)
        else:
            self.axes = (0, 0)
        self._below: Tensor | None = None
        if batch_size is not None:
            starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
            self._below = torch.tensor(sizes).repeat_interleave(batch_size).to(self._device)
            self._starts = torch.tensor(starts).repeat_interleave(batch_size).to(self._device)
            self._owners = torch.arange(len(sizes)).repeat_interleave(batch_size).to(self._device)
        elif rows.chances is not None:
            raise EnvariantError(
                "environments: rows have weights, which minibatches follow; give a batch size"
            )
        self._first, self._keys = -1, torch.empty(0)
        self._drawn: Tensor | None = None

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs `[rows, *shape]` and targets `[rows]` of one step, with the replicas along their `axes`."""
        if self._below is None and self._augmentation is None:
            return self._inputs, self._targets
        keys, index = self._draws(step)
        inputs, targets = (self._inputs, self._targets) if index is None else self._rows.gather(index)
        if self._augmentation is not None:
            inputs = self._augmented(self._augmentation, inputs, keys)
        return inputs, targets

    def keys(self, step: int) -> Int[Tensor, " replicas"]:
        """Each replica's key of that step, from which an algorithm may draw."""
        return self._draws(step)[0]

    def _draws(self, step: int) -> tuple[Tensor, Tensor | None]:
        """The step's keys and row numbers, from a stretch of steps drawn at once."""
        count = len(self._seeds) * (1 if self._below is None else sum(self.sizes))
        stretch = max(1, _DRAWN_AT_ONCE // count)
        first = step - step % stretch
        if first != self._first:
            self._first = first
            self._keys = counter_rng.step_keys(self._seeds, first, stretch, self._device)
            if self._below is not None:
                chances = self._rows.chances
                self._drawn = (
                    counter_rng.integers(self._keys, step_context.ROWS, self._below) + self._starts
                    if chances is None
                    else self._weighted(self._keys, chances, len(self._below))
                )
        place = step - first
        return self._keys[place], None if self._drawn is None else self._drawn[place]

    def _weighted(self, keys: Tensor, chances: Tensor, count: int) -> Tensor:
        """Row numbers `[stretch, replicas, count]`, each as likely as its weight says."""
        at = counter_rng.uniforms(keys, step_context.ROWS, count).double() + self._owners
        stretch, replicas = keys.shape
        # Each replica looks its own numbers up, where replicas have rows of their own.
        own = at.transpose(0, 1).reshape(1 if len(chances) == 1 else replicas, -1)
        found = torch.searchsorted(chances, own, right=True)
        return found.view(replicas, stretch, count).transpose(0, 1)

    def _augmented(self, augmentation: RandomAffine, inputs: Tensor, keys: Tensor) -> Tensor:
        replicas, rows = len(keys), sum(self.sizes)
        shape = self._inputs.shape[1 if self._rows.axis is None else 2 :]
        images = inputs.expand(replicas, rows, *shape).reshape(replicas * rows, *shape)
        stochastic = counter_rng.uniforms(keys, step_context.AUGMENTATION, 3 * rows).view(replicas, 3, rows)
        augmented = augmentation(images, stochastic.transpose(0, 1).reshape(3, replicas * rows))
        return augmented.unflatten(0, (replicas, rows))
