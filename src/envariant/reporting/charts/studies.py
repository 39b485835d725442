"""Charts of studies: rankings with intervals, critical differences, candidate runs and hyperparameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import altair as alt
import numpy as np
import pandas as pd

from envariant.analysis.statistics import Interval, interval
from envariant.reporting.charts.base import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
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
from envariant.reporting.theme import TEST, TRAINING, baseline_first

_ROW_HEIGHT = 30
# A range of this factor between smallest and largest value is drawn on a logarithmic axis.
_LOG_FACTOR = 20


@final
@dataclass(frozen=True)
class RankingRow:
    """Row of the chart `ranking`: scores of one method.

    Attributes:
        name: Label of the row.
        values: Score of each replica; empty if only published scores are known.
        published: Published scores of the method, by name of the publication.
        interval: Mean and confidence interval. Default: Student's t interval computed from `values`.
    """

    name: str
    values: Sequence[float]
    published: Mapping[str, float]
    interval: Interval | None = None


def ranking(
    rows: Sequence[RankingRow],
    label: str,
    marks: Mapping[str, float],
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Chart:
    """Draw one row per method: a dot per replica, the mean with its 95 % interval, and published scores.

    Args:
        rows: Methods from top to bottom.
        label: Label of the horizontal axis.
        marks: Reference values by name, such as "chance".
        bounds: Smallest and largest possible score, to which confidence intervals are clipped.
    """
    data: list[Row] = []
    for row in rows:
        score = (row.interval or interval(row.values)).clipped(*bounds)
        several = score.count > 1
        data += [{"name": row.name, "kind": "replica", "score": value} for value in row.values]
        if row.values:
            ends = {"low": score.low, "high": score.high} if several else {}
            data.append({"name": row.name, "kind": "mean", "score": score.mean, **ends})
        data += [
            {"name": row.name, "kind": "published", "score": v, "source": k} for k, v in row.published.items()
        ]
    names = [row.name for row in rows]
    pick = picked()
    tooltip = ["name:N", "kind:N", alt.Tooltip("score:Q", format=".3f"), alt.Tooltip("low:Q", format=".3f"),
               alt.Tooltip("high:Q", format=".3f"), "source:N"]  # fmt: skip
    base = alt.Chart().encode(
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(grid=True, ticks=False, domain=False)),
        color=color(names, legend=False),
    )
    x = alt.X("score:Q", title=label, scale=alt.Scale(zero=False))
    bars = base.mark_rule(strokeWidth=2.5).encode(
        x=alt.X("low:Q", title=label), x2="high:Q", opacity=faded(pick), tooltip=tooltip
    )
    dots = base.mark_point(filled=True, size=90).encode(x=x, tooltip=tooltip, opacity=faded(pick))
    replicas = base.mark_tick(thickness=1.5, size=12)
    published = base.mark_point(size=80, strokeWidth=1.8)
    sources = list(dict.fromkeys(row["source"] for row in data if "source" in row))
    shape = alt.Shape(
        "source:N",
        title=None,
        scale=alt.Scale(domain=sources, range=["diamond", "triangle-up", "square", "cross"]),
        legend=alt.Legend(),
    )
    ticks = replicas.encode(x=x, tooltip=tooltip, opacity=faded(pick, 0.5))
    hollow = published.encode(x=x, tooltip=tooltip, shape=shape)
    layers: list[Any] = [
        *_vertical(marks),
        *drawn(ticks, data, "score", "replica"),
        *drawn(bars, data, "low"),
        *drawn(dots.add_params(pick), data, "score", "mean"),
        *drawn(hollow, data, "score", "published"),
    ]
    chart = alt.layer(*layers, data=values(data)).properties(width=WIDTH, height=_ROW_HEIGHT * len(rows))
    ends = "; ".join(f"{r['name']} {number(r['score'])}" for r in data if r["kind"] == "mean")
    return styled(chart, f"{label}, mean and 95 % interval over replicas: {ends or 'published scores only'}.")


def _vertical(marks: Mapping[str, float]) -> list[alt.Chart]:
    if not marks:
        return []
    base = alt.Chart(
        values([{"reference": f"{name} {value:.0%}", "value": value} for name, value in marks.items()])
    )
    line = base.mark_rule(strokeDash=[5, 3], opacity=0.5).encode(x="value:Q", tooltip="reference:N")
    text = base.mark_text(baseline="bottom", dy=-4, opacity=0.75, fontSize=11).encode(
        x="value:Q", y=alt.value(0), text="reference:N"
    )
    return [line, text]


def critical_difference(names: Sequence[str], ranks: Sequence[float], distance: float) -> Chart:
    """Draw the mean ranks of methods, best on top; bars join methods that do not differ significantly.

    Args:
        names: Names of the methods.
        ranks: Mean rank of each method over environments; 1 is best.
        distance: Critical difference: smallest significant difference between two mean ranks (Demšar 2006).
    """
    order = sorted(range(len(names)), key=lambda k: ranks[k])
    sorted_names, sorted_ranks = [names[k] for k in order], [ranks[k] for k in order]
    groups = indistinguishable(sorted_ranks, distance)
    right = max(len(names), *ranks)
    bars = [
        {"name": sorted_names[k], "group": g, "order": k, "position": right + 0.15 * (g + 1)}
        for g, (first, last) in enumerate(groups)
        for k in range(first, last + 1)
    ]
    pick = picked()
    y = alt.Y(
        "name:N",
        title=None,
        sort=[*sorted_names],
        axis=alt.Axis(ticks=False, domain=False, grid=True),
        scale=alt.Scale(domain=sorted_names),
    )
    x = alt.X("rank:Q", title="mean rank (1 is best)", scale=alt.Scale(domain=[0.9, right + 0.6]))
    base = alt.Chart(
        values([{"name": n, "rank": r} for n, r in zip(sorted_names, sorted_ranks, strict=True)])
    )
    dots = base.mark_point(filled=True, size=100).encode(
        x=x, y=y, color=color(names, legend=False), opacity=faded(pick),
        tooltip=["name:N", alt.Tooltip("rank:Q", format=".2f")],
    )  # fmt: skip
    joined = (
        alt.Chart(values(bars))
        .mark_line(strokeWidth=5, opacity=0.45, color="currentColor")
        .encode(x=alt.X("position:Q", title="mean rank (1 is best)"), y=y, detail="group:N", order="order:Q")
    )
    layers = [joined, dots.add_params(pick)] if bars else [dots.add_params(pick)]
    chart = alt.layer(*layers, data=base.data).properties(width=WIDTH, height=_ROW_HEIGHT * len(names))
    best = ", ".join(f"{n} {r:.2f}" for n, r in zip(sorted_names, sorted_ranks, strict=True))
    return styled(chart, f"Mean ranks, best first: {best}. Critical difference {distance:.2f}.")


def indistinguishable(ranks: Sequence[float], distance: float) -> list[tuple[int, int]]:
    """Return the first and last index of each group of methods without significant rank differences.

    Groups that are part of a larger group, and single methods, are omitted.

    Args:
        ranks: Mean ranks of the methods, in ascending order.
        distance: Critical difference: smallest significant difference between two mean ranks.
    """
    groups: list[tuple[int, int]] = []
    for first, start in enumerate(ranks):
        last = max(k for k, rank in enumerate(ranks) if rank - start < distance)
        if last > first and not any(last <= end for _, end in groups):
            groups.append((first, last))
    return groups


def candidates(runs: pd.DataFrame, metric: str, level: float) -> Chart:
    """Draw the test score of every run against its validation score.

    Runs rejected by the invariance test are drawn as hollow circles.

    Args:
        runs: Table with one row per run and the columns `algorithm`, `validation`, `test` and `p_value`.
        metric: Name of the metric.
        level: Significance level of the invariance test.
    """
    names = baseline_first(list(map(str, runs["algorithm"])))
    columns = [key for key in ("trial", "replica", "environments") if key in runs]
    data: list[Row] = [
        {
            "name": row["algorithm"], "validation": row["validation"], "test": row["test"],
            "p": row["p_value"], "kind": "rejected" if row["p_value"] < level else "not rejected",
            **{key: row[key] for key in columns},
        }
        for row in runs.to_dict("records")
    ]  # fmt: skip
    pick = picked()
    base = alt.Chart().encode(
        x=alt.X("validation:Q", title=f"validation {metric} in the training environments",
                scale=alt.Scale(zero=False)),
        y=alt.Y("test:Q", title=f"{metric} in the test environments", scale=alt.Scale(zero=False)),
        color=color(names), opacity=faded(pick, 0.85),
        tooltip=["name:N", *[f"{key}:N" for key in columns], alt.Tooltip("validation:Q", format=".3f"),
                 alt.Tooltip("test:Q", format=".3f"), alt.Tooltip("p:Q", format=".2g"),
                 alt.Tooltip("kind:N", title=f"invariance test, level {level:g}")],
    )  # fmt: skip
    filled = base.mark_point(filled=True, size=55)
    hollow = base.mark_point(size=55, strokeWidth=1.6)
    layers = [
        *drawn(hollow, data, "validation", "rejected"), *drawn(filled, data, "validation", "not rejected"),
    ]  # fmt: skip
    layers[0] = layers[0].add_params(pick)
    chart = alt.layer(*layers, data=values(data)).properties(width=WIDTH, height=320)
    best = max(data, key=lambda row: row["validation"], default=None)
    text = (
        f" The best by validation is {best['name']}, with test score {number(best['test'])}." if best else ""
    )
    return styled(chart, f"Test against validation {metric} of {len(data)} runs.{text}")


def hyperparameters(values_of: pd.DataFrame, scores: pd.DataFrame, metric: str) -> Chart:
    """Draw the validation and test scores of runs against each hyperparameter, one panel per hyperparameter.

    Args:
        values_of: Table of hyperparameters: one row per run, one column per hyperparameter.
        scores: Table with the columns `validation` and `test` and the same index as `values_of`.
        metric: Name of the metric.
    """
    data: list[Row] = []
    by_run: dict[str, Any] = {kind: scores[kind].to_dict() for kind in ("validation", "test")}
    for k, column in enumerate(values_of):
        for index, value in values_of[column].items():
            for kind in ("validation", "test"):
                score = by_run[kind][index]
                data.append({"name": kind, "panel": k, "setting": str(column), "x": value, "score": score})
    pick = picked()
    hue = alt.Color(
        "name:N", title=None, scale=alt.Scale(domain=["validation", "test"], range=[TRAINING, TEST])
    )
    panels: list[alt.Chart] = []
    for k, column in enumerate(values_of):
        known = values_of[column].dropna()
        is_log = bool((known > 0).all()) and float(known.max()) > _LOG_FACTOR * float(known.min())
        scale = alt.Scale(type="log", nice=False) if is_log else alt.Scale(zero=False)
        panel = (
            alt.Chart()
            .transform_filter(f"datum.panel === {k} && isValid(datum.x)")
            .mark_point(size=40, strokeWidth=1.6)
            .encode(
                x=alt.X("x:Q", title=str(column), scale=scale, axis=alt.Axis(format="~g", tickCount=4)),
                y=alt.Y("score:Q", title=metric if k == 0 else None, scale=alt.Scale(zero=False)),
                color=hue, opacity=faded(pick, 0.85),
                shape=alt.Shape("name:N", title=None, scale=alt.Scale(domain=["validation", "test"])),
                tooltip=["name:N", "setting:N", alt.Tooltip("x:Q", title="value"),
                         alt.Tooltip("score:Q", format=".3f")],
            )
            .properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
        )  # fmt: skip
        panels.append(panel if k else panel.add_params(pick))
    chart = alt.concat(*panels, columns=3, data=values(data))
    return styled(
        chart, f"Validation and test {metric} of every run against {', '.join(map(str, values_of))}."
    )
