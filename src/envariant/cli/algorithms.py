"""`envariant algorithms`: what there is, what it is made of, and what can be set."""

from envariant.cli.options import Json


def algorithms(*, json: Json = False) -> None:
    """List the algorithms: a sentence, parts, paper and hyperparameters of each."""
    from envariant.algorithms import RECIPES, Recipe
    from envariant.cli.show import print_json, print_lines
    from envariant.specs import format_value

    def described(recipe: Recipe) -> dict[str, object]:
        return {
            "summary": recipe.summary,
            "parts": [part.name for part in recipe.parts],
            "paper": recipe.paper,
            "environments": recipe.default.minimum_environments,
            "hyperparameters": {
                h.name: {
                    "part": h.part,
                    "default": format_value(h.default),
                    "range": None if h.range is None else str(h.range),
                }
                for h in recipe.hyperparameters
            },
        }

    if json:
        print_json({name: described(recipe) for name, recipe in RECIPES.items()})
        return
    for name, recipe in RECIPES.items():
        lines = [
            f"{name}: {recipe.summary}",
            f"  parts  {' + '.join(part.name for part in recipe.parts)}",
            f"  paper  {recipe.paper}",
        ]
        for h in recipe.hyperparameters:
            search = "" if h.range is None else f"   search {h.range}"
            lines.append(f"  --set  {h.name}={format_value(h.default)}{search}")
        print_lines([*lines, ""])
