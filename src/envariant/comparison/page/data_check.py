"""Report section with the findings of the data check."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from envariant.comparison.page.base import Block, PageSection
from envariant.comparison.results import ComparisonResults
from envariant.reporting.tables import TextTable


@final
@dataclass(frozen=True, eq=False)
class DataCheck(PageSection):
    """Section with the findings of the data check and the suggested actions."""

    anchor: ClassVar[str] = "data-check"
    title: ClassVar[str] = "Data check"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return bool(results.data.findings)

    @property
    def hint(self) -> str:
        return f"{len(self.results.data.findings)} findings"

    def render(self) -> tuple[Block, ...]:
        """Return a table with one row per finding."""
        lines = tuple((f.kind, f.sentence, f.action) for f in self.results.data.findings)
        return (Block.table(TextTable(("finding", "what was found", "what to do"), lines), "Data check"),)

    def to_dict(self) -> dict[str, Any]:
        return {"data_check": [asdict(finding) for finding in self.results.data.findings]}
