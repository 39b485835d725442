"""Environments from one dataset whose items carry a domain label."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch

from envariant.core import conversion
from envariant.core.dataset_rows import DatasetStore, Key, read_items
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.input_store import ByteStore, InputStore, image_store, input_store
from envariant.core.tasks import Task
from envariant.data.images.decoding import NOTES, losses
from envariant.data.images.reading import DEVIATION, MEAN


def from_dataset(
    dataset: Any,
    *,
    environment: Key | Sequence[Any] = 2,
    inputs: Key = 0,
    target: Key = 1,
    size: int | None = None,
    normalize: bool = True,
    task: Task | None = None,
    label: str = "dataset",
    test: Sequence[Any] = (),
) -> EnvironmentSet:
    """Build a set of environments from a PyTorch or Hugging Face dataset with a domain label per item.

    Rows are read once and kept in memory. Rows with random transforms, and rows that need more than a quarter
    of the free memory, are read whenever they are used; random transforms are seeded by the seed of the run.

    Args:
        dataset: Dataset whose items are tuples, lists or dictionaries. Pillow images in them become RGB
            bytes, channels first.
        environment: Position or name of the domain label in an item, or a sequence with one label per item.
        inputs: Position or name of the inputs in an item.
        target: Position or name of the target in an item.
        size: Side in pixels of the square to which Pillow images are resized. Default: images are not
            resized, and must all have the same size.
        normalize: Whether to standardize Pillow images with ImageNet's mean and standard deviation of each
            channel; otherwise their pixels lie in [0, 1].
        task: Prediction task. Default: inferred from the targets.
        label: Name of the set.
        test: Labels of the default test environments.

    Raises:
        EnvariantError: If an item lacks an entry, or inputs differ in shape or are not numbers.

    Warns:
        EnvariantWarning: If Pillow images lose information, such as transparency.

    Example:
        >>> import torch
        >>> from envariant.data import from_dataset
        >>> items = [(torch.ones(3) * k, k % 2, "ab"[k // 4]) for k in range(8)]
        >>> from_dataset(items).names
        ('a', 'b')
    """
    labeled = isinstance(environment, int | str)
    keys = (inputs, target, environment) if isinstance(environment, int | str) else (inputs, target)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise EnvariantError(f"{label}: size must be a whole number of at least 1; got {size!r}")
    pictures = _Pictures(size)
    rows, labels = read_items(dataset, label, keys, pictures)
    for key in sorted(pictures.losses):
        message = f"{label}: some images {NOTES[key].partition('; exif')[0]}"
        warnings.warn(message, EnvariantWarning, stacklevel=2)
    if size is not None and not pictures.converted:
        raise EnvariantError(
            f"{label}: the option 'size' resizes Pillow images, but the items hold arrays; remove it, or "
            f"resize the arrays in the dataset's transform"
        )
    scale = (MEAN, DEVIATION) if normalize and pictures.converted else (None, None)
    given: Any = labels[1] if labeled else environment
    encoded, task, classes = conversion.targets_of(labels[0], task, label)
    what = f"{label}: environments"
    codes, names = conversion.coded(conversion.column_of(given, what), what)
    conversion.check_lengths({"inputs": len(rows), "environments": len(codes)}, label)
    if isinstance(rows, DatasetStore):
        store: InputStore = replace(rows, mean=scale[0], deviation=scale[1])
    elif pictures.converted:
        store = ByteStore(rows, *scale)
    else:
        store = input_store(image_store(rows), label)
    parts: list[Environment] = []
    for code, name in enumerate(names):
        index = torch.from_numpy(np.flatnonzero(codes == code))
        own = store.select(index)
        parts.append(Environment(name, own, encoded[index]))
    tests = tuple(map(conversion.text_of, conversion.several(test)))
    return EnvironmentSet(label, tuple(parts), task, test=tests, classes=classes)


@final
class _Pictures:
    """Conversion of Pillow images to RGB bytes, channels first; other values are returned unchanged."""

    def __init__(self, size: int | None) -> None:
        self._size, self.converted = size, False
        self.losses: set[str] = set()

    def __call__(self, value: Any) -> Any:
        if not type(value).__module__.startswith("PIL."):
            return value
        from PIL import Image

        self.converted = True
        if value.mode[0] in "IF":
            raise EnvariantError(
                "dataset: images have more than 8 bits per value; convert them to arrays in [0, 1]"
            )
        self.losses.update(losses(value))
        # As in `decoding`, transparency is dropped.
        rgb = (value.convert("RGBA") if value.mode == "P" else value).convert("RGB")
        if self._size is not None:
            rgb = rgb.resize((self._size, self._size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(rgb).transpose(2, 0, 1).copy())
