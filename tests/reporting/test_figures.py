"""Figures draw the given numbers at the right positions, with their reference lines."""

import numpy as np
import pytest

import envariant
from envariant.analysis.distribution_shift import Shift, ShiftEstimate
from envariant.analysis.statistics import Interval, interval
from envariant.core.errors import EnvariantError
from envariant.reporting import figures, shift


@pytest.fixture(scope="module")
def runs():
    return {
        value: envariant.train(
            "colored-digits",
            f"erm(l2={value:g})",
            model="mlp(hidden=4)",
            steps=4,
            replicas=2,
            execution="sequential",
        )
        for value in (0.0, 1.0, 100.0)
    }


def line_with_label(axes, label):
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return line.get_xdata(), line.get_ydata()


@pytest.mark.parametrize(("scale", "name"), [("linear", "linear"), ("symlog", "symlog")])
def test_sweep_shows_every_environment_and_replica(runs, scale, name):
    (axes,) = figures.sweep(runs, "l2 = $x$", scale).axes
    assert axes.get_xscale() == name
    for environment, role in (("flip-0.2", "train"), ("flip-0.1", "train"), ("flip-0.9", "test")):
        x, y = line_with_label(axes, f"{environment} ({role})")
        assert list(x) == list(runs)
        assert list(y) == [run.final(environment, "accuracy").mean for run in runs.values()]
    dots = sorted(y for line in axes.lines if line.get_marker() == "." for y in line.get_ydata())
    values = [v for run in runs.values() for e in run.record.roles for v in run.final(e, "accuracy").values]
    assert dots == sorted(values)
    assert {text.get_text().split()[0] for text in axes.texts} == {"chance", "optimum"}
    assert axes.get_xlabel() == r"l2 = \$x\$", "dollar signs are escaped"
    assert figures.png(axes.figure)[:4] == b"\x89PNG"


def test_ranking_shows_intervals_replicas_published_scores_and_marks():
    rows = [
        figures.RankingRow("IRM", (0.6, 0.7, 0.65), {"papers": 0.669}),
        figures.RankingRow("V-REx", (0.5,), {"papers": 0.687, "report": 0.3}),
    ]
    (axes,) = figures.ranking(rows, "accuracy", {"chance": 0.5}).axes
    expected = interval(rows[0].values)
    points = {(float(x), float(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    for value, y in (
        (0.6, 0),
        (0.7, 0),
        (0.669, 0),
        (0.5, 1),
        (0.3, 1),
        (0.687, 1),
        (expected.low, 0),
        (expected.high, 0),
    ):
        assert (value, y) in points
    assert [label.get_text() for label in axes.get_yticklabels()] == ["IRM", "V-REx"]
    assert axes.yaxis_inverted(), "the first row is at the top"
    assert "chance 50%" in [text.get_text().strip() for text in axes.texts]


def test_intervals_are_limited_to_possible_values():
    row = figures.RankingRow("IRM", (0.1, 0.9), {})
    (axes,) = figures.ranking([row], "accuracy", {}, (0.0, 1.0)).axes
    bar = next(line for line in axes.lines if line.get_linewidth() == 2 and len(line.get_xdata()) == 2)
    assert list(bar.get_xdata()) == [0.0, 1.0]
    estimates = [ShiftEstimate(0.0, 0.2, 0.9, 1.0), ShiftEstimate(0.4, 0.2, 0.1, 1.0)]
    measured = Shift.from_trials("a", "b", estimates)
    assert (measured.diversity.low, measured.label.high) == (0.0, 1.0)


def test_ranking_may_have_rows_of_published_scores_alone():
    rows = [figures.RankingRow("ours", (0.6, 0.7), {}), figures.RankingRow("paper", (), {"papers": 0.669})]
    (axes,) = figures.ranking(rows, "accuracy", {}).axes
    points = {(float(x), float(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    assert [point for point in points if point[1] == 1 and point[0] == point[0]] == [(0.669, 1)]
    assert figures.png(axes.figure)[:4] == b"\x89PNG"


def test_lines_draw_the_series_on_the_given_scales():
    steps = np.arange(1, 5)
    (axes,) = figures.lines(
        {"a": (steps, steps**2), "b": (steps, steps**3)}, "step", "value", ("linear", "log"), {"ln 2": 0.693}
    ).axes
    assert axes.get_yscale() == "log"
    x, y = line_with_label(axes, "b")
    assert (list(x), list(y)) == ([1, 2, 3, 4], [1, 8, 27, 64])
    assert [text.get_text() for text in axes.texts] == ["ln 2 "]


def test_critical_difference_joins_ranks_that_do_not_differ_significantly():
    assert figures._indistinguishable([1.0, 1.5, 2.9, 3.1], 1.0) == [(0, 1), (2, 3)]
    assert figures._indistinguishable([1.0, 1.5, 2.0, 3.5], 1.2) == [(0, 2)]
    assert figures._indistinguishable([1.0, 3.0], 1.0) == []
    figure = figures.critical_difference(["b", "a", "c$"], [2.0, 1.2, 2.8], 1.0)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", r"c\$"]
    marks = [tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert marks == [(1.2,), (2.0,), (2.8,)]


def test_shift_curve_needs_environments_with_numbers(runs):
    expected = {0.1: "flip-0.1", 0.9: "flip-0.9"}
    stem, places = shift._numbered(["flip-0.9", "flip-0.1", "other", "year 3"])
    assert (stem, places) == ("flip-", expected)
    assert list(places) == [0.1, 0.9], "in order"
    assert shift._numbered(["a", "b"]) == ("", {})
    several = list(runs.values())
    assert shift.can_be_ordered(several)
    (axes,) = shift.curve(several).axes
    curves = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]
    assert len(curves) == len(several)
    first = several[0]
    assert list(curves[0].get_xdata()) == [0.1, 0.2, 0.9]
    assert curves[0].get_ydata()[2] == pytest.approx(first.final("flip-0.9", "accuracy").mean)
    with pytest.raises(EnvariantError, match="at least 3 of them"):
        shift.curve([])


def test_shift_plane_has_one_point_per_pair():
    def around(mean):
        return Interval(mean, mean - 0.1, mean + 0.1, 3)

    pair = Shift("a + b", "c", around(0.2), around(0.5), around(0.0), around(0.1))
    (axes,) = shift.plane([pair]).axes
    assert [
        tuple(map(float, (*m.get_xdata(), *m.get_ydata()))) for m in axes.lines if m.get_marker() == "o"
    ] == [(0.2, 0.5)]
    assert [text.get_text() for text in axes.texts] == ["diversity", "correlation", "both"]
