"""Convert images in arrays and in datasets of other libraries; detect random transforms."""

import io
import random
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from envariant.core.errors import EnvariantError, EnvariantWarning, listed

_CHANNELS = (1, 3, 4)
# Smallest side of an image. Smaller integer arrays with three axes are not treated as images.
_SMALLEST = 8
READ_TWICE = 8
"""Number of rows that are read twice to notice random transforms."""
_RANDOM = ("Random", "ColorJitter", "AutoAugment", "TrivialAugment", "AugMix", "RandAugment", "Elastic")


def prepared(rows: Tensor, where: str) -> Tensor:
    """Convert byte images to uint8 `[rows, channels, height, width]`; return other inputs unchanged.

    Byte images are uint8 `[rows, height, width]`, or integers from 0 to 255 with 1, 3 or 4 channels, before
    or after height and width.

    Args:
        rows: Inputs `[rows, …]`.
        where: Name of the data set, for warnings.

    Warns:
        EnvariantWarning: If inputs other than byte images look like images whose channels come last, or whose
            values are not scaled to [0, 1].
    """
    if not may_be_images(rows) or not len(rows):
        return rows
    last = rows.dim() == 4 and rows.shape[3] in _CHANNELS and rows.shape[1] not in _CHANNELS
    colored = rows.dim() == 4 and (last or rows.shape[1] in _CHANNELS)
    # PyTorch cannot compute the maximum of tensors with these types.
    plain = rows.long() if rows.dtype in (torch.uint16, torch.uint32, torch.uint64) else rows
    lowest, highest = (float(each) for each in plain.aminmax())
    in_bytes = colored and 1 < highest <= 255 and lowest >= 0
    if rows.dtype == torch.uint8 or (in_bytes and not rows.is_floating_point()):
        rows = rows.to(torch.uint8)[:, None] if rows.dim() == 3 else rows.to(torch.uint8)
        return rows.permute(0, 3, 1, 2).contiguous() if last else rows
    if last:
        shape = tuple(rows.shape[1:])
        _warn(f"{where}: inputs of shape {shape} look like height × width × channels; put channels first")
    if in_bytes and highest > 32:
        _warn(f"{where}: inputs look like images with values up to {highest:g}; divide them by 255")
    is_wide = 255 < highest <= 65_535 and highest.is_integer() and lowest >= 0
    if is_wide and (colored or rows.dtype == torch.uint16):
        remedy = "divide them by the largest possible value, such as 4095 or 65535"
        _warn(f"{where}: inputs look like images with values up to {highest:g}; {remedy}")
    return rows


def may_be_images(rows: Tensor) -> bool:
    """Return whether inputs have the shape of images, with or without a channel axis."""
    sides = sorted(rows.shape[1:])[-2:]
    return rows.dim() in (3, 4) and sides[0] >= _SMALLEST and not rows.is_complex()


def pixels_of(column: list[Any], what: str) -> Any:
    """Convert a list of Pillow images or encoded images to a uint8 tensor; return other lists unchanged.

    Args:
        column: Values of a column.
        what: Name of the column, for error messages.

    Raises:
        EnvariantError: If images differ in size, or cannot be read.
    """
    first = column[0] if column else None
    encoded = isinstance(first, dict) and isinstance(cast("dict[str, Any]", first).get("bytes"), bytes)
    if not encoded and not type(first).__module__.startswith("PIL."):
        return column
    from PIL import Image

    try:
        images = [Image.open(io.BytesIO(item["bytes"])) if encoded else item for item in column]
        modes = {image.mode for image in images}
        mode = "L" if modes <= {"1", "L"} else "RGB"
        arrays = [np.asarray(image.convert(mode)) for image in images]
    # Pillow's decoders raise many types of error for a damaged file.
    except Exception as error:
        raise EnvariantError(f"{what}: holds an image that cannot be read ({error})") from None
    if any(mode[0] in "IF" for mode in modes):
        raise EnvariantError(
            f"{what}: images have more than 8 bits per value; convert them to arrays in [0, 1]"
        )
    if len(shapes := {array.shape[:2] for array in arrays}) > 1:
        sizes = listed([f"{height}×{width}" for height, width in sorted(shapes)], 3)
        raise EnvariantError(f"{what}: images differ in size ({sizes}); resize them to one size first")
    pixels = torch.from_numpy(np.stack(arrays))
    return pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2).contiguous()


def check_repeatable(
    dataset: Any,
    rows: Tensor,
    targets: Sequence[Any],
    read_again: Callable[[int], tuple[Tensor, Sequence[Any]]] | None,
    where: str,
    *,
    warn_of_inputs: bool = True,
) -> bool:
    """Return whether inputs are random; warn if random transforms would be applied only once per row.

    Args:
        dataset: Dataset of another library.
        rows: Inputs from the first reading of the dataset, `[rows, …]`.
        targets: Targets from the first reading.
        read_again: Function that reads the first n inputs and targets again, given n; None if they can be
            read only once.
        where: Name of the dataset.
        warn_of_inputs: Whether to warn about random inputs. Set it to True if the inputs of the first reading
            are stored, so that transforms are applied only once. Random targets always cause a warning.

    Warns:
        EnvariantWarning: If an input or target differs when it is read again, or the name of a transform
            indicates that it is random.
    """
    names = {name for name in _transforms(dataset, 4) if name.startswith(_RANDOM)}
    changed, relabeled = read_again is None and bool(names), False
    if read_again is not None:
        with kept_random_states(), suppress(Exception):
            again, labels = read_again(min(READ_TWICE, len(rows)))
            first, second = rows[: len(again)].flatten(), again.flatten()
            # NaN differs from itself.
            changed = not bool(((first == second) | ((first != first) & (second != second))).all())
            changed |= bool(names)
            relabeled = any(str(a) != str(b) for a, b in zip(labels, targets, strict=False))
    if relabeled or (changed and warn_of_inputs):
        which = f" ({listed(sorted(names))})" if names else ""
        _warn(
            f"{where}: its transforms are random{which}, but every row is read only once; remove them, and "
            f"set the training option 'augmentation' instead, for example to affine(rotation=15)"
        )
    return changed


def _transforms(thing: Any, depth: int) -> Iterator[str]:
    """Yield the class names of a dataset's transforms, including those in compositions and subsets."""
    for name in ("dataset", "transform", "transforms", "target_transform"):
        parts = getattr(thing, name, None) if depth else None
        for part in parts if isinstance(parts, list | tuple) else [parts]:
            if part is not None and not isinstance(part, str):
                yield type(part).__name__
                yield from _transforms(part, depth - 1)


@contextmanager
def kept_random_states() -> Generator[None]:
    """Restore the states of global random generators after a `with` block."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _warn(message: str) -> None:
    warnings.warn(message, EnvariantWarning, stacklevel=4)
