"""Report sections on provenance: the preprocessing log and the settings of the study."""

import json
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from envariant.comparison.page.base import Block, PageSection
from envariant.comparison.results import ComparisonResults
from envariant.reporting.labels import without_folders


@final
@dataclass(frozen=True, eq=False)
class PreprocessingLog(PageSection):
    """Section with the preprocessing log of the table."""

    anchor: ClassVar[str] = "preprocessing"
    title: ClassVar[str] = "Preprocessing log"

    def render(self) -> tuple[Block, ...]:
        """Return a table of the log entries of each column."""
        entries = [(entry.column or "table", entry.what) for entry in self.results.data.preprocessing_log]
        return (Block("definitions", [(term, without_folders(text)) for term, text in entries]),)

    def to_dict(self) -> dict[str, Any]:
        return {"preprocessing_log": [asdict(entry) for entry in self.results.data.preprocessing_log]}


@final
@dataclass(frozen=True, eq=False)
class Settings(PageSection):
    """Section with the settings of the study."""

    anchor: ClassVar[str] = "settings"
    title: ClassVar[str] = "Settings of the study"

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        return bool(results.settings)

    def render(self) -> tuple[Block, ...]:
        """Return a table of the study's settings."""
        pairs = [(key, without_folders(_text(value))) for key, value in self.results.settings.items()]
        return (Block("definitions", pairs),)

    def to_dict(self) -> dict[str, Any]:
        return {"settings": dict(self.results.settings)}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
