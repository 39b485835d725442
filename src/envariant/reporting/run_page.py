"""HTML page about runs: main result, scores, learning curves, data, settings and hardware."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from envariant import data
from envariant.analysis.statistics import Interval, holm, interval, paired_t
from envariant.core.errors import EnvariantError
from envariant.core.files import write_text
from envariant.core.metrics import METRICS
from envariant.core.printable import number_of
from envariant.data import ColoredSource
from envariant.reporting import charts, figures, html, tables
from envariant.reporting.labels import labels, verdict, without_folders
from envariant.reporting.page import BigNumber, Block, Page, Section
from envariant.reporting.page import render as render_page
from envariant.reporting.tables import TextTable
from envariant.reporting.theme import BASELINE, baseline_first
from envariant.training.result import TrainingResult

_LEVEL = 0.05
_MOST_BULLETS = 4
# Longest name of a run in a list of runs with the same diagnosis.
_MOST_NAMES = 6


def render(results: Sequence[TrainingResult], heading: str, mnist: Path | None = None) -> str:
    """Return an HTML page about runs, as text.

    Args:
        results: Results of the runs; all must have the same metric.
        heading: Title of the page.
        mnist: Folder with the MNIST files, which are needed for pictures of the data. Default: the cache.

    Raises:
        EnvariantError: If there is no run, or the runs have different metrics.
    """
    if not results:
        raise EnvariantError("report: needs at least one run")
    if len({result.record.metric for result in results}) > 1:
        raise EnvariantError(
            "report: the runs have different metrics; write a separate report for each metric"
        )
    named = dict(zip(labels(results), results, strict=True))
    named = {name: named[name] for name in baseline_first(list(named))}
    if len(named) < len(results):
        named = {
            f"{name} ({k})": r for k, (name, r) in enumerate(zip(labels(results), results, strict=True), 1)
        }
    names, ordered = list(named), list(named.values())
    finished = {name: result for name, result in named.items() if result.finished}
    return render_page(
        Page(
            "runs",
            heading,
            "Every run is evaluated in all environments, including the test environments, on which it was "
            "not trained.",
            _headline(finished) if finished else "No replica finished",
            numbers=_numbers(finished),
            bullets=_bullets(named),
            figure=_drops(finished),
            sections=[section for section in _sections(names, ordered, finished, mnist) if section.blocks],
            methods=names,
        )
    )


def write(results: Sequence[TrainingResult], path: Path, heading: str, mnist: Path | None = None) -> None:
    """Write an HTML page about runs to a file atomically; see `render` for the arguments.

    Raises:
        EnvariantError: If the page cannot be rendered or the file cannot be written.
    """
    html.check_page(path, "runs")
    write_text(render(results, heading, mnist), path)


def _sections(
    names: Sequence[str],
    results: Sequence[TrainingResult],
    finished: dict[str, TrainingResult],
    mnist: Path | None,
) -> list[Section]:
    drawn, labeled = list(finished.values()), list(finished)
    trained = [each for each in drawn if each.record.spec.steps]
    curve_names = [name for name, each in finished.items() if each.record.spec.steps]
    curves = Block.chart(
        charts.curves(trained, curve_names), "Lines are means over replicas; bands span all replicas."
    ) if trained else None  # fmt: skip
    shift = Block.chart(
        charts.shift_curve(drawn, labeled),
        "Final score by the value of the shift. Lines are means over replicas; each dot is a replica.",
    ) if charts.has_shift_scale(drawn) else None  # fmt: skip
    remarks = [Block("note", line) for line in _merged(names, [r.record.remarks for r in results])]
    failures = [
        Block("warning", f"{name}, replica {replica} stopped: {reason}")
        for name, each in zip(names, results, strict=True)
        for replica, reason in each.failures.items()
    ]
    diagnoses = [Block("warning", line) for line in _diagnoses(names, results)]
    problems = (*failures, *diagnoses)
    scores = Block.table(tables.scores(results, names), "Scores after the last step")
    return [
        Section("scores", "Scores by environment", (scores, *remarks), is_open=True),
        Section("problems", "Possible problems", problems, f"{len(problems)} found", bool(failures)),
        Section("curves", "Learning curves", (curves,) if curves else (), is_open=True),
        Section("shift", "Score by size of the shift", (shift,) if shift else ()),
        Section("data", "Data", _overviews(results, mnist)),
        Section("settings", "Settings", _settings(results)),
        Section("machine", "Commands, machine and versions", _machine(names, results)),
    ]  # fmt: skip


def _scores(result: TrainingResult) -> tuple[float, str, Interval]:
    """Return the mean training score, the worst test environment, and the score there with its interval.

    The environment is "" if no test environment can be predicted, that is, if there is none or all contain
    classes that were not in training.
    """
    record, metric = result.record, METRICS.get(result.record.metric)
    finals = {name: result.final(name, record.metric) for name in record.roles}
    trained = [finals[name].mean for name, role in record.roles.items() if role == "train"]
    inside = statistics.fmean(trained)
    tests = [name for name in record.test_environments if name not in record.unpredictable]
    if not tests:
        return inside, "", Interval(float("nan"), float("nan"), float("nan"), 0)
    worst = (min if record.higher_is_better else max)(tests, key=lambda name: finals[name].mean)
    score = interval(finals[worst].values)
    return inside, worst, score if metric is None else score.clipped(*metric.bounds)


def _headline(finished: dict[str, TrainingResult]) -> str:
    """Return a sentence on whether a run is significantly better than ERM in ERM's worst environment."""
    scores = {name: _scores(result) for name, result in finished.items()}
    metric = next(iter(finished.values())).record.metric
    base = next((n for n, r in finished.items() if r.record.spec.algorithm == BASELINE), "")
    if not base or len(finished) == 1 or not scores[base][1]:
        name, (inside, worst, score) = next(iter(scores.items()))
        if not worst:
            return f"{name}: {metric} {inside:.3f} in training; there is no test environment with a verdict"
        return f"{name}: {metric} {inside:.3f} in training, {score.mean:.3f} in {worst}"
    where = scores[base][1]
    sign = 1.0 if finished[base].record.higher_is_better else -1.0
    own = _by_replica(finished[base], where)
    gains: dict[str, list[float]] = {}
    for name, result in finished.items():
        # A grayscale oracle has other data, and no paired replicas.
        if name != base and result.record.spec.data == finished[base].record.spec.data:
            other = _by_replica(result, where)
            gains[name] = [sign * (other[k] - own[k]) for k in own if k in other]
    tested = [name for name, each in gains.items() if len(each) > 1]
    p_values = holm([paired_t(gains[name], [0.0] * len(gains[name])) for name in tested])
    better = [
        n for n, p in zip(tested, p_values, strict=True) if p < _LEVEL and statistics.fmean(gains[n]) > 0
    ]
    if better:
        best = max(better, key=lambda name: statistics.fmean(gains[name]))
        score = _by_replica(finished[best], where)
        return (
            f"In {where}, {best} is better than {base}: {metric} {statistics.fmean(score.values()):.3f} "
            f"against {scores[base][2].mean:.3f}"
        )
    if not tested:
        return f"{base}: {metric} {scores[base][0]:.3f} in training, {scores[base][2].mean:.3f} in {where}"
    return f"No run is significantly better than {base} in {where}"


def _bullets(named: dict[str, TrainingResult]) -> list[str]:
    """Return the verdicts on the first run (ERM, if ERM was run) and on the best of the others."""
    sign = -1.0 if next(iter(named.values())).record.higher_is_better else 1.0

    def rank(name: str) -> tuple[bool, float]:
        score = _scores(named[name])[2].mean if named[name].finished else math.nan
        return math.isnan(score), sign * score

    first, *others = named
    shown = [first, *sorted(others, key=rank)][:_MOST_BULLETS]
    return [f"{name}: {verdict(named[name])}" for name in shown]


def _by_replica(result: TrainingResult, environment: str) -> dict[int, float]:
    if environment not in result.record.roles:
        return {}
    values = result.final(environment, result.record.metric).values
    return dict(zip(result.finished, values, strict=True))


def _numbers(finished: dict[str, TrainingResult]) -> list[BigNumber]:
    """Return scores of the first run (ERM, if it was run) and of the best run in its worst environment."""
    scores = {name: each for name, result in finished.items() if (each := _scores(result))[1]}
    if not scores:
        return []
    higher = next(iter(finished.values())).record.higher_is_better
    first = next(iter(scores))
    same = [n for n in scores if finished[n].record.spec.data == finished[first].record.spec.data]
    best = (max if higher else min)(same, key=lambda name: scores[name][2].mean)
    numbers: list[BigNumber] = []
    for name in dict.fromkeys((first, best)):
        inside, worst, score = scores[name]
        detail = f"95 % CI [{score.low:.3f}, {score.high:.3f}]" if score.count > 1 else "one replica"
        detail += "" if name == first else ", the best of these runs"
        numbers.append(BigNumber(f"{name}, training → {worst}", f"{inside:.3f} → {score.mean:.3f}", detail))
    return numbers


def _drops(finished: dict[str, TrainingResult]) -> Block | None:
    scores = {name: each for name, result in finished.items() if (each := _scores(result))[1]}
    if not scores:
        return None
    metric = next(iter(finished.values())).record.metric
    places = list(dict.fromkeys(worst for _, worst, _ in scores.values()))
    outside = places[0] if len(places) == 1 else "the worst test environment"
    rows = [charts.DropRow(name, inside, score) for name, (inside, _, score) in scores.items()]
    chart = charts.drops(rows, metric, ("training environments (mean)", outside, "", ""))
    return Block.chart(chart, "Final scores: means over replicas. Pale bars: 95 % CI over replicas.")


def _merged(names: Sequence[str], texts: Sequence[Sequence[str]]) -> list[str]:
    """Return each text once, preceded by the names of all runs that it is about."""
    owners: dict[str, list[str]] = {}
    for name, own in zip(names, texts, strict=True):
        for text in dict.fromkeys(own):
            owners.setdefault(text, []).append(name)
    return [f"{_list(own)}: {text}" for text, own in owners.items()]


def _diagnoses(names: Sequence[str], results: Sequence[TrainingResult]) -> list[str]:
    """Return the diagnoses of all runs; those with the same name, cause and remedy are one paragraph."""
    groups: dict[tuple[str, str, str], list[tuple[str, str]]] = {}
    for name, result in zip(names, results, strict=True):
        for each in result.diagnoses:
            groups.setdefault((each.name, each.cause, each.remedy), []).append((name, each.evidence))
    return [
        f"{_list([name for name, _ in own])}: {title}. {own[0][0]}: {own[0][1]}. Likely cause: {cause}. "
        f"Remedy: {remedy}."
        for (title, cause, remedy), own in groups.items()
    ]


def _list(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _settings(results: Sequence[TrainingResult]) -> list[Block]:
    """Return a table of the settings that differ between the runs, and a list of those that do not."""
    table = tables.settings(results)
    clean = [tuple(map(without_folders, row)) for row in table.rows]
    equal = [(row[0], row[1]) for row in clean if len(set(row[1:])) == 1]
    differing = tuple(row for row in clean if len(set(row[1:])) > 1)
    blocks: list[Block] = []
    if differing:
        blocks.append(Block.table(TextTable(table.header, differing), "Settings in which the runs differ"))
        blocks.append(Block("heading", "Equal in all runs"))
    return [*blocks, Block("definitions", equal)]


def _machine(names: Sequence[str], results: Sequence[TrainingResult]) -> list[Block]:
    blocks: list[Block] = []
    for name, result in zip(names, results, strict=True):
        record, replicas = result.record, result.record.spec.replicas
        blocks.append(Block("heading", name))
        if record.command:
            blocks.append(Block("command", without_folders(record.command)))
        else:
            blocks.append(Block("note", "Started from Python."))
        seeds = ", ".join(f"({s.data}, {s.initialization}, {s.order})" for s in record.seeds)
        time = f"{result.seconds:.1f} s for {number_of(replicas, 'replica')}"
        blocks.append(
            Block("note", f"Training and evaluation: {time}. Seeds (data, initialization, order): {seeds}.")
        )
    lines = [
        [
            ", ".join(f"{k} {v}" for k, v in each.items()) + "."
            for each in (r.record.hardware, r.record.versions)
        ]
        for r in results
    ]
    return [*blocks, *(Block("note", line) for line in _merged(names, lines))]


def _overviews(results: Sequence[TrainingResult], mnist: Path | None) -> list[Block]:
    """Return pictures and facts of each colored data set that can be loaded again by name."""
    blocks: list[Block] = []
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
        if isinstance(source, ColoredSource) and same:
            facts = source.facts(environments)
            caption = (
                f"{name}: sample digits of every environment in their colors. The label below each digit has "
                "the color that agrees with it."
            )
            blocks.append(Block.image(figures.png(figures.overview(environments, facts), 110), caption))
            table = tables.facts(facts)
            blocks.append(Block.table(table, "Rows of each environment, and accuracies of simple rules"))
    return blocks
