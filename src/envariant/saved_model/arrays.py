"""Conversion of a saved model's arrays to tensors, which are stored separately from the description."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from envariant.analysis.column_sketch import Sketch

_OF_SKETCHES = ("knots", "counts", "alone")
_BY_FIELD = {"density": ("whitening", "centers", "distances"), "serving": ("scores",)}

EXCLUDED: Mapping[str, Any] = {
    "predictor": True,
    "reference": {"__all__": set(_OF_SKETCHES)},
    **{field: set(names) for field, names in _BY_FIELD.items()},
}
"""Fields that the description leaves out, whole or in part."""


def to_tensors(reference: Sequence[Sketch], parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert the arrays of a model to tensors, and return them by their names in the safetensors file.

    Args:
        reference: Distribution of each column in training.
        parts: Objects that contain arrays, by their field names in the model; None for a field that the model
            does not have.
    """
    tensors = {
        f"{name}{k}": torch.from_numpy(getattr(sketch, name))
        for k, sketch in enumerate(reference)
        for name in _OF_SKETCHES
    }
    for field, names in _BY_FIELD.items():
        if (part := parts[field]) is not None:
            tensors |= {f"{field}/{name}": torch.from_numpy(getattr(part, name)) for name in names}
    return tensors


def with_arrays(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Insert the stored arrays into the description of a model.

    The arrays may come from an untrusted source, so the caller must validate the result.

    Args:
        description: Description of the model, from its JSON text.
        tensors: All tensors of the saved model, by name.
    """
    fields = {key: value for key, value in description.items() if key not in ("schema", "inputs")}
    fields["reference"] = [
        {**sketch, **{name: tensors[f"{name}{k}"].numpy() for name in _OF_SKETCHES}}
        for k, sketch in enumerate(fields["reference"])
    ]
    for field, names in _BY_FIELD.items():
        if fields.get(field) is not None:
            fields[field] = {**fields[field], **{name: tensors[f"{field}/{name}"].numpy() for name in names}}
    return fields
