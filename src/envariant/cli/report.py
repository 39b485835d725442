"""`envariant report`: stored runs, one offline HTML page."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist


def report(
    *runs: Path,
    out: Annotated[Path, Parameter(alias="-o")] = Path("report.html"),
    title: str = "What each algorithm learned",
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Write one HTML page about stored runs.

    Parameters
    ----------
    runs
        Folders that `envariant train --out` wrote.
    out
        The page.
    title
        Its heading.
    """
    from envariant.cli.show import print_json, print_lines, print_table
    from envariant.reporting import run_page, tables
    from envariant.training.result import TrainingResult

    results = [TrainingResult.load(run) for run in runs]
    run_page.write(results, out, title, mnist)
    if json:
        print_json({"page": str(out), "runs": [result.to_dict() for result in results]})
    else:
        print_table(tables.scores(results))
        print_lines([f"\nwrote {out}"])
