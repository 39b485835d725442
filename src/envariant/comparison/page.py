"""The page of a comparison: the answer first, then the numbers and pictures it rests on; one offline file."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from envariant.analysis.column_stability import ColumnStability
from envariant.analysis.distribution_shift import NOTABLE, Shift
from envariant.analysis.statistics import Interval
from envariant.comparison.narrative import chance, drop, guessing, named, shown
from envariant.comparison.results import Cell, Evidence, Reliance
from envariant.reporting import figures, html
from envariant.reporting.figures import INK, MUTED, TEST, TRAIN, plain_text, quiet
from envariant.reporting.tables import NONE, TextTable, finite
from envariant.studies.significance import BASELINE

if TYPE_CHECKING:
    from envariant.comparison.compare import Answer

_MOST_COLUMNS = 20
# Places that a table has columns for, and that a picture has room for.
_MOST_PLACES = 8
_MOST_DRAWN = 30
_LINE = "#e4e7eb"


def write(answer: "Answer") -> None:
    """Writes the page, and the numbers as JSON beside it.

    Raises:
        EnvariantError: they cannot be written.
    """
    html.write(render(answer), answer.page)
    numbers = json.dumps(finite(answer.to_dict()), indent=1, allow_nan=False)
    html.write(numbers, answer.folder / "answer.json")


def render(answer: "Answer") -> str:
    """The page as text; nothing in it is fetched from anywhere."""
    found = answer.evidence
    best = answer.recommended
    return html.render(
        "comparison.html.j2",
        heading=f"{answer.target}, at a new {answer.environment}",
        extent=_extent(answer),
        paragraph=answer.verdict,
        next=answer.words.next,
        drops=figures.svg(drops(found, best)),
        undrawn=max(0, len(found.cells[BASELINE]) - _MOST_DRAWN),
        places=places(found),
        methods=methods(found),
        columns=columns_table(answer.columns),
        columns_picture=figures.svg(columns(answer.columns, found, best)),
        worth=worth(answer.columns, found, best),
        left_out=max(0, len(answer.columns) - _MOST_COLUMNS),
        shifts=shifts(answer.shifts),
        plane=figures.svg(plane(answer.shifts)) if answer.shifts else "",
        preprocessing_log=[(line.column or "the table", line.what) for line in answer.preprocessing_log],
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
    order = sorted(usual, key=lambda place: found.sign * usual[place].score.mean)[:_MOST_DRAWN]
    figure = Figure(
        figsize=(7.4, (0.5 if len(order) <= 12 else 0.36) * len(order) + 1.5), layout="constrained"
    )
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
        if place in found.guess:
            guess = found.guess[place]
            axes.plot([guess, guess], [row - 0.3, row + 0.36], color=MUTED, lw=1.2, ls=(0, (2, 2)), zorder=1)
    axes.plot([], [], "o", color=TEST, ms=7, mfc="white", label="ERM, trained on rows of the place")
    axes.plot([], [], "o", color=TEST, ms=7, label="ERM, the place is new")
    if other:
        axes.plot([], [], "D", color=TRAIN[0], ms=6, label=f"{named(other)}, the place is new")
    if any(place in found.guess for place in order):
        axes.plot([], [], color=MUTED, lw=1.2, ls=(0, (2, 2)), label="no model")
    axes.set_yticks(range(len(order)), [plain_text(_short(place)) for place in order])
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel(found.metric.name, fontsize=9, color=INK)
    figure.legend(
        loc="outside upper left", ncols=4, frameon=False, fontsize=8, labelcolor=INK, columnspacing=1.2
    )
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
        color = TEST if column.unstable else TRAIN[0]
        if known:
            left.plot([min(known), max(known)], [row, row], color=color, lw=2, alpha=0.35)
            left.plot(known, [row] * len(known), "o", color=color, ms=5.5, alpha=0.8)
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
        gone, noise = drop(found, cell)
        lost = f"{shown(found, gone, signed=True)} ± {shown(found, noise)}"
        lines.append(
            (
                place,
                f"{found.rows[place]:,}" if place in found.rows else NONE,
                shown(found, found.guess[place]) if place in found.guess else NONE,
                shown(found, cell.inside.mean) if cell.inside.count else NONE,
                _interval(found, cell.score),
                lost if math.isfinite(gone) else NONE,
                f"{named(top)}: {_gain(found, others[top])}" if top else NONE,
            )
        )
    worst, _ = found.worst(BASELINE)
    usual = guessing(found)
    return TextTable(
        (
            found.environment or "place",
            "rows",
            "no model",
            "ERM, trained on it",
            "ERM, it is new",
            "lost by being new",
            "best other method there, gain over ERM",
        ),
        tuple(lines),
        (
            f"{found.metric.name}, {'more' if found.metric.higher_is_better else 'less'} is better; ERM is "
            f"worst at {worst}. No model: {usual} of the other places. Trained on it: rows of "
            f"the place that were held out, the rest of it in training. Square brackets and ±: 95 %, over "
            f"{found.replicas} replicas and the rows that the place happens to have.",
        ),
    )


def methods(found: Evidence) -> TextTable:
    """A line a method, a column a place it never saw (of many, where ERM is worst), and the worst of them."""
    usual = found.cells[BASELINE]
    hardest = sorted(usual, key=lambda place: found.sign * usual[place].score.mean)[:_MOST_PLACES]
    places = [place for place in found.places if place in hardest or len(found.places) <= _MOST_PLACES]
    lines: list[tuple[str, ...]] = []
    for method, cells in found.cells.items():
        worst, cell = found.worst(method)
        whole = found.whole(method)
        values = [
            NONE if place not in cells else f"{shown(found, cells[place].score.mean)}{_mark(cells[place])}"
            for place in places
        ]
        lowest = f"{shown(found, cell.score.mean)} ({worst})" if whole else NONE
        lines.append((named(method), *values, lowest, shown(found, found.mean(method)) if whole else NONE))
    left_out = len(found.places) - len(places)
    more = f"Of {len(found.places)} places the {len(places)} where ERM is worst. " if left_out else ""
    return TextTable(
        (found.metric.name, *places, "worst", "mean"),
        tuple(lines),
        (
            f"{more}Means over {found.replicas} replicas, each place held out in its turn; "
            f"{'more' if found.metric.higher_is_better else 'less'} is better. ↑ better, ↓ worse than "
            f"ERM beyond noise (t test over replicas and rows, corrected by Holm for all methods and places, "
            f"at 0.05). Hyperparameters: invariance selection on held-out rows of the other places. A method "
            f"that is recommended was found by these numbers, so they flatter it a little.",
        ),
    )


def columns_table(found: Sequence[ColumnStability]) -> TextTable:
    """A line a column: its slopes, and whether they differ."""
    lines: list[tuple[str, ...]] = []
    for column in found[:_MOST_COLUMNS]:
        known = {n: slope for n, slope in column.slopes.items() if math.isfinite(slope)}
        low, high = (f(known, key=known.__getitem__, default="") for f in (min, max))
        slopes = tuple(f"{round(known[name], 2) + 0.0:+.2f} ({name})" for name in (low, high) if known)
        p = chance(column.p_value).removeprefix("p ").removeprefix("= ")
        lines.append((column.column, column.kind, *(slopes or (NONE, NONE)), p))
    return TextTable(
        ("column", "relation", "lowest slope", "highest slope", "p"),
        tuple(lines),
        (
            "Slope: standard deviations of the target per standard deviation of the column, by itself, in "
            "each environment. p: of there being one slope for all (Cochran's Q, corrected by Holm). Varies: "
            "the slopes differ by more than noise. Turns: above 0 beyond noise in one environment and below "
            "in another.",
        ),
    )


def worth(found: Sequence[ColumnStability], evidence: Evidence, best: str) -> TextTable:
    """A line a column: how much worse models get when it is shuffled, or holds values from elsewhere."""
    shown_columns = found[:_MOST_COLUMNS]
    methods = [BASELINE] if best == BASELINE else [BASELINE, best]
    lines: list[tuple[str, ...]] = []
    for column in shown_columns:
        own = [evidence.reliance.get(m, {}).get(column.column) for m in methods]
        lines.append((column.column, *(text for each in own for text in _worth(evidence, each))))
    heads = [
        f"{named(m)}: {what}"
        for m in methods
        for what in ("shuffled, known places", "shuffled, new place", "values from elsewhere, new place")
    ]
    return TextTable(
        ("column", *heads),
        tuple(lines),
        (
            f"By how much {evidence.metric.name} gets worse when the column's values are shuffled, on "
            f"held-out rows of places that were trained on and at the place that was not; and at that place "
            f"when they are drawn from the places that were. Below 0 the model is better off without the "
            f"values it found there.",
        ),
    )


def plane(found: Mapping[str, Shift]) -> Figure:
    """Diversity across, correlation up: a point a place; those farthest from no shift are named."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    points = {place: (s.diversity.mean, s.correlation.mean) for place, s in found.items()}
    top = 1.15 * max(0.26, *(max(point) for point in points.values()))
    for line in (axes.axvline, axes.axhline):
        line(NOTABLE, color=MUTED, lw=0.8, ls=(0, (5, 3)), zorder=0)
    # Boxes that names and dots take, across and up; a name that fits nowhere is left to the table.
    taken = [(x - 0.02 * top, y - 0.02 * top, x + 0.02 * top, y + 0.02 * top) for x, y in points.values()]
    for place, (across, up) in sorted(points.items(), key=lambda item: -max(item[1])):
        axes.plot([across], [up], "o", color=TRAIN[0], ms=6.5, alpha=0.8)
        name = _short(place, 20)
        wide, high = 0.0195 * top * len(name), 0.045 * top
        for horizontal, right, below in ("left", 0.025, 0.5), ("right", -0.025, 0.5), ("center", 0, -0.6), (
            "center", 0, 1.6,
        ):  # fmt: skip
            left = across + right * top - wide * {"left": 0.0, "right": 1.0, "center": 0.5}[horizontal]
            box = (left, up - below * high, left + wide, up - below * high + high)
            if left < -0.03 * top or box[2] > top or box[1] < -0.03 * top:
                continue
            if not any(
                box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
                for other in taken
            ):
                taken.append(box)
                at = (across + right * top, box[1] + high / 2)
                axes.text(*at, plain_text(name), ha=horizontal, va="center", fontsize=8.5, color=INK)
                break
    axes.set_xlim(-0.03 * top, top)
    axes.set_ylim(-0.03 * top, top)
    axes.set_xlabel("diversity shift: rows that do not occur elsewhere", fontsize=9, color=INK)
    axes.set_ylabel("correlation shift: same rows, other targets", fontsize=9, color=INK)
    quiet(axes)
    return figure


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
            "variation of the targets; covariate: 2·AUC − 1 of telling the place by its rows. Of few rows "
            "these are rough.",
        ),
    )


def _extent(answer: "Answer") -> str:
    """What was compared on, in a line."""
    rows = answer.evidence.rows
    listed = ", ".join(f"{place} ({count:,})" for place, count in list(rows.items())[:_MOST_PLACES])
    more = ", …" if len(rows) > _MOST_PLACES else ""
    return (
        f"{sum(rows.values()):,} rows, {len(answer.columns)} columns and {len(rows)} values of "
        f"{answer.environment}: {listed}{more}"
    )


def _settings(answer: "Answer") -> TextTable:
    lines = [(key, _setting(value)) for key, value in answer.study.to_dict().items()]
    return TextTable(("setting", "value"), (*lines, ("seconds", f"{answer.seconds:.0f}")))


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _runner_up(found: Evidence) -> str:
    """Of the methods beside ERM the one whose worst place is best; "" if there is none."""
    others = [m for m in found.cells if m != BASELINE and found.whole(m)]
    return max(others, key=lambda m: found.sign * found.worst(m)[1].score.mean, default="")


def _span(axes: Axes, of: Interval, row: float, color: str) -> None:
    axes.plot([of.low, of.high], [row, row], color=color, lw=2, alpha=0.35, solid_capstyle="butt")


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _interval(found: Evidence, of: Interval) -> str:
    return f"{shown(found, of.mean)} [{shown(found, of.low)}, {shown(found, of.high)}]"


def _gain(found: Evidence, cell: Cell) -> str:
    if cell.gain is None:
        return NONE
    return f"{shown(found, cell.gain.mean, signed=True)}{_mark(cell) or ' (noise)'}"


def _mark(cell: Cell) -> str:
    if not cell.beyond or cell.gain is None:
        return ""
    return " ↑" if cell.gain.mean > 0 else " ↓"


def _worth(found: Evidence, of: Reliance | None) -> tuple[str, ...]:
    parts = (math.nan,) * 3 if of is None else (of.within, of.new, of.elsewhere)
    return tuple(shown(found, part, signed=True) if math.isfinite(part) else NONE for part in parts)
