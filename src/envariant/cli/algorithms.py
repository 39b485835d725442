"""`envariant algorithms`: list the algorithms, or describe one."""

import json as json_module
import sys
import textwrap
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Annotated, Any

from cyclopts import Parameter

from envariant.cli.options import Json
from envariant.core.plugins import ALGORITHMS, entries_of


def algorithms(
    name: str | None = None,
    /,
    *,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """List all algorithms, or show the formula, requirements, paper and hyperparameters of one algorithm.

    Parameters
    ----------
    name
        Name of an algorithm, or a composition such as "vrex + and-mask".
    markdown
        Print the documentation of all algorithms as Markdown.
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.core.errors import EnvariantError

    if markdown and name is not None:
        raise EnvariantError("algorithms: --markdown describes all algorithms; leave the name out")
    if markdown:
        from envariant.algorithms import catalogue

        sys.stdout.write(catalogue.markdown())
        return
    descriptions = _described(name) if json else _stored(name) or _described(name)
    if json:
        print_json(descriptions)
    elif name:
        print_lines(list(_lines(*descriptions.popitem())))
    else:
        width = max(map(len, descriptions))
        print_lines(
            [f"{key:<{width}}  {each['kind']:<21}  {each['summary']}" for key, each in descriptions.items()]
        )
        print_lines(
            ["", "Details: envariant algorithms NAME. Algorithms can be composed with +: vrex + and-mask."]
        )


def _stored(name: str | None) -> dict[str, Any]:
    """Read descriptions of the library's own algorithms from a file, because their classes load PyTorch.

    Returns:
        Descriptions by name; empty if other packages register algorithms, or the file lacks the name.
    """
    entries, failures = entries_of(ALGORITHMS)
    if entries or failures:
        return {}
    text = resources.files("envariant").joinpath("algorithms", "catalogue.json").read_text(encoding="utf-8")
    stored: dict[str, Any] = json_module.loads(text)
    if name is None:
        return stored
    return {name: stored[name]} if name in stored else {}


def _described(name: str | None) -> dict[str, Any]:
    """Describe one algorithm, or all of them, from their classes."""
    from envariant.algorithms import all_recipes, catalogue, recipe
    from envariant.core.errors import EnvariantError
    from envariant.predictors import PREDICTORS

    if name in PREDICTORS:
        raise EnvariantError(
            f"algorithms: '{name}' is a predictor, not an algorithm that trains networks; train, sweep and "
            f"compare accept its name"
        )
    known = {name: recipe(name)} if name else all_recipes(lambda line: sys.stderr.write(f"{line}\n"))
    return {key: catalogue.describe(each).to_dict() for key, each in known.items()}


def _lines(name: str, description: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines of text that describe one algorithm."""
    yield f"{name}: {description['summary']}"
    for part in description["parts"]:
        yield from _wrapped("formula", f"{part['formula']}  ({part['part']}, {part['kind']})")
        yield from _wrapped("", part["remarks"])
    yield from _wrapped("needs", "; ".join(description["needs"]))
    if description["average"]:
        yield from _wrapped("average", f"{description['average']}, unless the option 'average' is set")
    yield from _wrapped("paper", description["paper"])
    for setting, each in description["hyperparameters"].items():
        search = "" if each["range"] is None else f"   search {each['range']}"
        yield f"  --set    {setting}={each['default']}{search}"
        yield from _wrapped("", each["meaning"])
    yield from _wrapped("example", description["example"])


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"  {label:<8} ", subsequent_indent=" " * 11)
