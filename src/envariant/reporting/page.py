"""One offline HTML file: what each run learned, the curves, the table, the data, settings and machine."""

import base64
from collections.abc import Sequence
from pathlib import Path

from envariant import data
from envariant.data import ColoredSource
from envariant.errors import EnvariantError
from envariant.reporting import figures, html, shift, tables
from envariant.reporting.labels import labels
from envariant.training import TrainingResult


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


def verdict(result: TrainingResult) -> str:
    """One sentence on what a run reached where it trained and where it did not, from its numbers alone."""
    record = result.record
    if not result.finished:
        return "no replica finished" + "".join(f"; {reason}" for reason in result.failures.values())
    metric = record.metric
    held_out = {n: result.final(n, metric) for n, role in record.roles.items() if role == "test"}
    trained = [result.final(n, metric).mean for n, role in record.roles.items() if role == "train"]
    mean = sum(trained) / len(trained)
    start = f"{mean:.3f} {metric} in training"
    if not held_out:
        return f"{start}; no environment was held out."
    pick = min if record.higher_is_better else max
    name = pick(held_out, key=lambda key: held_out[key].mean)
    score, spread = held_out[name].mean, held_out[name].sd or 0.0
    start = f"{start}, {score:.3f} at {name}"
    if not record.higher_is_better:
        return f"{start}: a difference of {score - mean:+.3f}."
    # A tenth, or twice the spread over replicas, is what counts as a difference.
    margin = max(0.1, 2 * spread)
    if record.chance is not None and score < record.chance - margin / 2:
        return f"{start}: worse than guessing. What it learned does not hold there."
    if record.chance is not None and max(mean, score) < record.chance + 0.05:
        return f"{start}: no better than guessing anywhere."
    if mean - score > margin:
        return f"{start}: {mean - score:.3f} less. Part of what it learned does not hold there."
    if score - mean > margin:
        return f"{start}: better than in training."
    return f"{start}: it holds."


def _overviews(
    results: Sequence[TrainingResult], mnist: Path | None
) -> list[tuple[str, str, tables.TextTable]]:
    """Name, picture and facts of every data set in the runs that can be drawn again."""
    found: list[tuple[str, str, tables.TextTable]] = []
    firsts = {result.record.settings.data: result for result in reversed(results)}
    for name, result in reversed(firsts.items()):
        try:
            source = data.source(name, folder=mnist)
            drawn = source.draw(result.record.seeds[0].data)
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
