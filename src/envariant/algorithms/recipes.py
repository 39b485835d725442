"""The named algorithms: each a line or two that composes the parts.

A recipe is a name, a sentence and an algorithm with its defaults. Its hyperparameters are the fields of
its parts; nothing about them is written here again. Recipes add up: `vrex + and-mask(threshold=0.8)`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from operator import add
from typing import Any, cast, final

from envariant.algorithms.base import Part, RiskAggregator
from envariant.algorithms.composition import Composition
from envariant.algorithms.environment_inference.eiil import EIIL
from envariant.algorithms.gradient_aggregators.and_mask import AndMask
from envariant.algorithms.gradient_aggregators.pcgrad import PCGrad
from envariant.algorithms.gradient_aggregators.sand_mask import SandMask
from envariant.algorithms.penalties.bottleneck import InformationBottleneck
from envariant.algorithms.penalties.cad import CAD
from envariant.algorithms.penalties.causirl import CausIRL
from envariant.algorithms.penalties.clove import CLOvE
from envariant.algorithms.penalties.coral import CORAL
from envariant.algorithms.penalties.fishr import Fishr
from envariant.algorithms.penalties.iga import IGA
from envariant.algorithms.penalties.irm import IRM
from envariant.algorithms.penalties.loss_variance import LossVariance
from envariant.algorithms.penalties.mmd import MMD
from envariant.algorithms.penalties.rdm import RDM
from envariant.algorithms.penalties.sd import SpectralDecoupling
from envariant.algorithms.penalties.selfreg import SelfReg
from envariant.algorithms.penalties.vrex import VREx
from envariant.algorithms.risk_aggregators.eqrm import EQRM
from envariant.algorithms.risk_aggregators.group_dro import GroupDRO
from envariant.algorithms.risk_aggregators.mean import Mean
from envariant.algorithms.risk_aggregators.mm_rex import MMREx
from envariant.algorithms.risk_aggregators.sum import SumRisk
from envariant.algorithms.risk_aggregators.worst import WorstCaseRisk
from envariant.algorithms.training_steps.adrmx import ADRMX
from envariant.algorithms.training_steps.arm import ARM
from envariant.algorithms.training_steps.dann import DANN
from envariant.algorithms.training_steps.erm_plus import ERMPlus
from envariant.algorithms.training_steps.fish import Fish
from envariant.algorithms.training_steps.mixup import Mixup
from envariant.algorithms.training_steps.mldg import MLDG
from envariant.algorithms.training_steps.mtl import MTL
from envariant.algorithms.training_steps.rsc import RSC
from envariant.algorithms.training_steps.sagnet import SagNet
from envariant.algorithms.training_steps.transfer import Transfer
from envariant.algorithms.training_steps.trm import TRM
from envariant.algorithms.training_steps.urm import URM
from envariant.core import specs
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.schedules import Schedule
from envariant.core.search_space import Choice, Range, ranges

ENTRY_POINTS = "envariant.algorithms"
"""The group under which a package names recipes of its own, as `name = "module:recipe"`."""


@final
@dataclass(frozen=True)
class Hyperparameter:
    """One setting of a recipe: where it lives, what it is by default and where a search may look.

    Attributes:
        name: of the setting; with the part's before it where two parts have one of the same name.
        part: the part's name.
        field: its name in the part.
        default: what it is unless set.
        range: where a search may look.
    """

    name: str
    part: str
    field: str
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
        return self.default.non_default_parts

    @property
    def paper(self) -> str:
        """The papers of the parts."""
        return "; ".join(dict.fromkeys(part.paper for part in self.parts))

    @property
    def hyperparameters(self) -> tuple[Hyperparameter, ...]:
        """Every setting, with default and range."""
        settable = [part for part in self.parts if part not in _WEIGHTINGS.values()]
        fields = [(part, f.name) for part in settable for f in dataclasses.fields(cast("Any", part))]
        times = Counter(name for _, name in fields)
        found = [
            Hyperparameter(
                name if times[name] == 1 else f"{part.name.replace('-', '_')}_{name}",
                part.name,
                name,
                getattr(part, name),
                ranges(type(part)).get(name),
            )
            for part, name in fields
        ]
        if self.default.training_step is None and self.default.risk_aggregator in _WEIGHTINGS.values():
            usual = _weighting_name(self.default.risk_aggregator)
            found.append(
                Hyperparameter("risk_aggregator", _LOSS, "risk_aggregator", usual, Choice(tuple(_WEIGHTINGS)))
            )
        for key in ("l2", "normalize_loss") if self.default.training_step is None else ("l2",):
            found.append(Hyperparameter(key, _LOSS, key, getattr(self.default, key), None))
        return tuple(found)

    def build(self, settings: Mapping[str, Any]) -> Composition:
        """The composition with some settings changed.

        Raises:
            EnvariantError: a setting is unknown, or its value is not allowed.
        """
        changes: dict[str, dict[str, Any]] = {}
        known = {h.name: h for h in self.hyperparameters}
        for key, value in settings.items():
            if key not in known:
                raise unknown_name("setting", key, known, where=self.name)
            changes.setdefault(known[key].part, {})[known[key].field] = value
        loss = changes.pop(_LOSS, {})
        risk_aggregator = self.default.risk_aggregator
        if "risk_aggregator" in loss:
            name = loss.pop("risk_aggregator")
            if name not in _WEIGHTINGS:
                raise unknown_name("risk_aggregator", str(name), _WEIGHTINGS, where=self.name)
            risk_aggregator = _WEIGHTINGS[name]

        def changed(part: Part) -> Any:
            new = specs.checked(type(part), changes.get(part.name, {}), self.name)
            return dataclasses.replace(cast("Any", part), **new) if new else part

        return dataclasses.replace(
            self.default,
            risk_aggregator=changed(risk_aggregator),
            penalties=tuple(map(changed, self.default.penalties)),
            gradient_aggregator=changed(self.default.gradient_aggregator),
            training_step=None if self.default.training_step is None else changed(self.default.training_step),
            environment_inference=None
            if self.default.environment_inference is None
            else changed(self.default.environment_inference),
            **specs.checked(Composition, loss, self.name),
        )

    def own(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some settings that belong to its parts, and not to the loss as a whole."""
        parts = {h.name for h in self.hyperparameters if h.part != _LOSS}
        return {key: value for key, value in settings.items() if key in parts}

    def settings(self, spec: specs.Spec) -> dict[str, Any]:
        """What a text such as `coral(1.0)` or `irm(l2=0.001)` sets; the first setting needs no key.

        Raises:
            EnvariantError: more than one value stands without a key, or one is given twice.
        """
        first = self.hyperparameters[0]
        if len(spec.positional) > (first.part != _LOSS):
            raise EnvariantError(f"{self.name}: settings need a key, as in {self.name}(l2=0.001)")
        given = dict(zip([first.name], spec.positional, strict=False))
        if repeated := given.keys() & spec.keywords.keys():
            raise EnvariantError(f"{self.name}: '{repeated.pop()}' is given twice")
        return {**given, **spec.keywords}


_LOSS = "loss"
# Weightings without hyperparameters, which any penalty or combination may stand beside.
_WEIGHTINGS: dict[str, RiskAggregator] = {"mean": Mean(), "rows": Mean(over="rows"), "sum": SumRisk()}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("erm", "Least mean risk; environments are ignored.", Composition()),
        Recipe(
            "groupdro",
            "Least risk where it is largest: bad environments gain weight step by step.",
            Composition(GroupDRO()),
        ),
        Recipe("eqrm", "Least quantile of the risks over environments.", Composition(EQRM())),
        Recipe(
            "mm-rex",
            "Least worst risk over affine combinations of environments.",
            Composition(MMREx(), normalize_loss=True),
        ),
        Recipe(
            "risk-interpolation",
            "Least worst risk over mixtures of environments.",
            Composition(WorstCaseRisk()),
        ),
        Recipe(
            "irm",
            "Features on which one classifier is optimal in every environment.",
            Composition(penalties=(IRM(),), normalize_loss=True),
        ),
        Recipe(
            "vrex",
            "Equal risk in every environment.",
            Composition(penalties=(VREx(),), normalize_loss=True),
        ),
        Recipe(
            "coral",
            "Features with the same mean and covariance in every environment.",
            Composition(penalties=(CORAL(),)),
        ),
        Recipe(
            "mmd",
            "Features with the same distribution in every environment.",
            Composition(penalties=(MMD(),)),
        ),
        Recipe(
            "causirl-coral",
            "Features with one distribution in any mixture of environments, by CORAL's distance.",
            Composition(penalties=(CausIRL(distance="coral"),)),
        ),
        Recipe(
            "causirl-mmd",
            "Features with one distribution in any mixture of environments, by kernels.",
            Composition(penalties=(CausIRL(distance="mmd"),)),
        ),
        Recipe(
            "sd",
            "Small logits, so that one strong feature does not starve the others.",
            Composition(penalties=(SpectralDecoupling(),)),
        ),
        Recipe(
            "ib-erm",
            "Features that vary little: an information bottleneck.",
            Composition(penalties=(InformationBottleneck(),)),
        ),
        Recipe(
            "ib-irm",
            "Invariance, and an information bottleneck beside it.",
            Composition(penalties=(IRM(), InformationBottleneck()), normalize_loss=True),
        ),
        Recipe(
            "iga",
            "Gradients that agree from environment to environment.",
            Composition(penalties=(IGA(),)),
        ),
        Recipe(
            "fishr",
            "Gradients of single rows that vary alike in every environment.",
            Composition(penalties=(Fishr(),), normalize_loss=True),
        ),
        Recipe(
            "rdm",
            "Losses spread in the worst environment as in all together.",
            Composition(penalties=(RDM(), LossVariance())),
        ),
        Recipe(
            "clove",
            "Calibration in every environment at once.",
            Composition(penalties=(CLOvE(),), normalize_loss=True),
        ),
        Recipe(
            "cad",
            "Features from which the environment cannot be told, by contrast.",
            Composition(penalties=(CAD(),)),
        ),
        Recipe(
            "condcad",
            "Features from which, within a class, the environment cannot be told.",
            Composition(penalties=(CAD(conditional=True),)),
        ),
        Recipe(
            "selfreg",
            "Rows of one class predicted alike.",
            Composition(penalties=(SelfReg(),)),
        ),
        Recipe(
            "and-mask",
            "Steps only along the weights on whose direction all environments agree.",
            Composition(gradient_aggregator=AndMask()),
        ),
        Recipe(
            "sand-mask",
            "Steps along the weights on which environments agree, in direction and in size.",
            Composition(gradient_aggregator=SandMask()),
        ),
        Recipe(
            "pcgrad",
            "Steps that give up what environments pull apart.",
            Composition(gradient_aggregator=PCGrad()),
        ),
        Recipe("mixup", "Rows half-way from one environment to another.", Composition(training_step=Mixup())),
        Recipe(
            "rsc",
            "Predictions that do without the features they lean on most.",
            Composition(training_step=RSC()),
        ),
        Recipe(
            "mldg",
            "Steps that help environments they were not made for.",
            Composition(training_step=MLDG()),
        ),
        Recipe(
            "fish",
            "Environments one after another, so that their gradients agree.",
            Composition(training_step=Fish()),
        ),
        Recipe(
            "dann",
            "Features from which a discriminator cannot tell the environment.",
            Composition(training_step=DANN()),
        ),
        Recipe(
            "cdann",
            "Features from which, knowing the class, a discriminator cannot tell the environment.",
            Composition(training_step=DANN(conditional=True)),
        ),
        Recipe(
            "sagnet",
            "Content learned under borrowed style, and style that says nothing.",
            Composition(training_step=SagNet()),
        ),
        Recipe(
            "transfer",
            "Features on which no nearby head does better here than there.",
            Composition(training_step=Transfer()),
        ),
        Recipe(
            "mtl",
            "A head that is told what its environment is like on average.",
            Composition(training_step=MTL()),
        ),
        Recipe(
            "arm",
            "A model that is shown a summary of the rows around each row.",
            Composition(training_step=ARM()),
        ),
        Recipe(
            "trm",
            "Features from which what is learned here transfers to there.",
            Composition(training_step=TRM()),
        ),
        Recipe(
            "adrmx",
            "Features less those of the environment, remixed.",
            Composition(training_step=ADRMX()),
        ),
        Recipe(
            "erm++",
            "Least mean risk, with a head that warms up first and the mean of the weights at the end.",
            Composition(training_step=ERMPlus()),
        ),
        Recipe(
            "urm",
            "Features spread evenly, so that none is left out.",
            Composition(training_step=URM()),
        ),
        Recipe(
            "eiil",
            "IRM on two environments found where a first model is right and where it is wrong.",
            Composition(penalties=(IRM(),), normalize_loss=True, environment_inference=EIIL()),
        ),
    )
}


def recipe(text: str) -> Recipe:
    """The recipe that a text such as `irm` or `vrex + and-mask(threshold=0.8)` names.

    Raises:
        EnvariantError: there is none, the message suggests the nearest; or the algorithms do not add up.
    """
    found = terms(text)
    return found[0][0] if len(found) == 1 else added(text, [known.build(given) for known, given in found])


def terms(text: str) -> list[tuple[Recipe, dict[str, Any]]]:
    """What is added up in `vrex + coral(1.0)`: for each term the recipe, and what is set in brackets.

    Raises:
        EnvariantError: a name or a setting is unknown.
    """
    found: list[tuple[Recipe, dict[str, Any]]] = []
    for term in _terms(text):
        spec = specs.parse(term)
        known = RECIPES.get(spec.name) or _installed(spec.name)
        found.append((known, known.settings(spec)))
    return found


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name, those that other installed packages bring among them.

    Raises:
        EnvariantError: what a package brings is no recipe.
    """
    return {**RECIPES, **{name: _installed(name) for name in _entry_points() if name not in RECIPES}}


def _installed(name: str) -> Recipe:
    """A recipe that another package brings; it is imported only when it is named."""
    others = _entry_points()
    if name not in others:
        raise unknown_name("algorithm", name, (*RECIPES, *others))
    place = others[name].value
    try:
        found = others[name].load()
    except (ImportError, AttributeError) as error:
        raise EnvariantError(f"algorithm '{name}': {place} cannot be imported: {error}") from error
    if not isinstance(found, Recipe) or found.name != name:
        raise EnvariantError(f"algorithm '{name}': {place} must be a Recipe of that name; got {found!r}")
    return found


def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def added(text: str, built: Sequence[Composition]) -> Recipe:
    """The recipe whose default is the sum of what was built for each term of a text.

    Raises:
        EnvariantError: the algorithms do not add up.
    """
    known = [term for term, _ in terms(text)]
    summary = " ".join(each.summary for each in known)
    return Recipe(" + ".join(each.name for each in known), summary, reduce(add, built))


def settings_of(name: str, algorithm: Composition) -> dict[str, Any]:
    """Every hyperparameter of `algorithm` as a recipe names it, in a form that can be stored."""
    owners: dict[str, object] = {_LOSS: algorithm, **{part.name: part for part in algorithm.parts}}
    return {h.name: _stored(getattr(owners[h.part], h.field)) for h in recipe(name).hyperparameters}


def _terms(text: str) -> list[str]:
    """What stands between the plus signs that are not in brackets and not part of a name such as erm++."""
    pieces, depth, start = list[str](), 0, 0
    for match in re.finditer(r"[()]|(?<=[\s)])\+(?=\s)", text):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if match[0] == "+" and depth == 0:
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]


def _stored(value: Any) -> Any:
    if isinstance(value, RiskAggregator):
        return _weighting_name(value)
    return str(value) if isinstance(value, Schedule) else value


def _weighting_name(risk_aggregator: RiskAggregator) -> str:
    return next(name for name, known in _WEIGHTINGS.items() if known == risk_aggregator)
