"""Report section on the kind of shift between each environment and all others."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from envariant.analysis.distribution_shift import MEASURES
from envariant.comparison.page.base import Block, PageSection
from envariant.reporting import charts
from envariant.reporting.shift import shift_table
from envariant.reporting.tables import TextTable


@final
@dataclass(frozen=True, eq=False)
class Shifts(PageSection):
    """Section on four kinds of shift in each environment: diversity, correlation, label and covariate."""

    anchor: ClassVar[str] = "shift"
    title: ClassVar[str] = "Which kind of shift is it?"

    def render(self) -> tuple[Block, ...]:
        """Return a chart and a table of the shift measures, or a note if there are too few rows."""
        shifts = self.results.data.shifts
        if not shifts:
            return (Block("note", "There are too few rows to measure the shift."),)
        caption = (
            f"Each environment compared with {self._others}. Further to the right, more of its inputs do "
            f"not occur in {self._others}; further up, the targets of equal inputs differ more."
        )
        return (
            Block.chart(charts.shift_plane(shifts), caption),
            Block.table(self.table(), f"Shift between each environment and {self._others}"),
        )

    @property
    def _others(self) -> str:
        return "all earlier ones" if self.results.data.ordered else "all others"

    def table(self) -> TextTable:
        """Return a table of shift measures, one row per environment."""
        note = f"Each environment compared with {self._others}. Estimates from few rows are rough."
        return shift_table(self.results.data.shifts, "environment", note)

    def to_dict(self) -> dict[str, Any]:
        return {
            "shifts": {
                name: {"kind": shift.kind, **{m: getattr(shift, m).mean for m in MEASURES}}
                for name, shift in self.results.data.shifts.items()
            }
        }
