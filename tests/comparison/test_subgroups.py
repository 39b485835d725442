"""Scores of subgroups in test environments."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made import made

from envariant.analysis.statistics import Interval
from envariant.comparison.narrative import recommend
from envariant.comparison.page.subgroups import Subgroups
from envariant.comparison.subgroups import find_subgroups, subgroup_names
from envariant.core.errors import EnvariantError
from envariant.data.tables.columns import Column
from envariant.data.tables.table import read


def frame(rows=300, seed=0, worse=True):
    """Return a table in which the relation of x and y is reversed for `sex = f`, 30 % of the rows."""
    rng, parts = np.random.default_rng(seed), []
    for site in "ABC":
        x, sex = rng.normal(size=rows), rng.choice(["f", "m"], rows, p=[0.3, 0.7])
        sex[:5] = "x"
        slope = np.where((sex == "f") & worse, -0.5, 2.0)
        y = (slope * x + rng.logistic(size=rows) > 0).astype(int)
        parts.append(
            pd.DataFrame({"x": x, "age": rng.integers(20, 80, rows), "sex": sex, "y": y, "site": site})
        )
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def found():
    return scored(frame())


def scored(table, **options):
    options = {"subgroups": ["sex", "age"], "exclude": ["sex"], **options}
    source, results, folds = made(table, "y", "site", **options)
    return source, results, find_subgroups(source, results, folds, 0.2, (11, 12, 13))


def test_worst_subgroup_is_found_with_a_corrected_interval(found):
    source, results, scores = found
    assert [c.name for c in source.table.columns] == ["x", "age"]
    by_name = {each.name: each for each in scores}
    sex = source.table.subgroups[0].texts()
    assert by_name["sex = f"].n_rows == sex.count("f")
    # The score is the accuracy of the models on these rows.
    assert by_name["sex = f"].score.mean < 0.6 < 0.7 < by_name["sex = m"].score.mean
    assert by_name["sex = f"].p_value < 0.001
    # 95 % for six tests: 2.64 standard errors.
    share, n = by_name["sex = f"].score.mean, by_name["sex = f"].n_rows
    assert by_name["sex = f"].score.high - share == pytest.approx(
        2.64 * np.sqrt(share * (1 - share) / n), rel=0.25
    )
    # 15 rows are too few.
    assert by_name["sex = x"].score is None
    results = replace(results, subgroups=scores)
    facts = (*recommend(results).bullets, *recommend(results).further_findings)
    (fact,) = (fact for fact in facts if fact.startswith("Worst subgroup: sex = f, accuracy 0."))
    assert f"{n} rows), 0." in fact
    assert fact.endswith("significant, p < 0.001 (Holm).")
    section = Subgroups(results, results.recommended)
    (table,) = section.render()
    assert "too few rows, or undefined" in [row[3] for row in table.content.rows]
    assert section.to_dict()["subgroups"][0]["column"] == "sex"


def test_equal_subgroups_are_not_called_worse():
    alarms = 0
    for seed in range(20):
        _, _, scores = scored(frame(150, seed, worse=False))
        alarms += any(each.p_value < 0.05 for each in scores)
    assert alarms <= 3


def test_regression_scores_are_in_the_unit_of_the_target():
    table = frame().assign(y=lambda f: 100 * f["x"] + np.where(f["sex"] == "f", 1, -1) * 50)
    _, _, scores = scored(table)
    by_name = {each.name: each.score.mean for each in scores if each.score}
    assert by_name["sex = f"] == pytest.approx(70, rel=0.1)


def test_numbers_are_divided_at_quartiles_and_missing_values_left_out():
    values = np.array([*range(1, 101), np.nan])
    names = subgroup_names(Column("age", "number", values))
    assert set(names) == {"≤ 25.8", "> 25.8 to 50.5", "> 50.5 to 75.2", "> 75.2", ""} or len(set(names)) == 5
    assert names[-1] == ""
    assert np.unique(names[:-1], return_counts=True)[1].tolist() == [25] * 4
    assert set(subgroup_names(Column("n", "number", np.array([1.0, 2.0, 1.0])))) == {"1", "2"}


def test_wrong_subgroups_are_errors():
    with pytest.raises(EnvariantError, match=r"lacks subgroups column 'sx' \(did you mean 'sex'\?\)"):
        read(frame(), "y", "site", subgroups="sx")
    with pytest.raises(EnvariantError, match="the environment column cannot define subgroups"):
        read(frame(), "y", "site", subgroups=["site"])
    assert read(frame(), "y", "site", subgroups="sex").fingerprint == read(frame(), "y", "site").fingerprint


def test_worst_score_of_an_error_is_the_highest():
    _, results, scores = scored(frame().assign(y=lambda f: f["x"]))
    worst = replace(scores[0], score=Interval(9.0, 8.0, 10.0, 50), others=1.0, p_value=0.2)
    facts = recommend(replace(results, subgroups=(*scores, worst)))
    text = " ".join((*facts.bullets, *facts.further_findings))
    assert "RMSE 9.00" in text
    assert "not significant, p = 0.2 (Holm)" in text
