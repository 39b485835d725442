"""The page of a comparison: the answer first, then the numbers and pictures it rests on; one offline file."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from envariant.comparison.evidence import Cell, Evidence, Reliance
from envariant.comparison.stability import ColumnStability
from envariant.comparison.words import drop, named
from envariant.reporting import figures, html
from envariant.reporting.figures import INK, MUTED, TEST, TRAIN, plain_text, quiet
from envariant.reporting.shift import plane
from envariant.reporting.tables import NONE, TextTable
from envariant.statistics import Interval
from envariant.studies.comparison import BASELINE
from envariant.studies.shift import Shift

if TYPE_CHECKING:
    from envariant.comparison.answer import Answer

_MOST_COLUMNS = 20
_LINE = "#e4e7eb"


def write(answer: "Answer") -> None:
    """Writes the page, and the numbers as JSON beside it.

    Raises:
        EnvariantError: they cannot be written.
    """
    html.write(render(answer), answer.page)
    html.write(json.dumps(answer.plain(), indent=1), answer.folder / "answer.json")


def render(answer: "Answer") -> str:
    """The page as text; nothing in it is fetched from anywhere."""
    found = answer.evidence
    best = answer.recommended
    return html.render(
        "comparison.html.j2",
        heading=f"{answer.target}, at a new {answer.environment}",
        paragraph=answer.verdict,
        next=answer.words.next,
        drops=figures.svg(drops(found, best)),
        places=places(found),
        methods=methods(found),
        columns=columns_table(answer.columns, found, best),
        columns_picture=figures.svg(columns(answer.columns, found, best)),
        left_out=max(0, len(answer.columns) - _MOST_COLUMNS),
        shifts=shifts(answer.shifts),
        plane=figures.svg(plane(list(answer.shifts.values()))) if answer.shifts else "",
        account=[(line.column or "the table", line.what) for line in answer.account],
        missing=found.missing,
        settings=_settings(answer),
        folder=str(answer.folder),
        recommended=named(best),
    )


def fragment(answer: "Answer") -> str:
    """The verdict and the table of methods, for a notebook."""
    return html.render(
        "comparison_fragment.html.j2", paragraph=answer.verdict, methods=methods(answer.evidence)
    )


def drops(found: Evidence, best: str) -> Figure:
    """For every place: where it was trained on and where it is new, ERM's models and the best method's."""
    usual = found.cells[BASELINE]
    other = best if best != BASELINE else _runner_up(found)
    order = sorted(usual, key=lambda place: found.sign * usual[place].score.mean)
    figure = Figure(figsize=(7.4, 0.5 * len(order) + 1.5), layout="constrained")
    axes = figure.subplots()
    for row, place in enumerate(order):
        cell = usual[place]
        _span(axes, cell.score, row, TEST)
        if cell.inside.count:
            axes.annotate(
                "", (cell.score.mean, row), (cell.inside.mean, row),
                arrowprops={"arrowstyle": "-|>", "color": TEST, "lw": 1.2, "shrinkA": 5, "shrinkB": 5},
            )  # fmt: skip
            axes.plot([cell.inside.mean], [row], "o", color=TEST, ms=7, mfc="white")
        axes.plot([cell.score.mean], [row], "o", color=TEST, ms=7)
        beside = found.cells.get(other, {}).get(place)
        if beside is not None:
            _span(axes, beside.score, row + 0.24, TRAIN[0])
            axes.plot([beside.score.mean], [row + 0.24], "D", color=TRAIN[0], ms=6)
    axes.plot([], [], "o", color=TEST, ms=7, mfc="white", label="ERM, trained on rows of the place")
    axes.plot([], [], "o", color=TEST, ms=7, label="ERM, the place is new")
    if other:
        axes.plot([], [], "D", color=TRAIN[0], ms=6, label=f"{named(other)}, the place is new")
    axes.set_yticks(range(len(order)), [plain_text(_short(place)) for place in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel(found.metric.name, fontsize=9, color=INK)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    quiet(axes)
    axes.tick_params(axis="y", labelsize=9, colors=INK, length=0)
    axes.grid(axis="y", color="#f1f3f5", lw=0.8)
    axes.set_axisbelow(True)
    return figure


def columns(found: Sequence[ColumnStability], evidence: Evidence, best: str) -> Figure:
    """Columns from the least stable on: slopes in every environment, and what models lose without them."""
    shown = found[:_MOST_COLUMNS]
    figure = Figure(figsize=(7.4, 0.36 * len(shown) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    left.axvline(0, color=MUTED, lw=0.8, zorder=0)
    for row, column in enumerate(shown):
        known = [slope for slope in column.slopes.values() if math.isfinite(slope)]
        colour = TEST if column.unstable else TRAIN[0]
        if known:
            left.plot([min(known), max(known)], [row, row], color=colour, lw=2, alpha=0.35)
            left.plot(known, [row] * len(known), "o", color=colour, ms=5.5, alpha=0.8)
    methods = [BASELINE] if best == BASELINE else [BASELINE, best]
    for k, method in enumerate(methods):
        own = evidence.reliance.get(method, {})
        height = 0.7 / len(methods)
        worth = [max(0.0, own[c.column].within) if c.column in own else 0.0 for c in shown]
        at = [row + (k - (len(methods) - 1) / 2) * height for row in range(len(shown))]
        right.barh(at, worth, height * 0.9, color=(MUTED, TRAIN[1])[k], label=named(method))
    left.plot([], [], "o", color=TRAIN[0], ms=5.5, label="stable: a dot an environment")
    left.plot([], [], "o", color=TEST, ms=5.5, label="unstable")
    left.set_yticks(range(len(shown)), [plain_text(_short(c.column)) for c in shown])
    left.set_ylim(len(shown) - 0.4, -0.6)
    left.set_xlabel("slope of the target over the column", fontsize=9, color=INK)
    right.set_xlabel(f"{evidence.metric.name} lost without it", fontsize=9, color=INK)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)
    for axes in (left, right):
        quiet(axes)
        axes.grid(axis="y", color="#f1f3f5", lw=0.8)
        axes.set_axisbelow(True)
    left.tick_params(axis="y", labelsize=9, colors=INK, length=0)
    right.tick_params(axis="y", length=0)
    return figure


def places(found: Evidence) -> TextTable:
    """A line a place: ERM where it was trained on and where it is new, and the best other method there."""
    lines: list[tuple[str, ...]] = []
    for place, cell in found.cells[BASELINE].items():
        others = {m: c[place] for m, c in found.cells.items() if m != BASELINE and place in c}
        top = max(others, key=lambda m: found.sign * others[m].score.mean, default="")
        lost = drop(found, cell)
        lines.append(
            (
                place,
                _mean(cell.inside),
                _interval(cell.score),
                f"{lost[0]:+.3f} ± {lost[1]:.3f}" if math.isfinite(lost[0]) else NONE,
                f"{named(top)}: {_gain(others[top])}" if top else NONE,
            )
        )
    worst, _ = found.worst(BASELINE)
    return TextTable(
        ("place", "ERM, trained on it", "ERM, it is new", "lost", "best other method, gain over ERM"),
        tuple(lines),
        (
            f"{found.metric.name}; ERM is worst at {worst}. Trained on it: rows of the place that were held "
            f"out, the rest of it in training. Square brackets and ±: 95 %, over {found.replicas} replicas "
            f"and the rows that the place happens to have.",
        ),
    )


def methods(found: Evidence) -> TextTable:
    """A line a method, a column a place it never saw, and the worst of them."""
    lines: list[tuple[str, ...]] = []
    for method, cells in found.cells.items():
        worst, cell = found.worst(method)
        shown = [
            NONE if place not in cells else f"{cells[place].score.mean:.3f}{_mark(cells[place])}"
            for place in found.places
        ]
        lines.append((named(method), *shown, f"{cell.score.mean:.3f} ({worst})", f"{found.mean(method):.3f}"))
    return TextTable(
        (found.metric.name, *found.places, "worst", "mean"),
        tuple(lines),
        (
            f"Means over {found.replicas} replicas, each place held out in its turn. ↑ better, ↓ worse than "
            f"ERM beyond noise (t test over replicas and rows, corrected by Holm for all methods and places, "
            f"at 0.05). Hyperparameters: invariance selection on held-out rows of the other places.",
        ),
    )


def columns_table(found: Sequence[ColumnStability], evidence: Evidence, best: str) -> TextTable:
    """A line a column: its slopes, whether they differ, and how much models lean on it."""
    methods = [BASELINE] if best == BASELINE else [BASELINE, best]
    lines: list[tuple[str, ...]] = []
    for column in found[:_MOST_COLUMNS]:
        known = {n: slope for n, slope in column.slopes.items() if math.isfinite(slope)}
        low, high = (f(known, key=known.__getitem__, default="") for f in (min, max))
        slopes = (f"{known[low]:+.2f} ({low})", f"{known[high]:+.2f} ({high})") if known else (NONE, NONE)
        own = [evidence.reliance.get(m, {}).get(column.column) for m in methods]
        lines.append((column.column, column.kind, *slopes, f"{column.p_value:.2g}", *map(_worth, own)))
    heads = [
        f"{named(m)} loses without it: known, new place; there with values from elsewhere" for m in methods
    ]
    return TextTable(
        ("column", "relation", "lowest slope", "highest slope", "p", *heads),
        tuple(lines),
        (
            "Slope: standard deviations of the target per standard deviation of the column, by itself, in "
            "each environment. p: of there being one slope for all (Cochran's Q, corrected by Holm). Turns: "
            "above 0 beyond noise in one environment and below in another. Lost: the metric on some rows "
            "less that with the column's values shuffled; below 0 the model is better off without.",
        ),
    )


def shifts(found: Mapping[str, Shift]) -> TextTable:
    """A line a place: which kind of shift lies between it and all others together."""
    lines = [
        (place, *(f"{v.mean:.2f}" for v in (s.diversity, s.correlation, s.label, s.covariate)), s.kind)
        for place, s in found.items()
    ]
    return TextTable(
        ("place", "diversity", "correlation", "label", "covariate", "shift"),
        tuple(lines),
        (
            "From 0 to 1, between the place and all others. Diversity: rows that do not occur elsewhere; "
            "correlation: the same rows have other targets (OoD-Bench, Ye et al. 2022); label: total "
            "variation of the targets; covariate: 2·AUC − 1 of telling the place by its rows.",
        ),
    )


def _settings(answer: "Answer") -> TextTable:
    plain = answer.study.plain()
    lines = [("rows compared on, places", f"{len(answer.evidence.places)} places")]
    lines += [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in plain.items()]
    lines += [("seconds", f"{answer.seconds:.0f}")]
    return TextTable(("setting", "value"), tuple(lines[1:]))


def _runner_up(found: Evidence) -> str:
    """Of the methods beside ERM the one whose worst place is best; "" if there is none."""
    others = [m for m in found.cells if m != BASELINE and found.whole(m)]
    return max(others, key=lambda m: found.sign * found.worst(m)[1].score.mean, default="")


def _span(axes: Axes, of: Interval, row: float, colour: str) -> None:
    axes.plot([of.low, of.high], [row, row], color=colour, lw=2, alpha=0.35, solid_capstyle="butt")


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _mean(of: Interval) -> str:
    return f"{of.mean:.3f}" if of.count else NONE


def _interval(of: Interval) -> str:
    return f"{of.mean:.3f} [{of.low:.3f}, {of.high:.3f}]"


def _gain(cell: Cell) -> str:
    return NONE if cell.gain is None else f"{cell.gain.mean:+.3f}{_mark(cell) or ' (noise)'}"


def _mark(cell: Cell) -> str:
    if not cell.beyond or cell.gain is None:
        return ""
    return " ↑" if cell.gain.mean > 0 else " ↓"


def _worth(of: Reliance | None) -> str:
    if of is None:
        return NONE
    parts = (of.within, of.new, of.elsewhere)
    return ", ".join("–" if not math.isfinite(part) else f"{part:+.3f}" for part in parts)
