"""Find installed fonts for characters that the default font of figures lacks, such as Chinese."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from warnings import catch_warnings, filterwarnings

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text


@contextmanager
def fallbacks(figure: Figure) -> Generator[str]:
    """In a `with` block, use other installed fonts for characters that the default font lacks.

    Yields:
        Characters that no installed font contains. Drawing them issues no warning within the block.
    """
    absent: set[str] = set()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        characters = frozenset(filter(str.isprintable, text.get_text()))
        missing = characters - _available(findfont(text.get_fontproperties()), characters)
        if missing:
            families, rest = _families(missing)
            text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *families])))
            absent |= rest
    with catch_warnings():
        filterwarnings("ignore", r"(?s)Glyph .* missing from")
        yield "".join(sorted(absent))


def without_font(text: str) -> str:
    """Return the characters of a string that no installed font contains."""
    characters = frozenset(filter(str.isprintable, text))
    missing = characters - _available(findfont(FontProperties()), characters)
    return "".join(sorted(_families(missing)[1])) if missing else ""


@cache
def _families(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return installed font families that contain the characters, and characters that no font contains."""
    available = {
        font.name: _available(font.fname, characters)
        for font in fontManager.ttflist
        # Last Resort draws a box for every character.
        if (font.style, font.weight) == ("normal", 400) and not font.name.startswith("Last Resort")
    }
    families: list[str] = []
    while any(characters & own for own in available.values()):
        families.append(max(available, key=lambda name: len(characters & available[name])))
        characters -= available[families[-1]]
    return tuple(families), characters


@cache
def _available(path: str, characters: frozenset[str]) -> frozenset[str]:
    """Return the subset of characters that a font contains; an empty set if the font cannot be read."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(c for c in characters if font.get_char_index(ord(c)))
