"""HTML page about runs: verdicts, scores, learning curves, data, settings and hardware."""

import base64
from collections.abc import Sequence
from pathlib import Path

from envariant import data
from envariant.core.errors import EnvariantError
from envariant.core.files import write_text
from envariant.data import ColoredSource
from envariant.reporting import figures, html, shift, tables
from envariant.reporting.labels import labels, verdict
from envariant.training.result import TrainingResult


def render(results: Sequence[TrainingResult], heading: str, mnist: Path | None = None) -> str:
    """Return a page about runs as HTML text.

    Args:
        results: Results of the runs, in the order of the page; all must have the same metric.
        heading: Title of the page.
        mnist: Folder of the MNIST files, for pictures of the data. Default: the cache.

    Raises:
        EnvariantError: If there is no run, or the runs have different metrics.
    """
    if not results:
        raise EnvariantError("report: needs at least one run")
    if len({result.record.metric for result in results}) > 1:
        raise EnvariantError("report: the runs have different metrics; write one page for each metric")
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
    """Write a page about runs to a file atomically; see `render` for the arguments.

    Raises:
        EnvariantError: If the page cannot be rendered or the file cannot be written.
    """
    html.check_page(path, "runs")
    write_text(render(results, heading, mnist), path)


def _overviews(
    results: Sequence[TrainingResult], mnist: Path | None
) -> list[tuple[str, str, tables.TextTable]]:
    """Return name, picture and table of facts of each colored data set that can be loaded again by name."""
    overviews: list[tuple[str, str, tables.TextTable]] = []
    firsts = {result.record.spec.data: result for result in reversed(results)}
    for name, result in reversed(firsts.items()):
        try:
            source = data.source(name, folder=mnist)
            environments = source.sample(result.record.seeds[0].data)
        except EnvariantError:
            # User data cannot be loaded by name, and files may have been removed.
            continue
        # User data may have the name of a built-in data set.
        same = environments.fingerprint() == result.record.fingerprints["data"]
        if not isinstance(source, ColoredSource) or not same:
            continue
        facts = source.facts(environments)
        picture = figures.png(figures.overview(environments, facts), 130)
        encoded = base64.b64encode(picture).decode("ascii")
        overviews.append((name, f"data:image/png;base64,{encoded}", tables.facts(facts)))
    return overviews
