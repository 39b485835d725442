"""`envariant algorithms`: what there is, what it is made of, and what can be set."""

import sys
import textwrap
from typing import Annotated

from cyclopts import Parameter

from envariant.cli.options import Json


def algorithms(
    name: str | None = None,
    /,
    *,
    markdown: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """List the algorithms, or tell of one: formula, parts, needs, paper, hyperparameters, an example.

    Parameters
    ----------
    name
        An algorithm, or a sum such as "vrex + and-mask".
    markdown
        Print the page of the documentation.
    """
    from envariant.algorithms import all_recipes, catalogue, recipe
    from envariant.algorithms.catalogue import Described
    from envariant.cli.show import print_json, print_lines

    def wrapped(label: str, text: str) -> list[str]:
        return textwrap.wrap(text, 100, initial_indent=f"  {label:<8} ", subsequent_indent=" " * 11)

    def lines(each: Described) -> list[str]:
        found = [f"{each.name}: {each.summary}"]
        for part, kind, formula, remarks in each.parts:
            found += wrapped("formula", f"{formula}  ({part}, {kind})")
            found += wrapped("", remarks) if remarks else []
        found += wrapped("needs", "; ".join(each.needs))
        found += wrapped("paper", each.paper)
        for setting, default, search, meaning in each.settings:
            allowed = "" if search is None else f"   search {search}"
            found.append(f"  --set    {setting}={default}{allowed}")
            found += wrapped("", meaning) if meaning else []
        return [*found, *wrapped("example", each.example)]

    if markdown:
        sys.stdout.write(catalogue.markdown())
        return
    known = {name: recipe(name)} if name else all_recipes()
    shown = {key: catalogue.described(each) for key, each in known.items()}
    if json:
        print_json({key: each.to_dict() for key, each in shown.items()})
    elif name:
        print_lines(lines(shown[name]))
    else:
        width = max(map(len, shown))
        print_lines([f"{key:<{width}}  {each.kind:<20}  {each.summary}" for key, each in shown.items()])
        print_lines(["", "More of one: envariant algorithms NAME. Names add up: vrex + and-mask."])
