"""Charts hold the given numbers, with reference lines, the same colors everywhere, and valid Vega-Lite."""

import math

import altair as alt
import numpy as np
import pandas as pd
import pytest

import processes
from envariant.analysis.distribution_shift import Shift, ShiftEstimate
from envariant.analysis.statistics import Interval, interval
from envariant.core.errors import EnvariantError
from envariant.reporting import charts
from envariant.reporting.charts.base import spec
from envariant.reporting.charts.data import _box, _label_positions, _overlap
from envariant.reporting.charts.studies import indistinguishable
from envariant.reporting.theme import _PALETTE, baseline_first, method_colors
from reporting.sample_pages import FLIPS, run


def close(mean, half=0.1):
    return Interval(mean, mean - half, mean + half, 3)


def part(document, mark):
    """Return the first layer with a mark."""
    for layer in document.get("layer", document.get("spec", {}).get("layer", [])):
        if layer["mark"]["type"] == mark:
            return layer
    raise AssertionError(mark)


@pytest.fixture(scope="module")
def every_chart():
    runs = [run(name) for name in ("irm", "erm", "vrex")]
    table = pd.DataFrame(
        {"algorithm": ["erm", "irm"], "validation": [0.8, 0.7], "test": [0.2, 0.6], "p_value": [0.01, 0.5]}
    )
    values = pd.DataFrame({"learning rate": [1e-4, 1e-2], "dropout": [0.1, 0.3]})
    slopes = [charts.ColumnRow("age", {"a": 0.1, "b": 0.4}, True, (-9.0, 9.0), {"linear": 0.1})]
    return {
        "curves": charts.curves(runs),
        "sweep": charts.sweep({0.0: runs[0], 10.0: runs[1]}, "l2", "symlog"),
        "lines": charts.lines({"a": ([0, 1, 2], [1, 2, 4])}, "x", "y", ("log", "log"), {"ln 2": 0.69}),
        "shift_curve": charts.shift_curve(runs),
        "ranking": charts.ranking([charts.RankingRow("irm", (0.6, 0.7), {"paper": 0.66})], "accuracy", {"chance": 0.5}),
        "critical_difference": charts.critical_difference(["b", "a", "c"], [2.0, 1.2, 2.8], 1.0),
        "candidates": charts.candidates(table, "accuracy", 0.05),
        "hyperparameters": charts.hyperparameters(values, table, "accuracy"),
        "counts": charts.counts(["a", "b"], ["no", "yes"], np.array([[3, 1], [0, 2]]), "some data"),
        "plane": charts.shift_plane([Shift("a + b", "c", close(0.2), close(0.5), close(0.0), close(0.1))]),
        "drops": charts.drops([charts.DropRow("a", 0.9, close(0.7), close(0.8), 0.5)], "accuracy",
                              ("in", "out", "irm, out", "constant")),
        "over_time": charts.over_time([charts.DropRow("2010", 0.9, close(0.7)), charts.DropRow("2011", math.nan, close(0.6), close(0.8))],
                                      "accuracy", ("in", "out", "irm, out", "constant")),
        "cause_parts": charts.cause_parts({"a": (0.1, 0.0, 0.2)}, {"a": close(0.3)}, "drop"),
        "label_curves": charts.label_curves({"a": [charts.LabelPoint(0, 0.5), charts.LabelPoint(10, 0.7, 0.1)]}, "accuracy"),
        "column_slopes": charts.column_slopes(slopes, "log-odds"),
        "column_importance": charts.column_importance(slopes, "accuracy", ["linear"]),
    }  # fmt: skip


def test_every_chart_is_valid_and_has_a_description_and_data(every_chart):
    for name, chart in every_chart.items():
        document = alt.Chart.from_dict(chart.to_dict()).to_dict()
        assert len(document["description"]) > 20, name
        rows = charts.data_of(chart)
        assert rows, name
        assert all(
            v is None or isinstance(v, str) or math.isfinite(v) for row in rows for v in row.values()
        ), name


def test_every_chart_is_equal_each_time_and_can_be_written(every_chart, tmp_path):
    again = charts.ranking(
        [charts.RankingRow("irm", (0.6, 0.7), {"paper": 0.66})], "accuracy", {"chance": 0.5}
    )
    assert spec(again) == spec(every_chart["ranking"])
    assert charts.svg(again) == charts.svg(every_chart["ranking"])
    charts.save(again, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_are_means_over_replicas_with_their_range_one_panel_per_environment():
    result = run("irm")
    rows = charts.data_of(charts.curves([result]))
    assert [row["panel"] for row in rows[::6]] == ["flip-0.2 (train)", "flip-0.1 (train)", "flip-0.9 (test)"]
    history = result.history.query("environment == 'flip-0.9' and metric == 'accuracy'").groupby("step")[
        "value"
    ]
    own = [row for row in rows if row["panel"] == "flip-0.9 (test)"]
    for key, value in (("score", history.mean()), ("low", history.min()), ("high", history.max())):
        assert [row[key] for row in own] == pytest.approx(list(value))
    panels = spec(charts.curves([result]))["facet"]["sort"]
    assert panels[0] == "flip-0.9 (test)", "test environments first"


def test_colors_are_the_same_on_all_pages_and_erm_is_gray():
    alone = method_colors(["irm"])["irm"]
    assert method_colors(["zzz", "erm", "vrex", "irm"])["irm"] == alone
    assert method_colors(["erm"])["erm"] not in _PALETTE
    many = method_colors(["erm", "erm (grayscale oracle)", "irm", "irm, l2=1", "vrex", "coral", "and-mask"])
    assert len(set(many.values())) == len(many)
    assert method_colors(["b", "a", "c"]) == method_colors(["c", "b", "a"])
    assert baseline_first(["irm", "erm, l2=1", "vrex", "erm"]) == ["erm, l2=1", "erm", "irm", "vrex"]


@pytest.mark.parametrize("background", ["#ffffff", "#14181d"])
def test_colors_have_contrast_on_light_and_dark_pages(background):
    def luminance(color):
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for color in (*_PALETTE, method_colors(["erm"])["erm"]):
        low, high = sorted((luminance(color), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 3, color


def test_ranking_shows_intervals_replicas_published_scores_and_marks():
    rows = [
        charts.RankingRow("IRM", (0.6, 0.7, 0.65), {"papers": 0.669}),
        charts.RankingRow("V-REx", (0.5,), {"papers": 0.687, "report": 0.3}),
        charts.RankingRow("paper", (), {"papers": 0.6}),
    ]
    data = charts.data_of(charts.ranking(rows, "accuracy", {"chance": 0.5}))
    mean = next(row for row in data if row["kind"] == "mean")
    expected = interval(rows[0].values)
    assert (mean["low"], mean["high"]) == pytest.approx((expected.low, expected.high))
    assert [row["score"] for row in data if row["kind"] == "replica"] == [0.6, 0.7, 0.65, 0.5]
    assert [(row["name"], row["source"]) for row in data if row["kind"] == "published"] == [
        ("IRM", "papers"), ("V-REx", "papers"), ("V-REx", "report"), ("paper", "papers"),
    ]  # fmt: skip
    assert not any("low" in row for row in data if row["name"] == "V-REx"), "one replica has no interval"


def test_intervals_are_limited_to_possible_values():
    (mean,) = [
        row for row in charts.data_of(charts.ranking([charts.RankingRow("IRM", (0.1, 0.9), {})], "accuracy", {}, (0.0, 1.0)))
        if row["kind"] == "mean"
    ]  # fmt: skip
    assert (mean["low"], mean["high"]) == (0.0, 1.0)
    estimates = [ShiftEstimate(0.0, 0.2, 0.9, 1.0), ShiftEstimate(0.4, 0.2, 0.1, 1.0)]
    measured = Shift.from_trials("a", "b", estimates)
    assert (measured.diversity.low, measured.label.high) == (0.0, 1.0)


def test_rates_over_decades_have_a_logarithmic_axis(every_chart):
    panels = spec(every_chart["hyperparameters"])["concat"]
    kinds = [panel["encoding"]["x"]["scale"].get("type", "linear") for panel in panels]
    assert kinds == ["log", "linear"]
    values = {row["x"] for row in charts.data_of(every_chart["lines"])}
    assert 0 not in values, "0 cannot be drawn on a logarithmic axis"


def test_critical_difference_joins_ranks_that_do_not_differ_significantly():
    assert indistinguishable([1.0, 1.5, 2.9, 3.1], 1.0) == [(0, 1), (2, 3)]
    assert indistinguishable([1.0, 1.5, 2.0, 3.5], 1.2) == [(0, 2)]
    assert indistinguishable([1.0, 3.0], 1.0) == []
    rows = charts.data_of(charts.critical_difference(["b", "a", "c"], [2.0, 1.2, 2.8], 1.0))
    assert [(row["name"], row["rank"]) for row in rows] == [("a", 1.2), ("b", 2), ("c", 2.8)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (FLIPS, True),
        (("test-flip-0.2", "flip-0.1", "flip-0.9"), True),
        (("year-2009", "year-2010", "year-2011"), True),
        (("0", "1", "2"), False),
        (("site-1", "site-2", "site-3"), False),
        (("flip-0.1", "flip-0.2", "other"), False),
    ],
)
def test_a_shift_curve_needs_values_of_a_known_shift(names, expected):
    result = run("irm", names)
    assert charts.has_shift_scale([result]) == expected
    if not expected:
        with pytest.raises(EnvariantError, match="at least 3 environments must"):
            charts.shift_curve([result])


def test_shift_curve_is_in_the_order_of_the_shift():
    rows = charts.data_of(charts.shift_curve([run("irm"), run("erm")]))
    assert [row["shift"] for row in rows[:9:3]] == [0.1, 0.2, 0.9]
    assert {row["name"] for row in rows} == {"irm", "erm"}
    assert not charts.has_shift_scale([])


def test_every_point_of_the_shift_plane_has_a_label_that_covers_no_other():
    points = {f"environment {k}": (0.3 + 0.001 * k, 0.2 - 0.0005 * k) for k in range(10)}
    positions = _label_positions(points, 1.0)
    assert set(positions) == set(points)
    boxes = [_box(p, min(0.75, 0.022 * len(n)), 0.055) for n, p in positions.items()]
    assert not any(_overlap(a, b) for k, a in enumerate(boxes) for b in boxes[:k])
    shifts = {
        name: Shift(name, "others", close(x), close(y), close(0), close(0)) for name, (x, y) in points.items()
    }
    rows = charts.data_of(charts.shift_plane(shifts))
    assert all(row["label_x"] is not None for row in rows)


def test_lines_of_drops_are_distinct_from_intervals(every_chart):
    document = spec(every_chart["drops"])
    rules = [layer["mark"] for layer in document["layer"] if layer["mark"]["type"] == "rule"]
    assert [rule["strokeWidth"] for rule in rules] == [9, 1.3]
    outside = next(row for row in charts.data_of(every_chart["drops"]) if row["name"] == "out")
    assert (outside["from"], outside["score"], outside["low"]) == pytest.approx((0.9, 0.7, 0.6))


def save_both(folder):
    chart = charts.lines({"a": ([0, 1], [1, 2])}, "x", "y")
    for ending in ("svg", "png"):
        charts.save(chart, folder / f"x.{ending}")


def test_charts_are_saved_in_a_copy_of_a_process_that_saved_charts(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    save_both(tmp_path / "here")
    process = processes.start(save_both, tmp_path / "there")
    process.join(60)
    assert process.exitcode == 0, "a call in the copy would wait forever for a thread of this process"
    for ending in ("svg", "png"):
        own, other = ((tmp_path / name / f"x.{ending}").read_bytes() for name in ("here", "there"))
        assert own == other
