"""Charts of comparisons: score drops, their causes, scores after adaptation, and effects of columns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import altair as alt

from envariant.analysis.statistics import Interval
from envariant.reporting.charts.base import (
    HEIGHT,
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
from envariant.reporting.theme import MUTED, TEST, TRAINING, method_colors

_ROW_HEIGHT = 44
_PARTS = ("level", "slope", "ranking")
_PART_COLORS = ("#d9720f", "#a3613a", "#2f7fd6")


@final
@dataclass(frozen=True)
class DropRow:
    """Row of the chart `drops`: in-domain and out-of-domain scores for one environment or run.

    Attributes:
        label: Label of the row.
        id_score: In-domain score; NaN if unknown.
        ood_score: Out-of-domain score with its confidence interval.
        other: Out-of-domain score of a second method; None if there is none.
        constant: Score of a constant prediction; NaN if unknown.
    """

    label: str
    id_score: float
    ood_score: Interval
    other: Interval | None = None
    constant: float = math.nan


def drops(rows: Sequence[DropRow], metric: str, names: tuple[str, str, str, str]) -> Chart:
    """Draw in-domain and out-of-domain scores, one row per environment or run.

    A thin line joins the two scores; confidence intervals are drawn as wide, pale bars.

    Args:
        rows: Rows from top to bottom.
        metric: Name of the metric.
        names: Legend entries of the in-domain score, the out-of-domain score, the second method and the
            constant prediction.
    """
    data, hue, shape = _scores(rows, names)
    x: Any = {"title": metric, "scale": alt.Scale(zero=False)}
    pick = picked()
    two = any(row.other is not None for row in rows)
    lane = alt.YOffset("_lane:N", scale=alt.Scale(domain=["first", "other"] if two else ["first"]))
    base = alt.Chart().encode(y=_rows("row"), yOffset=lane)
    intervals = base.mark_rule(strokeWidth=9).encode(
        x=alt.X("low:Q", **x), x2="high:Q", color=hue, opacity=faded(pick, 0.25)
    )
    joins = base.mark_rule(strokeWidth=1.3, color="currentColor").encode(x=alt.X("from:Q", **x), x2="score:Q")
    points = base.mark_point(filled=True, size=95, strokeWidth=2).encode(
        x=alt.X("score:Q", **x), color=hue, shape=shape, opacity=faded(pick),
        tooltip=["row:N", "name:N", *(alt.Tooltip(f"{key}:Q", format=".3f")
                                               for key in ("score", "low", "high"))],
    )  # fmt: skip
    layers = [*drawn(intervals, data, "low"), *drawn(joins, data, "from"), points.add_params(pick)]
    chart = alt.layer(*layers, data=values(data)).properties(width=WIDTH, height=_ROW_HEIGHT * len(rows))
    ends = "; ".join(
        f"{row.label} {number(row.id_score)} and {number(row.ood_score.mean)}" for row in rows[:8]
    )
    return styled(chart, f"{metric}, {names[0]} and {names[1]}: {ends}.")


def over_time(rows: Sequence[DropRow], metric: str, names: tuple[str, str, str, str]) -> Chart:
    """Draw in-domain and out-of-domain scores for environments in chronological order.

    Scores of a second method and of a constant prediction are shown as well.

    Args:
        rows: Environments in chronological order.
        metric: Name of the metric.
        names: Legend labels: in-domain score, out-of-domain score, second method and constant prediction.
    """
    data, hue, shape = _scores(rows, names)
    y: Any = {"title": metric, "scale": alt.Scale(zero=False)}
    pick = picked()
    axis = alt.Axis(labelAngle=-40, labelOverlap=True)
    base = alt.Chart().encode(x=alt.X("row:O", title=None, sort=None, axis=axis), color=hue)
    band = base.mark_area().encode(y=alt.Y("low:Q", **y), y2="high:Q", opacity=faded(pick, 0.18))
    line = base.mark_line(strokeWidth=1.6).encode(y=alt.Y("score:Q", **y), opacity=faded(pick))
    points = base.mark_point(filled=True, size=60).encode(
        y=alt.Y("score:Q", **y), shape=shape, opacity=faded(pick),
        tooltip=["row:O", "name:N", *(alt.Tooltip(f"{k}:Q", format=".3f") for k in ("score", "low", "high"))],
    )  # fmt: skip
    layers = [*drawn(band, data, "low"), line, points.add_params(pick)]
    chart = alt.layer(*layers, data=values(data)).properties(width=WIDTH, height=HEIGHT)
    ends = "; ".join(f"{row.label} {number(row.ood_score.mean)}" for row in rows[-8:])
    return styled(chart, f"{metric}, {names[1]}, in chronological order: {ends}.")


def _scores(
    rows: Sequence[DropRow], names: tuple[str, str, str, str]
) -> tuple[list[Row], alt.Color, alt.Shape]:
    """Return one data row per score, and encodings that give each kind of score a color and a shape."""
    inside, outside, other, constant = names
    looks = {
        inside: (TRAINING, "circle"), outside: (TEST, "circle"),
        other: (method_colors([other])[other], "diamond"), constant: (MUTED, "stroke"),
    }  # fmt: skip
    data: list[Row] = []
    for row in rows:
        marks = {
            constant: Interval(row.constant, math.nan, math.nan, 1),
            outside: row.ood_score, inside: Interval(row.id_score, math.nan, math.nan, 1), other: row.other,
        }  # fmt: skip
        data += [
            {
                "row": row.label, "name": name, "score": score.mean, "low": score.low,
                "high": score.high, "from": row.id_score if name == outside else None,
                "_lane": "other" if name == other else "first",
            }
            for name, score in marks.items()
            if score is not None and math.isfinite(score.mean)
        ]  # fmt: skip
    kinds = [name for name in looks if any(row["name"] == name for row in data)]
    colors, shapes = (alt.Scale(domain=kinds, range=[looks[k][i] for k in kinds]) for i in (0, 1))
    hue = alt.Color("name:N", title=None, scale=colors)
    shape = alt.Shape("name:N", title=None, scale=shapes)
    return data, hue, shape


def cause_parts(parts: Mapping[str, Sequence[float]], totals: Mapping[str, Interval], label: str) -> Chart:
    """Draw the parts of each score drop as stacked bars, with the total drop and its confidence interval.

    Args:
        parts: For each environment, the three parts of its score drop: those caused by calibration level, by
            calibration slope and by ranking.
        totals: Score drop of each environment, with its confidence interval.
        label: Label of the horizontal axis.
    """
    data: list[Row] = [
        {"environment": name, "name": part, "value": value}
        for name, own in parts.items()
        for part, value in zip(_PARTS, own, strict=True)
    ]
    data += [
        {"environment": k, "name": "total", "value": t.mean, "low": t.low, "high": t.high}
        for k, t in totals.items()
    ]
    pick = picked()
    hue = alt.Color("name:N", title=None, scale=alt.Scale(domain=list(_PARTS), range=list(_PART_COLORS)))
    base = alt.Chart().encode(y=_rows())
    tooltip = ["environment:N", "name:N", *(alt.Tooltip(f"{k}:Q", format="+.3f")
                                           for k in ("value", "low", "high"))]  # fmt: skip
    bars = base.transform_filter("datum.name !== 'total'").mark_bar(height=18).encode(
        x=alt.X("value:Q", title=label), color=hue, opacity=faded(pick, 0.85), tooltip=tooltip
    )  # fmt: skip
    total = base.transform_filter("datum.name === 'total'")
    rule = total.mark_rule(strokeWidth=1.3, color="currentColor").encode(
        x=alt.X("low:Q", title=label), x2="high:Q"
    )
    dot = total.mark_point(filled=True, size=60, color="currentColor", opacity=1).encode(
        x=alt.X("value:Q", title=label), tooltip=tooltip
    )
    chart = alt.layer(bars.add_params(pick), rule, dot, data=values(data))
    ends = "; ".join(f"{name} {t.mean:+.3f}" for name, t in totals.items())
    return styled(
        chart.properties(width=WIDTH, height=34 * len(parts)), f"{label}, total by environment: {ends}."
    )


@final
@dataclass(frozen=True)
class LabelPoint:
    """Point of the chart `label_curves`: score of a model adapted with a given number of labels.

    Attributes:
        n_labels: Number of labeled rows from the new environment.
        score: Mean score over random choices of the labeled rows.
        sd: Standard deviation of the score over random choices of the labeled rows.
    """

    n_labels: int
    score: float
    sd: float = 0.0


def label_curves(series: Mapping[str, Sequence[LabelPoint]], metric: str) -> Chart:
    """Draw the score against the number of labels from the new environment, one curve per environment.

    Args:
        series: Points of each curve, by name of the environment.
        metric: Name of the score.
    """
    sizes = sorted({point.n_labels for points in series.values() for point in points})
    data = [
        {
            "name": name, "labels": point.n_labels, "score": point.score, "low": point.score - point.sd,
            # Curves are shifted a little, so that their bars do not overlap.
            "high": point.score + point.sd, "sd": point.sd, "_x": sizes.index(point.n_labels) + 0.03 * k,
        }
        for k, (name, points) in enumerate(series.items())
        for point in points
    ]  # fmt: skip
    pick = picked()
    axis = alt.Axis(values=list(range(len(sizes))), labelExpr=f"{sizes}[datum.value]", grid=False)
    base = alt.Chart().encode(
        x=alt.X("_x:Q", title="labels from the new environment", axis=axis), color=color(list(series))
    )
    y: Any = {"title": metric, "scale": alt.Scale(zero=False)}
    bars = base.mark_rule(strokeWidth=1.2).encode(
        y=alt.Y("low:Q", **y), y2="high:Q", opacity=faded(pick, 0.6)
    )
    line = base.mark_line(point={"size": 45}, strokeWidth=2).encode(
        y=alt.Y("score:Q", **y), opacity=faded(pick),
        tooltip=["name:N", "labels:Q", *(alt.Tooltip(f"{key}:Q", format=".3f") for key in ("score", "sd"))],
    )  # fmt: skip
    chart = alt.layer(bars, line.add_params(pick), data=values(data)).properties(width=WIDTH, height=HEIGHT)
    ends = "; ".join(
        f"{name} {number(points[0].score)} without labels, {number(points[-1].score)} with "
        f"{points[-1].n_labels}"
        for name, points in series.items()
    )
    return styled(chart, f"{metric} by number of labels: {ends}.")


@final
@dataclass(frozen=True)
class ColumnRow:
    """Row of the charts `column_slopes` and `column_importance`: slopes and importance of one column.

    Attributes:
        column: Name of the column.
        slopes: Slope of the column by name of the environment; environments with unknown slope are absent.
        unstable: Whether the slopes differ significantly between environments.
        limits: Prediction interval of the slope in a new environment; None if unknown.
        importance: Decrease of the score when the column's values are shuffled, by method.
    """

    column: str
    slopes: Mapping[str, float]
    unstable: bool
    limits: tuple[float, float] | None
    importance: Mapping[str, float]


def column_slopes(rows: Sequence[ColumnRow], unit: str) -> Chart:
    """Draw the slope of each column in each environment, with a prediction interval for a new environment.

    Args:
        rows: Columns from top to bottom.
        unit: Unit of the slopes, for the axis label.
    """
    data: list[Row] = []
    for row in rows:
        kind = "unstable" if row.unstable else "stable"
        known = list(row.slopes.values())
        reach = max(known) - min(known) if known else 0.0
        if row.limits and known:
            # An interval far beyond the slopes would hide their differences.
            ends = {
                "low": max(row.limits[0], min(known) - reach),
                "high": min(row.limits[1], max(known) + reach),
            }
            data.append({"column": row.column, "name": kind, "environment": "next environment", **ends})
        data += [
            {"column": row.column, "name": kind, "environment": name, "slope": slope}
            for name, slope in row.slopes.items()
        ] or [{"column": row.column, "name": kind}]
    pick = picked()
    scale = alt.Scale(domain=["stable", "unstable"], range=[TRAINING, TEST])
    shapes = alt.Scale(domain=["stable", "unstable"], range=["circle", "diamond"])
    x: Any = {"title": unit, "scale": alt.Scale(zero=True)}
    base = alt.Chart().encode(y=_rows("column"))
    zero = alt.Chart(values([{"zero": 0}])).mark_rule(opacity=0.5).encode(x=alt.X("zero:Q", **x))
    limits = base.mark_rule(strokeWidth=1.2, opacity=0.6).encode(
        x=alt.X("low:Q", **x), x2="high:Q", tooltip=["column:N", "environment:N", "low:Q", "high:Q"]
    )
    points = base.mark_point(filled=True, size=65).encode(
        x=alt.X("slope:Q", **x), opacity=faded(pick, 0.85),
        color=alt.Color("name:N", scale=scale, title=None),
        shape=alt.Shape("name:N", scale=shapes, title=None),
        tooltip=["column:N", "environment:N", alt.Tooltip("slope:Q", format="+.2f"), "name:N"],
    )  # fmt: skip
    chart = alt.layer(
        zero, *drawn(limits, data, "low"), points.add_params(pick), data=values(data)
    ).properties(width=WIDTH, height=26 * len(rows))
    unstable = ", ".join(row.column for row in rows if row.unstable) or "none"
    return styled(chart, f"Slopes of {len(rows)} columns by environment. Unstable: {unstable}.")


def column_importance(rows: Sequence[ColumnRow], metric: str, methods: Sequence[str]) -> Chart:
    """Draw how much the score of each method decreases when the values of a column are shuffled.

    Args:
        rows: Columns from top to bottom.
        metric: Name of the metric.
        methods: Names of the methods.
    """
    data: list[Row] = [
        {"column": row.column, "name": name, "loss": max(0.0, row.importance[name])}
        for row in rows
        for name in methods
        if name in row.importance
    ]
    pick = picked()
    chart = (
        alt.Chart(values(data))
        .mark_bar()
        .encode(
            y=_rows("column"),
            x=alt.X("loss:Q", title=f"worsening of {metric} if shuffled"),
            color=color(list(methods)),
            yOffset=alt.YOffset("name:N", sort=list(methods)),
            opacity=faded(pick, 0.85),
            tooltip=["column:N", "name:N", alt.Tooltip("loss:Q", format=".3f")],
        )
        .add_params(pick)
        .properties(width=WIDTH, height=26 * len(rows))
    )
    largest = max(data, key=lambda row: row["loss"], default=None)
    text = f"; the largest is {number(largest['loss'])} of {largest['column']}" if largest else ""
    return styled(chart, f"Worsening of {metric} if a column is shuffled{text}.")


def _rows(field: str = "environment") -> alt.Y:
    axis = alt.Axis(grid=True, ticks=False, domain=False, labelLimit=150, labelOverlap=False)
    return alt.Y(f"{field}:N", title=None, sort=None, axis=axis)
