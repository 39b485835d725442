"""Generate descriptions of all algorithms from docstrings, for the terminal and `docs/algorithms.md`.

The first paragraph of a part's docstring states its formula, and the section `Attributes` describes its
settings.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast, final

from envariant.algorithms.base import (
    EnvironmentInference,
    GradientAggregator,
    GradientPenalty,
    Part,
    Penalty,
    RiskAggregator,
    TrainingStep,
)
from envariant.algorithms.recipe_base import LOSS, Recipe
from envariant.algorithms.recipes import RECIPES
from envariant.core import specs

KINDS: Mapping[type[Part], str] = {
    RiskAggregator: "risk aggregator",
    Penalty: "penalty",
    GradientPenalty: "gradient penalty",
    GradientAggregator: "gradient aggregator",
    TrainingStep: "training step",
    EnvironmentInference: "environment inference",
}
"""Name of each kind of part, by base class."""

_ITEM = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")

_INTRODUCTION = """# Algorithms

This page is written by `envariant algorithms --markdown`. Algorithms are composed with `+`, as in
`vrex + and-mask(threshold=0.8)`.

The formulas use these symbols:

- E is the number of training environments.
- R_e is the risk of environment e, that is, the mean loss of the rows of e in the batch; g_e is the gradient
  of R_e.
- R is the risk that is minimized, by default the mean of all R_e.
- h are the features of a row, and z are its logits.

Every environment has equal weight in R, regardless of its number of rows. Other averages over rows, such as
the cross-entropy of a discriminator, are computed for each environment first and then averaged over
environments. There are two exceptions. Parts that pair, compare or rank rows give equal weight to all rows of
the batch. With `risk_aggregator=pooled`, environments are weighted in R by their number of rows.

All algorithms have the setting `l2`, the weight of the squared norm of all trained parameters in the loss.
Training steps that contain their own Adam optimizer add the gradient of this term before they update Adam's
moments, as DomainBed does with weight decay. All algorithms except training steps also have the setting
`normalize_loss`. If it is true, the loss is divided by its largest coefficient whenever this coefficient
exceeds 1.
"""


@final
@dataclass(frozen=True)
class Description:
    """Text description of one algorithm.

    Attributes:
        name: Name of the recipe.
        summary: One-sentence summary.
        kind: Kind of the algorithm's first part, such as "penalty".
        parts: Name, kind, formula and explanation of each part, in the order of `Recipe.parts`.
        needs: Requirements on data and model.
        settings: Name, default, search range (None if not searched) and meaning of each hyperparameter.
        paper: Papers that introduced the parts, separated by semicolons.
        example: Command line that trains the algorithm.
    """

    name: str
    summary: str
    kind: str
    parts: tuple[tuple[str, str, str, str], ...]
    needs: tuple[str, ...]
    settings: tuple[tuple[str, str, str | None, str], ...]
    paper: str
    example: str

    def to_dict(self) -> dict[str, Any]:
        """Return the description as a JSON-serializable dictionary."""
        keys = ("part", "kind", "formula", "remarks")
        return {
            "summary": self.summary,
            "kind": self.kind,
            "parts": [dict(zip(keys, part, strict=True)) for part in self.parts],
            "needs": list(self.needs),
            "paper": self.paper,
            "hyperparameters": {
                name: {"default": default, "range": search, "meaning": meaning}
                for name, default, search, meaning in self.settings
            },
            "example": self.example,
        }


def describe(recipe: Recipe) -> Description:
    """Describe the algorithm of a recipe, based on the docstrings of its parts."""
    texts = {part.name: _docstring(part) for part in recipe.parts}
    meanings = {name: text[2] for name, text in texts.items()} | {LOSS: _docstring(recipe.default)[2]}
    settings = tuple(
        (
            h.name,
            specs.format_value(h.default),
            None if h.range is None else str(h.range),
            meanings[h.part].get(h.field, ""),
        )
        for h in recipe.hyperparameters
    )
    return Description(
        recipe.name,
        recipe.summary,
        _kind(recipe.parts[0]),
        tuple((part.name, _kind(part), *texts[part.name][:2]) for part in recipe.parts),
        tuple(_needs(recipe)),
        settings,
        recipe.paper,
        _example(recipe),
    )


def markdown() -> str:
    """Return a Markdown page that describes all algorithms, grouped by kind."""
    descriptions = [describe(recipe) for recipe in RECIPES.values()]
    lines = [_INTRODUCTION.rstrip()]
    for kind in dict.fromkeys(each.kind for each in descriptions):
        lines += ["", f"## {kind[0].upper()}{kind[1:]}"]
        for each in descriptions:
            if each.kind == kind:
                lines += ["", f"### {each.name}", "", each.summary, *_as_markdown(each)]
    return "\n".join(lines) + "\n"


def _as_markdown(description: Description) -> Iterator[str]:
    for name, kind, formula, remarks in description.parts:
        label = f"*{name}*, {kind}: " if len(description.parts) > 1 else ""
        yield from ("", f"{label}{_escaped(formula)}")
        if remarks:
            yield from ("", _escaped(remarks))
    yield from ("", f"Needs: {'; '.join(description.needs)}. Paper: {description.paper}.", "")
    rows = [setting for setting in description.settings if setting[0] not in ("l2", "normalize_loss")]
    if rows:
        yield from ("| setting | default | search | meaning |", "| --- | --- | --- | --- |")
        for name, default, search, meaning in rows:
            cells = (f"`{name}`", f"`{default}`", search or "–", meaning)
            yield "| " + " | ".join(_escaped(cell) for cell in cells) + " |"
        yield ""
    yield from ("```", description.example, "```")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*") if "`" not in text else text.replace("|", "\\|")


def _kind(part: Part) -> str:
    return next(kind for base, kind in KINDS.items() if isinstance(part, base))


def _needs(recipe: Recipe) -> Iterator[str]:
    algorithm = recipe.default
    minimum = algorithm.minimum_environments
    yield f"at least {minimum} training environments" if minimum > 1 else "at least one training environment"
    if algorithm.needs_features:
        yield "a model with submodules featurizer and head"
    if any(part.needs_linear_head for part in recipe.parts):
        yield "a head that consists of one linear layer"
    if any(part.needs_classes for part in recipe.parts):
        yield "a classification task"


def _example(recipe: Recipe) -> str:
    first = recipe.hyperparameters[0]
    setting = f"({first.name}={specs.format_value(first.default)})" if first.part != LOSS else ""
    name, plus, others = recipe.name.partition(" + ")
    return f'envariant train --data colored-mnist --algorithm "{name}{setting}{plus}{others}"'


def _docstring(part: object) -> tuple[str, str, dict[str, str]]:
    """Split a dataclass's docstring into first paragraph, other paragraphs, and attribute descriptions."""
    lines = (inspect.getdoc(type(part)) or "").splitlines()
    cut = lines.index("Attributes:") if "Attributes:" in lines else len(lines)
    paragraphs = [" ".join(p.split()) for p in "\n".join(lines[:cut]).split("\n\n") if p.strip()]
    texts: dict[str, list[str]] = {}
    names: list[str] = []
    for line in lines[cut + 1 :]:
        match = _ITEM.match(line)
        if match:
            names = match[1].split(", ")
            texts |= {name: [match[2]] for name in names}
        elif names:
            for name in names:
                texts[name].append(line.strip())
    fields = {f.name for f in dataclasses.fields(cast("Any", part))}
    meanings = {name: " ".join(text).strip() for name, text in texts.items() if name in fields}
    return "".join(paragraphs[:1]), " ".join(paragraphs[1:]), meanings
