"""Charts of data: row counts by environment and class, and correlation shift against diversity shift."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
from numpy.typing import NDArray

from envariant.analysis.distribution_shift import NOTABLE, Shift
from envariant.analysis.statistics import Interval
from envariant.reporting.charts.base import WIDTH, Chart, drawn, note, number, styled, values
from envariant.reporting.theme import DASH, TRAINING

_MOST_NAMES = 24
# Width and height of a character of a label as shares of the plane, on a phone.
_CHARACTER, _LINE = 0.022, 0.055
_X, _Y = "diversity shift: new inputs", "correlation shift: equal inputs, new targets"


def counts(environments: Sequence[str], classes: Sequence[str], rows: NDArray[np.int64], name: str) -> Chart:
    """Draw the number of rows in each environment, by class if there are classes.

    Args:
        environments: Names of the environments.
        classes: Names of the classes; empty for regression.
        rows: Number of rows, `[environments, classes]`; `[environments, 1]` for regression.
        name: Name of the data set.
    """
    named = list(classes) or ["rows"]
    shares = rows / np.maximum(1, rows.sum(axis=1, keepdims=True))
    data = [
        {"environment": e, "class": c, "rows": int(rows[i, k]), "share": float(shares[i, k])}
        for i, e in enumerate(environments)
        for k, c in enumerate(named)
    ]
    y = alt.Y(
        "environment:N", title=None, sort=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=170)
    )
    tooltip = [
        "environment:N",
        "class:N",
        alt.Tooltip("rows:Q", format=","),
        alt.Tooltip("share:Q", format=".1%"),
    ]
    height = max(60, min(34 * len(environments), 900))
    text = f"Rows of {name}: " + "; ".join(
        f"{e} {int(n):,}" for e, n in list(zip(environments, rows.sum(axis=1), strict=True))[:12]
    )
    if not classes:
        bars: Any = alt.Chart(values(data)).mark_bar(color=TRAINING).encode(
            y=y, x=alt.X("rows:Q", title="rows"), tooltip=tooltip
        )  # fmt: skip
        return styled(bars.properties(width=WIDTH, height=height), f"{text}.")
    base = alt.Chart(values(data)).encode(
        y=y, x=alt.X("class:N", title=None, sort=None, axis=alt.Axis(labelAngle=-40, orient="bottom"))
    )
    # Opacity instead of a color scale, so that the chart fits light and dark pages.
    cells: Any = base.mark_rect(color=TRAINING).encode(
        opacity=alt.Opacity("share:Q", title="share of the environment", legend=alt.Legend(format=".0%"),
                            scale=alt.Scale(domain=[0, float(shares.max())], range=[0.03, 0.9])),
        tooltip=tooltip,
    )  # fmt: skip
    if rows.size <= 120:
        cells = alt.layer(cells, base.mark_text(fontSize=11).encode(text=alt.Text("rows:Q", format=",")))
    return styled(cells.properties(width=WIDTH, height=height), f"{text}.")


def shift_plane(shifts: Mapping[str, Shift] | Sequence[Shift]) -> Chart:
    """Draw correlation shift against diversity shift, with one point per measured shift.

    The 24 points with the largest shifts are labeled with their names.

    Args:
        shifts: Measured shifts, each between two groups of environments. In a mapping, the keys are the names
            of the points; in a list, each point is named "first → second" after its two groups.
    """
    if not isinstance(shifts, Mapping):
        shifts = {f"{shift.first} → {shift.second}": shift for shift in shifts}
    points = {name: (s.diversity.mean, s.correlation.mean) for name, s in shifts.items()}
    top = 1.15 * max(0.26, *(max(point) for point in points.values()))
    labels = _label_positions(dict(sorted(points.items(), key=lambda item: -max(item[1]))[:_MOST_NAMES]), top)
    data = [
        {
            "name": name, "diversity": s.diversity.mean, "correlation": s.correlation.mean, "kind": s.kind,
            **_ends("diversity", s.diversity), **_ends("correlation", s.correlation),
            "label_x": labels[name][0] if name in labels else None,
            "label_y": labels[name][1] if name in labels else None,
        }
        for name, s in shifts.items()
    ]  # fmt: skip
    domain = alt.Scale(domain=[-0.03 * top, top], nice=False)
    x, y = alt.X("diversity:Q", title=_X, scale=domain), alt.Y("correlation:Q", title=_Y, scale=domain)
    tooltip = ["name:N", alt.Tooltip("diversity:Q", format=".3f"), alt.Tooltip("correlation:Q", format=".3f"),
               "kind:N"]  # fmt: skip
    base = alt.Chart()
    notable = {"x": NOTABLE, "y": max((s.notable_correlation for s in shifts.values()), default=NOTABLE)}
    marks = alt.Chart(values([notable])).mark_rule(strokeDash=DASH, opacity=0.5)
    ranges = base.mark_rule(color=TRAINING, opacity=0.5, clip=True)
    labeled = base.transform_filter("isValid(datum.label_x)")
    low_x = alt.X("diversity_low:Q", title=_X, scale=domain)
    low_y = alt.Y("correlation_low:Q", title=_Y, scale=domain)
    label_x = alt.X("label_x:Q", title=_X, scale=domain)
    label_y = alt.Y("label_y:Q", title=_Y, scale=domain)
    layers: list[Any] = [
        marks.encode(x=alt.X("x:Q", title=_X, scale=domain)),
        marks.encode(y=alt.Y("y:Q", title=_Y, scale=domain)),
        *drawn(ranges.encode(x=low_x, x2="diversity_high:Q", y=y), data, "diversity_low"),
        *drawn(ranges.encode(y=low_y, y2="correlation_high:Q", x=x), data, "correlation_low"),
        labeled.mark_rule(opacity=0.35).encode(x=x, y=y, x2="label_x:Q", y2="label_y:Q"),
        base.mark_point(filled=True, size=80, color=TRAINING, opacity=1).encode(x=x, y=y, tooltip=tooltip),
        labeled.mark_text(align="left", dx=3, baseline="middle").encode(
            x=label_x, y=label_y, text="name:N", tooltip=tooltip
        ),
    ]
    chart: Any = alt.layer(*layers, data=values(data)).properties(width=min(WIDTH, 520), height=380)
    if hidden := len(points) - len(labels):
        chart = chart.properties(title=note(f"{hidden} points have no label; hover to see it."))
    ends = "; ".join(f"{n} {number(x)} and {number(y)}" for n, (x, y) in list(points.items())[:8])
    return styled(chart, f"Diversity and correlation shift: {ends}.")


def _ends(name: str, measured: Interval) -> dict[str, float | None]:
    known = measured.count > 1
    return {f"{name}_low": measured.low if known else None, f"{name}_high": measured.high if known else None}


def _label_positions(points: Mapping[str, tuple[float, float]], top: float) -> dict[str, tuple[float, float]]:
    """Return positions for the left ends of all labels, such that no label covers another label or a point.

    A label is placed to the right of its point if there is room, otherwise as near as possible.
    """
    size = {name: (min(0.75, _CHARACTER * len(name)) * top, _LINE * top) for name in points}
    taken = [(x - 0.015 * top, y - 0.02 * top, x + 0.015 * top, y + 0.02 * top) for x, y in points.values()]
    positions: dict[str, tuple[float, float]] = {}
    for name, (x, y) in points.items():
        width, height = size[name]
        offsets = [k * sign * height / 2 for k in range(40) for sign in (1, -1)]
        choices = [
            (left, y + offset)
            for offset in offsets
            for left in (x + 0.02 * top, x - width - 0.02 * top)
            if left >= -0.02 * top and left + width <= 1.02 * top and -0.01 * top <= y + offset <= 0.98 * top
        ] or [(max(0.0, top - width), y)]
        free = (c for c in choices if not any(_overlap(_box(c, width, height), other) for other in taken))
        positions[name] = chosen = next(free, choices[0])
        taken.append(_box(chosen, width, height))
    return positions


Box = tuple[float, float, float, float]


def _box(left_middle: tuple[float, float], width: float, height: float) -> Box:
    x, y = left_middle
    return x, y - height / 2, x + width, y + height / 2


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
