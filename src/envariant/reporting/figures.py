"""Figures of runs and studies, drawn without pyplot's global state and written as SVG or PNG.

Charts of scores show each replica as a dot and the mean as a line, for every environment. Reference lines
show chance and optimum, if known.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from envariant.analysis.statistics import interval
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantWarning
from envariant.core.files import write_bytes
from envariant.core.paths import check_overwrite
from envariant.data import Facts
from envariant.reporting.fonts import fallbacks
from envariant.reporting.labels import labels
from envariant.reporting.theme import (
    DASHED,
    INK,
    LINE,
    MUTED,
    OLD_TRAIN,
    TEST,
    colors,
    legend,
    mark_height,
    name_axes,
    name_rows,
    new_axes,
    plain_text,
    quiet,
)
from envariant.training.record import Record
from envariant.training.result import TrainingResult

_COLORS = np.array([[0.86, 0.16, 0.13], [0.05, 0.62, 0.28]])
_PAPER = np.array([1.0, 1.0, 1.0])


def svg(figure: Figure) -> str:
    """Convert a figure to SVG text for a page; identical figures give identical text.

    Text is converted to outlines. If no installed font contains its characters, it remains text, and the
    browser chooses the font.
    """
    text = io.StringIO()
    figure.set_canvas(FigureCanvasSVG(figure))
    with fallbacks(figure) as absent:
        # No date and no random ids: two identical runs give identical pages.
        style: Any = {"svg.hashsalt": "envariant", "svg.fonttype": "none" if absent else "path"}
        with mpl.rc_context(style):
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    document = text.getvalue()
    return document[document.index("<svg") :]


def png(figure: Figure, dots_per_inch: int = 150) -> bytes:
    """Convert a figure to the bytes of a PNG file."""
    data = io.BytesIO()
    FigureCanvasAgg(figure)
    with fallbacks(figure) as absent:
        figure.savefig(data, format="png", dpi=dots_per_inch, metadata={"Software": "envariant"})
    if absent:
        warnings.warn(
            f"picture: no installed font has the characters '{absent}'; save it as SVG, or install a font",
            EnvariantWarning,
            stacklevel=2,
        )
    return data.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure to a file: as SVG if its name ends in `.svg`, otherwise as PNG.

    Raises:
        EnvariantError: If the file cannot be written.
    """
    check_overwrite(path, r"\A<!-- envariant -->|Software\x00envariant")
    is_svg = path.suffix == ".svg"
    write_bytes(f"<!-- envariant -->\n{svg(figure)}".encode() if is_svg else png(figure), path)


def overview(environments: EnvironmentSet, facts: Sequence[Facts], columns: int = 12) -> Figure:
    """Draw sample digits from each environment, with the label below each digit.

    Digits with color 0 are drawn in red and digits with color 1 in green; digits of grayscale data are drawn
    in black. Label 0 is printed in red, label 1 in green.

    Args:
        environments: Colored digits.
        facts: Facts about the environments to draw; there is one row of digits per entry.
        columns: Number of digits per environment.
    """
    figure = Figure(figsize=(0.78 * columns + 2.6, 1.32 * len(facts) + 0.2), layout="constrained")
    grid = figure.subplots(len(facts), columns + 1, width_ratios=[3.4] + [1] * columns, squeeze=False)
    for panels, fact in zip(grid, facts, strict=True):
        _caption(panels[0], fact)
        for row, axes in enumerate(panels[1:]):
            _digit(axes, environments[fact.environment], row)
    return figure


def _caption(axes: Axes, fact: Facts) -> None:
    axes.set_axis_off()
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "ha": "left"}
    axes.text(0, 0.82, plain_text(fact.environment), fontsize=12, fontweight="bold", color=INK, **place)
    theory = fact.theory
    lines = (
        f"{fact.role}, {fact.rows:,} rows",
        f"color = label in {fact.color_agreement:.1%}",
        f"best by color {theory.color_only:.0%}, shape {theory.shape_only:.0%}, both {theory.bayes:.0%}",
    )
    for height, line in zip((0.58, 0.38, 0.18), lines, strict=True):
        axes.text(0, height, line, fontsize=9, color=MUTED, **place)


def _digit(axes: Axes, environment: Environment, row: int) -> None:
    image = environment.inputs[row].numpy()
    # With any scaling, the background is the smallest value of a channel.
    ink = image[:2] - image[:2].min(axis=(1, 2), keepdims=True)
    ink = ink / max(float(ink.max()), 1e-9)
    hues = _COLORS if len(ink) == 2 else np.zeros((1, 3))
    painted = _PAPER - sum(
        channel[..., None] * (_PAPER - hue) for channel, hue in zip(ink, hues, strict=True)
    )
    axes.imshow(np.clip(painted, 0, 1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(LINE)
    label = int(environment.targets[row])
    axes.set_xlabel(str(label), fontsize=10, fontweight="bold", color=tuple(_COLORS[label]), labelpad=2)


def curves(results: Sequence[TrainingResult], names: Sequence[str] | None = None) -> Figure:
    """Draw the score during training, one panel per run.

    Lines are solid for test environments and dotted for others. They show means over replicas; bands show
    the range of all replicas.

    Args:
        results: Results of the runs.
        names: Titles of the panels. Default: the algorithm, and settings in which the runs differ.
    """
    columns = min(3, len(results))
    # A single panel is wider, to leave room for the legend above it.
    width = 3.7 * columns + 0.4 if columns > 1 else 6.4
    figure, grid = _panels(len(results), width)
    environments = dict.fromkeys(each.label for result in results for each in result.record.environments)
    hues = dict(zip(environments, cycle(OLD_TRAIN), strict=False))
    handles: dict[str, Line2D] = {}
    for axes, result, label in zip(grid.flat, results, names or labels(results), strict=False):
        handles |= _curve(axes, result, hues)
        axes.set_title(plain_text(label), fontsize=10.5, color=INK, loc="left", fontweight="bold")
    legend(figure, handles=handles)
    for axes in grid[:, 0]:
        axes.set_ylabel(results[0].record.metric, color=INK)
    return figure


def _curve(axes: Axes, result: TrainingResult, hues: Mapping[str, str]) -> dict[str, Line2D]:
    record, history = result.record, result.history
    history = history[(history["metric"] == record.metric) & history["replica"].isin(result.finished)]
    handles: dict[str, Line2D] = {}
    for environment in record.environments:
        rows = (history["environment"] == environment.name) & (history["role"] == environment.role)
        scores = history[rows].pivot(index="step", columns="replica", values="value")
        is_test = environment.role == "test"
        color = TEST if is_test and len(record.test_environments) == 1 else hues[environment.label]
        if scores.shape[1] > 1:
            low, high = scores.min(axis=1).to_numpy(), scores.max(axis=1).to_numpy()
            axes.fill_between(scores.index.to_numpy(), low, high, color=color, alpha=0.15, lw=0)
        (handles[plain_text(f"{environment.name} ({environment.role})")],) = axes.plot(
            scores.index, scores.mean(axis=1), "-" if is_test else ":", color=color, lw=2
        )
    references(axes, record)
    name_axes(axes, "step")
    axes.margins(x=0.02)
    quiet(axes)
    return handles


def references(axes: Axes, record: Record) -> None:
    """Draw reference lines at chance and optimum, if known; for accuracies, set the y-axis to [0, 1]."""
    is_accuracy = record.metric == "accuracy"
    for value, name in ((record.chance, "chance"), (record.optimum, "optimum")):
        if value is not None:
            mark_height(axes, value, f"{name} {value:.0%}" if is_accuracy else f"{name} {value:.3g}")
    if is_accuracy:
        axes.set_ylim(0, 1)


def sweep(results: Mapping[float, TrainingResult], setting: str, scale: str = "linear") -> Figure:
    """Draw the final score in every environment against the varied setting.

    Args:
        results: Results of the runs, by value of the setting.
        setting: Label of the horizontal axis.
        scale: Scale of the horizontal axis: "linear", "log", or "symlog" (logarithmic, including 0).
    """
    figure, axes = new_axes(7.4, 3.6)
    record = next(iter(results.values())).record
    train = cycle(OLD_TRAIN)
    for environment in record.environments:
        color, style = (TEST, "-") if environment.role == "test" else (next(train), ":")
        spreads = {x: result.final(environment.label, record.metric) for x, result in results.items()}
        label = plain_text(f"{environment.name} ({environment.role})")
        axes.plot(list(spreads), [s.mean for s in spreads.values()], style, color=color, lw=2, label=label)
        dots = [(x, value) for x, spread in spreads.items() for value in spread.values]
        axes.plot(*zip(*dots, strict=True), ".", color=color, alpha=0.45, ms=5)
    if scale == "symlog":
        axes.set_xscale("symlog", linthresh=min(x for x in results if x > 0))
    else:
        axes.set_xscale(scale)
    references(axes, record)
    name_axes(axes, setting)
    axes.set_ylabel(record.metric, color=INK)
    legend(figure)
    quiet(axes)
    return figure


@final
@dataclass(frozen=True)
class RankingRow:
    """Scores of one method, drawn as a row of `ranking`.

    Attributes:
        name: Label of the row.
        values: Score of each replica; empty if there are only published scores.
        published: Mapping from publication to its score for the method.
    """

    name: str
    values: Sequence[float]
    published: Mapping[str, float]


def ranking(
    rows: Sequence[RankingRow],
    label: str,
    marks: Mapping[str, float],
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Figure:
    """Draw one row per method: a dot per replica, the mean with its 95 % interval, and published scores.

    Args:
        rows: Methods from top to bottom.
        label: Label of the horizontal axis.
        marks: Reference values by name, such as chance.
        bounds: Smallest and largest possible score, to which intervals are limited.
    """
    figure, axes = new_axes(7.4, 0.42 * len(rows) + 1.5)
    signs = dict(
        zip(dict.fromkeys(source for row in rows for source in row.published), "D^svP", strict=False)
    )
    for y, row in enumerate(rows):
        axes.plot(row.values, [y] * len(row.values), ".", color=TEST, alpha=0.4, ms=6)
        score = interval(row.values).clipped(*bounds)
        if score.count > 1:
            axes.plot([score.low, score.high], [y, y], color=TEST, lw=2, solid_capstyle="butt")
        axes.plot([score.mean], [y], "o", color=TEST, ms=7)
        for source, value in row.published.items():
            axes.plot([value], [y], signs[source], color=OLD_TRAIN[1], ms=6, mfc="white")
    for source, sign in signs.items():
        axes.plot([], [], sign, color=OLD_TRAIN[1], ms=6, mfc="white", ls="", label=plain_text(source))
    axes.plot([], [], "o-", color=TEST, lw=2, label="ours: mean, 95 % interval, replicas")
    # The first mark is labeled on its left and the others on their right, so that two labels do not overlap.
    for (name, value), side in zip(marks.items(), ("right", *("left",) * len(marks)), strict=False):
        axes.axvline(value, color=MUTED, lw=0.8, ls=DASHED, zorder=0)
        axes.text(
            value, 1.0, f" {name} {value:.0%} ", fontsize=7.5, color=MUTED, ha=side, va="bottom",
            transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.invert_yaxis()
    name_axes(axes, label)
    legend(figure, columns=3, below=True)
    quiet(axes)
    name_rows(axes, [row.name for row in rows])
    axes.grid(axis="y", color="#eef1f4", lw=0.8)
    axes.set_axisbelow(True)
    return figure


def critical_difference(names: Sequence[str], ranks: Sequence[float], distance: float) -> Figure:
    """Draw the mean ranks of methods, best on top; bars join methods that do not differ significantly.

    Args:
        names: Names of the methods.
        ranks: Mean rank of each method over environments; 1 is best.
        distance: Critical difference of two mean ranks. Demšar 2006.
    """
    order = sorted(range(len(names)), key=lambda k: ranks[k])
    sorted_ranks = [ranks[k] for k in order]
    groups = _indistinguishable(sorted_ranks, distance)
    figure, axes = new_axes(7.4, 0.34 * len(names) + 1.3)
    for y, rank in enumerate(sorted_ranks):
        axes.plot([1, rank], [y, y], color=LINE, lw=1, zorder=0)
        axes.plot([rank], [y], "o", color=TEST, ms=7)
    right = max(len(names), max(ranks) + 0.2)
    for k, (first, last) in enumerate(groups):
        x = right + 0.12 * (k + 1)
        axes.plot([x, x], [first - 0.2, last + 0.2], color=OLD_TRAIN[0], lw=3, solid_capstyle="butt")
    axes.plot([1, 1 + distance], [-1, -1], color=INK, lw=2, solid_capstyle="butt")
    axes.text(1 + distance, -1, f"  critical difference {distance:.2f}", fontsize=8, color=INK, va="center")
    axes.set_ylim(len(names) - 0.4, -1.6)
    axes.set_xlim(0.9, right + 0.12 * (len(groups) + 1))
    name_axes(axes, "mean rank; bars on the right join methods that do not differ significantly")
    quiet(axes)
    name_rows(axes, [names[k] for k in order])
    return figure


def _indistinguishable(ranks: Sequence[float], distance: float) -> list[tuple[int, int]]:
    """Return the first and last index of each maximal group of ranks that span less than a distance."""
    groups: list[tuple[int, int]] = []
    for first, start in enumerate(ranks):
        last = max(k for k, rank in enumerate(ranks) if rank - start < distance)
        if last > first and not any(last <= end for _, end in groups):
            groups.append((first, last))
    return groups


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    scales: tuple[str, str] = ("linear", "linear"),
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw several curves in one chart.

    Args:
        series: x and y values of each curve, by name.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        scales: Scales of the horizontal and vertical axes: "linear", "log" or "symlog".
        marks: Heights of horizontal reference lines by name.
    """
    figure, axes = new_axes(7.4, 3.4)
    for (name, (x, y)), color in zip(series.items(), colors(), strict=False):
        axes.plot(x, y, color=color, lw=1.8, label=plain_text(name))
    axes.set_xscale(scales[0])
    axes.set_yscale(scales[1])
    for name, height in (marks or {}).items():
        mark_height(axes, height, name)
    name_axes(axes, x_label, y_label)
    if len(series) > 1:
        legend(figure, columns=3)
    quiet(axes)
    return figure


def candidates(runs: pd.DataFrame, metric: str, level: float) -> Figure:
    """Draw the test score of every run against its validation score.

    Runs rejected by the invariance test are drawn as hollow circles.

    Args:
        runs: One row per run with columns algorithm, validation, test and p_value.
        metric: Name of the metric.
        level: Significance level of the invariance test.
    """
    figure, axes = new_axes(7.4, 4.0)
    for (name, own), color in zip(runs.groupby("algorithm", sort=False), colors(), strict=False):
        rejected = (own["p_value"] < level).to_numpy(dtype=bool)
        axes.plot([], [], "o", color=color, label=plain_text(str(name)))
        for part, filling in ((own[~rejected], color), (own[rejected], "white")):
            axes.plot(part["validation"], part["test"], "o", ms=6, color=color, mfc=filling)
    name_axes(axes, f"validation {metric} in the training environments", f"{metric} in the test environments")
    legend(figure, columns=5)
    quiet(axes)
    return figure


def hyperparameters(values: pd.DataFrame, scores: pd.DataFrame, metric: str) -> Figure:
    """Draw validation and test scores of runs against hyperparameters, one panel per hyperparameter.

    Args:
        values: Hyperparameters: one row per run, one column per hyperparameter.
        scores: Columns `validation` and `test`, with the index of `values`.
        metric: Name of the metric.
    """
    figure, grid = _panels(values.shape[1], 3.7 * min(3, values.shape[1]) + 0.2, share_y=False)
    kinds = (("validation", OLD_TRAIN[0], "validation"), ("test", TEST, "test environments"))
    for axes, column in zip(grid.flat, values, strict=False):
        x = values[column]
        for kind, color, _ in kinds:
            axes.plot(x, scores[kind], ".", color=color, ms=6, alpha=0.7)
        if (x.dropna() > 0).all() and x.max() > 20 * x.min():
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=4)
        name_axes(axes, str(column))
        quiet(axes)
    grid[0, 0].set_ylabel(metric, color=INK)
    for _, color, label in kinds:
        grid[0, 0].plot([], [], ".", color=color, label=label)
    legend(figure, columns=2)
    return figure


def _panels(count: int, width: float, *, share_y: bool = True) -> tuple[Figure, Any]:
    """Return a figure with up to three panels per row; unused panels are hidden."""
    rows = -(-count // 3)
    figure = Figure(figsize=(width, 2.9 * rows + (0.2 if share_y else 0)), layout="constrained")
    grid = figure.subplots(rows, min(3, count), sharey=share_y, squeeze=False)
    for axes in list(grid.flat)[count:]:
        axes.set_axis_off()
    return figure, grid
