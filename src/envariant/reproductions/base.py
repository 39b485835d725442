"""Building blocks of reproductions: sections, and the claims, figures and tables that they contain.

A section is a function that trains runs and yields figures, tables, paragraphs and claims in reading order.
The verdict on a claim is computed from the results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from matplotlib.figure import Figure

from envariant.reporting.charts import Chart
from envariant.reporting.tables import TextTable
from envariant.reproductions.runner import Runner
from envariant.reproductions.verdicts import Claim


@final
@dataclass(frozen=True)
class CaptionedFigure:
    """Figure with a caption in a section.

    Attributes:
        name: Base name of the figure's files; it must be unique within the section.
        figure: Altair chart, or matplotlib figure with a grid of images.
        caption: Text below the figure.
    """

    name: str
    figure: Chart | Figure
    caption: str


@final
@dataclass(frozen=True)
class CaptionedTable:
    """Table with a caption in a section.

    Attributes:
        name: Base name of the table's file; it must be unique within the section.
        table: Content of the table.
        caption: Text above the table.
    """

    name: str
    table: TextTable
    caption: str


Finding = Claim | CaptionedFigure | CaptionedTable | str
"""Element of a section; a string is a paragraph."""


@final
@dataclass(frozen=True)
class Section:
    """Section of a reproduction, which tests one or more claims of the publication.

    Attributes:
        name: Identifier of the section on the HTML page and on the command line.
        title: Heading of the section.
        statement: Summary of what the publication states, shown at the top of the section.
        find: Function that trains the runs of the section with a `Runner`, and yields figures, tables,
            paragraphs and claims.
    """

    name: str
    title: str
    statement: str
    find: Callable[[Runner], Iterator[Finding]]


@final
@dataclass(frozen=True)
class Reproduction:
    """Reproduction of a publication.

    Attributes:
        name: Name of the reproduction on the command line.
        title: Title of the HTML page.
        lead: Introduction at the top of the page, one paragraph.
        conditions: Description of the runs, by name of the profile, such as "quick".
        sections: Sections in their order on the page.
    """

    name: str
    title: str
    lead: str
    conditions: dict[str, str]
    sections: tuple[Section, ...]


def section(name: str, title: str) -> Callable[[Callable[[Runner], Iterator[Finding]]], Section]:
    """Return a decorator that turns a function into a `Section`, with the docstring as its statement.

    Args:
        name: Identifier of the section on the HTML page and on the command line.
        title: Heading of the section.
    """

    def decorate(find: Callable[[Runner], Iterator[Finding]]) -> Section:
        return Section(name, title, " ".join((find.__doc__ or "").split()), find)

    return decorate
