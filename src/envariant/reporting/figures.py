"""The pictures: sample digits of every environment, and what each run's accuracy did over training.

Figures are drawn on objects of their own, without pyplot's global state, and come out as SVG or PNG.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from envariant.core.environments import Environment, EnvironmentSet
from envariant.data import Facts
from envariant.reporting.labels import labels
from envariant.training.record import Record
from envariant.training.result import TrainingResult

INK = "#1f2933"
MUTED = "#7b8794"
TEST = "#c2410c"
TRAIN = ("#0f766e", "#4f46e5", "#a16207", "#7c3aed", "#15803d", "#475569")
_COLOURS = np.array([[0.86, 0.16, 0.13], [0.05, 0.62, 0.28]])
_PAPER = np.array([1.0, 1.0, 1.0])


def overview(drawn: EnvironmentSet, facts: Sequence[Facts], columns: int = 12) -> Figure:
    """Sample digits of every environment in their colors, each over its label.

    Color 0 is drawn red and color 1 green; gray data are drawn black. The label stands below each
    digit, in the color that would agree with it.

    Args:
        drawn: painted digits.
        facts: of the same environments, in order.
        columns: digits an environment.
    """
    figure = Figure(figsize=(0.78 * columns + 2.6, 1.32 * len(facts) + 0.2), layout="constrained")
    grid = figure.subplots(len(facts), columns + 1, width_ratios=[3.4] + [1] * columns, squeeze=False)
    for line, fact in zip(grid, facts, strict=True):
        environment = drawn[fact.environment]
        _caption(line[0], fact)
        for row, axes in enumerate(line[1:]):
            _digit(axes, environment, row)
    return figure


def curves(results: Sequence[TrainingResult], names: Sequence[str] | None = None) -> Figure:
    """The score over training, a panel a run: held-out environments solid, training ones dotted.

    Lines are means over replicas, bands reach from the worst replica to the best; chance and the best
    invariant predictor are drawn where they are known.

    Args:
        results: the runs.
        names: of the panels; None names what the runs differ in.
    """
    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    # One panel alone is wider, so that the legend above it has room.
    width = 3.7 * columns + 0.4 if columns > 1 else 6.4
    figure = Figure(figsize=(width, 2.9 * lines + 0.2), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    panels = list(grid.flat)
    places = dict.fromkeys(name for result in results for name in result.record.roles)
    colors = dict(zip(places, TRAIN * len(places), strict=False))
    handles: dict[str, Line2D] = {}
    for axes, result, label in zip(panels, results, names or labels(results), strict=False):
        handles |= _curve(axes, result, colors)
        axes.set_title(plain_text(label), fontsize=10.5, color=INK, loc="left", fontweight="bold")
    # One legend for all panels, above them: inside one it would hide a curve.
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper left", ncols=4, frameon=False,
        fontsize=9, labelcolor=INK,
    )  # fmt: skip
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(results[0].record.metric, color=INK)
    return figure


def svg(figure: Figure) -> str:
    """The figure as SVG text to put into a page; the same figure gives the same text."""
    text = io.StringIO()
    figure.set_canvas(FigureCanvasSVG(figure))
    # No date and no random ids: two identical runs give identical pages.
    with mpl.rc_context({"svg.hashsalt": "envariant", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def png(figure: Figure, dots_per_inch: int = 150) -> bytes:
    """The figure as a PNG file's bytes."""
    data = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(data, format="png", dpi=dots_per_inch)
    return data.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Writes PNG or SVG, by the name's ending."""
    if path.suffix == ".svg":
        path.write_text(svg(figure), encoding="utf-8")
    else:
        path.write_bytes(png(figure))


def _caption(axes: Axes, fact: Facts) -> None:
    axes.set_axis_off()
    place: dict[str, Any] = {"transform": axes.transAxes, "va": "center", "ha": "left"}
    rules = fact.theory
    axes.text(0, 0.82, plain_text(fact.environment), fontsize=12, fontweight="bold", color=INK, **place)
    axes.text(0, 0.58, f"{fact.role}, {fact.rows:,} rows", fontsize=9, color=MUTED, **place)
    agreement = f"color = label in {fact.color_agreement:.1%}"
    axes.text(0, 0.38, agreement, fontsize=9, color=MUTED, **place)
    best = f"color {rules.color_only:.0%}, shape {rules.shape_only:.0%}, both {rules.bayes:.0%}"
    axes.text(0, 0.18, f"best by {best}", fontsize=9, color=MUTED, **place)


def _digit(axes: Axes, environment: Environment, row: int) -> None:
    image = environment.inputs[row].numpy()
    # Whatever the scaling, the background is the smallest value of its channel.
    ink = image[:2] - image[:2].min(axis=(1, 2), keepdims=True)
    ink = ink / max(float(ink.max()), 1e-9)
    hues = _COLOURS if len(ink) == 2 else np.zeros((1, 3))
    painted = _PAPER - sum(
        channel[..., None] * (_PAPER - hue) for channel, hue in zip(ink, hues, strict=True)
    )
    axes.imshow(np.clip(painted, 0, 1), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#e4e7eb")
    label = int(environment.targets[row])
    axes.set_xlabel(str(label), fontsize=10, fontweight="bold", color=tuple(_COLOURS[label]), labelpad=2)


def _curve(axes: Axes, result: TrainingResult, colors: Mapping[str, str]) -> dict[str, Line2D]:
    record = result.record
    history = result.history
    history = history[(history["metric"] == record.metric) & history["replica"].isin(result.finished)]
    handles: dict[str, Line2D] = {}
    for environment, role in record.roles.items():
        scores = history[history["environment"] == environment].pivot(
            index="step", columns="replica", values="value"
        )
        test_environments = role == "test"
        color = (
            TEST
            if test_environments and list(record.roles.values()).count("test") == 1
            else colors[environment]
        )
        _band(axes, scores, color)
        (handles[plain_text(f"{environment} ({role})")],) = axes.plot(
            scores.index, scores.mean(axis=1), "-" if test_environments else ":", color=color, lw=2
        )
    references(axes, record)
    axes.set_xlabel("step", fontsize=9, color=INK)
    axes.margins(x=0.02)
    quiet(axes)
    return handles


def references(axes: Axes, record: Record) -> None:
    """Draws chance and the optimum where they are known; accuracies are shown from 0 to 1."""
    for value, name in ((record.chance, "chance"), (record.optimum, "optimum")):
        if value is not None:
            axes.axhline(value, color=MUTED, lw=0.8, ls=(0, (5, 3)), zorder=0)
            axes.text(
                1.0, value, f"{name} {_amount(value, record.metric)} ", fontsize=7.5, color=MUTED,
                ha="right", va="bottom", transform=axes.get_yaxis_transform(),
            )  # fmt: skip
    if record.metric == "accuracy":
        axes.set_ylim(0, 1)


def quiet(axes: Axes) -> None:
    """Takes from the frame of a chart what says nothing."""
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cbd2d9")


def _band(axes: Axes, scores: pd.DataFrame, color: str) -> None:
    if scores.shape[1] > 1:
        low, high = scores.min(axis=1).to_numpy(), scores.max(axis=1).to_numpy()
        axes.fill_between(scores.index.to_numpy(), low, high, color=color, alpha=0.15, lw=0)


def plain_text(text: str) -> str:
    """The text as it stands, in a figure: a dollar sign in a name begins no formula."""
    return text.replace("$", r"\$")


def _amount(value: float, metric: str) -> str:
    return f"{value:.0%}" if metric == "accuracy" else f"{value:.3g}"
