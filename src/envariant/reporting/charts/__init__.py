"""Interactive Altair charts of runs, studies, comparisons and data.

Each function takes results and returns a chart. Notebooks display it, HTML pages embed it, and `save` writes
it to a file. A click on a method in the legend highlights this method.
"""

from envariant.reporting.charts.base import Chart, data_of, save, svg
from envariant.reporting.charts.comparisons import (
    ColumnRow,
    DropRow,
    LabelPoint,
    cause_parts,
    column_importance,
    column_slopes,
    drops,
    label_curves,
    over_time,
)
from envariant.reporting.charts.data import counts, shift_plane
from envariant.reporting.charts.groups import grouped
from envariant.reporting.charts.runs import curves, has_shift_scale, lines, shift_curve, sweep
from envariant.reporting.charts.studies import (
    RankingRow,
    candidates,
    critical_difference,
    hyperparameters,
    ranking,
)

__all__ = [
    "Chart",
    "ColumnRow",
    "DropRow",
    "LabelPoint",
    "RankingRow",
    "candidates",
    "cause_parts",
    "column_importance",
    "column_slopes",
    "counts",
    "critical_difference",
    "curves",
    "data_of",
    "drops",
    "grouped",
    "has_shift_scale",
    "hyperparameters",
    "label_curves",
    "lines",
    "over_time",
    "ranking",
    "save",
    "shift_curve",
    "shift_plane",
    "svg",
    "sweep",
]
