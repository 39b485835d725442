"""Chart with one row per group, such as a problem, and one dot per method in each row."""

from collections.abc import Mapping
from typing import Any, Literal

import altair as alt

from envariant.reporting.charts.base import WIDTH, Chart, Row, color, faded, number, picked, styled, values

_ROW_HEIGHT = 30


def grouped(
    scores: Mapping[str, Mapping[str, float]], label: str, scale: Literal["linear", "log"] = "linear"
) -> Chart:
    """Draw one row per group, with one dot per method.

    Args:
        scores: For each group, from top to bottom, the value of each method by name.
        label: Label of the horizontal axis.
        scale: Scale of the horizontal axis, "linear" or "log". A logarithmic axis has no dots for values of 0
            or less.
    """
    data: list[Row] = [
        {"group": group, "name": name, "value": value}
        for group, own in scores.items()
        for name, value in own.items()
        if scale != "log" or value > 0
    ]
    names = list(dict.fromkeys(name for own in scores.values() for name in own))
    pick = picked()
    axis = alt.Axis(grid=True, ticks=False, domain=False)
    base = alt.Chart(values(data)).encode(
        y=alt.Y("group:N", title=None, sort=None, axis=axis),
        x=alt.X("value:Q", title=label, scale=alt.Scale(type=scale, zero=False)),
        color=color(names),
        tooltip=["group:N", "name:N", alt.Tooltip("value:Q", format=".3g")],
    )
    chart: Any = base.mark_point(filled=True, size=110).encode(opacity=faded(pick, 0.9)).add_params(pick)
    ends = "; ".join(f"{row['group']} {row['name']} {number(row['value'])}" for row in data)
    return styled(chart.properties(width=WIDTH, height=_ROW_HEIGHT * len(scores)), f"{label}: {ends}.")
