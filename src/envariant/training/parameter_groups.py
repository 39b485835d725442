"""Learning rates and weight decays by parameter group: `groups(featurizer=1e-5, head=1e-3)`.

The name of a group is a prefix of parameter names: the group `head` contains `head.weight`. If several groups
match a parameter, the longest prefix is used. Importing this module does not import PyTorch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self, cast, final

from envariant.core import specs
from envariant.core.errors import EnvariantError, closest_name, listed
from envariant.core.named_values import written
from envariant.core.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "groups"
"""First word of the string form, `groups(…)`."""

Value = Schedule | float


@final
@dataclass(frozen=True)
class ByGroup:
    """Values by parameter group, written `groups(featurizer=1e-5, head=1e-3, others=1e-4)`.

    A group whose name is not a valid identifier is written as a pair, such as `("layers.0", 1e-5)` in
    `groups(("layers.0", 1e-5), others=1e-3)`.

    Attributes:
        values: Pairs of group name and value; a value is a number or a schedule.
        others: Value for all parameters that belong to no group. If None, `of` uses its argument `default`.
    """

    values: tuple[tuple[str, Value], ...]
    others: Value | None = None

    def __str__(self) -> str:
        others = () if self.others is None else (("others", self.others),)
        return written(NAME, (*self.values, *others))

    def resolve(self, steps: int) -> Self:
        """Convert relative switch points of the schedules to step numbers, for a run of `steps` steps."""

        def resolved(value: Value) -> Value:
            return value.resolve(steps) if isinstance(value, Schedule) else value

        pairs = tuple((name, resolved(value)) for name, value in self.values)
        return type(self)(pairs, None if self.others is None else resolved(self.others))

    def scaled(self, factor: float) -> Self:
        """Return the groups with all values multiplied by a factor."""

        def product(value: Value) -> Value:
            return value.scaled(factor) if isinstance(value, Schedule) else value * factor

        pairs = tuple((name, product(value)) for name, value in self.values)
        return type(self)(pairs, None if self.others is None else product(self.others))

    def of(self, names: Iterable[str], option: str, default: float | None = None) -> dict[str, Value]:
        """Return the value of each parameter.

        Args:
            names: Names of the model's parameters.
            option: Name of the option, for error messages.
            default: Value of parameters in no group if `others` is None. If `default` is None too, such
                parameters raise an error.

        Raises:
            EnvariantError: If a group contains no parameter, or a parameter is in no group.
        """
        names, values = tuple(names), dict(self.values)
        others = default if self.others is None else self.others
        members = {group: {name for name in names if _contains(group, name)} for group in values}
        if "featurizer" in values and not members["featurizer"]:
            # A model without a module of that name: everything below its head.
            inside = {name for name in names if not _contains("head", name)}
            members["featurizer"] = inside if len(inside) < len(names) else set()
        for group, own in members.items():
            if not own:
                raise _unknown_group(group, names, option)
        assigned: dict[str, Value] = {}
        for group in sorted(values, key=len):
            assigned |= dict.fromkeys(members[group], values[group])
        left = [name for name in names if name not in assigned]
        if left and others is None:
            raise EnvariantError(
                f"{option}: no group contains {listed(left)}; add a value for all other parameters, such as "
                f"others=1e-3"
            )
        return {name: assigned.get(name, cast("Value", others)) for name in names}


@final
@dataclass(frozen=True)
class ParameterGroups:
    """Learning rates and weight decays that differ between the parameters of a model.

    Attributes:
        rates: Learning rates by group; None for one learning rate.
        decays: Weight decays by group; None for one weight decay.
        weights_only: Whether biases and parameters of normalization layers are exempt from weight decay.
    """

    rates: ByGroup | None = None
    decays: ByGroup | None = None
    weights_only: bool = False

    def assigned(
        self, module: "nn.Module", params: Mapping[str, "Tensor"], auxiliary: Iterable[str], rate: Value,
        decay: float,
    ) -> list[tuple[Value, float]]:  # fmt: skip
        """Return the learning rate and the weight decay of each parameter, in the order of `params`.

        Args:
            module: The model.
            params: Parameters of the model and of auxiliary networks by name.
            auxiliary: Names of the auxiliary networks, which belong to no group.
            rate: Learning rate of parameters in no group.
            decay: Weight decay of parameters in no group.

        Raises:
            EnvariantError: If a group contains no parameter, or a parameter has no learning rate.
        """
        own = [name for name in params if name.split(".")[0] not in set(auxiliary)]
        rates = {} if self.rates is None else self.rates.of(own, "learning_rate")
        decays = {} if self.decays is None else self.decays.of(own, "weight_decay", 0.0)
        if self.weights_only:
            spared = norms_and_biases(module, {name: params[name] for name in own})
            decays = {**decays, **dict.fromkeys(spared, 0.0)}
        return [(rates.get(name, rate), cast("float", decays.get(name, decay))) for name in params]


def grouped(
    rate: Value | ByGroup, decay: float | ByGroup, default: float, steps: int, *, weights_only: bool
) -> tuple[Value, ParameterGroups]:
    """Return the learning rate of parameters in no group, and the run's `ParameterGroups`.

    Args:
        rate: Learning rate of the run.
        decay: Weight decay of the run.
        default: Default learning rate of the data set. Auxiliary networks use it if `rate` is a `ByGroup`
            without `others`.
        steps: Number of steps of the run, to resolve relative switch points of schedules.
        weights_only: Whether biases and parameters of normalization layers are exempt from weight decay.
    """
    by_name = rate.resolve(steps) if isinstance(rate, ByGroup) else None
    if isinstance(rate, ByGroup):
        rate = default if rate.others is None else rate.others
    groups = ParameterGroups(by_name, decay if isinstance(decay, ByGroup) else None, weights_only)
    return rate.resolve(steps) if isinstance(rate, Schedule) else rate, groups


def segmented(
    assigned: Sequence[Sequence[tuple[Value, float]]],
) -> tuple[list[tuple[Value, ...]], list[tuple[float, ...]], list[int]]:
    """Merge adjacent parameters with the same learning rate and weight decay into segments.

    Two adjacent parameters are merged if, in every replica, they have the same learning rate and the same
    weight decay. Different replicas may have different values.

    Args:
        assigned: Learning rate and weight decay of each parameter, for each replica.

    Returns:
        Learning rates of all segments, for each replica; weight decays of all segments, for each replica; and
        the number of parameters in each segment.
    """
    groups = [(own, len(list(same))) for own, same in groupby(zip(*assigned, strict=True))]
    rates = [tuple(own[k][0] for own, _ in groups) for k in range(len(assigned))]
    decays = [tuple(own[k][1] for own, _ in groups) for k in range(len(assigned))]
    return rates, decays, [count for _, count in groups]


def norms_and_biases(module: "nn.Module", params: Mapping[str, "Tensor"]) -> set[str]:
    """Return the names of parameters with one dimension, and of all parameters of normalization layers.

    Args:
        module: Module of the model.
        params: Parameters of the model by name.
    """
    in_norms = {
        f"{place}.{name}" if place else name
        for place, part in module.named_modules()
        if "Norm" in type(part).__name__
        for name, _ in part.named_parameters(recurse=False)
    }
    return {name for name, value in params.items() if value.dim() <= 1 or name in in_norms}


def by_group(value: object, convert: Callable[[object], Value]) -> ByGroup | None:
    """Convert a mapping, or a string `groups(…)`, to values by group; return None for anything else.

    Args:
        value: Mapping from group name to value, a `ByGroup`, or a string.
        convert: Function that checks and converts one value; it raises a ValueError.

    Raises:
        ValueError: If a name or a value is not allowed.
    """
    if isinstance(value, ByGroup):
        return value
    if isinstance(value, str) and value.strip().partition("(")[0].strip() == NAME:
        try:
            spec = specs.parse(value)
        except EnvariantError as error:
            raise ValueError(f"is not readable ({error})") from None
        pairs: list[Any] = [*spec.positional, *spec.keywords.items()]
    elif isinstance(value, Mapping):
        pairs = list(cast("Mapping[Any, Any]", value).items())
    else:
        return None
    values: dict[str, Value] = {}
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(cast("tuple[Any, ...]", pair)) == 2) or not isinstance(
            pair[0], str
        ):
            raise ValueError("must give every group by name, as in groups(featurizer=1e-5, head=1e-3)")
        if pair[0] in values:
            raise ValueError(f"must give every group once; '{pair[0]}' is given twice")
        try:
            values[pair[0]] = convert(pair[1])
        except ValueError as error:
            raise ValueError(f"of the group '{pair[0]}' {error}") from None
    others = values.pop("others", None)
    if not values:
        raise ValueError("must name at least one group, as in groups(featurizer=1e-5, head=1e-3)")
    return ByGroup(tuple(values.items()), others)


def _contains(group: str, name: str) -> bool:
    return name == group or name.startswith(f"{group}.")


def _unknown_group(group: str, names: Iterable[str], option: str) -> EnvariantError:
    parts = [name.split(".") for name in names]
    known = {".".join(words[:k]) for words in parts for k in range(1, len(words) + 1)}
    similar = closest_name(group, sorted(known, key=len))
    hint = "" if similar is None else f"did you mean '{similar}'? "
    first = listed(list(dict.fromkeys(words[0] for words in parts)), 12)
    return EnvariantError(
        f"{option}: no parameter of the model belongs to the group '{group}'; {hint}groups are {first}, and "
        f"the beginnings of parameter names"
    )
