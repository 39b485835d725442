"""Report section on the scores of subgroups."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from envariant.comparison.formatting import ci, method_name, p_text, score
from envariant.comparison.page.base import Block, PageSection
from envariant.comparison.results import ComparisonResults
from envariant.comparison.subgroups import FEWEST_ROWS
from envariant.reporting.tables import NONE, TextTable


@final
@dataclass(frozen=True, eq=False)
class Subgroups(PageSection):
    """Section with the out-of-domain score of each subgroup."""

    anchor: ClassVar[str] = "subgroups"
    title: ClassVar[str] = "Is the score worse for a subgroup?"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return bool(results.subgroups)

    def render(self) -> tuple[Block, ...]:
        """Return a table with one row per subgroup and method."""
        results = self.results
        lines = [
            (
                each.name,
                method_name(each.method),
                f"{each.n_rows:,}",
                "too few rows, or undefined"
                if each.score is None
                else f"{score(results, each.score.mean)} {ci(results, each.score)}",
                score(results, each.others) if each.others == each.others else NONE,
                NONE if each.score is None else p_text(each.p_value),
            )
            for each in results.subgroups
        ]
        header = (
            "subgroup",
            "method",
            "rows",
            f"{results.metric.name} out-of-domain",
            "other rows",
            "p (Holm)",
        )
        note = (
            f"Rows of all test environments together, at most 1,000 stored rows of each. Brackets: 95 % CI "
            f"over rows, Bonferroni-corrected over subgroups. No score with fewer than {FEWEST_ROWS} rows. "
            f"Rows without a value are left out."
        )
        return (
            Block.table(TextTable(header, tuple(lines), (note,)), "Out-of-domain score of each subgroup"),
        )

    def to_dict(self) -> dict[str, Any]:
        return {"subgroups": [asdict(each) for each in self.results.subgroups]}
