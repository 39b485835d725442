"""Base class of page sections, and the blocks of a section."""

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
    """Element of a page section, such as a figure or a table.

    Attributes:
        kind: Kind of element: "figure", "table", "note", "warning" or "definitions".
        content: SVG text of a figure, `TextTable` of a table, text of a note or warning, or definitions as
            pairs of term and text.
        caption: Caption of a figure or table.
    """

    kind: Literal["figure", "table", "note", "warning", "definitions"]
    content: Any
    caption: str = ""

    @classmethod
    def figure(cls, figure: Figure, caption: str) -> "Block":
        """Return a figure block, with the figure as SVG text."""
        return cls("figure", figures.svg(figure), caption)

    @classmethod
    def table(cls, table: TextTable, caption: str) -> "Block":
        """Return a table block."""
        return cls("table", table, caption)


@dataclass(frozen=True, eq=False)
class PageSection(ABC):
    """Base class of the sections of a comparison's page.

    To add a section, define a subclass and list it in `SECTIONS`.

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
        """Return whether the results have content for the section."""
        del results
        return True

    @abstractmethod
    def render(self) -> tuple[Block, ...]:
        """Return the blocks of the section."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the section by field name in `comparison.json`."""


def shortened(name: str, most: int = 28) -> str:
    """Return a name shortened to at most `most` characters, for a figure."""
    return name if len(name) <= most else name[: most - 1] + "…"


def known(values: dict[str, float]) -> dict[str, float]:
    """Return the finite values by name."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
