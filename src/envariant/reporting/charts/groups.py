"""Chart with one row per group, such as a problem, and one dot per method in each row."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import altair as alt

from envariant.analysis.statistics import Interval
from envariant.reporting.charts.base import (
    WIDTH,
    Chart,
    Row,
    color,
    drawn,
    faded,
    number,
    picked,
    styled,
    values,
)

_ROW_HEIGHT = 30


def grouped(
    scores: Mapping[str, Mapping[str, float]],
    label: str,
    scale: Literal["linear", "log"] = "linear",
    *,
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Chart:
    """Draw one row per group, with one dot per method; confidence intervals are wide, pale bars.

    Args:
        scores: For each group, from top to bottom, the value of each method by name.
        label: Label of the horizontal axis.
        scale: Scale of the horizontal axis, "linear" or "log". A logarithmic axis has no dots for values of 0
            or less.
        intervals: Confidence intervals, as `scores`; those without finite ends are not drawn. Default: none.
    """
    data: list[Row] = [
        {"group": group, "name": name, "value": value, **_ends((intervals or {}).get(group, {}).get(name))}
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
    if intervals is not None:
        lane = alt.YOffset("name:N", scale=alt.Scale(domain=names))
        bars = base.mark_rule(strokeWidth=9).encode(
            x="low:Q", x2="high:Q", yOffset=lane, opacity=faded(pick, 0.25)
        )
        chart = alt.layer(*drawn(bars, data, "low"), chart.encode(yOffset=lane))
    ends = "; ".join(f"{row['group']} {row['name']} {number(row['value'])}" for row in data)
    return styled(chart.properties(width=WIDTH, height=_ROW_HEIGHT * len(scores)), f"{label}: {ends}.")


def _ends(interval: Interval | None) -> Row:
    """Return the ends of an interval as fields of the data; none if the interval is unknown."""
    if interval is None or not math.isfinite(interval.high - interval.low):
        return {}
    return {"low": interval.low, "high": interval.high}
