"""`envariant algorithms`: list the algorithms, or describe one."""

import sys
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from envariant.cli.options import Json


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
    from envariant.algorithms import all_recipes, catalogue, recipe
    from envariant.cli.show import print_json, print_lines
    from envariant.core.errors import EnvariantError
    from envariant.predictors import PREDICTORS

    if markdown and name is not None:
        raise EnvariantError("algorithms: --markdown describes all algorithms; leave the name out")
    if name in PREDICTORS:
        raise EnvariantError(
            f"algorithms: '{name}' is a predictor, not an algorithm that trains networks; train, sweep and "
            f"compare accept its name"
        )
    if markdown:
        sys.stdout.write(catalogue.markdown())
        return
    known = {name: recipe(name)} if name else all_recipes(lambda line: sys.stderr.write(f"{line}\n"))
    descriptions = {key: catalogue.describe(each) for key, each in known.items()}
    if json:
        print_json({key: each.to_dict() for key, each in descriptions.items()})
    elif name:
        print_lines(list(_lines(descriptions[name])))
    else:
        width = max(map(len, descriptions))
        print_lines(
            [f"{key:<{width}}  {each.kind:<21}  {each.summary}" for key, each in descriptions.items()]
        )
        print_lines(
            ["", "Details: envariant algorithms NAME. Algorithms can be composed with +: vrex + and-mask."]
        )


def _lines(description: Any) -> Iterator[str]:
    """Yield lines of text that describe one algorithm."""
    yield f"{description.name}: {description.summary}"
    for part, kind, formula, remarks in description.parts:
        yield from _wrapped("formula", f"{formula}  ({part}, {kind})")
        yield from _wrapped("", remarks)
    yield from _wrapped("needs", "; ".join(description.needs))
    if description.average:
        yield from _wrapped("average", f"{description.average}, unless the option 'average' is set")
    yield from _wrapped("paper", description.paper)
    for setting, default, search, meaning in description.settings:
        yield f"  --set    {setting}={default}" + ("" if search is None else f"   search {search}")
        yield from _wrapped("", meaning)
    yield from _wrapped("example", description.example)


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=f"  {label:<8} ", subsequent_indent=" " * 11)
