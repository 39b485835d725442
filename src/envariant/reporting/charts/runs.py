"""Charts of runs: scores during training, scores by value of a setting, and scores by size of a shift."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from envariant.core.errors import EnvariantError
from envariant.core.printable import number_of
from envariant.reporting.charts.base import (
    HEIGHT,
    PANEL_HEIGHT,
    PANEL_WIDTH,
    WIDTH,
    Chart,
    Row,
    color,
    faded,
    mark_height,
    note,
    number,
    picked,
    styled,
    values,
)
from envariant.reporting.labels import labels
from envariant.reporting.theme import TEST, TRAINING
from envariant.training.record import Record
from envariant.training.result import TrainingResult

_MOST_PANELS = 9
# Up to this many evaluations, a curve shows a point for each.
_FEW_POINTS = 15
# Words before the number in the name of an environment that say what the number measures.
_SCALES = {
    "flip": "share of rows whose color differs from the label", "year": "year", "shift": "size of the shift",
    "severity": "severity", "noise": "noise", "rotation": "rotation", "angle": "angle",
}  # fmt: skip
_ON_SCALE = re.compile(rf"(?:test-)?({'|'.join(_SCALES)})[-_ =](\d+(?:\.\d+)?)\Z", re.IGNORECASE)
_FEWEST_POINTS = 3
_ROLES = ("test", "train", "validation")


def curves(results: Sequence[TrainingResult], names: Sequence[str] | None = None) -> Chart:
    """Draw the score during training, one panel per environment and one curve per run.

    A curve is the mean over replicas; the band around it spans all replicas.

    Args:
        results: Results of the runs, with the same metric.
        names: Names of the runs. Default: the name of the algorithm, and settings that differ between the
            runs.
    """
    names = list(names or labels(results))
    record = results[0].record
    rows = [row for name, result in zip(names, results, strict=True) for row in _history(result, name)]
    panels = sorted(dict.fromkeys((_ROLES.index(row["role"]), row["panel"]) for row in rows))
    panels = [panel for _, panel in panels]
    shown = panels[:_MOST_PANELS]
    rows = [row for row in rows if row["panel"] in shown]
    pick, legend = picked(), color(names)
    base = alt.Chart().encode(x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=3)), color=legend)
    y = alt.Y("score:Q", title=record.metric, scale=_score_scale(record))
    tooltip = ["name:N", "panel:N", "step:Q", alt.Tooltip("score:Q", format=".3f"),
               alt.Tooltip("low:Q", format=".3f"), alt.Tooltip("high:Q", format=".3f")]  # fmt: skip
    band = base.mark_area(clip=True).encode(y="low:Q", y2="high:Q", opacity=faded(pick, 0.18))
    few = max(map(len, ((r.record.spec.steps and _steps(r)) or [0] for r in results))) <= _FEW_POINTS
    line = base.mark_line(strokeWidth=2, point={"size": 25} if few else False).encode(
        y=y, tooltip=tooltip, opacity=faded(pick)
    )
    # Invisible points, so that a value is shown near the curve and not only on it.
    points = base.mark_point(size=90, opacity=0, filled=True).encode(y=y, tooltip=tooltip).add_params(pick)
    references = [mark_height(*mark)[0] for mark in references_of(record)]
    layers = alt.layer(*references, band, line, points).properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
    chart: Any = layers.facet(
        facet=alt.Facet("panel:N", title=None, sort=shown, header=alt.Header(labelLimit=PANEL_WIDTH)),
        columns=3,
        data=values(rows),
    )
    notes = [f"Dashed: {', '.join(label for _, label in references_of(record))}."] if references else []
    if hidden := len(panels) - len(shown):
        notes.append(f"Not drawn: {number_of(hidden, 'environment')}.")
    if notes:
        chart = chart.properties(title=note(" ".join(notes)))
    last = ", ".join(
        f"{row['name']} {number(row['score'])}"
        for name in names
        for row in [[r for r in rows if (r["name"], r["panel"]) == (name, shown[0])] or [None]][0][-1:]
        if row
    ) if shown else ""  # fmt: skip
    place = f" At the last step in {shown[0]}: {last}." if last else ""
    return styled(chart, f"{record.metric} during training, by environment.{place}")


def _history(result: TrainingResult, name: str) -> list[Row]:
    record, history = result.record, result.history
    own = history[(history["metric"] == record.metric) & history["replica"].isin(result.finished)]
    rows: list[Row] = []
    for environment in record.environments:
        chosen = own[(own["environment"] == environment.name) & (own["role"] == environment.role)]
        spread = chosen[chosen["kind"] == "full"].groupby("step")["value"].agg(["mean", "min", "max"])
        rows += [
            {
                "name": name, "panel": f"{environment.name} ({environment.role})", "role": environment.role,
                "step": step, "score": mean, "low": low, "high": high,
            }
            for step, mean, low, high in spread.itertuples()
        ]  # fmt: skip
    return rows


def _steps(result: TrainingResult) -> list[int]:
    return sorted({row.step for row in result.rows})


def references_of(record: Record) -> list[tuple[float, str]]:
    """Return the labeled scores of random guessing and of the optimal predictor, if they are known."""
    is_accuracy = record.metric == "accuracy"
    marks = ((record.chance, "chance"), (record.optimum, "optimum"))
    return [
        (value, f"{name} {value:.0%}" if is_accuracy else f"{name} {value:.3g}")
        for value, name in marks
        if value is not None
    ]


def sweep(results: Mapping[float, TrainingResult], setting: str, scale: str = "linear") -> Chart:
    """Draw the final score in every environment against the value of one setting.

    Args:
        results: Results of the runs, by value of the setting.
        setting: Name of the setting, used as the label of the horizontal axis.
        scale: Scale of the horizontal axis: "linear", "log", or "symlog" (logarithmic, including 0).
    """
    record = next(iter(results.values())).record
    rows: list[Row] = []
    for x, result in results.items():
        for environment in record.environments:
            spread = result.final(environment.label, record.metric)
            role = f"{environment.name} ({environment.role})"
            rows += [
                {"name": role, "setting": x, "score": score, "mean": spread.mean} for score in spread.values
            ]
    names = list(dict.fromkeys(row["name"] for row in rows))
    tests = [name for name in names if name.endswith("(test)")]
    pick = picked()
    hue = alt.Color(
        "name:N",
        title=None,
        scale=alt.Scale(domain=names, range=[TEST if name in tests else TRAINING for name in names]),
    )
    base = alt.Chart(values(rows)).encode(
        x=alt.X("setting:Q", title=setting, scale=_x_scale(scale, list(results))),
        color=hue,
        tooltip=["name:N", alt.Tooltip("setting:Q", title="value"), alt.Tooltip("score:Q", format=".3f"),
                 alt.Tooltip("mean:Q", format=".3f")],
    )  # fmt: skip
    y: Any = {"title": record.metric, "scale": _score_scale(record)}
    shape = alt.Shape("name:N", title=None, scale=alt.Scale(domain=names))
    lines = base.mark_line(strokeWidth=2).encode(
        y=alt.Y("mean(score):Q", **y), detail="name:N", opacity=faded(pick),
        tooltip=["name:N", alt.Tooltip("mean(score):Q", format=".3f", title="mean")],
    )  # fmt: skip
    points = base.mark_point(size=35).encode(y=alt.Y("score:Q", **y), shape=shape, opacity=faded(pick, 0.75))
    references = [layer for mark in references_of(record) for layer in mark_height(*mark)]
    chart = alt.layer(*references, lines, points.add_params(pick), data=values(rows))
    ends = "; ".join(
        f"{setting} {x:g}: {number(result.final(label, record.metric).mean)} in {label}"
        for label in record.test_environments[:1]
        for x, result in list(results.items())[:6]
    )
    return styled(
        chart.properties(width=WIDTH, height=HEIGHT), f"Final {record.metric} against {setting}. {ends}."
    )


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    scales: tuple[str, str] = ("linear", "linear"),
    marks: Mapping[str, float] | None = None,
) -> Chart:
    """Draw several curves in one chart.

    Args:
        series: x and y values of each curve, by name of the curve.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        scales: Scales of the horizontal and vertical axes: "linear", "log" or "symlog".
        marks: Heights of horizontal reference lines, by name of the line.
    """
    rows: list[Row] = [
        {"name": name, "x": x, "y": y}
        for name, (xs, ys) in series.items()
        for x, y in zip(xs, ys, strict=True)
        # A logarithmic scale has no 0.
        if (scales[0] != "log" or x > 0) and (scales[1] != "log" or y > 0)
    ]
    pick = picked()
    base = alt.Chart(values(rows)).encode(
        x=alt.X("x:Q", title=x_label, scale=_x_scale(scales[0], [row["x"] for row in rows])),
        y=alt.Y("y:Q", title=y_label, scale=_x_scale(scales[1], [row["y"] for row in rows])),
        color=color(list(series)),
        tooltip=["name:N", alt.Tooltip("x:Q", title=x_label), alt.Tooltip("y:Q", title=y_label)],
    )
    points = base.mark_point(size=90, opacity=0, filled=True).add_params(pick)
    references = [layer for name, value in (marks or {}).items() for layer in mark_height(value, name)]
    line = base.mark_line(strokeWidth=2).encode(opacity=faded(pick))
    chart = alt.layer(*references, line, points, data=values(rows)).properties(width=WIDTH, height=HEIGHT)
    ends = ", ".join(f"{name} {number(list(ys)[-1])}" for name, (_, ys) in series.items() if len(ys))
    return styled(chart, f"{y_label} against {x_label}. Last values: {ends}.")


def has_shift_scale(results: Sequence[TrainingResult]) -> bool:
    """Return whether all runs have the same environments, at least three of them named after a shift value.

    Such a name consists of a shifted quantity, the same in all these names, and its value, as in flip-0.9 or
    year-2019. A number alone, or a name such as site-1, does not count.
    """
    roles = results[0].record.roles if results else {}
    same = all(result.record.roles == roles for result in results)
    return same and len(_positions(roles)[1]) >= _FEWEST_POINTS


def shift_curve(results: Sequence[TrainingResult], names: Sequence[str] | None = None) -> Chart:
    """Draw the final score of each run against the shift value in the environments' names.

    Args:
        results: Results of runs on the same environments, such as flip-0.1, …, flip-0.9.
        names: Names of the runs. Default: the name of the algorithm, and settings that differ between the
            runs.

    Raises:
        EnvariantError: If fewer than three environments have a shift value, or the runs have different
            environments.
    """
    if not has_shift_scale(results):
        raise EnvariantError(
            "shift curve: needs runs on the same environments; the names of at least 3 environments must "
            "contain the value of a shift, such as flip-0.1"
        )
    record, names = results[0].record, list(names or labels(results))
    word, positions = _positions(record.roles)
    rows: list[Row] = []
    for name, result in zip(names, results, strict=True):
        for x, environment in positions.items():
            spread = result.final(environment, record.metric)
            role = record.roles[environment]
            rows += [
                {"name": name, "environment": environment, "role": role, "shift": x, "score": value}
                for value in spread.values
            ]
    pick = picked()
    y: Any = {"title": record.metric, "scale": _score_scale(record)}
    base = alt.Chart(values(rows)).encode(
        x=alt.X("shift:Q", title=_SCALES[word], scale=alt.Scale(zero=False), axis=alt.Axis(format="~g")),
        color=color(names),
    )
    line = base.mark_line(strokeWidth=2).encode(
        y=alt.Y("mean(score):Q", **y), opacity=faded(pick), tooltip=["name:N", "mean(score):Q"]
    )
    role = alt.Shape(
        "role:N", title=None, scale=alt.Scale(domain=["train", "test"], range=["square", "circle"])
    )
    points = base.mark_point(size=55, filled=True).encode(
        y=alt.Y("score:Q", **y), shape=role, opacity=faded(pick, 0.8),
        tooltip=["name:N", "environment:N", "role:N", alt.Tooltip("score:Q", format=".3f")],
    )  # fmt: skip
    references = [layer for mark in references_of(record) for layer in mark_height(*mark)]
    chart = alt.layer(*references, line, points.add_params(pick), data=values(rows))
    return styled(
        chart.properties(width=WIDTH, height=HEIGHT),
        f"Final {record.metric} against the {_SCALES[word]}, from {min(positions):g} to {max(positions):g}.",
    )


def _positions(names: Mapping[str, str]) -> tuple[str, dict[float, str]]:
    """Return the shifted quantity that most names contain, and these names by value of the quantity."""
    scales: dict[str, dict[float, str]] = {}
    for name in names:
        if found := _ON_SCALE.match(name):
            scales.setdefault(found.group(1).lower(), {})[float(found.group(2))] = name
    word, positions = max(scales.items(), key=lambda item: len(item[1]), default=("", {}))
    return word, dict(sorted(positions.items()))


def _score_scale(record: Record) -> alt.Scale:
    return alt.Scale(domain=[0, 1]) if record.metric == "accuracy" else alt.Scale(zero=False)


def _x_scale(kind: str, xs: Sequence[float]) -> alt.Scale:
    if kind == "log":
        return alt.Scale(type="log")
    if kind == "symlog":
        return alt.Scale(type="symlog", constant=min((abs(x) for x in xs if x), default=1.0))
    return alt.Scale(zero=False)
