"""What a reproduction is made of: parts, each a function that trains in a lab and yields what it found.

A part reads as the section of a paper does: it asks the lab for runs, then yields pictures, tables, words
and claims in the order in which they are to be read. A claim is true or not by its numbers, never by hand.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from matplotlib.figure import Figure

from envariant.reporting.tables import TextTable
from envariant.reproductions.runner import Lab


@final
@dataclass(frozen=True)
class Claim:
    """Something that the source says, tried here.

    Attributes:
        text: what is claimed, as a sentence.
        holds: whether the numbers bear it out.
        numbers: those it rests on.
    """

    text: str
    holds: bool
    numbers: str

    @property
    def verdict(self) -> str:
        """In words."""
        return "confirmed" if self.holds else "not confirmed"


@final
@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its files, within the part.
        figure: the drawing.
        caption: what is seen.
        pixels: whether it is made of images, so that a page carries it as PNG.
    """

    name: str
    figure: Figure
    caption: str
    pixels: bool = False


@final
@dataclass(frozen=True)
class Listing:
    """A table.

    Attributes:
        name: of its file, within the part.
        table: the table.
        caption: what it lists.
    """

    name: str
    table: TextTable
    caption: str


Finding = Claim | Picture | Listing | str
"""What a part yields; a string is a paragraph."""


@final
@dataclass(frozen=True)
class Part:
    """One section.

    Attributes:
        name: its id on the page and on the command line.
        title: its heading.
        says: what the source says, in our own words.
        find: trains in a lab and yields what it found.
    """

    name: str
    title: str
    says: str
    find: Callable[[Lab], Iterator[Finding]]


@final
@dataclass(frozen=True)
class Reproduction:
    """A published piece of work, tried again.

    Attributes:
        name: on the command line.
        title: of the page.
        lead: what it is about, a paragraph.
        conditions: what each profile does and leaves out.
        parts: the sections, in order.
    """

    name: str
    title: str
    lead: str
    conditions: dict[str, str]
    parts: tuple[Part, ...]


def part(name: str, title: str) -> Callable[[Callable[[Lab], Iterator[Finding]]], Part]:
    """Makes a part of a function; its docstring is what the source says.

    Args:
        name: of the part, on the page and on the command line.
        title: its heading.
    """

    def made(find: Callable[[Lab], Iterator[Finding]]) -> Part:
        return Part(name, title, " ".join((find.__doc__ or "").split()), find)

    return made
