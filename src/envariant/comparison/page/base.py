"""Contract of a page section, and the blocks that it may consist of."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from matplotlib.figure import Figure

from envariant.comparison.results import ComparisonResults
from envariant.reporting import figures
from envariant.reporting.tables import TextTable


@final
@dataclass(frozen=True, eq=False)
class Block:
    """One element of a section.

    Attributes:
        kind: "figure" (content: SVG), "table" (`TextTable`), "note" or "warning" (text), "definitions" (pairs
            of term and text).
        content: The content, of the type that `kind` says.
        caption: Caption of a figure or table.
    """

    kind: Literal["figure", "table", "note", "warning", "definitions"]
    content: Any
    caption: str = ""

    @classmethod
    def figure(cls, figure: Figure, caption: str) -> "Block":
        """Return a figure block; all text in the figure is drawn as outlines."""
        return cls("figure", figures.svg(figure), caption)

    @classmethod
    def table(cls, table: TextTable, caption: str) -> "Block":
        """Return a table block."""
        return cls("table", table, caption)


@dataclass(frozen=True, eq=False)
class PageSection(ABC):
    """Section of the page of a comparison.

    A new section is a subclass in `SECTIONS`.

    Attributes:
        results: Results of the comparison.
        recommended: Recommended algorithm.
    """

    anchor: ClassVar[str]
    title: ClassVar[str]

    results: ComparisonResults
    recommended: str

    @classmethod
    def applies(cls, results: ComparisonResults) -> bool:
        """Return whether the section has something to show."""
        del results
        return True

    @abstractmethod
    def render(self) -> tuple[Block, ...]:
        """Return the blocks of the section."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the section as plain data, by field of the comparison's JSON."""


def shortened(name: str, most: int = 28) -> str:
    """Return a name with at most so many characters, for a figure."""
    return name if len(name) <= most else name[: most - 1] + "…"


def known(values: dict[str, float]) -> dict[str, float]:
    """Return the finite values."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
