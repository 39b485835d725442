"""Checks of the types and ranges of the fields of a `Study`."""

from collections.abc import Mapping
from typing import Any, cast

from envariant.core.errors import EnvariantError, shown


def check_types(study: Any) -> None:
    """Check the types and ranges of the fields of a `Study`.

    Args:
        study: Study to check.

    Raises:
        EnvariantError: If a value has the wrong type or is out of range.
    """
    unbounded = float("inf")
    for key, kind, allowed, lowest, highest in (
        ("n_trials", int, "a whole number of at least 1", 1, unbounded),
        ("replicas", int, "a whole number of at least 1", 1, unbounded),
        ("holdout_fraction", float, "a number above 0 and below 1", 1e-12, 1 - 1e-12),
        ("lr_range", float, "a number of at least 1", 1, 1e100),
        ("seed", int, "a whole number in [0, 2³²)", 0, 2**32 - 1),
    ):
        number: object = getattr(study, key)
        is_number = isinstance(number, int if kind is int else (int, float))
        if isinstance(number, bool) or not is_number or not lowest <= cast("float", number) <= highest:
            raise EnvariantError(f"study: {key} must be {allowed}; got {shown(number)}")
    for key, kind, allowed in (
        ("name", str, "text"),
        ("metric", str, "the name of a metric"),
        ("settings", Mapping, "a mapping from options to values"),
        ("ranges", Mapping, "a mapping from algorithms to ranges"),
        ("store_predictions", bool, "true or false"),
        ("importance_columns", (tuple, list), "a list of column names"),
    ):
        if not isinstance(value := getattr(study, key), kind):
            raise EnvariantError(f"study: {key} must be {allowed}; got {shown(value)}")
    for label, declared in study.ranges.items():
        if not isinstance(declared, Mapping):
            raise EnvariantError(f"study: ranges of {label} must be a mapping; got {shown(declared)}")
