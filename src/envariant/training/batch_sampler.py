"""Minibatches for a stack of replicas.

The rows of all environments are concatenated in one tensor, in the data type in which they are stored.
Replicas with the same data share one copy. One gather operation per step selects the rows of all replicas and
environments. Rows that could exceed the memory stay on disk, and are read shortly before they are used (see
the module `streaming`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envariant.core import counter_rng, row_sampling, step_context
from envariant.core.attributes import WEIGHT, training_weights
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.training.augmentation import Augmentation, check_unit_range
from envariant.training.streaming import ReadAhead, Reader, StreamedInputs
from envariant.training.zero_columns import RowGroups, row_groups


@final
class StackingError(Exception):
    """Error raised if replicas cannot be trained as one stack; the message gives the reason."""


Axis = int | None
"""Axis of the replicas in a tensor: 0, or None if all replicas share the tensor."""

# Random numbers generated at a time: enough for a negligible cost per step, few enough to fit in a cache.
_DRAWN_AT_ONCE = 2**16


@final
class Rows:
    """Rows of all environments on the training device, with the training environments first.

    Args:
        sets: Environments of each replica. If all replicas have the same object, its rows are stored once;
            otherwise, rows are stored for each replica.
        roles: Role of each environment by name: "train", "validation" or "test".
        device: Device on which the rows are stored.

    Attributes:
        axis: Axis of the replicas in the tensors returned by `of`: 0, or None if all replicas share the rows.
        training: Names of the training environments, in order.
        sizes: Number of rows by environment.
        store: Input store of the first environment. All stores have the same encoding, so this store is used
            to decode the rows of all environments.
        shares_batches: Whether replicas with equal batches can share one tensor of inputs. This requires that
            all replicas share the rows, the rows are in memory, and the input store allows it.
        reader: Reader of rows that stay on disk; None if all rows are in memory.
        index_device: Device on which the row indices of a batch are sampled.
        bounds: Cumulative sampling weights of the training rows, normalized so that the values of environment
            k increase from k to k + 1; `[1, rows]` if all replicas share the rows, else `[replicas, rows]`.
            None if rows have no weights.

    Raises:
        StackingError: If environments differ between replicas in size, or in the encoding of their inputs.
        EnvariantError: If some training environments have row weights and others have none.
    """

    def __init__(
        self, sets: Sequence[EnvironmentSet], roles: Mapping[str, str], device: torch.device
    ) -> None:
        distinct = list({id(sample): sample for sample in sets}.values())
        if len(distinct) not in (1, len(sets)):
            distinct = list(sets)
        self.axis: Axis = None if len(distinct) == 1 else 0
        self.training = tuple(name for name, role in roles.items() if role == "train")
        names = sorted(roles, key=lambda name: roles[name] != "train")
        self.sizes = {name: len(distinct[0][name]) for name in names}
        if any({n: len(sample[n]) for n in names} != self.sizes for sample in distinct):
            raise StackingError("environments differ in size from draw to draw")
        ends = list(accumulate(self.sizes.values()))
        self._places = {
            name: slice(end - self.sizes[name], end) for name, end in zip(names, ends, strict=True)
        }
        store = distinct[0][names[0]].input_store
        if any(sample[names[0]].input_store.encoding != store.encoding for sample in distinct):
            raise StackingError("environments store their inputs in different ways")
        self.store = store
        stores = [[sample[name].input_store for name in names] for sample in distinct]
        self.reader = Reader(device) if any(each.streamed for each in stores[0]) else None
        self._numbers = {name: number for number, name in enumerate(names)}
        self._inputs: Tensor | StreamedInputs
        if self.reader is None:
            inputs = [torch.cat([each.gather() for each in of_set]) for of_set in stores]
            self._inputs = torch.stack(inputs).to(device)
        else:
            self._inputs = StreamedInputs(self.reader, stores, self.axis)
        self.shares_batches = self.axis is None and self.reader is None and store.shares_batches
        targets = [torch.cat([sample[name].targets for name in names]) for sample in distinct]
        self._targets = torch.stack(targets).to(device)
        # Rows on disk are chosen on the CPU, without waiting for a GPU.
        self.index_device = device if self.reader is None else torch.device("cpu")
        self.bounds = self._bounds(distinct, self.index_device)

    @property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """Function that converts stored rows `[…, *shape]` to float32 inputs."""
        return self.store.decode

    def _bounds(self, sets: Sequence[EnvironmentSet], device: torch.device) -> Tensor | None:
        training = [[sample[name] for name in self.training] for sample in sets]
        weighted = {WEIGHT in e.attributes for environments in training for e in environments}
        if len(weighted) > 1:
            raise EnvariantError(
                "environments: some environments have row weights and others have none; set weights for all "
                "environments, or for none"
            )
        bounds: list[Tensor] = []
        for environments in training:
            weights = [training_weights(e.attributes) for e in environments]
            known = [each for each in weights if each is not None]
            if not known:
                return None
            bounds.append(row_sampling.weight_bounds(known))
        return torch.stack(bounds).to(device)

    def of(self, names: Sequence[str]) -> tuple[Tensor | StreamedInputs, Tensor]:
        """Return the stored inputs and targets of environments that are adjacent in `sizes`.

        The first axis is the replica axis, unless all replicas share the rows.

        Args:
            names: Names of the environments, in the order of `sizes` and without gaps.
        """
        place = slice(self._places[names[0]].start, self._places[names[-1]].stop)
        targets = self._targets[:, place] if self.axis == 0 else self._targets[0, place]
        if isinstance(self._inputs, StreamedInputs):
            some = slice(self._numbers[names[0]], self._numbers[names[-1]] + 1)
            return self._inputs.environments(some), targets
        return self._inputs[:, place] if self.axis == 0 else self._inputs[0, place], targets

    def gather(
        self, index: Int[Tensor, "replicas rows"], read: Callable[[], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the stored inputs and targets of selected training rows, `[replicas, rows, …]`.

        Args:
            index: Row indices for each replica, `[replicas, rows]`.
            read: Function that loads the selected inputs, `[replicas · rows, …]`. It is required if the
                inputs are on disk, and otherwise unused.
        """
        shape, index = index.shape, index.to(self._targets.device, non_blocking=True)
        if self.axis == 0:
            index = index + torch.arange(len(index), device=index.device)[:, None] * self._targets.shape[1]
        flat = index.flatten()
        targets = self._targets.flatten(0, 1).index_select(0, flat).unflatten(0, shape)
        if isinstance(self._inputs, Tensor):
            inputs = self._inputs.flatten(0, 1).index_select(0, flat)
        else:
            assert read is not None
            inputs = read()
        return inputs.unflatten(0, shape), targets


@final
class BatchSampler:
    """Minibatch sampler for a stack of replicas.

    Args:
        rows: Rows of all environments.
        seeds: Seed of the batch order of each replica.
        batch_size: Rows of each training environment per batch, sampled with replacement; None for all rows.
        augmentation: Augmentation of the inputs, or None.
        dtype: Data type of the inputs if `batch_size` and `augmentation` are None; minibatches are float32.
            Pass the model's data type to avoid a conversion at each step.
        skips_zeros: Whether the model can skip zero columns of full batches.

    Attributes:
        sizes: Number of rows of each training environment in a batch.
        axes: Axis of the replicas in the inputs and in the targets: 0, or None if all replicas share them.
        of_a_pass: Number of batches per epoch: the smallest number of batches that together contain at least
            as many rows as the training environments.
        groups: Rows of a full batch in groups without zero columns; None if they are not used.

    Raises:
        EnvariantError: If `batch_size` is None and rows have sampling weights or are on disk.
    """

    def __init__(
        self,
        rows: Rows,
        seeds: Sequence[int],
        batch_size: int | None,
        augmentation: Augmentation | None,
        dtype: torch.dtype,
        *,
        skips_zeros: bool = False,
    ) -> None:
        self._rows, self._seeds, self._augmentation = rows, tuple(seeds), augmentation
        self._dtype, self._decode = dtype, rows.decode
        if augmentation is not None and augmentation.unit_range:
            self._decode = rows.store.unit
        sizes = [rows.sizes[name] for name in rows.training]
        self.sizes = tuple(size if batch_size is None else batch_size for size in sizes)
        self._inputs, self._targets = rows.of(rows.training)
        self._device = rows.index_device
        self._shape = self._inputs.shape[1 if rows.axis is None else 2 :]
        if batch_size is None:
            if isinstance(self._inputs, StreamedInputs):
                raise EnvariantError(
                    "batch_size: the rows are read from disk in batches; set a batch size, such as 32"
                )
            if self._inputs.dtype == torch.float32:
                # Decode once, which needs no more memory. Smaller types are decoded at every step.
                self._inputs = self._decode(self._inputs).to(dtype)
                self._decode = _unchanged
            self.axes = (rows.axis if augmentation is None else 0, rows.axis)
        else:
            # Trials of a study have equal seeds, so that one matrix product serves all of them.
            alike = rows.shares_batches and augmentation is None and len(set(seeds)) == 1
            self.axes = (None, None) if alike else (0, 0)
        self._below: Tensor | None = None
        if batch_size is not None:
            starts = row_sampling.first_rows(sizes)
            self._below = torch.tensor(sizes).repeat_interleave(batch_size).to(self._device)
            self._starts = torch.tensor(starts).repeat_interleave(batch_size).to(self._device)
            self._owners = torch.arange(len(sizes)).repeat_interleave(batch_size).to(self._device)
        elif rows.bounds is not None:
            raise EnvariantError(
                "environments: rows have weights, which are used to sample minibatches; set batch_size"
            )
        self.of_a_pass = math.ceil(sum(sizes) / sum(self.sizes))
        self.groups: RowGroups | None = None
        if skips_zeros and batch_size is None and augmentation is None and self._decode is _unchanged:
            assert isinstance(self._inputs, Tensor)
            # Replicas with rows of their own have different zeros.
            if rows.axis is None:
                self.groups = row_groups(self._inputs)
            elif len(self._inputs) == 1:
                self.groups = row_groups(self._inputs[0])
        self._first, self._keys = -1, torch.empty(0)
        self._drawn: Tensor | None = None
        self._ahead: ReadAhead | None = None
        self._checked = False
        if isinstance(self._inputs, StreamedInputs):
            count = len(seeds) * sum(self.sizes)
            self._ahead = self._inputs.ahead(self._chosen, lambda step: self._draws(step)[0], count)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return one batch: inputs `[rows, *shape]` and targets `[rows, …]`.

        Both have an additional first axis for the replicas, unless all replicas share them (see `axes`).

        Args:
            step: Number of the batch, from 0. Without gradient accumulation, each step has one batch, so this
                is the number of completed updates.
        """
        whole, targets = self._inputs, self._targets
        if self._below is None and self._augmentation is None:
            assert isinstance(whole, Tensor)
            return self._decode(whole).to(self._dtype), targets
        keys, index = self._draws(step)
        if index is not None and self.axes == (None, None):
            inputs, targets = self._rows.gather(index[:1])
            return self._decode(inputs[0]), targets[0]
        if index is not None:
            ahead = self._ahead
            whole, targets = self._rows.gather(index, None if ahead is None else lambda: ahead.get(step))
        assert isinstance(whole, Tensor)
        inputs = self._decode(whole)
        if self._augmentation is not None:
            inputs = self._augmented(self._augmentation, inputs, keys.to(inputs.device))
        return inputs, targets

    def replace(self, inputs: Float[Tensor, "replicas rows *shape"]) -> None:
        """Replace the inputs of full batches.

        Args:
            inputs: New inputs of each replica: one for each row, or what else the model of the steps takes.
        """
        self._inputs, self._dtype, self._decode = inputs, inputs.dtype, _unchanged
        if len(inputs) == 1 and self.axes[0] is None:
            self._inputs = inputs[0]
        else:
            self.axes = (0, self.axes[1])

    def keys(self, step: int) -> Int[Tensor, " replicas"]:
        """Return the random-number key of each replica for one batch.

        Args:
            step: Number of the batch, from 0; see `at`.
        """
        return self._draws(step)[0].to(self._targets.device)

    def _chosen(self, step: int) -> Tensor:
        index = self._draws(step)[1]
        assert index is not None
        return index

    def _draws(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return the random keys and row indices of a step, which are generated for many steps at once."""
        count = len(self._seeds) * (1 if self._below is None else sum(self.sizes))
        steps = max(1, _DRAWN_AT_ONCE // count)
        first = step - step % steps
        if first != self._first:
            self._first = first
            self._keys = counter_rng.step_keys(self._seeds, first, steps, self._device)
            if self._below is not None:
                bounds = self._rows.bounds
                self._drawn = (
                    row_sampling.uniform_rows(self._keys, self._below, self._starts)
                    if bounds is None
                    else self._weighted(self._keys, bounds)
                )
        place = step - first
        return self._keys[place], None if self._drawn is None else self._drawn[place]

    def _weighted(self, keys: Tensor, bounds: Tensor) -> Tensor:
        """Return row indices `[steps, replicas, count]`, sampled in proportion to the row weights."""
        at = row_sampling.weighted_points(keys, self._owners)
        steps, replicas = keys.shape
        # If replicas have different rows, each uses its own bounds.
        by_bounds = at.transpose(0, 1).reshape(1 if len(bounds) == 1 else replicas, -1)
        numbers = torch.searchsorted(bounds, by_bounds, right=True)
        return numbers.view(replicas, steps, -1).transpose(0, 1)

    def _augmented(self, augmentation: Augmentation, inputs: Tensor, keys: Tensor) -> Tensor:
        replicas, rows, count = len(keys), sum(self.sizes), augmentation.numbers
        images = inputs.expand(replicas, rows, *self._shape).reshape(replicas * rows, *self._shape)
        if augmentation.unit_range and not self._checked:
            # Once, because a GPU would have to wait for the comparison at every step.
            check_unit_range(images, augmentation)
            self._checked = True
        uniforms = counter_rng.uniforms(keys, step_context.AUGMENTATION, count * rows)
        uniforms = uniforms.view(replicas, count, rows).transpose(0, 1).reshape(count, replicas * rows)
        augmented = augmentation(images, uniforms)
        if augmentation.unit_range:
            augmented = self._rows.store.standardize(augmented)
        return augmented.unflatten(0, (replicas, rows))


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs
