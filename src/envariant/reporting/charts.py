"""Charts of numbers over runs: a score against a setting, methods in a row, and plain lines.

What every chart of scores shows: each environment, every replica as a dot, the mean as a line, and where
they are known, chance and the optimum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from envariant.analysis.statistics import interval
from envariant.reporting.figures import INK, MUTED, TEST, TRAIN, plain_text, quiet, references
from envariant.training.result import TrainingResult


def sweep(
    points: Mapping[float, TrainingResult],
    setting: str,
    scale: str = "linear",
) -> Figure:
    """The last score in every environment against one setting that the runs differ in.

    Args:
        points: a run for each value of the setting.
        setting: what the horizontal axis is called.
        scale: of that axis; "symlog" is logarithmic with room for 0.
    """
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axes = figure.subplots()
    record = next(iter(points.values())).record
    train = iter(TRAIN)
    for environment, role in record.roles.items():
        test_environments = role == "test"
        color = TEST if test_environments else next(train)
        spreads = {x: result.final(environment, record.metric) for x, result in points.items()}
        axes.plot(
            list(spreads), [s.mean for s in spreads.values()], "-" if test_environments else ":", color=color, lw=2,
            label=plain_text(f"{environment} ({role})"),
        )  # fmt: skip
        dots = [(x, value) for x, spread in spreads.items() for value in spread.values]
        axes.plot(*zip(*dots, strict=True), ".", color=color, alpha=0.45, ms=5)
    if scale == "symlog":
        axes.set_xscale("symlog", linthresh=min(x for x in points if x > 0))
    else:
        axes.set_xscale(scale)
    references(axes, record)
    axes.set_xlabel(plain_text(setting), fontsize=9, color=INK)
    axes.set_ylabel(record.metric, color=INK)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    quiet(axes)
    return figure


@final
@dataclass(frozen=True)
class Bar:
    """One method in `ranking`.

    Attributes:
        name: of the method.
        values: its score in the environment of interest, one a replica.
        published: what papers and reports found, by the name of the source.
    """

    name: str
    values: Sequence[float]
    published: Mapping[str, float]


def ranking(bars: Sequence[Bar], label: str, marks: Mapping[str, float]) -> Figure:
    """Methods from top to bottom: replicas as dots, mean with its 95 % interval, published figures beside.

    Args:
        bars: the methods, in order.
        label: of the horizontal axis.
        marks: values to draw a line at, by name.
    """
    figure = Figure(figsize=(7.4, 0.42 * len(bars) + 1.5), layout="constrained")
    axes = figure.subplots()
    sources = dict.fromkeys(source for bar in bars for source in bar.published)
    signs = dict(zip(sources, "D^svP", strict=False))
    for place, bar in enumerate(bars):
        axes.plot(bar.values, [place] * len(bar.values), ".", color=TEST, alpha=0.4, ms=6)
        found = interval(bar.values)
        if found.count > 1:
            axes.plot([found.low, found.high], [place, place], color=TEST, lw=2, solid_capstyle="butt")
        axes.plot([found.mean], [place], "o", color=TEST, ms=7)
        for source, value in bar.published.items():
            axes.plot([value], [place], signs[source], color=TRAIN[1], ms=6, mfc="white")
    for source, sign in signs.items():
        axes.plot([], [], sign, color=TRAIN[1], ms=6, mfc="white", ls="", label=plain_text(source))
    axes.plot([], [], "o-", color=TEST, lw=2, label="ours: mean, 95 % interval, replicas")
    for name, value in marks.items():
        axes.axvline(value, color=MUTED, lw=0.8, ls=(0, (5, 3)), zorder=0)
        axes.text(
            value, 1.0, f" {name} {value:.0%}", fontsize=7.5, color=MUTED, ha="left", va="bottom",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [plain_text(bar.name) for bar in bars])
    axes.invert_yaxis()
    axes.set_xlabel(plain_text(label), fontsize=9, color=INK)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    quiet(axes)
    axes.tick_params(axis="y", labelsize=9, colors=INK, length=0)
    axes.grid(axis="y", color="#eef1f4", lw=0.8)
    axes.set_axisbelow(True)
    return figure


def critical_difference(names: Sequence[str], ranks: Sequence[float], distance: float) -> Figure:
    """Mean ranks, the best on top; bars join those that lie less than the critical difference apart.

    Args:
        names: of the methods.
        ranks: their mean ranks over places; 1 is best.
        distance: from which on two ranks differ beyond noise. Demšar 2006.
    """
    order = sorted(range(len(names)), key=lambda k: ranks[k])
    sorted_ranks = [ranks[k] for k in order]
    groups = _within(sorted_ranks, distance)
    figure = Figure(figsize=(7.4, 0.34 * len(names) + 1.3), layout="constrained")
    axes = figure.subplots()
    for place, rank in enumerate(sorted_ranks):
        axes.plot([1, rank], [place, place], color="#e4e7eb", lw=1, zorder=0)
        axes.plot([rank], [place], "o", color=TEST, ms=7)
    right = max(len(names), max(ranks) + 0.2)
    for k, (first, last) in enumerate(groups):
        x = right + 0.12 * (k + 1)
        axes.plot([x, x], [first - 0.2, last + 0.2], color=TRAIN[0], lw=3, solid_capstyle="butt")
    axes.plot([1, 1 + distance], [-1, -1], color=INK, lw=2, solid_capstyle="butt")
    axes.text(1 + distance, -1, f"  critical difference {distance:.2f}", fontsize=8, color=INK, va="center")
    axes.set_yticks(range(len(names)), [plain_text(names[k]) for k in order])
    axes.set_ylim(len(names) - 0.4, -1.6)
    axes.set_xlim(0.9, right + 0.12 * (len(groups) + 1))
    axes.set_xlabel("mean rank; bars on the right join what noise may have parted", fontsize=9, color=INK)
    quiet(axes)
    axes.tick_params(axis="y", labelsize=9, colors=INK, length=0)
    return figure


def _within(ranks: Sequence[float], distance: float) -> list[tuple[int, int]]:
    """The longest stretches of sorted ranks that span less than a distance, of two at least."""
    found: list[tuple[int, int]] = []
    for first, start in enumerate(ranks):
        last = max(k for k, rank in enumerate(ranks) if rank - start < distance)
        if last > first and not any(last <= end for _, end in found):
            found.append((first, last))
    return found


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    across: str,
    up: str,
    scales: tuple[str, str] = ("linear", "linear"),
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Plain curves.

    Args:
        series: x and y by name.
        across: what the horizontal axis is called.
        up: what the vertical one is called.
        scales: of the two axes: "linear", "log" or "symlog".
        marks: heights to draw a line at, by name.
    """
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, (x, y)), color in zip(series.items(), (TEST, *TRAIN) * len(series), strict=False):
        axes.plot(x, y, color=color, lw=1.8, label=plain_text(name))
    axes.set_xscale(scales[0])
    axes.set_yscale(scales[1])
    for name, height in (marks or {}).items():
        _mark(axes, name, height)
    axes.set_xlabel(plain_text(across), fontsize=9, color=INK)
    axes.set_ylabel(plain_text(up), fontsize=9, color=INK)
    if len(series) > 1:
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    quiet(axes)
    return figure


def _mark(axes: Axes, name: str, height: float) -> None:
    axes.axhline(height, color=MUTED, lw=0.8, ls=(0, (5, 3)), zorder=0)
    axes.text(
        1.0, height, f"{plain_text(name)} ", fontsize=7.5, color=MUTED, ha="right", va="bottom",
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip
