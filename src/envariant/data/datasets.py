"""Environments from one dataset whose items carry a domain label."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from envariant.core import conversion
from envariant.core.dataset_rows import Key, read_items
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.input_store import InputStore, image_store
from envariant.core.tasks import Task


def from_dataset(
    dataset: Any,
    *,
    environment: Key | Sequence[Any] = 2,
    inputs: Key = 0,
    target: Key = 1,
    task: Task | None = None,
    label: str = "dataset",
    test: Sequence[Any] = (),
) -> EnvironmentSet:
    """Build a set of environments from a PyTorch dataset with a domain label per item.

    Rows are read once and kept in memory. Rows with random transforms, and rows that need more than a quarter
    of the free memory, are read whenever they are used; random transforms are seeded by the seed of the run.

    Args:
        dataset: Dataset whose items are tuples, lists or dictionaries.
        environment: Position or name of the domain label in an item, or the label of every item.
        inputs: Position or name of the inputs in an item.
        target: Position or name of the target in an item.
        task: Prediction task. Default: inferred from the targets.
        label: Name of the set.
        test: Labels of the default test environments.

    Raises:
        EnvariantError: If an item lacks an entry, or inputs differ in shape or are not numbers.

    Example:
        >>> import torch
        >>> from envariant.data import from_dataset
        >>> items = [(torch.ones(3) * k, k % 2, "ab"[k // 4]) for k in range(8)]
        >>> from_dataset(items).names
        ('a', 'b')
    """
    labeled = isinstance(environment, int | str)
    keys = (inputs, target, environment) if isinstance(environment, int | str) else (inputs, target)
    rows, labels = read_items(dataset, label, keys)
    given: Any = labels[1] if labeled else environment
    encoded, task, classes = conversion.targets_of(labels[0], task, label)
    what = f"{label}: environments"
    codes, names = conversion.coded(conversion.column_of(given, what), what)
    conversion.check_lengths({"inputs": len(rows), "environments": len(codes)}, label)
    parts: list[Environment] = []
    for code, name in enumerate(names):
        index = torch.from_numpy(np.flatnonzero(codes == code))
        own = rows.select(index) if isinstance(rows, InputStore) else image_store(rows[index])
        parts.append(Environment(name, own, encoded[index]))
    tests = tuple(map(conversion.text_of, conversion.several(test)))
    return EnvironmentSet(label, tuple(parts), task, test=tests, classes=classes)
