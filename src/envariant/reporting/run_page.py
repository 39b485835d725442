"""One offline HTML file: what each run learned, the curves, the table, the data, settings and machine."""

import base64
from collections.abc import Sequence
from pathlib import Path

from envariant import data
from envariant.core.errors import EnvariantError
from envariant.data import ColoredSource
from envariant.reporting import figures, html, shift, tables
from envariant.reporting.labels import labels, verdict
from envariant.training.result import TrainingResult


def render(results: Sequence[TrainingResult], heading: str, mnist: Path | None = None) -> str:
    """The page as text; nothing in it is fetched from anywhere.

    Args:
        results: the runs to show, in order; all with the same metric.
        heading: the page's title.
        mnist: where the MNIST files are, for the pictures of the data.

    Raises:
        EnvariantError: there is no run, or the runs have different metrics.
    """
    if not results:
        raise EnvariantError("report: needs at least one run")
    if len({result.record.metric for result in results}) > 1:
        raise EnvariantError("report: these runs have different metrics; report them apart")
    names = labels(results)
    return html.render(
        "page.html.j2",
        heading=heading,
        verdicts=[(name, verdict(result)) for name, result in zip(names, results, strict=True)],
        scores=tables.scores(results),
        curves=figures.svg(figures.curves(results)),
        shift_curve=figures.svg(shift.curve(results)) if shift.can_be_ordered(results) else "",
        overviews=_overviews(results, mnist),
        settings=tables.settings(results),
        runs=list(zip(names, results, strict=True)),
    )


def write(results: Sequence[TrainingResult], path: Path, heading: str, mnist: Path | None = None) -> None:
    """Writes the page; the file is whole or absent.

    Raises:
        EnvariantError: it cannot be written there.
    """
    html.write(render(results, heading, mnist), path)


def _overviews(
    results: Sequence[TrainingResult], mnist: Path | None
) -> list[tuple[str, str, tables.TextTable]]:
    """Name, picture and facts of every data set in the runs that can be drawn again."""
    found: list[tuple[str, str, tables.TextTable]] = []
    firsts = {result.record.spec.data: result for result in reversed(results)}
    for name, result in reversed(firsts.items()):
        try:
            source = data.source(name, folder=mnist)
            drawn = source.sample(result.record.seeds[0].data)
        except EnvariantError:
            # The user's own data have no name that could be drawn again, and files may be gone since:
            # the rest of the page stands without them.
            continue
        # Somebody's own data may bear the name of ours.
        same = drawn.fingerprint() == result.record.fingerprints["data"]
        if not isinstance(source, ColoredSource) or not same:
            continue
        facts = source.facts(drawn)
        picture = base64.b64encode(figures.png(figures.overview(drawn, facts), 130)).decode("ascii")
        found.append((name, f"data:image/png;base64,{picture}", tables.facts(facts)))
    return found
