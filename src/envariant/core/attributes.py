"""Names of the row attributes that the library uses, and a function that returns training weights."""

from collections.abc import Mapping
from typing import Any

WEIGHT = "weight"
"""Sampling weights, the relative frequencies of rows in minibatches."""

CLASS_WEIGHT = "class_weight"
"""Weight of each row's class; in training, it multiplies the sampling weight, but scores do not use it."""

ROW_GROUP = "row_group"
"""Group numbers, such as those of patients; splits keep the rows of a group together."""


def training_weights(attributes: Mapping[str, Any]) -> Any:
    """Return the training weight of each row, `[rows]`; None if rows have no weights.

    The weight is the sampling weight times the class weight, or the only one of them that is given.

    Args:
        attributes: Row attributes of one environment, by name.
    """
    weights = [attributes[name] for name in (WEIGHT, CLASS_WEIGHT) if name in attributes]
    return None if not weights else weights[0] if len(weights) == 1 else weights[0].double() * weights[1]
