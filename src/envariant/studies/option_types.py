"""Checks of field types and ranges in a `Study`."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from envariant.core.errors import EnvariantError, shown, unknown_name

SPLITS = ("suggested", "each", "each-and-pairs")
"""Ways to choose test environments without naming them."""


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


def splits(declared: object) -> object:
    """Convert declared test environments to one of `SPLITS`, or to a tuple of tuples of names.

    Args:
        declared: One of `SPLITS`, a list of names, or a list of lists of names.

    Raises:
        EnvariantError: If the value has none of these forms, is empty, or contains the same set twice.
    """
    if isinstance(declared, str):
        if declared not in SPLITS:
            raise unknown_name("test_environments", declared, SPLITS, where="study")
        return declared
    if isinstance(declared, Sequence):
        sets = [(each,) if isinstance(each, str) else each for each in cast("Sequence[Any]", declared)]
        if all(isinstance(each, Sequence) and all(isinstance(name, str) for name in each) for each in sets):
            different = tuple(tuple(each) for each in sets)
            if not different or len({frozenset(names) for names in different}) < len(different):
                raise EnvariantError(
                    f"study: test_environments must be different sets of names; got {shown(declared)}"
                )
            return different
    raise EnvariantError(
        f"study: test_environments must be {', '.join(SPLITS)} or lists of names; got {declared!r}"
    )
