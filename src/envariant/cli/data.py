"""`envariant data`: fetch what has to be fetched, and look at the environments before training on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from envariant.cli.options import Json, Mnist, Whole
from envariant.core.errors import EnvariantError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

data = App(name="data", help="Fetch data, and look at environments.", help_format="plaintext")


@data.command
def fetch(
    name: Literal["mnist"] = "mnist",
    *,
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Fetch MNIST into the cache and prove it: four files, four digests.

    Parameters
    ----------
    name
        What to fetch.
    """
    del name
    from rich.console import Console

    from envariant.cli.show import print_json, print_lines
    from envariant.data.colored import mnist as files

    remarks = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    digits = files.load(mnist, report=lambda line: remarks.print(line, style="dim"))
    digests = files.digests(digits)
    if json:
        print_json({"source": digits.source, "md5": digests})
        return
    lines = [f"{digest}  {file}" for file, digest in digests.items()]
    rows = len(digits.train_images) + len(digits.test_images)
    print_lines([*lines, f"{rows:,} digits from {digits.source}; all four digests match"])


@data.command
def show(
    name: str = "colored-mnist",
    *,
    seed: Whole = 0,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Show a colored data set: digits of every environment, counts, agreements, and what theory says.

    Parameters
    ----------
    name
        Such as colored-mnist:thirds or colored-digits.
    seed
        Of the data draw.
    out
        The picture, .png or .svg; by default the name of the data set with .png.
    """
    from dataclasses import asdict

    from envariant import data as sources
    from envariant.cli.show import print_json, print_lines, print_table
    from envariant.reporting import figures, tables

    source = sources.source(name, folder=mnist)
    if not isinstance(source, sources.ColoredSource):
        raise EnvariantError(f"data show: '{name}' has no colors to show")
    drawn = source.sample(seed)
    facts = source.facts(drawn)
    path = out or Path(name.partition("(")[0].replace(":", "-") + ".png")
    _check_picture(path)
    _save(figures.overview(drawn, facts), path)
    if json:
        print_json(
            {
                "data": source.name,
                "seed": seed,
                "picture": str(path),
                "environments": [asdict(f) for f in facts],
            }
        )
        return
    print_lines([f"{source.name}, seed {seed}"])
    print_table(tables.facts(facts))
    print_lines([f"\nwrote {path}"])


@data.command
def shift(
    name: str = "colored-mnist",
    *,
    test_environments: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    seed: Whole = 0,
    trials: Whole = 3,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Say which kind of shift lies between environments, before choosing a method.

    Diversity: rows of one that do not occur in the other. Correlation: the same rows have other targets.

    Parameters
    ----------
    name
        A data set.
    test_environments
        Names to hold out; by default what the data suggest.
    seed
        Of the first trial.
    trials
        Each with a data draw and a network of its own.
    out
        A picture of it, PNG or SVG.
    """
    from dataclasses import asdict

    from envariant import data as sources
    from envariant.analysis.distribution_shift import shifts
    from envariant.cli.show import print_json, print_table
    from envariant.reporting.tables import TextTable

    if out is not None:
        _check_picture(out)
    source = sources.source(name, folder=mnist)
    found = shifts(source, test=test_environments or None, seed=seed, trials=trials)
    if out is not None:
        from envariant.reporting import shift as pictures

        _save(pictures.plane(found), out)
    if json:
        print_json({"data": source.name, "shifts": [{**asdict(s), "kind": s.kind} for s in found]})
        return
    lines = [
        (
            f"{s.first} → {s.second}",
            *(f"{v.mean:.3f}" for v in (s.diversity, s.correlation, s.label, s.covariate)),
            s.kind,
        )
        for s in found
    ]
    print_table(
        TextTable(
            ("from → to", "diversity", "correlation", "label", "covariate", "shift"),
            tuple(lines),
            (
                f"Means over {trials} trials; 0 is none, 1 the most. Diversity and correlation shift as in "
                f"OoD-Bench (Ye et al. 2022); label: total variation; covariate: 2·AUC − 1 of telling "
                f"the two apart.",
            ),
        )
    )


def _check_picture(path: Path) -> None:
    if path.suffix not in (".png", ".svg"):
        raise EnvariantError(f"{path}: a picture's name must end in .png or .svg")


def _save(figure: "Figure", path: Path) -> None:
    from envariant.reporting import figures

    try:
        figures.save(figure, path)
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be written ({error.strerror or error})") from None
