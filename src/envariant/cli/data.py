"""`envariant data`: fetch data, inspect environments and measure shift."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from envariant.cli.options import Json, Mnist, Whole
from envariant.core.errors import EnvariantError

data = App(name="data", help="Fetch data and inspect environments.", help_format="plaintext")


@data.command
def fetch(
    name: Literal["mnist"] = "mnist",
    *,
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Download MNIST into the cache and verify the MD5 digests of its four files.

    Parameters
    ----------
    name
        Name of the data set.
    """
    del name
    from envariant.cli.output import print_json, print_lines
    from envariant.core.console import SafeConsole
    from envariant.data.colored import mnist as files

    messages = SafeConsole(stderr=True, soft_wrap=True)
    digits = files.load(mnist, report=lambda line: messages.print(line, style="dim"))
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
    """Show a data set before training: rows by environment and class, and the preprocessing log.

    For colored digits, also show pictures, agreement of color and label, and theoretical accuracies.

    Parameters
    ----------
    name
        Name of the data set, such as colored-mnist:thirds, "image-folders(photos)" or "table(x.csv, target=y,
        …)".
    seed
        Seed of the data sample.
    out
        File to write: an HTML page (.html) or a picture (.png, .svg). For colored digits, the default is the
        name of the data set with .png.
    """
    from dataclasses import asdict

    from envariant import data as sources
    from envariant.cli.output import print_json, print_lines
    from envariant.cli.show import print_table
    from envariant.reporting import data_page, figures, tables

    source = sources.source(name, folder=mnist)
    if not isinstance(source, sources.ColoredSource):
        _show_coverage(source, seed, out, json=json)
        return
    drawn = source.sample(seed)
    facts = source.facts(drawn)
    path = out or Path(name.partition("(")[0].replace(":", "-") + ".png")
    if path.suffix == ".html":
        data_page.write(source, path, seed)
    else:
        _check_picture(path)
        figures.save(figures.overview(drawn, facts), path)
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


def _show_coverage(source: Any, seed: int, out: Path | None, *, json: bool) -> None:
    """Print a data set's number of rows by environment and class, and its preprocessing log."""
    from envariant.cli.output import print_json, print_lines
    from envariant.cli.show import print_table
    from envariant.reporting import charts, data_page
    from envariant.reporting.coverage import Coverage

    if out is not None and out.suffix != ".html":
        _check_picture(out)
    coverage = Coverage.of(source, seed)
    if out is not None and out.suffix == ".html":
        data_page.write(source, out, seed, coverage)
    elif out is not None:
        charts.save(coverage.chart(), out)
    if json:
        print_json(coverage.to_dict())
        return
    print_table(coverage.table())
    print_lines([*coverage.log, *([f"\nwrote {out}"] if out else [])])


@data.command
def shift(
    name: str = "colored-mnist",
    *,
    test_environments: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    seed: Whole = 0,
    n_trials: Whole = 3,
    legacy: Annotated[bool, Parameter(negative="")] = False,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Measure the kinds of distribution shift between environments.

    All training environments together are compared with each test environment, and training environments
    are compared in pairs. Diversity shift: some inputs occur on only one side of a comparison. Correlation
    shift: the relation between inputs and target differs between the two sides.

    Parameters
    ----------
    name
        Name of the data set.
    test_environments
        Names of the test environments; by default those suggested for the data set.
    seed
        Seed of the first trial.
    n_trials
        Number of trials, each with a new data draw and a newly initialized network.
    legacy
        Use the formulas of the OoD-Bench paper (2022) instead of those of its code since 2025.
    out
        Image file to write, .png or .svg.
    """
    from envariant import data as sources
    from envariant.cli.output import print_json
    from envariant.cli.show import print_table
    from envariant.comparison.data_summary import pairwise_shifts
    from envariant.reporting import charts
    from envariant.reporting import shift as reports

    if out is not None and out.suffix not in (".png", ".svg"):
        raise EnvariantError(f"{out}: the name of an image file must end in .png or .svg")
    source = sources.source(name, folder=mnist)
    shifts = pairwise_shifts(
        source, test_environments=test_environments or None, seed=seed, n_trials=n_trials, legacy=legacy
    )
    if out is not None:
        charts.save(charts.shift_plane(shifts), out)
    if json:
        print_json({"data": source.name, "shifts": [shift.to_dict() for shift in shifts]})
    else:
        pairs = {f"{shift.first} → {shift.second}": shift for shift in shifts}
        print_table(reports.shift_table(pairs, "from → to", f"Means over {n_trials} trials."))


def _check_picture(path: Path) -> None:
    if path.suffix not in (".png", ".svg"):
        raise EnvariantError(
            f"{path}: the file name must end in .png or .svg for an image, or in .html for a report"
        )
