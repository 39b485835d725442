"""Section on the kind of shift between each environment and all others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from matplotlib.figure import Figure

from envariant.analysis.distribution_shift import MEASURES, NOTABLE, Shift
from envariant.comparison.page.base import Block, PageSection, shortened
from envariant.reporting.shift import AXES, shift_table
from envariant.reporting.tables import TextTable
from envariant.reporting.theme import DASHED, INK, MUTED, OLD_TRAIN, name_axes, new_axes, plain_text, quiet


@final
@dataclass(frozen=True, eq=False)
class Shifts(PageSection):
    """Section on diversity, correlation, label and covariate shift."""

    anchor: ClassVar[str] = "shift"
    title: ClassVar[str] = "Which kind of shift is it?"

    def render(self) -> tuple[Block, ...]:
        """Return the figure and the table of shift measures, or a note if there are too few rows."""
        shifts = self.results.data.shifts
        if not shifts:
            return (Block("note", "There are too few rows to measure the shift."),)
        caption = (
            "Each environment against all others. Right: inputs that do not occur elsewhere. Up: equal "
            "inputs with other targets."
        )
        return (
            Block.figure(plane(shifts), caption),
            Block.table(self.table(), "Shift between each environment and all others"),
        )

    def table(self) -> TextTable:
        """Return a table of shift measures, one row per environment."""
        note = "Each environment against all others. Rough estimates if rows are few."
        return shift_table(self.results.data.shifts, "environment", note)

    def to_dict(self) -> dict[str, Any]:
        return {
            "shifts": {
                name: {"kind": shift.kind, **{m: getattr(shift, m).mean for m in MEASURES}}
                for name, shift in self.results.data.shifts.items()
            }
        }


def plane(shifts: Mapping[str, Shift]) -> Figure:
    """Plot correlation shift against diversity shift, one point per environment.

    Names that would overlap other names are omitted.
    """
    figure, axes = new_axes(5.6, 4.0)
    points = {name: (s.diversity.mean, s.correlation.mean) for name, s in shifts.items()}
    top = 1.15 * max(0.26, *(max(point) for point in points.values()))
    for line in (axes.axvline, axes.axhline):
        line(NOTABLE, color=MUTED, lw=0.8, ls=DASHED, zorder=0)
    # Bounding boxes of points and names: left, bottom, right, top.
    occupied = [(x - 0.02 * top, y - 0.02 * top, x + 0.02 * top, y + 0.02 * top) for x, y in points.values()]
    for name, (x, y) in sorted(points.items(), key=lambda item: -max(item[1])):
        axes.plot([x], [y], "o", color=OLD_TRAIN[0], ms=6.5, alpha=0.8)
        text = shortened(name, 20)
        width, height = 0.0195 * top * len(text), 0.045 * top
        # Positions of a name: right, left, above, below.
        for align, offset, below in ("left", 0.025, 0.5), ("right", -0.025, 0.5), ("center", 0, -0.6), (
            "center", 0, 1.6,
        ):  # fmt: skip
            left = x + offset * top - width * {"left": 0.0, "right": 1.0, "center": 0.5}[align]
            box = (left, y - below * height, left + width, y - below * height + height)
            inside = box[0] >= -0.03 * top and box[2] <= top and box[1] >= -0.03 * top
            if inside and not any(_overlap(box, other) for other in occupied):
                occupied.append(box)
                position = (x + offset * top, box[1] + height / 2)
                axes.text(*position, plain_text(text), ha=align, va="center", fontsize=8.5, color=INK)
                break
    axes.set_xlim(-0.03 * top, top)
    axes.set_ylim(-0.03 * top, top)
    name_axes(axes, *AXES)
    quiet(axes)
    return figure


Box = tuple[float, float, float, float]


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
