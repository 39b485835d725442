"""Building blocks of a reproduction: sections, each a function that trains with a runner and yields findings.

A section reads like a section of a paper: it requests runs, and yields figures, tables, paragraphs and claims
in reading order. Whether a claim holds is computed from the numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from matplotlib.figure import Figure

from envariant.reporting.tables import TextTable
from envariant.reproductions.runner import Runner


@final
@dataclass(frozen=True)
class Claim:
    """Claim of the publication, tested here.

    Attributes:
        text: The claim as a sentence.
        holds: Whether the numbers support it.
        numbers: The numbers on which that rests.
    """

    text: str
    holds: bool
    numbers: str

    @property
    def verdict(self) -> str:
        """Verdict in words."""
        return "confirmed" if self.holds else "not confirmed"


@final
@dataclass(frozen=True)
class CaptionedFigure:
    """Figure of a section.

    Attributes:
        name: Base name of its files, unique within the section.
        figure: The drawing.
        caption: Text below it.
        as_pixels: Whether the page contains it as PNG instead of SVG, for figures made of images.
    """

    name: str
    figure: Figure
    caption: str
    as_pixels: bool = False


@final
@dataclass(frozen=True)
class CaptionedTable:
    """Table of a section.

    Attributes:
        name: Base name of its file, unique within the section.
        table: The cells.
        caption: Text above it.
    """

    name: str
    table: TextTable
    caption: str


Finding = Claim | CaptionedFigure | CaptionedTable | str
"""Element of a section; a string is a paragraph."""


@final
@dataclass(frozen=True)
class Section:
    """Section of a reproduction.

    Attributes:
        name: Id on the page and on the command line.
        title: Heading.
        statement: Summary of what the publication states.
        find: Function that trains with a runner and yields the findings.
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
        name: Name on the command line.
        title: Title of the page.
        lead: Introduction, one paragraph.
        conditions: Scope of each profile.
        sections: The sections in order.
    """

    name: str
    title: str
    lead: str
    conditions: dict[str, str]
    sections: tuple[Section, ...]


def section(name: str, title: str) -> Callable[[Callable[[Runner], Iterator[Finding]]], Section]:
    """Decorate a function as a section; its docstring becomes the section's statement.

    Args:
        name: Id on the page and on the command line.
        title: Heading.
    """

    def decorate(find: Callable[[Runner], Iterator[Finding]]) -> Section:
        return Section(name, title, " ".join((find.__doc__ or "").split()), find)

    return decorate
