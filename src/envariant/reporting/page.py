"""One offline HTML file: what each run learned, the curves, the table, the data, settings and machine."""

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from envariant import data
from envariant.data import ColoredSource
from envariant.errors import EnvariantError
from envariant.reporting import figures, tables
from envariant.training import TrainingResult


def render(results: Sequence[TrainingResult], heading: str) -> str:
    """The page as text; nothing in it is fetched from anywhere.

    Args:
        results: the runs to show, in order; all with the same metric.
        heading: the page's title.

    Raises:
        EnvariantError: there is no run, or the runs have different metrics.
    """
    if not results:
        raise EnvariantError("report: needs at least one run")
    if len({result.record.metric for result in results}) > 1:
        raise EnvariantError("report: these runs have different metrics; report them apart")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("envariant.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        heading=heading,
        verdicts=[(figures.title(result), verdict(result)) for result in results],
        scores=tables.scores(results),
        # The SVG is our own drawing, with every name in it turned into outlines.
        curves=Markup(figures.svg(figures.curves(results))),
        overviews=_overviews(results),
        settings=tables.settings(results),
        runs=[(figures.title(result), result) for result in results],
    )


def write(results: Sequence[TrainingResult], path: Path, heading: str) -> None:
    """Writes the page; the file is whole or absent.

    Raises:
        EnvariantError: it cannot be written there.
    """
    text = render(results, heading)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be written ({error.strerror or error})") from None


def verdict(result: TrainingResult) -> str:
    """One sentence on what a run learned, from its numbers alone."""
    record = result.record
    if not result.finished:
        return "no replica finished: " + "; ".join(result.failures.values())
    metric = record.metric
    held_out = {n: result.final(n, metric).mean for n, role in record.roles.items() if role == "test"}
    trained = {n: result.final(n, metric).mean for n, role in record.roles.items() if role == "train"}
    trained_mean = sum(trained.values()) / len(trained)
    start = f"{trained_mean:.3f} {metric} in training"
    if not held_out:
        return f"{start}; no environment was held out."
    pick = min if record.higher_is_better else max
    name = pick(held_out, key=lambda key: held_out[key])
    score = held_out[name]
    start = f"{start}, {score:.3f} at {name}"
    loss = (trained_mean - score) if record.higher_is_better else (score - trained_mean)
    if record.chance is not None and record.higher_is_better and score < record.chance - 0.05:
        return f"{start}: worse than guessing. It learned what holds in training only."
    if record.chance is not None and max(trained_mean, score) < record.chance + 0.05:
        return f"{start}: no better than guessing anywhere. It learned nothing."
    if record.higher_is_better and loss > 0.1:
        return f"{start}: it loses {loss:.3f} on the way. Part of what it learned does not hold."
    if record.higher_is_better and loss < -0.1:
        return f"{start}: better than in training, so it leans against the training relation."
    if not record.higher_is_better:
        return f"{start}: a difference of {loss:+.3f}."
    return f"{start}: it holds."


def _overviews(results: Sequence[TrainingResult]) -> list[tuple[str, str, tables.TextTable]]:
    """Name, picture and facts of every data set in the runs that can be drawn again."""
    found: list[tuple[str, str, tables.TextTable]] = []
    firsts = {result.record.settings.data: result for result in reversed(results)}
    for name, result in reversed(firsts.items()):
        try:
            source = data.source(name)
        except EnvariantError:
            # The user's own data have no name that could be drawn again; the rest of the page stands.
            continue
        if not isinstance(source, ColoredSource):
            continue
        drawn = source.draw(result.record.seeds[0].data)
        facts = source.facts(drawn)
        picture = base64.b64encode(figures.png(figures.overview(drawn, facts), 130)).decode("ascii")
        found.append((name, f"data:image/png;base64,{picture}", tables.facts(facts)))
    return found
