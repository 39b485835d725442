"""HTML pages: the main result at the top, then folded sections with interactive charts and tables."""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal, final
from urllib.parse import quote

from matplotlib.figure import Figure

from envariant.core.printable import printable
from envariant.reporting import figures, html
from envariant.reporting.charts import base as charts
from envariant.reporting.charts import conversion
from envariant.reporting.tables import NONE, TextTable
from envariant.reporting.theme import baseline_first, method_colors

# Largest number of rows in the table below a figure; the CSV file has all of them.
_MOST_ROWS = 200


Kind = Literal[
    "chart", "image", "table", "text", "note", "warning", "definitions", "command", "heading", "claim",
    "quote", "list", "svg",
]  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class Block:
    """Element of a page, such as a chart or a table.

    Attributes:
        kind: Kind of element, such as "chart", "table" or "text".
        content: Chart, `data:` URL of an image, `TextTable`, text, list of texts, or pairs of a term and its
            definition; for the kind "claim", an object with a text, a verdict and the supporting numbers.
        caption: Caption of a chart, image or table.
    """

    kind: Kind
    content: Any
    caption: str = ""

    @classmethod
    def chart(cls, chart: charts.Chart, caption: str) -> "Block":
        """Return a block with an interactive chart and its data as a table that can be downloaded."""
        return cls("chart", chart, caption)

    @classmethod
    def figure(cls, figure: Figure, caption: str) -> "Block":
        """Return a block with a static matplotlib figure."""
        return cls("svg", figures.svg(figure), caption)

    @classmethod
    def image(cls, png: bytes, caption: str) -> "Block":
        """Return a block with a PNG picture."""
        return cls("image", f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}", caption)

    @classmethod
    def table(cls, table: TextTable, caption: str) -> "Block":
        """Return a block with a table that can be sorted and filtered."""
        return cls("table", table, caption)


@final
@dataclass(frozen=True, eq=False)
class Section:
    """Section of a page, which readers can fold.

    Attributes:
        anchor: Identifier of the section, used in links to it.
        title: Heading of the section.
        blocks: Elements from top to bottom.
        hint: Short text next to the heading, such as the main result of the section.
        is_open: Whether the section is unfolded when the page opens.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]
    hint: str = ""
    is_open: bool = False


@final
@dataclass(frozen=True)
class BigNumber:
    """Number that is shown in large type at the top of a page.

    Attributes:
        label: Description of the number.
        value: Number as text.
        detail: Interval of the number, or a short remark about it.
    """

    label: str
    value: str
    detail: str = ""


@final
@dataclass(frozen=True, eq=False)
class Page:
    """Content of a page.

    Attributes:
        kind: Kind of page: "runs", "study", "comparison", "evaluation", "reproduction" or "data".
        title: Heading of the page.
        lead: Introduction in one paragraph, which says what was done.
        headline: Main result in one sentence.
        numbers: Most important numbers, from left to right.
        bullets: At most four facts that support the headline.
        figure: Chart next to the headline.
        sections: Sections below the main result, which readers can fold and unfold.
        methods: Names of methods that readers can highlight in all charts and tables.
    """

    kind: Literal["runs", "study", "comparison", "evaluation", "reproduction", "data"]
    title: str
    lead: str
    headline: str
    numbers: Sequence[BigNumber] = ()
    bullets: Sequence[str] = ()
    figure: Block | None = None
    sections: Sequence[Section] = field(default=())
    methods: Sequence[str] = ()


def render(page: Page) -> str:
    """Return a page as HTML text without external resources."""
    script, digest = _script()
    colors = method_colors(page.methods)
    text = html.render(
        "page.html.j2",
        page=page,
        digest=digest,
        colors={name: colors[name] for name in baseline_first(page.methods)},
        figure_data=_figure_data,
    )
    # The script is inserted last: it needs no escaping, and is a thousand times as long as the page.
    return text.replace("<script></script>", f"<script>{script}</script>")


@cache
def _script() -> tuple[str, str]:
    """Return the JavaScript of all pages, and its hash for the Content-Security-Policy."""
    own = files("envariant.reporting").joinpath("templates/_page.js").read_text(encoding="utf-8")
    script = printable(f"{conversion.bundle()}\n{own}").replace("</script", "<\\/script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return script, f"sha256-{digest}"


def _figure_data(block: Block) -> dict[str, Any]:
    """Return a chart's specification and description, and its data as a table and as CSV text."""
    document = charts.spec(block.content)
    rows = charts.rows_of(document)
    header = [key for key in dict.fromkeys(key for row in rows for key in row) if not key.startswith("_")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *([row.get(key) for key in header] for row in rows)])
    cells = tuple(tuple(_cell(row.get(key)) for key in header) for row in rows[:_MOST_ROWS])
    notes = (f"The first {_MOST_ROWS} of {len(rows)} rows; the CSV file has all.",)
    # Within JSON, these escapes are equal to the characters, which could end the script element.
    json_text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    for character in "&<>":
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return {
        "json": json_text,
        "description": document["description"],
        "table": TextTable(tuple(header), cells, notes if len(rows) > _MOST_ROWS else ()),
        "csv": f"data:text/csv;charset=utf-8,{quote(text.getvalue())}",
    }


def _cell(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)
