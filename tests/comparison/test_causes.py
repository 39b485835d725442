"""Reasons for a drop: made tables of known truth, and four hospitals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envariant.comparison.causes import find_causes, number
from envariant.comparison.page.causes import Causes
from envariant.comparison.results import ScoredRows
from envariant.comparison.stored_rows import StoredRows
from envariant.core.printable import finite
from tests.comparison.made import SEEDS, SHARE, made, made_shifted, shifted

HEART = Path(__file__).parent / "heart.csv"
"""Four hospitals of the heart disease data (Janosi et al. 1988, UCI Machine Learning Repository)."""


def causes_of(frame, target="y", environment="site", change=None, **options):
    made_results = (
        made_shifted(frame) if isinstance(frame, str) else made(frame, target, environment, **options)
    )
    source, results, folds = made_results
    if change is not None:
        results = replace(results, rows={key: change(key, rows) for key, rows in results.rows.items()})
    return find_causes(source, results, folds, SHARE, SEEDS), source, results


def test_label_shift_is_a_change_of_level_named_prevalence():
    causes, *_ = causes_of("label")
    d = causes["D"]
    assert next(iter(causes)) == "D", "the environment with the worst score comes first"
    assert d.main_part == "level"
    assert d.is_prevalence
    assert d.cause.startswith("In D, ")
    assert "comes from prevalence: y is 1 in 8" in d.cause
    assert d.cause.endswith("ranking holds.")
    assert len(d.cause.split()) <= 25
    assert d.shift is not None
    assert d.shift.kind == "label"
    assert "label shift" in d.kinds
    assert d.bias.startswith("Predicted probabilities of y = 1 are 0.3")
    assert d.bias.endswith("too low in D.")
    assert not causes["B"].cause


def test_a_flipped_column_is_a_change_of_relation_that_no_recalibration_repairs():
    d = causes_of("flip")[0]["D"]
    assert d.main_part == "ranking"
    assert "relation between inputs and target differs" in d.cause
    assert d.shift is not None
    assert d.shift.kind == "concept"
    assert d.decomposition is not None
    assert d.decomposition.changed_relation.low > 0
    assert d.decomposition.changed_relation.mean > 5 * abs(d.decomposition.new_inputs.mean)
    assert "due to a changed relation" in d.relation


def test_covariate_shift_without_a_drop_has_no_cause():
    d = causes_of(shifted("covariate", seed=1))[0]["D"]
    assert not d.cause
    assert d.shares == {}
    assert d.shift is not None
    assert d.shift.kind == "covariate"
    assert d.decomposition is not None
    assert d.decomposition.changed_relation.low < 0 < d.decomposition.changed_relation.high


def test_without_shift_nothing_is_found():
    causes, *_ = causes_of(shifted("none", 5))
    assert [c.cause or c.bias for c in causes.values()] == [""] * 4
    assert all(c.kinds == f"No shift of inputs or target was found in {c.label}." for c in causes.values())


def test_overconfident_predictions_are_a_change_of_slope():
    def overconfident(key, rows):
        outside = tuple(replace(each, logits=5 * each.logits) for each in rows.out_of_domain)
        return replace(rows, out_of_domain=outside) if key[1] == "D" else rows

    d = causes_of("none", change=overconfident)[0]["D"]
    assert d.main_part == "slope"
    assert "predictions are too extreme (calibration slope 0.2" in d.cause
    assert "ranking holds" in d.cause


def test_worse_ranking_with_new_inputs_is_not_called_a_changed_relation():
    frame = shifted("none", seed=3)
    frame.loc[frame["site"] == "D", "a"] += 40.0
    d = causes_of(frame)[0]["D"]
    assert d.decomposition is not None
    assert not d.decomposition.has_overlap
    assert "cannot be split into parts" in d.relation


def test_regression_is_split_in_the_unit_of_the_target():
    rng = np.random.default_rng(0)
    site = np.repeat(["1", "2", "3"], 150)
    x = rng.normal(size=450)
    frame = pd.DataFrame({"x": x, "y": 1000 * x + 5000 * (site == "3") + 300 * rng.normal(size=450)})
    causes, *_ = causes_of(frame.assign(site=site), task="regression")
    three = causes["3"]
    assert three.label == "site 3"
    assert three.main_part == "level"
    assert "(squared error) comes from the level of the predictions: predictions are 5," in three.cause
    assert three.bias.startswith("Predictions are 5,")
    assert three.calibration is not None
    assert three.calibration.bias[0] == pytest.approx(-5000, abs=150)
    assert three.split is not None
    assert three.split.error_rate is None


def test_several_classes_are_named():
    rng = np.random.default_rng(0)
    site = np.repeat(["A", "B", "C"], 200)
    shares = np.where(site[:, None] == "C", [0.1, 0.1, 0.8], [0.4, 0.4, 0.2])
    y = (rng.random(600)[:, None] > shares.cumsum(1)).sum(1)
    x = rng.normal(size=(600, 3)) + 1.5 * np.eye(3)[y]
    frame = pd.DataFrame(x, columns=list("abc")).assign(y=np.array(["low", "mid", "top"])[y], site=site)
    c = causes_of(frame)[0]["C"]
    assert c.main_part == "level"
    assert "y is top in 8" in c.cause
    assert c.bias.startswith("Predicted probabilities of y = top are ")


def test_without_in_domain_predictions_or_known_rows_the_rest_is_measured():
    def stripped(key, rows):
        return ScoredRows((), rows.out_of_domain)

    d = causes_of("label", change=stripped)[0]["D"]
    assert (d.split, d.cause, d.relation) == (None, "", "")
    assert d.bias
    source, results, folds = made_shifted("label", 3)
    other_seeds = find_causes(source, results, folds, SHARE, (1, 2))
    assert other_seeds["D"].decomposition is None, "rows that are not found are not guessed"
    assert other_seeds["D"].main_part == "level"


def test_rows_of_stored_predictions_are_found():
    source, results, folds = made_shifted("none", 3)
    stored = StoredRows(source, folds, SHARE, SEEDS)
    targets, sites = source.table.targets(), source.table.environment.values
    rows = results.rows["linear", "C"]
    outside, inside = stored.out_of_domain("C", rows.out_of_domain), stored.in_domain("C", rows.in_domain)
    training = stored.training("C", rows.others)
    assert inside is not None
    assert training is not None
    for scores, members in ((outside, {2}), (inside, {2}), (training, {0, 1, 3})):
        assert scores.rows is not None
        assert np.array_equal(targets[scores.rows], scores.targets)
        assert set(sites[scores.rows]) == members
        assert len(set(scores.rows.tolist())) == len(scores.rows), "each row is used once"


def test_only_the_hardest_of_many_environments_are_explained_in_seconds():
    names = tuple(f"s{k:02d}" for k in range(20))
    frame = shifted("none", n=50, names=names)
    causes, _, results = causes_of(frame, folds=tuple(tuple(names[k::5]) for k in range(5)))
    assert list(causes) == results.hardest_first()[:12]
    section = Causes(replace(results, causes=causes), "linear")
    assert "Only the 12 environments with the worst scores are explained." in section.table().notes


def test_switzerland_has_more_disease():
    causes, *_ = causes_of(pd.read_csv(HEART), "disease", "hospital")
    cause = causes["Switzerland"]
    assert cause.main_part == "level"
    assert "comes from prevalence: disease is yes in 93 % of rows, 49 % elsewhere" in cause.cause
    assert cause.bias.startswith("Predicted probabilities of disease = yes are 0.3")


def test_the_page_section_has_figure_table_and_sentences():
    frame = shifted("label", 3).replace({"site": {"D": "D <& $x$>"}})
    causes, _, results = causes_of(frame)
    section = Causes(replace(results, causes=causes), "linear")
    assert Causes.applies(section.results)
    assert not Causes.applies(results)
    blocks = section.render()
    assert [block.kind for block in blocks] == ["definitions", "chart", "table"]
    name, text = blocks[0].content[0]
    assert name == "D <& $x$>"
    assert "comes from prevalence" in text
    assert "In D" not in text
    assert blocks[2].content.rows[0][0] == name
    assert finite(section.to_dict())["causes"][name]["shares"]["level"] > 0.6


def test_numbers_have_significant_digits_without_exponent():
    assert [number(v) for v in (0.0, 0.01234, 1.5, 1540119.0)] == ["0", "0.0123", "1.50", "1,540,119"]
