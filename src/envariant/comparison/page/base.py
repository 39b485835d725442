"""Base class of the sections of the HTML report."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from envariant.comparison.results import ComparisonResults
from envariant.reporting.page import Block

__all__ = ["Block", "PageSection", "known", "shortened"]


@dataclass(frozen=True, eq=False)
class PageSection(ABC):
    """Base class of the sections of a comparison's HTML report.

    To add a section, define a subclass and list it in `SECTIONS`.

    Attributes:
        results: Results of the comparison.
        recommended: Name of the recommended method.
    """

    anchor: ClassVar[str]
    title: ClassVar[str]

    results: ComparisonResults
    recommended: str

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        """Return whether the results have content for this section."""
        del results
        return True

    @property
    def hint(self) -> str:
        """Main result in a few words, shown next to the section's title while the section is collapsed."""
        return ""

    @abstractmethod
    def render(self) -> tuple[Block, ...]:
        """Return the content of the section as blocks, such as paragraphs, charts and tables."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the section's numbers as a dictionary with the field names of `comparison.json` as keys."""


def shortened(name: str, most: int = 28) -> str:
    """Shorten a name to at most `most` characters, for use in a figure."""
    return name if len(name) <= most else name[: most - 1] + "…"


def known(values: dict[str, float]) -> dict[str, float]:
    """Return a mapping without its infinite and missing values."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
