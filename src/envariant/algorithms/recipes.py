"""The named algorithms: each a line or two that composes the parts.

A recipe is a name, a sentence and a composition with its defaults. Its hyperparameters are the fields of
its parts; nothing about them is written here again.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast, final, get_args, get_origin, get_type_hints

from envariant import specs
from envariant.algorithms.composition import Composition
from envariant.algorithms.contract import Part
from envariant.algorithms.gradients.and_mask import AndMask
from envariant.algorithms.gradients.mean import MeanGradient
from envariant.algorithms.penalties.irm import IRM
from envariant.algorithms.penalties.vrex import VREx
from envariant.algorithms.weightings.mean import Mean
from envariant.algorithms.weightings.mm_rex import MMREx
from envariant.algorithms.weightings.sum import Sum
from envariant.errors import EnvariantError, unknown_name
from envariant.schedules import Schedule, schedule
from envariant.search_space import Range, ranges


@final
@dataclass(frozen=True)
class Hyperparameter:
    """One setting of a recipe: where it lives, what it is by default and where a search may look."""

    name: str
    part: str
    default: Any
    range: Range | None


@final
@dataclass(frozen=True)
class Recipe:
    """A named algorithm."""

    name: str
    summary: str
    default: Composition

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that say something: a plain mean is left out, unless there is nothing else."""
        said = tuple(p for p in self.default.parts if not isinstance(p, Mean | MeanGradient))
        return said or (self.default.weighting,)

    @property
    def paper(self) -> str:
        """The papers of the parts."""
        return "; ".join(dict.fromkeys(part.paper for part in self.parts))

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Every setting, with default and range."""
        found = [
            Hyperparameter(f.name, part.name, getattr(part, f.name), ranges(type(part)).get(f.name))
            for part in self.parts
            for f in _fields(part)
        ]
        loss = [Hyperparameter(key, "loss", getattr(self.default, key), None) for key in _LOSS_SETTINGS]
        return (*found, *loss)

    def build(self, settings: Mapping[str, Any]) -> Composition:
        """The composition with some settings changed.

        Raises:
            EnvariantError: a setting is unknown, or its value is not allowed.
        """
        changes: dict[str, dict[str, Any]] = {}
        owners = {h.name: h.part for h in self.hyperparameters}
        for key, value in settings.items():
            if key not in owners:
                raise unknown_name("setting", key, owners, where=self.name)
            changes.setdefault(owners[key], {})[key] = value
        loss = {k: _typed(self.name, self.default, k, v) for k, v in changes.pop("loss", {}).items()}

        def changed(part: Part) -> Any:
            new = {k: _typed(self.name, part, k, v) for k, v in changes.get(part.name, {}).items()}
            return dataclasses.replace(cast("Any", part), **new) if new else part

        return dataclasses.replace(
            self.default,
            weighting=changed(self.default.weighting),
            penalties=tuple(map(changed, self.default.penalties)),
            combination=changed(self.default.combination),
            **loss,
        )


_LOSS_SETTINGS = ("l2", "rescale")

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("erm", "Least mean risk; environments are ignored.", Composition()),
        Recipe(
            "irm",
            "Features on which one classifier is optimal in every environment.",
            Composition(penalties=(IRM(),), rescale=True),
        ),
        Recipe(
            "vrex",
            "Equal risk in every environment.",
            Composition(Sum(), penalties=(VREx(),), rescale=True),
        ),
        Recipe(
            "mm-rex",
            "Least worst risk over affine combinations of environments.",
            Composition(MMREx(), rescale=True),
        ),
        Recipe(
            "and-mask",
            "Steps only along the weights on whose direction all environments agree.",
            Composition(combination=AndMask()),
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        EnvariantError: there is none; the message suggests the nearest.
    """
    if name not in RECIPES:
        raise unknown_name("algorithm", name, RECIPES)
    return RECIPES[name]


def settings_of(name: str, algorithm: Composition) -> dict[str, Any]:
    """Every hyperparameter of `algorithm` as a recipe names it, in a form that can be stored."""
    parts = {part.name: part for part in algorithm.parts}
    values = {
        h.name: getattr(algorithm if h.part == "loss" else parts[h.part], h.name)
        for h in recipe(name).hyperparameters
    }
    return {k: str(v) if isinstance(v, Schedule) else v for k, v in values.items()}


def _fields(part: Part) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cast("Any", part))


def _typed(where: str, owner: object, key: str, value: Any) -> Any:
    """`value` in the type that the field declares."""
    hint = get_type_hints(type(owner), include_extras=True)[key]
    kind: Any = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if kind is Schedule:
        return schedule(value)
    if kind is bool and not isinstance(value, bool):
        raise EnvariantError(f"{where}: {key} must be true or false; got {specs.format_value(value)}")
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EnvariantError(f"{where}: {key} must be a number; got {specs.format_value(value)}")
        return float(value)
    return value
