"""Remedies are measured: labels, methods, columns and class shares on made tables of known truth."""

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from envariant.comparison.causes import find_causes
from envariant.comparison.data_summary import summarize
from envariant.comparison.page.causes import Remedies
from envariant.comparison.remedies import ranked, remedies_by_environment
from envariant.core.printable import finite
from tests.comparison.made import SEEDS, SHARE, made, made_shifted, shifted

HEART = Path(__file__).parent / "heart.csv"
"""Four hospitals of the heart disease data (Janosi et al. 1988, UCI Machine Learning Repository)."""


def remedies_of(source, results, folds):
    causes = find_causes(source, results, folds, SHARE, SEEDS)
    return ranked(chain.from_iterable(remedies_by_environment(source, results, causes, folds, SHARE, SEEDS)))


def only(remedies, environment, kind):
    (remedy,) = [each for each in remedies if (each.environment, each.kind) == (environment, kind)]
    return remedy


def test_after_the_time_limit_only_the_hardest_environment_is_examined():
    source, results, folds = made_shifted("label", 3)
    assert list(find_causes(source, results, folds, SHARE, SEEDS, until=0.0)) == ["D"]
    assert not summarize(source, folds, {}, (), ["D"], seed=0, until=0.0).shifts


@pytest.fixture(scope="module")
def label_shift():
    return remedies_of(*made_shifted("label", 3))


def test_label_shift_is_repaired_by_an_intercept_from_a_few_labels(label_shift):
    remedy = only(label_shift, "D", "labels")
    assert [gain.n_labels for gain in remedy.curve] == [10, 20, 50, 100]
    assert {gain.refit for gain in remedy.curve[:2]} == {"intercept"}
    assert remedy.significant
    assert remedy.after == pytest.approx(0.87, abs=0.04)
    assert remedy.gain.mean == pytest.approx(remedy.after - remedy.before)
    assert (
        remedy.sentence == f"{remedy.action} bring D from {remedy.before:.2f} to {remedy.after:.2f} accuracy."
    )


def test_class_shares_are_corrected_without_labels_where_inputs_given_the_class_are_the_same(label_shift):
    remedy = only(label_shift, "D", "class shares")
    assert remedy.significant
    assert remedy.after == pytest.approx(0.87, abs=0.04)
    assert remedy.sentence.startswith("Correcting the class shares without labels brings D from 0.")


@pytest.mark.parametrize("kind", ["flip", "covariate"])
def test_class_shares_are_not_corrected_otherwise(kind):
    frame = shifted("label", 3)
    rows = frame["site"] == "D"
    # Label shift, but P(X | Y) has changed as well.
    frame.loc[rows, "a"] = frame.loc[rows, "a"] * (-1 if kind == "flip" else 1) + (kind == "covariate") * 2.0
    remedies = remedies_of(*made(frame, "y", "site"))
    assert [each for each in remedies if each.environment == "D" and each.kind == "class shares"] == []


def test_without_shift_no_remedy_is_significant():
    remedies = remedies_of(*made_shifted("none", 3))
    assert not any(each.significant or each.sentence for each in remedies)


def test_leaving_out_the_flipped_column_and_another_method_are_measured():
    models = {
        "linear": LogisticRegression(C=0.3),
        "stable-columns": LogisticRegression(C=0.3),
        "groupdro": LogisticRegression(C=1e-6),
        "mine": LogisticRegression(C=1e-2),
    }
    columns = {"stable-columns": ["b", "c"], "mine": ["b"]}
    remedies = remedies_of(*made(shifted("flip", 3), "y", "site", models, columns=columns))
    columns, method = only(remedies, "D", "columns"), only(remedies, "D", "method")
    assert remedies.index(columns) < 3
    assert columns.significant
    assert columns.method == "stable-columns"
    assert columns.sentence.startswith("Leaving out the unstable columns brings D from 0.")
    assert method.method == "mine"
    assert method.before == columns.before
    gains = [each.gain.mean for each in remedies if each.significant]
    assert gains == sorted(gains, reverse=True)


def test_columns_that_are_missing_are_to_be_collected():
    frame = shifted("none", 3)
    frame.loc[frame["site"] == "D", "a"] = np.nan
    frame.loc[frame["site"] != "C", "c"] = np.nan
    remedies = remedies_of(*made(frame, "y", "site"))
    d, c = only(remedies, "D", "collect"), only(remedies, "C", "collect")
    assert (d.columns, c.columns) == (("a",), ("c",))
    assert d.sentence == "Collect a in D: missing in 100 % of rows there, 0 % elsewhere."
    assert c.sentence == "Collect c in the training environments: missing in 100 % of rows there, 0 % in C."
    assert math.isnan(d.gain.mean)
    assert {each.kind for each in remedies[-2:]} == {"collect"}


def test_rare_classes_are_judged_by_log_loss():
    frame = shifted("none", 3)
    rare = np.arange(len(frame)) % np.where(frame["site"] == "D", 4, 12) == 0
    frame = frame[(frame["y"] == 0) | rare]
    remedy = only(remedies_of(*made(frame, "y", "site")), "D", "labels")
    assert remedy.score == "log loss"
    assert remedy.before > remedy.after
    assert remedy.gain.mean == pytest.approx(remedy.before - remedy.after)


def test_regression_is_judged_by_rmse_in_the_unit_of_the_target():
    rng = np.random.default_rng(0)
    site, x = np.repeat(["1", "2", "3"], 150), rng.normal(size=450)
    y = 1000 * x + 5000 * (site == "3") + 300 * rng.normal(size=450)
    source, results, folds = made(
        pd.DataFrame({"x": x, "y": y, "site": site}), "y", "site", task="regression"
    )
    remedy = only(remedies_of(source, results, folds), "3", "labels")
    assert remedy.score == "RMSE"
    assert remedy.before == pytest.approx(results.baseline["3"].ood_score.mean, rel=0.02)
    assert remedy.after < 600
    assert remedy.sentence.startswith(f"{remedy.action} bring site 3 from 5,")


def test_twenty_labels_bring_switzerland_to_nine_in_ten():
    remedies = remedies_of(*made(pd.read_csv(HEART), "disease", "hospital"))
    first = remedies[0]
    assert (first.environment, first.kind, first.significant) == ("Switzerland", "labels", True)
    twenty = next(gain for gain in first.curve if gain.n_labels == 20)
    assert twenty.accuracy is not None
    assert twenty.accuracy.after == pytest.approx(0.904, abs=0.03)
    assert not any(each.kind == "class shares" for each in remedies if each.label == "Switzerland")


def test_the_page_section_has_figure_and_table(label_shift):
    results = made_shifted("label", 3)[1]
    section = Remedies(replace(results, remedies=label_shift), "linear")
    assert Remedies.applies(section.results)
    assert not Remedies.applies(results)
    assert [block.kind for block in section.render()] == ["chart", "table"]
    table = section.table()
    assert table.header == ("environment", "remedy", "accuracy before", "after", "gain")
    assert [row[0] for row in table.rows][:2] == ["D", "D"]
    numbers = finite(section.to_dict())["remedies"]
    assert len(numbers) == len(label_shift)
    assert numbers[0]["significant"]
