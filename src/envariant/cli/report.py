"""`envariant report`: write an HTML report on stored runs."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist
from envariant.core.errors import EnvariantError


def report(
    *runs: Path,
    out: Annotated[Path, Parameter(alias="-o")] = Path("report.html"),
    title: str = "Results by environment",
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Write an HTML report on stored runs; it can be viewed offline.

    Parameters
    ----------
    runs
        Folders written by `envariant train --out`.
    out
        HTML file to write.
    title
        Heading of the report.
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.cli.show import print_table
    from envariant.reporting import html, run_page, tables
    from envariant.training.result import TrainingResult

    if out.suffix not in (".html", ".htm"):
        raise EnvariantError(f"{out}: the file name of a report must end in .html")
    if repeated := [run for run in runs if runs.count(run) > 1]:
        raise EnvariantError(f"report: {repeated[0]} is given twice; give it once")
    html.check_page(out, "runs")
    results = [TrainingResult.load(run) for run in runs]
    run_page.write(results, out, title, mnist)
    if json:
        print_json({"page": str(out), "runs": [result.to_dict() for result in results]})
    else:
        print_table(tables.scores(results))
        print_lines([f"\nwrote {out}"])
