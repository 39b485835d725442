"""The named algorithms: each a line or two that composes the parts.

A recipe is a name, a sentence and a composition with its defaults. Its hyperparameters are the fields of
its parts; nothing about them is written here again.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, final

from envariant import specs
from envariant.algorithms.composition import Composition
from envariant.algorithms.contract import Part, Weighting
from envariant.algorithms.gradients.and_mask import AndMask
from envariant.algorithms.penalties.iga import IGA
from envariant.algorithms.penalties.irm import IRM
from envariant.algorithms.penalties.vrex import VREx
from envariant.algorithms.weightings.mean import Mean
from envariant.algorithms.weightings.mm_rex import MMREx
from envariant.algorithms.weightings.sum import Sum
from envariant.errors import unknown_name
from envariant.schedules import Schedule
from envariant.search_space import Choice, Range, ranges


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
        return self.default.telling_parts

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
            if part not in _WEIGHTINGS.values()
            for f in dataclasses.fields(cast("Any", part))
        ]
        if self.default.weighting in _WEIGHTINGS.values():
            usual = _weighting_name(self.default.weighting)
            found.append(Hyperparameter("weighting", _LOSS, usual, Choice(tuple(_WEIGHTINGS))))
        found += [Hyperparameter(key, _LOSS, getattr(self.default, key), None) for key in ("l2", "rescale")]
        return tuple(found)

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
        loss = changes.pop(_LOSS, {})
        weighting = self.default.weighting
        if "weighting" in loss:
            name = loss.pop("weighting")
            if name not in _WEIGHTINGS:
                raise unknown_name("weighting", str(name), _WEIGHTINGS, where=self.name)
            weighting = _WEIGHTINGS[name]

        def changed(part: Part) -> Any:
            new = specs.checked(type(part), changes.get(part.name, {}), self.name)
            return dataclasses.replace(cast("Any", part), **new) if new else part

        return dataclasses.replace(
            self.default,
            weighting=changed(weighting),
            penalties=tuple(map(changed, self.default.penalties)),
            combination=changed(self.default.combination),
            **specs.checked(Composition, loss, self.name),
        )


_LOSS = "loss"
# Weightings without hyperparameters, which any penalty or combination may stand beside.
_WEIGHTINGS: dict[str, Weighting] = {"mean": Mean(), "rows": Mean(over="rows"), "sum": Sum()}

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
            Composition(penalties=(VREx(),), rescale=True),
        ),
        Recipe(
            "mm-rex",
            "Least worst risk over affine combinations of environments.",
            Composition(MMREx(), rescale=True),
        ),
        Recipe(
            "iga",
            "Gradients that agree from environment to environment.",
            Composition(penalties=(IGA(),)),
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
    owners: dict[str, object] = {_LOSS: algorithm, **{part.name: part for part in algorithm.parts}}
    values = {h.name: getattr(owners[h.part], h.name) for h in recipe(name).hyperparameters}
    return {key: _stored(value) for key, value in values.items()}


def _stored(value: Any) -> Any:
    if isinstance(value, Weighting):
        return _weighting_name(value)
    return str(value) if isinstance(value, Schedule) else value


def _weighting_name(weighting: Weighting) -> str:
    return next(name for name, known in _WEIGHTINGS.items() if known == weighting)
