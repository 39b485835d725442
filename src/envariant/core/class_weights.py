"""Class weights, written `balanced`, `weights(1, 5)` (in the order of the classes) or `weights(yes=5)`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

from envariant.core import specs
from envariant.core.errors import EnvariantError, listed, unknown_name
from envariant.core.named_values import written

BALANCED = "balanced"


@final
@dataclass(frozen=True)
class ClassWeights:
    """Class weights used in training. The default is "balanced": all classes get the same total weight.

    Attributes:
        in_order: One weight per class, in the order of the classes; empty if weights are balanced or named.
        by_name: Pairs of class name and weight; other classes have weight 1.
    """

    in_order: tuple[float, ...] = ()
    by_name: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        if not self.in_order and not self.by_name:
            return BALANCED
        return written("weights", self.by_name, self.in_order)

    def of(self, classes: Sequence[str], totals: Sequence[float]) -> list[float]:
        """Return the weight of each class.

        Args:
            classes: Names of the classes.
            totals: Number of training rows of each class, or the total sampling weight of these rows.

        Raises:
            EnvariantError: If a class is unknown, or the number of weights differs from the number of
                classes.
        """
        if self.in_order and len(self.in_order) != len(classes):
            raise EnvariantError(
                f"class_weights: needs one weight for each of the {len(classes)} classes "
                f"({listed(classes)}), got {len(self.in_order)}"
            )
        for name, _ in self.by_name:
            if name not in classes:
                raise unknown_name("class", name, classes, where="class_weights")
        if self.in_order:
            return list(self.in_order)
        if self.by_name:
            return [dict(self.by_name).get(name, 1.0) for name in classes]
        present = sum(total > 0 for total in totals)
        return [sum(totals) / (present * total) if total > 0 else 0.0 for total in totals]


def class_weights(value: object) -> ClassWeights | None:
    """Convert "balanced", weights in the order of the classes, or weights by class name, to `ClassWeights`.

    Raises:
        ValueError: If the value is not allowed. The message does not name the option; the caller adds its
            name.
    """
    if value is None or isinstance(value, ClassWeights):
        return value
    allowed = 'must be "balanced", one weight per class, or a mapping from class to weight'
    positional: Sequence[Any] = ()
    named: Mapping[Any, Any] = {}
    if isinstance(value, str):
        try:
            spec = specs.parse(value)
        except EnvariantError as error:
            raise ValueError(f"{allowed} ({error})") from None
        if spec.name == BALANCED and not spec.positional and not spec.keywords:
            return ClassWeights()
        if spec.name != "weights":
            raise ValueError(allowed)
        positional = [each for each in spec.positional if not isinstance(each, tuple)]
        pairs = [each for each in spec.positional if isinstance(each, tuple)]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(allowed)
        named = {**dict(pairs), **spec.keywords}
    elif isinstance(value, Mapping):
        named = cast("Mapping[Any, Any]", value)
    elif hasattr(value, "__len__") and hasattr(value, "__iter__"):
        positional = list(cast("Sequence[Any]", value))
    weights = [_weight(each) for each in (*positional, *named.values())]
    if bool(positional) == bool(named) or None in weights or (positional and not any(weights)):
        raise ValueError(f"{allowed}, with weights of at least 0 and not all 0")
    numbers = cast("list[float]", weights)
    if positional:
        return ClassWeights(tuple(numbers))
    return ClassWeights((), tuple(zip(map(_name, named), numbers, strict=True)))


def _name(key: object) -> str:
    """Return the name of a class: 1.0 is the class "1", and True is the class "true"."""
    if isinstance(key, bool):
        return str(key).lower()
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)


def _weight(value: Any) -> float | None:
    try:
        number = float("nan" if isinstance(value, bool | str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
