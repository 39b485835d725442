"""What each algorithm is, read from the parts themselves: for the terminal and for the page in the docs.

Nothing is written here that a part does not say: its formula is the first sentence of its docstring, and
what a setting means stands among its attributes.
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
from envariant.algorithms.composition import Composition
from envariant.algorithms.recipes import RECIPES, Recipe
from envariant.core import specs

KINDS: Mapping[type[Part], str] = {
    RiskAggregator: "risk_aggregator",
    Penalty: "penalty",
    GradientPenalty: "penalty on gradients",
    GradientAggregator: "gradient combination",
    TrainingStep: "training_step",
    EnvironmentInference: "inference of environments",
}
"""What a part does, by its base class."""

_ITEM = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")


@final
@dataclass(frozen=True)
class Described:
    """One algorithm in words.

    Attributes:
        name, summary: of the recipe.
        kind: what its first part does.
        parts: for each its name, kind, formula and remarks, in the order of the loss.
        needs: what data and model must have.
        settings: for each its name, default, search range (or None) and meaning.
        paper: of its parts.
        example: a command.
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
        """One object for `--json`."""
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


def described(recipe: Recipe) -> Described:
    """A recipe in words."""
    texts = {part.name: _docstring(part) for part in recipe.parts}
    own = _docstring(Composition())[2]
    settings = tuple(
        (
            h.name,
            specs.format_value(h.default),
            None if h.range is None else str(h.range),
            texts.get(h.part, ("", "", own))[2].get(h.field, ""),
        )
        for h in recipe.hyperparameters
    )
    return Described(
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
    """The page of all algorithms, grouped by kind."""
    known = [described(recipe) for recipe in RECIPES.values()]
    lines = [
        "# Algorithms",
        "",
        "Made by `envariant algorithms --markdown`. Names add up: `vrex + and-mask(threshold=0.8)`. R_e is "
        "the mean loss in environment e, g_e its gradient, h features, z logits, E the number of "
        "environments. Every algorithm also takes `l2` (weight of the squared norm of all parameters inside "
        "the loss) and, unless it is a training step, `normalize_loss` (divide the loss by its largest coefficient once "
        "that exceeds 1).",
    ]
    for kind in dict.fromkeys(each.kind for each in known):
        lines += ["", f"## {kind[0].upper()}{kind[1:]}"]
        for each in known:
            if each.kind == kind:
                lines += ["", f"### {each.name}", "", each.summary, *_as_markdown(each)]
    return "\n".join(lines) + "\n"


def _as_markdown(each: Described) -> Iterator[str]:
    for name, kind, formula, remarks in each.parts:
        label = f"*{name}*, {kind}: " if len(each.parts) > 1 else ""
        yield from ("", f"{label}{_escaped(formula)}")
        if remarks:
            yield from ("", _escaped(remarks))
    yield from ("", f"Needs: {'; '.join(each.needs)}. Paper: {each.paper}.", "")
    shown = [line for line in each.settings if line[0] not in ("l2", "normalize_loss")]
    if shown:
        yield from ("| setting | default | search | meaning |", "| --- | --- | --- | --- |")
        for name, default, search, meaning in shown:
            cells = (f"`{name}`", f"`{default}`", search or "–", meaning)
            yield "| " + " | ".join(_escaped(cell) for cell in cells) + " |"
        yield ""
    yield from ("```", each.example, "```")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*") if "`" not in text else text.replace("|", "\\|")


def _kind(part: Part) -> str:
    return next(word for base, word in KINDS.items() if isinstance(part, base))


def _needs(recipe: Recipe) -> Iterator[str]:
    default = recipe.default
    least = default.minimum_environments
    yield f"{least} environments or more" if least > 1 else "one environment or more"
    if default.needs_features:
        yield "a model with a featurizer and a head"
    if any(part.needs_linear_head for part in recipe.parts):
        yield "a head that is one linear layer"
    if any(part.needs_classes for part in recipe.parts):
        yield "classes, not regression"


def _example(recipe: Recipe) -> str:
    first = recipe.hyperparameters[0]
    drawn = f"({first.name}={specs.format_value(first.default)})" if first.part != "loss" else ""
    return f'envariant train --data colored-mnist --algorithm "{recipe.name}{drawn}"'


def _docstring(part: object) -> tuple[str, str, dict[str, str]]:
    """A dataclass's first paragraph, the others, and what it says of each attribute."""
    lines = (inspect.getdoc(type(part)) or "").splitlines()
    cut = lines.index("Attributes:") if "Attributes:" in lines else len(lines)
    paragraphs = [" ".join(p.split()) for p in "\n".join(lines[:cut]).split("\n\n") if p.strip()]
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in lines[cut + 1 :]:
        match = _ITEM.match(line)
        if match:
            names = match[1].split(", ")
            found |= {name: [match[2]] for name in names}
        elif names:
            for name in names:
                found[name].append(line.strip())
    fields = {f.name for f in dataclasses.fields(cast("Any", part))}
    meanings = {name: " ".join(text).strip() for name, text in found.items() if name in fields}
    return paragraphs[0], " ".join(paragraphs[1:]), meanings
