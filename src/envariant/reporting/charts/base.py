"""Code shared by all charts: style, data, and conversion to SVG and PNG files."""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import altair as alt

from envariant.core.errors import EnvariantWarning
from envariant.core.files import write_bytes
from envariant.core.paths import check_overwrite
from envariant.core.printable import printable
from envariant.reporting.charts import conversion
from envariant.reporting.fonts import without_font
from envariant.reporting.theme import INK, baseline_first, method_colors

Row = dict[str, Any]
Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart | alt.HConcatChart

WIDTH, HEIGHT = 640, 260
PANEL_WIDTH, PANEL_HEIGHT = 210, 190
FADED = 0.12
_CLIP = re.compile(r"(?<=[\"#]clip)\d+")
# Text and lines take the color of the surrounding text, so charts follow the page's dark mode.
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor", "titleColor": "currentColor", "tickColor": "currentColor",
        "domainColor": "currentColor", "gridColor": "currentColor", "gridOpacity": 0.12,
        "domainOpacity": 0.4, "tickOpacity": 0.4, "labelFontSize": 12, "titleFontSize": 12,
        "titleFontWeight": "normal", "labelOverlap": True, "labelLimit": 190, "tickCount": 5,
    },
    "legend": {
        "labelColor": "currentColor", "titleColor": "currentColor", "labelFontSize": 12, "orient": "top",
        "columns": 4, "title": None, "labelLimit": 260, "symbolStrokeWidth": 2.5,
        "symbolOpacity": 1, "symbolBaseFillColor": "currentColor", "symbolBaseStrokeColor": "currentColor",
    },
    "header": {
        "labelColor": "currentColor", "labelFontSize": 12, "labelFontWeight": "bold", "labelAnchor": "start",
        "title": None,
    },
    "title": {
        "color": "currentColor", "subtitleColor": "currentColor", "anchor": "start", "fontSize": 13,
        "subtitleFontSize": 12,
    },
    "text": {"color": "currentColor", "fontSize": 12},
    "rule": {"color": "currentColor"},
}  # fmt: skip


def values(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
    """Convert rows to the data of an Altair chart; escape control characters and replace NaN by null."""
    return alt.Data(values=[{key: _plain(value) for key, value in row.items()} for row in rows])


def picked() -> alt.Parameter:
    """Return an Altair selection that highlights a method when its legend entry or mark is clicked."""
    return alt.selection_point(name="picked", fields=["name"], bind="legend")


def color(names: Sequence[str], *, legend: bool = True, field: str = "name") -> alt.Color:
    """Return an Altair color encoding for charts, with one color per method."""
    own = method_colors(names)
    ordered = [printable(name) for name in baseline_first(names)]
    scale = alt.Scale(domain=ordered, range=[own[name] for name in baseline_first(names)])
    return alt.Color(
        f"{field}:N", scale=scale, legend=alt.Legend() if legend and len(own) > 1 else None, title=None
    )


def faded(selection: alt.Parameter, opacity: float = 1.0) -> Any:
    """Return an Altair opacity that is low for methods outside the selection."""
    return alt.when(selection).then(alt.value(opacity)).otherwise(alt.value(FADED))


def mark_height(value: float, label: str) -> list[alt.Chart]:
    """Return two chart layers: a dashed horizontal reference line at a value, and its label."""
    # One row of their own; a layer that inherits the rows of the chart would draw them many times.
    base = alt.Chart(values([{"reference": label, "value": value}]))
    y = alt.Y("value:Q")
    line = base.mark_rule(strokeDash=[5, 3], opacity=0.5).encode(y=y, tooltip=["reference:N", "value:Q"])
    text = base.mark_text(align="right", dy=-6, opacity=0.75, fontSize=11).encode(
        y=y, x=alt.value("width"), text="reference:N"
    )
    return [line, text]


def drawn(layer: Any, rows: Sequence[Mapping[str, Any]], field: str, kind: str = "") -> list[Any]:
    """Return `[layer]`, limited to rows in which a field has a value; `[]` if there are no such rows.

    Without this check, Vega would warn about an empty layer, and screen readers would announce it.

    Args:
        layer: Layer of a chart.
        rows: Rows of the chart.
        field: Name of the field that must have a value.
        kind: Value that the field "kind" of the rows must have. "": any value.
    """
    known = [row for row in rows if _plain(row.get(field)) is not None and kind in ("", row.get("kind"))]
    is_kind = f" && datum.kind === '{kind}'" if kind else ""
    return [layer.transform_filter(f"isValid(datum.{field}){is_kind}")] if known else []


def note(text: str) -> alt.TitleParams:
    """Return a chart title in normal font weight, used for a remark above the chart."""
    return alt.TitleParams(text, fontSize=12, fontWeight="normal")


def styled(chart: Any, description: str) -> Any:
    """Add the common style and a text description to a chart.

    Args:
        chart: Altair chart without `config`.
        description: One or two sentences that describe the chart to readers who cannot see it.
    """
    styled: Any = chart.properties(description=printable(description))
    styled.config = _CONFIG
    return styled


def spec(chart: Chart) -> dict[str, Any]:
    """Return the Vega-Lite specification of a chart, with control characters escaped."""
    # Rows are checked by the functions that make charts; validating each of them takes seconds.
    return _mapped(chart.to_dict(validate=False), printable)


def data_of(chart: Chart) -> list[Row]:
    """Return the rows shown in a chart, without reference lines."""
    return rows_of(spec(chart))


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """Return the data rows of a Vega-Lite specification.

    If each panel has its own data, every row also contains the title of its panel.
    """
    if "data" in document:
        return cast("list[Row]", document["data"]["values"])
    panels: list[dict[str, Any]] = document["concat"]
    return [{"panel": panel["title"]["text"], **row} for panel in panels for row in panel["data"]["values"]]


def svg(chart: Chart) -> str:
    """Convert a chart to SVG text for a light background; identical charts give identical text."""
    text = conversion.svg(_fixed_ink(chart))
    # Vega numbers clipping paths over all charts of the process.
    numbers = {old: str(new) for new, old in enumerate(dict.fromkeys(_CLIP.findall(text)))}
    return _CLIP.sub(lambda match: numbers[match[0]], text)


def save(chart: Chart, path: Path, scale: float = 2.0) -> None:
    """Write a chart to a file: as SVG if its name ends in `.svg`, otherwise as PNG on a white background.

    Args:
        chart: Chart to write.
        path: SVG or PNG file to write. An existing file must be a picture written by Envariant.
        scale: Pixels of the PNG per pixel of the chart.

    Raises:
        EnvariantError: If the file cannot be written, or a file that Envariant did not write exists at the
            path.
    """
    check_overwrite(path, r"\A<!-- envariant -->|Software\x00envariant")
    if path.suffix == ".svg":
        write_bytes(f"<!-- envariant -->\n{svg(chart)}".encode(), path)
        return
    document = _fixed_ink(chart)
    if absent := without_font(str(document)):
        warnings.warn(
            f"picture: no installed font has the characters '{absent}'; save it as SVG, or install a font",
            EnvariantWarning,
            stacklevel=2,
        )
    write_bytes(_with_software(conversion.png(document, scale)), path)


def number(value: float) -> str:
    """Format a number with three significant digits, or return "unknown" if it is not finite."""
    return f"{value:.3g}" if math.isfinite(value) else "unknown"


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return a copy of a JSON document with a function applied to every text value."""
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in cast("list[Any]", value)]
    return change(value) if isinstance(value, str) else value


def _fixed_ink(chart: Chart) -> dict[str, Any]:
    """Return the specification of a chart with a white background and dark text, for files."""
    document = spec(chart)
    fixed = _mapped(document, lambda text: INK if text == "currentColor" else text)
    return {**fixed, "background": "white"}


def _with_software(png: bytes) -> bytes:
    """Add this library's name to the metadata of a PNG, so that `save` recognizes its own files."""
    from zlib import crc32

    text = b"tEXtSoftware\x00envariant"
    chunk = (len(text) - 4).to_bytes(4, "big") + text + crc32(text).to_bytes(4, "big")
    # The header of a PNG has 33 bytes.
    return png[:33] + chunk + png[33:]


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bool) or value is None:
        return value
    number = float(value)
    return None if not math.isfinite(number) else int(number) if number.is_integer() else number
