"""Colors of pages and charts: one color per method on all pages, legible on light and dark backgrounds."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from zlib import crc32

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from envariant.core.printable import printable

INK = "#1f2933"
MUTED = "#7b8794"
LINE = "#e4e7eb"
TEST = "#c2410c"
"""Color of test environments, and of out-of-domain scores of a single method."""
TRAIN = "#0f8f85"
"""Color of training and validation environments."""
DASH = [5, 3]
BASELINE = "erm"

# Contrast of at least 3:1 with white and with the dark page. Gray is the baseline's alone.
_NEUTRAL = "#6b7480"
_PALETTE = (
    "#2f7fd6", "#d9720f", "#139a6b", "#9a52c7", "#e0568f", "#0f97ab", "#a3613a", "#8a8f12", "#d1495b",
)  # fmt: skip
# Methods that are often compared have different colors; other methods get one by their name.
_PREFERRED = {
    "irm": 0, "vrex": 1, "groupdro": 2, "coral": 3, "and-mask": 4, "linear": 5, "boosted-trees": 6,
    "stable-columns": 7, "mm-rex": 8,
}  # fmt: skip
_METHOD = re.compile(r"[\w+-]+")


def method_colors(names: Sequence[str]) -> dict[str, str]:
    """Return the color of each method or run, the same on every page unless two of the names share it.

    Args:
        names: Names that begin with the name of an algorithm, such as "irm" or "irm, threshold=0.5".

    Example:
        >>> method_colors(["erm", "irm"])
        {'erm': '#6b7480', 'irm': '#2f7fd6'}
    """
    colors: dict[str, str] = {}
    for name in dict.fromkeys(names):
        method = _method(name)
        if method == BASELINE and _NEUTRAL not in colors.values():
            colors[name] = _NEUTRAL
            continue
        first = _PREFERRED.get(method, crc32(method.encode()) % len(_PALETTE))
        order = [_PALETTE[(first + k) % len(_PALETTE)] for k in range(len(_PALETTE))]
        # With more methods than colors, colors repeat.
        colors[name] = min(order, key=list(colors.values()).count)
    return colors


def baseline_first(names: Sequence[str]) -> list[str]:
    """Return the names without duplicates, those of ERM first."""
    return sorted(dict.fromkeys(names), key=lambda name: _method(name) != BASELINE)


def _method(name: str) -> str:
    found = _METHOD.match(name)
    return found.group().lower() if found else ""


OLD_TRAIN = ("#0f766e", "#4f46e5", "#a16207", "#7c3aed", "#15803d", "#475569")
DASHED = (0, (5, 3))


def colors() -> Iterator[str]:
    """Yield the colors of data series in an endless cycle, the accent color first."""
    return cycle((TEST, *OLD_TRAIN))


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure that contains one chart; width and height are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def quiet(axes: Axes) -> None:
    """Hide the top and right spines of a chart, and draw its ticks in gray."""
    axes.tick_params(labelsize=8, colors=MUTED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cbd2d9")


def name_axes(axes: Axes, x_label: str, y_label: str = "") -> None:
    """Label the axes of a chart; if `y_label` is empty, only the horizontal axis."""
    axes.set_xlabel(plain_text(x_label), fontsize=9, color=INK)
    if y_label:
        axes.set_ylabel(plain_text(y_label), fontsize=9, color=INK)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write the names of methods next to the rows of a chart with one row per method."""
    axes.set_yticks(range(len(names)), [plain_text(name) for name in names])
    axes.tick_params(axis="y", labelsize=9, colors=INK, length=0)


def legend(
    figure: Figure, *, columns: int = 4, below: bool = False, handles: Mapping[str, Line2D] | None = None
) -> None:
    """Add one legend for all panels of a figure, above or below the panels.

    Args:
        figure: Figure to modify.
        columns: Number of columns of the legend.
        below: Whether to put the legend below the panels instead of above them.
        handles: Mapping from label to line. Default: all labeled lines.
    """
    figure.legend(
        **({} if handles is None else {"handles": list(handles.values()), "labels": list(handles)}),
        loc="outside lower left" if below else "outside upper left",
        ncols=columns,
        frameon=False,
        fontsize=8.5 if below else 9,
        labelcolor=INK,
    )


def mark_height(axes: Axes, value: float, label: str) -> None:
    """Draw a dashed horizontal reference line with a label at its right end."""
    axes.axhline(value, color=MUTED, lw=0.8, ls=DASHED, zorder=0)
    axes.text(
        1.0, value, f"{plain_text(label)} ", fontsize=7.5, color=MUTED, ha="right", va="bottom",
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def plain_text(text: str) -> str:
    """Escape dollar signs, which matplotlib interprets as formulas, and control characters."""
    return printable(text).replace("$", r"\$")
