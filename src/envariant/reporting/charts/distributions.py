"""Charts of the distribution of each column in every environment."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from envariant.reporting.charts.base import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    Chart,
    Row,
    color,
    faded,
    note,
    picked,
    styled,
    values,
)

_MOST_BINS, _FEWEST_BINS, _MOST_CATEGORIES = 24, 6, 8
# Whole numbers with few distinct values are drawn as categories.
_FEW_NUMBERS = 10
_OTHER = "other"


def distributions(frames: Mapping[str, pd.DataFrame], name: str, more: Sequence[str] = ()) -> Chart:
    """Draw the distribution of each column, one panel per column and one color per environment.

    Numeric columns are drawn as histograms with bins of equal width, from the 0.5 % quantile to the 99.5 %
    quantile of all rows. For categorical columns, the shares of the most frequent categories are drawn.
    Missing values are not drawn.

    Args:
        frames: Data frame of each environment, by name; all data frames have the same columns.
        name: Name of the data.
        more: Sentences shown above the chart, such as remarks about rows or columns that are not drawn.
    """
    environments = list(frames)
    pick = picked()
    panels: list[Any] = []
    for column in next(iter(frames.values())).columns:
        parts = {e: frame[column].dropna() for e, frame in frames.items()}
        rows, is_number = _shares(parts)
        panels.append(_panel(str(column), rows, environments, is_number=is_number, pick=pick))
    # The selection of the first panel holds for all.
    panels[0] = panels[0].add_params(pick)
    chart: Any = alt.concat(*panels, columns=3).resolve_scale(
        x="independent", y="independent", xOffset="independent", color="shared"
    )
    if more:
        chart = chart.properties(title=note(" ".join(more)))
    text = f"Distribution of {len(panels)} columns of {name} in {len(environments)} environments."
    return styled(chart, text)


def _panel(
    title: str, rows: Sequence[Row], environments: Sequence[str], *, is_number: bool, pick: alt.Parameter
) -> Any:
    tooltip = ["name:N", alt.Tooltip("value:Q" if is_number else "value:N"),
               alt.Tooltip("share:Q", format=".1%")]  # fmt: skip
    y = alt.Y("share:Q", title="share of rows", axis=alt.Axis(format="%", tickCount=3))
    base: Any = alt.Chart(values(rows)).encode(y=y, color=color(environments), tooltip=tooltip)
    if is_number:
        x: Any = alt.X("value:Q", title=None, scale=alt.Scale(zero=False, nice=False))
        marks = base.mark_line(strokeWidth=2, interpolate="monotone").encode(x=x, opacity=faded(pick))
    else:
        x = alt.X("value:N", title=None, sort=None, axis=alt.Axis(labelAngle=-30, labelLimit=90))
        offset = alt.XOffset("name:N", sort=list(environments))
        marks = base.mark_bar().encode(x=x, xOffset=offset, opacity=faded(pick))
    titled = alt.TitleParams(title, fontSize=12, anchor="start")
    return marks.properties(width=PANEL_WIDTH, height=PANEL_HEIGHT * 0.7, title=titled)


def _shares(parts: Mapping[str, "pd.Series[Any]"]) -> tuple[list[Row], bool]:
    """Return the share of rows by environment and bin or category, and whether the column is numeric."""
    together = pd.concat(list(parts.values()))
    numbers = _numbers(together)
    if numbers is None:
        texts = {name: _texts(part) for name, part in parts.items()}
        counts = pd.concat(list(texts.values())).value_counts()
        order = [str(value) for value in counts.index[:_MOST_CATEGORIES]]
        if _is_numeric(together):
            order = sorted(order, key=float)
        has_other = len(counts) > len(order)
        rows: list[Row] = []
        for name, part in texts.items():
            shares = part.value_counts(normalize=True)
            known = {value: float(shares.get(value, 0.0)) for value in order}
            known |= {_OTHER: 1 - sum(known.values())} if has_other and len(part) else {}
            rows += [{"name": name, "value": value, "share": share} for value, share in known.items()]
        return rows, False
    low, high = np.quantile(numbers, [0.005, 0.995])
    # With few rows, narrow bins show noise.
    n_bins = int(np.clip(2 * min(map(len, parts.values())) ** (1 / 3), _FEWEST_BINS, _MOST_BINS))
    edges = np.linspace(low, high if high > low else low + 1, n_bins + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    rows = []
    for name, part in parts.items():
        own = _numbers(part, force=True)
        heights = np.histogram(own, edges)[0] / max(1, len(own)) if own is not None else np.zeros(n_bins)
        rows += [
            {"name": name, "value": float(center), "share": float(share)}
            for center, share in zip(centers, heights, strict=True)
        ]
    return rows, True


def _texts(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return the categories of a column as text, with numbers formatted as integers."""
    return column.astype("int64").astype(str) if _is_numeric(column) else column.astype(str)


def _is_numeric(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _numbers(column: "pd.Series[Any]", *, force: bool = False) -> Any:
    """Return a column as floating-point numbers; None if it is drawn as categories."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return column.astype("int64").to_numpy(dtype=np.float64) / 86_400e9
    if not _is_numeric(column) or not len(column):
        return None
    numbers = column.to_numpy(dtype=np.float64)
    few = np.unique(numbers)
    is_category = len(few) <= _FEW_NUMBERS and bool((few == np.round(few)).all())
    return None if is_category and not force else numbers
