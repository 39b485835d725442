"""Tables of scores, compared with pandas and read back from LaTeX and Markdown."""

import math
import re

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.core.errors import EnvariantError
from envariant.core.score_table import ScoreTable

ENVIRONMENTS = ("north", "south")
SCORES = {
    "erm": {"north": {0: 0.50, 1: 0.60}, "south": {0: 0.70, 1: 0.90}},
    "irm": {"north": {0: 0.70, 1: 0.80}, "south": {0: 0.60, 1: 0.60}},
    "a_b": {"north": {0: 0.40, 1: 0.80}, "south": {0: 0.10, 1: math.nan}},
}


def table(values=SCORES, **options):
    settings = {"metric": "accuracy", "higher_is_better": True, "columns": ENVIRONMENTS, "title": "Scores"}
    return ScoreTable(values=values, **settings | options)


def test_means_deviations_and_average_equal_those_of_pandas():
    rows = [(m, e, k, v) for m, own in SCORES.items() for e, each in own.items() for k, v in each.items()]
    long = pd.DataFrame(rows, columns=["method", "environment", "replica", "score"]).dropna()
    grouped = long.groupby(["method", "environment"])["score"]
    frame = table().to_frame()
    for name, statistic in (("mean", grouped.mean()), ("sd", grouped.std()), ("replicas", grouped.count())):
        for (method, environment), value in statistic.items():
            np.testing.assert_allclose(frame.loc[method, (environment, name)], value, rtol=1e-12)
    replicas = long.pivot_table(index=["method", "replica"], columns="environment", values="score").dropna()
    averages = replicas.mean(axis=1).groupby("method")
    for method in ("erm", "irm"):
        assert frame.loc[method, ("average", "mean")] == pytest.approx(averages.mean()[method])
        assert frame.loc[method, ("average", "sd")] == pytest.approx(averages.std()[method])
    assert frame.loc["a_b", ("average", "mean")] == pytest.approx((0.6 + 0.1) / 2)
    assert table().averages("a_b") == pytest.approx((0.25,)), "only replicas with a score everywhere"
    assert list(frame.columns.get_level_values(0).unique()) == ["north", "south", "average"]


def test_latex_marks_best_and_second_and_escapes_names():
    text = table().to_latex(label="tab:scores")
    assert r"a\_b & \underline{0.600 $\pm$ 0.283} & 0.100 & \underline{0.350} \\" in text
    assert r"erm & 0.550 $\pm$ 0.071 & \textbf{0.800 $\pm$ 0.141} & \textbf{0.675 $\pm$ 0.106} \\" in text
    assert (
        r"irm & \textbf{0.750 $\pm$ 0.071} & \underline{0.600 $\pm$ 0.000} & \textbf{0.675 $\pm$ 0.035} \\"
        in text
    )
    assert r"\begin{tabular}{lccc}" in text
    assert r"\label{tab:scores}" in text
    assert (
        r"mean $\pm$ standard deviation over 1--2 replicas. Best (highest) in bold, second best underlined."
        in text
    )
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == 1


@pytest.mark.parametrize("name", [r"50% & more_x {a} \b ~ ^ # $ | < >", "two\nlines", "a²±−"])
def test_every_special_character_of_latex_is_escaped(name):
    text = table(
        {name: SCORES["erm"], "erm": SCORES["irm"]}, columns=(name,) if "²" in name else ENVIRONMENTS
    ).to_latex()
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    plain = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum|textbar|textless|textgreater|textbf|underline)",
        "",
        body,
    )
    plain = re.sub(r"\\[&%$#_{}]|\$\\?[a-z^2-]+\$|\$-\$|\\\\", "", plain)
    assert not re.search(r"[%#_~^|<>$\\]", plain)
    assert plain.count("&") == 2 * len(text.partition("{tabular}{l")[2].partition("}")[0])


def test_markdown_has_one_cell_per_column_and_marks():
    lines = table().to_markdown(percent=True).splitlines()
    assert lines[0] == "| accuracy | north | south | average |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| erm | 55.0 ± 7.1 | **80.0 ± 14.1** | **67.5 ± 10.6** |"
    assert lines[4] == r"| a\_b | <ins>60.0 ± 28.3</ins> | 10.0 | <ins>35.0</ins> |"
    assert "in percent" in lines[-1]
    assert r"a\|b" in table({"a|b": SCORES["erm"]}).to_markdown()


def test_lower_is_better_and_ties_share_a_mark():
    values = {m: {"north": {0: v}} for m, v in {"a": 1.0, "b": 1.0004, "c": 2.0, "d": 3.0}.items()}
    text = table(values, columns=("north",), higher_is_better=False).to_markdown()
    assert [line.split(" | ")[1].rstrip(" |") for line in text.splitlines()[2:6]] == [
        "**1.000**", "**1.000**", "<ins>2.000</ins>", "3.000"
    ]  # fmt: skip
    assert "Best (lowest)" in text
    assert "average" not in text


def test_one_method_has_no_marks_and_two_methods_no_second():
    assert "**" not in table({"erm": SCORES["erm"]}).to_markdown()
    two = table({"erm": SCORES["erm"], "irm": SCORES["irm"]}).to_markdown()
    assert "**" in two
    assert "ins>" not in two


def test_absent_scores_are_dashes_and_large_scores_have_fewer_digits():
    values = {"a": {"north": {0: 1234.5678, 1: 1250.0}}, "b": {"south": {0: 9.5}}}
    text = table(values).to_markdown()
    assert "| a | **1,242 ± 11** | – | – |" in text
    assert "| b | – | **10** | – |" in text
    assert "**1,242.28 ± 10.91**" in table(values).to_markdown(digits=2)


def test_consoles_show_aligned_rows_and_notebooks_a_table():
    many = table({f"m{k}": SCORES["erm"] for k in range(20)}, notes=("A note.",))
    lines = repr(many).splitlines()
    assert len(lines) == 8
    assert lines[-1] == "… 14 more methods"
    assert len({len(line) for line in lines[:-1]}) == 1
    assert len(str(many).splitlines()) == 22
    assert str(many).endswith("A note.")
    assert "<b>0.800 ± 0.141</b>" in table()._repr_html_()


def test_an_empty_table_is_an_error():
    with pytest.raises(EnvariantError, match="Scores: has no method to show"):
        table({}).to_latex()


def test_runs_with_the_same_split_show_all_environments_and_others_their_tests():
    runs = [
        envariant.train("colored-digits", name, steps=2, replicas=2, model="linear", test_environments=(test,))
        for name in ("erm", "vrex")
        for test in ("flip-0.9", "flip-0.1")
    ]  # fmt: skip
    alike = envariant.score_table([runs[0], runs[2]])
    assert alike.columns == ("flip-0.2 (train)", "flip-0.1 (train)", "flip-0.9 (test)")
    assert list(alike.to_frame().index) == ["erm", "vrex"]
    assert alike.score("erm", "flip-0.9 (test)").mean == pytest.approx(
        runs[0].final("flip-0.9", "accuracy").mean
    )
    folds = envariant.score_table({"own ERM": runs[:2], "V-REx": runs[2:]})
    assert folds.columns == ("flip-0.9", "flip-0.1")
    assert folds.score("V-REx", "flip-0.1").mean == pytest.approx(runs[3].final("flip-0.1", "accuracy").mean)
    mean = np.mean([runs[0].final("flip-0.9", "accuracy").mean, runs[1].final("flip-0.1", "accuracy").mean])
    assert folds.score("own ERM", "average").mean == pytest.approx(mean)
    with pytest.raises(EnvariantError, match="two runs of x have the same environments"):
        envariant.score_table({"x": [runs[0], runs[2]]})
    with pytest.raises(EnvariantError, match="needs at least one run"):
        envariant.score_table([])
    assert runs[0].table().to_frame().shape == (1, 9)
