"""Report section on columns: stability of their relation with the target, and their importance."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from envariant.analysis.column_stability import ColumnStability
from envariant.comparison.formatting import listed, method_name, p_text, score
from envariant.comparison.page.base import Block, PageSection, known
from envariant.comparison.results import ComparisonResults
from envariant.core.printable import number_of
from envariant.reporting import charts
from envariant.reporting.tables import NONE, TextTable

_MOST_ROWS = 20
_ABSENT = (math.nan,) * 3


@final
@dataclass(frozen=True, eq=False)
class Columns(PageSection):
    """Section on the stability of each column's relation with the target, and on column importance."""

    anchor: ClassVar[str] = "columns"
    title: ClassVar[str] = "Which columns have an unstable relation to the target?"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return bool(results.data.columns)

    def render(self) -> tuple[Block, ...]:
        """Return a chart, the stability table and the importance table."""
        hidden = len(self.results.data.columns) - _MOST_ROWS
        more = f" Not drawn: {number_of(hidden, 'column')} with a more stable relation." if hidden > 0 else ""
        slopes = (
            f"Slope of each column in each environment, given the other columns; distant points mean that "
            f"the relation differs. Thin lines: 95 % prediction interval for the next environment.{more}"
        )
        losses = (
            "Amount by which the score worsens if the column is shuffled among validation rows of training "
            "environments."
        )
        rows, metric = self.rows(), self.results.metric.name
        methods = [method_name(name) for name in self._methods]
        return (
            Block.chart(charts.column_slopes(rows, _unit(self.results.data.columns)), slopes),
            Block.table(self.stability_table(), "Columns, the least stable first"),
            Block.chart(charts.column_importance(rows, metric, methods), losses),
            Block.table(self.importance_table(), "Importance of each column"),
        )

    @property
    def hint(self) -> str:
        unstable = [column.column for column in self.results.data.columns if column.unstable]
        return listed(unstable) or "none"

    @property
    def _methods(self) -> list[str]:
        return list(dict.fromkeys((self.results.baseline_method, self.recommended)))

    def rows(self) -> list[charts.ColumnRow]:
        """Return chart rows with slopes and importance of each column, the least stable column first."""
        return [
            charts.ColumnRow(
                column.column,
                known(dict(column.slopes)),
                column.unstable,
                _next_limits(column),
                {
                    method_name(m): own[column.column].in_domain
                    for m in self._methods
                    if column.column in (own := self.results.importance.get(m, {}))
                },
            )
            for column in self.results.data.columns[:_MOST_ROWS]
        ]

    def stability_table(self) -> TextTable:
        """Return a table with the kind of relation, the slopes and the p-value of each column."""
        lines: list[tuple[str, ...]] = []
        for column in self.results.data.columns[:_MOST_ROWS]:
            slopes = known(dict(column.slopes))
            extremes = [f(slopes, key=slopes.__getitem__) for f in (min, max)] if slopes else []
            texts = [f"{_signed(slopes[name])} ({name})" for name in extremes] or [NONE, NONE]
            pooled = column.pooled
            mean = NONE if pooled is None else _signed(pooled.mean)
            limits = _next_limits(column)
            following = f"[{_signed(limits[0])}, {_signed(limits[1])}]" if limits else NONE
            p_value = p_text(column.p_value).removeprefix("p ").removeprefix("= ") if pooled else NONE
            lines.append((column.column, column.kind, mean, following, *texts, p_value))
        note = (
            f"Slope: {_unit(self.results.data.columns)}, given the other columns. Mean: over environments "
            f"(random effects). Next environment: 95 % prediction interval. p: test of equal slopes in all "
            f"environments (score test, Holm-corrected). Varies: slopes differ significantly. Changes sign: "
            f"significantly positive in one environment and negative in another. Not measured: too few rows."
        )
        header = ("column", "relation", "mean", "next environment", "lowest slope", "highest slope", "p")
        return TextTable(header, tuple(lines), (note,))

    def importance_table(self) -> TextTable:
        """Return a table with the decrease in performance after each column is shuffled or replaced."""
        lines: list[tuple[str, ...]] = []
        for column in self.results.data.columns[:_MOST_ROWS]:
            losses: list[float] = []
            for method in self._methods:
                own = self.results.importance.get(method, {}).get(column.column)
                losses += _ABSENT if own is None else (own.in_domain, own.out_of_domain, own.replaced)
            texts = (score(self.results, v, signed=True) if math.isfinite(v) else NONE for v in losses)
            lines.append((column.column, *texts))
        kinds = ("shuffled, in-domain", "shuffled, out-of-domain", "replaced, out-of-domain")
        header = ("column", *(f"{method_name(m)}: {kind}" for m in self._methods for kind in kinds))
        note = (
            f"Amount by which the score worsens ({self.results.metric.name}). Shuffled: values permuted "
            f"among validation rows of training environments (in-domain) or among rows of the test "
            f"environment (out-of-domain). Replaced: values of the test environment replaced by values from "
            f"training environments; negative if the environment's own values mislead the model."
        )
        return TextTable(header, tuple(lines), (note,))

    def to_dict(self) -> dict[str, Any]:
        importance = self.results.importance
        columns = [
            {
                "column": c.column,
                "kind": c.kind,
                "slopes": dict(c.slopes),
                "p_value": c.p_value,
                "measured": c.measured,
                "pooled": None if c.pooled is None else asdict(c.pooled),
                "importance": {m: asdict(own[c.column]) for m, own in importance.items() if c.column in own},
            }
            for c in self.results.data.columns
        ]
        return {"columns": columns, "possible_target_leakage": list(self.results.data.leaky_columns)}


def _unit(columns: Sequence[ColumnStability]) -> str:
    logit = bool(columns) and columns[0].link == "logit"
    return "log-odds per SD of the column" if logit else "SD of the target per SD of the column"


def _next_limits(column: ColumnStability) -> tuple[float, float] | None:
    """Return the prediction interval of a column's slope in the next environment; None if unknown."""
    pooled = column.pooled
    if pooled is None or not math.isfinite(pooled.next_low):
        return None
    return pooled.next_low, pooled.next_high


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"
