"""`Recipe`: a named algorithm whose hyperparameters are the fields of its parts."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, final

from envariant.algorithms.base import Part
from envariant.algorithms.composition import RISK_AGGREGATORS, Composition
from envariant.algorithms.hyperparameters import rescale, rescaled_step
from envariant.core import specs
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.schedules import Schedule, schedule
from envariant.core.search_space import Choice, Range, ranges

LOSS = "loss"
"""Value of `Hyperparameter.part` for settings of the whole loss, such as `l2`."""


@final
@dataclass(frozen=True)
class Hyperparameter:
    """Hyperparameter of a recipe, with its default and search range.

    Attributes:
        name: Name of the hyperparameter: the name of the field, prefixed by the name of the part if two parts
            have a field of this name.
        part: Name of the part that has the hyperparameter, or `LOSS` for hyperparameters of the whole loss.
        field: Name of the part's field that holds the hyperparameter.
        default: Default value.
        range: Search range; None if the hyperparameter is not searched.
    """

    name: str
    part: str
    field: str
    default: Any
    range: Range | None


@final
@dataclass(frozen=True)
class Recipe:
    """Named algorithm with default hyperparameters.

    Attributes:
        name: Name in specifications such as `vrex + and-mask`.
        summary: One-sentence summary.
        default: Algorithm with default hyperparameters.
    """

    name: str
    summary: str
    default: Composition

    def __str__(self) -> str:
        return self.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """Parts of the default algorithm, as listed by `Composition.non_default_parts`."""
        return self.default.non_default_parts

    @property
    def paper(self) -> str:
        """Papers that introduced the parts, separated by semicolons."""
        return "; ".join(dict.fromkeys(part.paper for part in self.parts))

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """All hyperparameters of the recipe, with defaults and search ranges."""
        parts = [part for part in self.parts if part not in RISK_AGGREGATORS.values()]
        fields = [(part, f.name) for part in parts for f in dataclasses.fields(cast("Any", part))]
        counts = Counter(name for _, name in fields)
        settings = [
            Hyperparameter(
                name if counts[name] == 1 else f"{part.name.replace('-', '_')}_{name}",
                part.name,
                name,
                getattr(part, name),
                ranges(type(part)).get(name),
            )
            for part, name in fields
        ]
        step = self.default.training_step
        plain, aggregator = step is None, self.default.risk_aggregator
        if (step is None or step.aggregates_risk) and aggregator in RISK_AGGREGATORS.values():
            key, choice = "risk_aggregator", Choice(tuple(RISK_AGGREGATORS))
            settings.append(Hyperparameter(key, LOSS, key, aggregator.name, choice))
        for key in ("l2", "normalize_loss") if plain else ("l2",):
            settings.append(Hyperparameter(key, LOSS, key, getattr(self.default, key), None))
        return tuple(settings)

    def build(self, settings: Mapping[str, Any]) -> Composition:
        """Build the algorithm with new values for some hyperparameters.

        Args:
            settings: New values by hyperparameter name.

        Raises:
            EnvariantError: If a setting is unknown or its value is not allowed.
        """
        if not isinstance(settings, Mapping):
            raise EnvariantError(f"{self.name}: settings must be a mapping from names to values")
        changes: dict[str, dict[str, Any]] = {}
        known = {h.name: h for h in self.hyperparameters}
        for key, value in settings.items():
            if key not in known:
                raise unknown_name("setting", key, known, where=self.name)
            changes.setdefault(known[key].part, {})[known[key].field] = value
        loss, default = changes.pop(LOSS, {}), self.default
        risk_aggregator = default.risk_aggregator
        if "risk_aggregator" in loss:
            name = loss.pop("risk_aggregator")
            if name not in RISK_AGGREGATORS:
                raise unknown_name("risk_aggregator", str(name), RISK_AGGREGATORS, where=self.name)
            risk_aggregator = RISK_AGGREGATORS[name]

        def changed(part: Part | None) -> Any:
            if part is None:
                return None
            new = specs.checked(type(part), changes.get(part.name, {}), self.name)
            return dataclasses.replace(cast("Any", part), **new) if new else part

        return dataclasses.replace(
            default,
            risk_aggregator=changed(risk_aggregator),
            penalties=tuple(map(changed, default.penalties)),
            gradient_aggregator=changed(default.gradient_aggregator),
            training_step=changed(default.training_step),
            environment_inference=changed(default.environment_inference),
            **specs.checked(Composition, loss, self.name),
        )

    def rescale(self, settings: Mapping[str, Any], old: int, new: int) -> tuple["Recipe", dict[str, Any]]:
        """Scale all switch points, in the recipe and in the given settings, to another run length.

        Args:
            settings: Values of hyperparameters by name.
            old: Number of steps for which the recipe and the values were chosen.
            new: Number of steps of the run.
        """
        scaled, steps = dict(settings), {part.name: part.switch_steps() for part in self.parts}
        for h in self.hyperparameters:
            if h.name in settings and isinstance(h.default, Schedule):
                scaled[h.name] = schedule(settings[h.name]).rescale(old, new)
            elif h.name in settings and h.field in steps.get(h.part, {}) and old != new:
                scaled[h.name] = rescaled_step(settings[h.name], old, new)
        return dataclasses.replace(self, default=rescale(self.default, old, new)), scaled

    def own(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return only the settings that belong to a part, without those of the whole loss, such as `l2`."""
        names = {h.name for h in self.hyperparameters if h.part != LOSS}
        return {key: value for key, value in settings.items() if key in names}

    def settings(self, spec: specs.Spec) -> dict[str, Any]:
        """Return the settings of a parsed specification such as `coral(1.0)` or `irm(l2=0.001)`.

        A value without a name, such as 1.0, sets the first hyperparameter.

        Raises:
            EnvariantError: If more than one value is given without a name, or a setting occurs twice.
        """
        first = self.hyperparameters[0]
        if len(spec.positional) > (first.part != LOSS):
            raise EnvariantError(f"{self.name}: settings must be named, as in {self.name}(l2=0.001)")
        values = dict(zip([first.name], spec.positional, strict=False))
        if repeated := values.keys() & spec.keywords.keys():
            raise EnvariantError(f"{self.name}: '{repeated.pop()}' occurs twice")
        return {**values, **spec.keywords}
