"""Image grids, drawn by matplotlib without pyplot's global state and written as SVG or PNG.

Charts of numeric results are in `charts`.
"""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantWarning
from envariant.core.files import write_bytes
from envariant.core.paths import check_overwrite
from envariant.core.printable import printable
from envariant.data import Facts
from envariant.reporting.fonts import fallbacks
from envariant.reporting.theme import INK, LINE, MUTED

_COLORS = np.array([[0.86, 0.16, 0.13], [0.05, 0.62, 0.28]])
_PAPER = np.array([1.0, 1.0, 1.0])


def svg(figure: Figure) -> str:
    """Convert a figure to SVG text for an HTML page; identical figures give identical text.

    Text is converted to outlines. If the figure has a character that no installed font contains, no text is
    converted, and the browser chooses the fonts.
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
    """Draw sample digits from each environment, with the binary label below each digit.

    Digits with color 0 are drawn in red and digits with color 1 in green; digits of grayscale data are drawn
    in black. Label 0 is printed in red, label 1 in green.

    Args:
        environments: Set of environments with colored digits.
        facts: Facts about the environments to draw, in order; each environment is one row of the figure.
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
        "no color" if math.isnan(fact.color_agreement) else f"color = label in {fact.color_agreement:.1%}",
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


def plain_text(text: str) -> str:
    """Escape control characters, and dollar signs, which matplotlib would interpret as math mode."""
    return printable(text).replace("$", r"\$")
