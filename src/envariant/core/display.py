"""Short descriptions of objects for consoles and notebooks: a few lines of text, or a small HTML table.

Objects return a `Summary`, which this module renders in a common layout. Pictures and HTML pages are created
by `envariant.reporting`; the function `views` imports this package when a picture or page is requested.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, final

from envariant.core.errors import shortened
from envariant.core.printable import one_line

NONE: Final = "–"
"""Text of an absent value."""

_MOST_LINES, _WIDTH = 8, 110
# Neutral colors with transparency are readable on light and on dark backgrounds.
_STYLE: Final = (
    ".envariant{font:13px/1.45 system-ui,sans-serif;color:inherit;max-width:60em;overflow-x:auto}"
    ".envariant p{margin:.2em 0}.envariant .n{opacity:.75;font-size:.92em}"
    ".envariant table{border-collapse:collapse;margin:.4em 0;background:none;color:inherit;font:inherit}"
    ".envariant :is(th,td){padding:.15em .7em .15em 0;text-align:left;vertical-align:top;"
    "background:none;color:inherit;white-space:normal}"
    ".envariant .s :is(th,td):not(:first-child){text-align:right;font-variant-numeric:tabular-nums}"
    ".envariant thead th{border-bottom:1px solid rgba(127,127,127,.6)}"
    ".envariant tbody th{font-weight:normal}.envariant .f th{opacity:.75}"
)


@final
@dataclass(frozen=True)
class Summary:
    """Content of an object's description in consoles and notebooks.

    Attributes:
        title: Type and name of the object, or its headline.
        facts: Facts as text, by label, such as {"task": "binary"}; entries with empty text are left out.
        brief: Facts shown only in consoles, where the table is not shown.
        lines: Sentences below the title.
        header: Names of the columns of a table, shown in notebooks only.
        rows: Cells of each row of the table; the first cell is the row's name.
        notes: Explanations below the table, shown in notebooks only.
        marks: HTML tag of highlighted cells, "b" (bold) or "u" (underlined), by row and column number. Both
            are counted from 0; column 0, with the names of the rows, cannot be highlighted.
    """

    title: str
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    brief: Mapping[str, str] = field(default_factory=dict[str, str])
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    marks: Mapping[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])

    def text(self) -> str:
        """Return title, sentences and facts as at most eight lines of text."""
        facts = [f"{label}: {text}" for label, text in {**self.brief, **self.facts}.items() if text]
        inner = [*(f"- {line}" for line in self.lines), *facts]
        kept = inner if len(inner) < _MOST_LINES else [*inner[: _MOST_LINES - 2], "…"]
        return "\n".join([one_line(self.title), *(f"  {shortened(line, 2 * _WIDTH)}" for line in kept)])

    def html(self) -> str:
        """Return the whole description as HTML with an embedded style sheet; all text is escaped."""
        facts = [(label, text) for label, text in self.facts.items() if text]
        body = [f"<p><strong>{_escaped(self.title)}</strong></p>"]
        if self.lines:
            body.append(f"<ul>{''.join(f'<li>{_escaped(line)}</li>' for line in self.lines)}</ul>")
        if facts:
            body.append(_table("f", (), facts))
        if self.rows:
            body.append(_table("s", self.header, self.rows, self.marks))
        body += [f'<p class="n">{_escaped(note)}</p>' for note in self.notes]
        return f'<div class="envariant"><style>{_STYLE}</style>{"".join(body)}</div>'


class Displayed(ABC):
    """Base class of objects with a short description in consoles and notebooks."""

    @abstractmethod
    def _display(self) -> Summary:
        """Return the description of the object."""

    def __repr__(self) -> str:
        return self._display().text()

    def _repr_html_(self) -> str:
        return self._display().html()


def views() -> Any:
    """Import and return `envariant.reporting.views`, which draws pictures and writes HTML pages.

    The package `core` must not depend on `envariant.reporting`. The module is therefore imported by name when
    a picture or page is first requested, as pandas imports its plotting backend.
    """
    return import_module("envariant.reporting.views")


def counted(names: Mapping[str, int], most: int = 6) -> str:
    """Return names with row counts as text, such as "north (80), south (1,400)"; shorten long lists."""
    items = list(names.items())
    more = [f"… ({len(items):,} in all)"] if len(items) > most else []
    return ", ".join([*(f"{name} ({rows:,})" for name, rows in items[:most]), *more])


def named(names: Iterable[object], most: int = 6) -> str:
    """Return the first `most` names as text; if there are more names, add the total number of names."""
    texts = list(map(str, names))
    more = [f"… ({len(texts):,} in all)"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


def _table(
    kind: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    marks: Mapping[tuple[int, int], str] | None = None,
) -> str:
    names = "".join(f'<th scope="col">{_escaped(name)}</th>' for name in header)
    lines: list[str] = []
    for i, (first, *cells) in enumerate(rows):
        texts = [_marked(_escaped(cell), (marks or {}).get((i, j), "")) for j, cell in enumerate(cells, 1)]
        inner = "".join(f"<td>{text}</td>" for text in texts)
        lines.append(f'<tr><th scope="row">{_escaped(first)}</th>{inner}</tr>')
    head = f"<thead><tr>{names}</tr></thead>" if header else ""
    return f'<table class="{kind}">{head}<tbody>{"".join(lines)}</tbody></table>'


def _marked(text: str, tag: str) -> str:
    return f"<{tag}>{text}</{tag}>" if tag else text


def _escaped(text: str) -> str:
    return html.escape(one_line(text))
