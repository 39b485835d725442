"""Validation of the sizes, numbers and names in a stored model, which may be from an untrusted source."""

import math
import re
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import module as modules

from envariant.analysis.column_sketch import Sketch
from envariant.analysis.input_density import MOST_DISTANCES, InputDensity
from envariant.core.tasks import Regression
from envariant.data.tables.encoding import Encoder
from envariant.data.tables.kinds import KINDS, ColumnEncoding
from envariant.data.tables.target_type import TargetType
from envariant.saved_model.adaptation import Adaptation
from envariant.saved_model.serving import FEWEST_ENVIRONMENTS, Serving

# While a network is built, some algorithms register parameters that they replace later.
_SPARE_TENSORS, _SPARE_ELEMENTS = 100, 1 << 20
_LARGEST_COUNT = 1 << 40
# Largest logarithm of an RMSE.
_LARGEST_OFFSET = 600.0
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)


def check_weights(weights: Mapping[str, Tensor]) -> None:
    """Check that all weights are finite numbers.

    Raises:
        ValueError: If a tensor has an unsupported data type, or a value is not finite.
    """
    for name, value in weights.items():
        if value.dtype not in _DTYPES or not bool(torch.isfinite(value).all()):
            raise ValueError(f"the weights '{name}' must be finite numbers")


@contextmanager
def limited_to(weights: Mapping[str, Tensor]) -> Generator[None]:
    """Limit the number and size of the weights of a network that is built in the `with` block.

    Args:
        weights: Stored weights of the network, by name.

    Raises:
        ValueError: If the network has more than about twice as many weights as are stored.
    """
    thread = threading.get_ident()
    tensors = 2 * len(weights) + _SPARE_TENSORS
    elements = 2 * sum(value.numel() for value in weights.values()) + _SPARE_ELEMENTS

    def count(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal tensors, elements
        del module, name
        if value is None or threading.get_ident() != thread:
            return
        tensors, elements = tensors - 1, elements - value.numel()
        if min(tensors, elements) < 0:
            raise ValueError("its network has more weights than are stored")

    hooks = (
        modules.register_module_parameter_registration_hook(count),
        modules.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_columns(encoder: Encoder, reference: Sequence[Sketch], environments: Sequence[str]) -> None:
    """Check the encoding of each column and its stored distribution in the training environments.

    Raises:
        ValueError: If a number is invalid, or encoding and distribution of a column are inconsistent.
    """
    names = [column.name for column in encoder.columns]
    for what, each in (("columns", names), ("environments", environments)):
        if not each or len(set(each)) < len(each):
            raise ValueError(f"its {what} must have different names")
    for sketch, column in zip(reference, encoder.columns, strict=True):
        kind, where = KINDS[column.kind], f"column '{column.name}'"
        if not _is_finite(column.fill, column.center, column.scale) or column.scale <= 0:
            raise ValueError(f"{where}: its scale must be a finite number above 0, and its center finite")
        if (sketch.name, sketch.kind, sketch.categorical, sketch.ordered) != (
            column.name, column.kind, kind.categorical, kind.ordered,
        ):  # fmt: skip
            raise ValueError(f"the reference of {where} does not match the model")
        for counts in (sketch.counts, sketch.alone):
            if counts.shape != (len(environments), sketch.bins) or counts.dtype != np.int64:
                raise ValueError(f"the reference of {where} does not match the model")
        if not (
            (sketch.alone >= 0) & (sketch.alone <= sketch.counts) & (sketch.counts < _LARGEST_COUNT)
        ).all():
            raise ValueError(f"the reference of {where} has impossible counts")
        if (
            sketch.knots.ndim != 1
            or not np.isfinite(sketch.knots).all()
            or (np.diff(sketch.knots) <= 0).any()
        ):
            raise ValueError(f"the reference of {where} must have increasing knots")
        if len(set(sketch.categories)) < len(sketch.categories):
            raise ValueError(f"{where}: its categories must differ")


def check_other_columns(encoder: Encoder, others: Sequence[ColumnEncoding]) -> None:
    """Check the columns that the predictor uses without encoding.

    Raises:
        ValueError: If two columns have the same name, or the kind of a column is unknown.
    """
    names = [column.name for column in (*encoder.columns, *others)]
    if len(set(names)) < len(names) or any(column.kind not in KINDS for column in others):
        raise ValueError("other_columns: must have different names and known kinds")


def check_target(
    task: str, classes: Sequence[str], target_type: TargetType, scale: float, center: float
) -> None:
    """Check the classes, data type, scale and center of the target.

    Raises:
        ValueError: If classes, type, scale or center are invalid for the task.
    """
    number = len(classes)
    if not (number == 0 if task == Regression.name else number == 2 if task == "binary" else number > 1):
        raise ValueError(f"classes: a {task} task cannot have {number}")
    if len(set(classes)) < number:
        raise ValueError("classes: their names must differ")
    if not _is_finite(scale, center) or scale <= 0:
        raise ValueError("scale: the target's scale must be a finite number above 0, and its center finite")
    if target_type.values and len(target_type.values) != number:
        raise ValueError("target_type: each class must have one value")
    # A type such as S1000000000 takes a gigabyte per value.
    if re.search(r"\d{4}", target_type.dtype + target_type.categories_dtype):
        raise ValueError("target_type: unknown type")


def check_density(density: InputDensity | None, width: int) -> None:
    """Check the density of the training inputs.

    Raises:
        ValueError: If a number is outside its range, or array shapes do not match.
    """
    if density is None:
        return
    whitening, centers, distances = density.whitening, density.centers, density.distances
    _check_arrays("density", (whitening, centers, distances))
    if (
        whitening.shape not in ((width,), (width, width))
        or centers.ndim != 2
        or not len(centers)
        or centers.shape[1] != width
        or distances.ndim != 1
        or not 1 <= len(distances) <= MOST_DISTANCES
        or (np.diff(distances) < 0).any()
    ):
        raise ValueError("density: its arrays do not match the inputs")


def check_serving(serving: Serving | None, task: str) -> None:
    """Check the temperature, the conformal scores, and the estimator of a batch's accuracy or RMSE.

    Raises:
        ValueError: If a number is outside its range, or array shapes do not match.
    """
    if serving is None:
        return
    _check_arrays("serving", (serving.scores,))
    scores, score, regression = serving.scores, serving.score, task == Regression.name
    fewest = 1 if serving.same_environment else FEWEST_ENVIRONMENTS
    if (
        not _is_finite(serving.temperature, score.offset, score.spread)
        or serving.temperature <= 0
        or (regression and serving.temperature != 1)
        or score.regression != regression
        or score.spread < 0
        or score.freedom < 1
        or abs(score.offset) > _LARGEST_OFFSET
    ):
        raise ValueError("serving: its numbers are out of range")
    if (
        scores.ndim != 2
        or len(scores) != len(set(serving.environments))
        or len(scores) < fewest
        or (serving.same_environment and len(scores) > 1)
        or not scores.shape[1]
        or (scores < 0).any()
        or (np.diff(scores, axis=1) < 0).any()
    ):
        raise ValueError("serving: its scores do not match the model")


def check_adaptation(adaptation: Adaptation | None, task: str, n_classes: int) -> None:
    """Check the intercept and slope of an adapted model.

    Raises:
        ValueError: If a value is not finite, or the number of intercepts does not match the number of
            classes.
    """
    if adaptation is None:
        return
    if not _is_finite(adaptation.slope, *adaptation.shift) or adaptation.n_labels < 1:
        raise ValueError("adaptation: its numbers must be finite")
    if len(adaptation.shift) != (n_classes if task == "multiclass" else 1):
        raise ValueError("adaptation: must have one number per class")
    if adaptation.before.keys() != adaptation.after.keys():
        raise ValueError("adaptation: must have the same scores before and after")


def _check_arrays(where: str, arrays: Sequence[NDArray[Any]]) -> None:
    if not all(each.dtype == np.float64 and np.isfinite(each).all() for each in arrays):
        raise ValueError(f"{where}: its arrays must be finite numbers")


def _is_finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))
