"""Ordered environments: models are trained on the past and tested on the next environment."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from envariant.comparison import compare, protocol
from envariant.comparison.baselines import baseline_scores
from envariant.comparison.data_check import check_data
from envariant.comparison.results import ORDINARY
from envariant.core.metrics import METRICS
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read
from envariant.studies import Store
from envariant.studies.executors import local
from envariant.studies.study import begin

YEARS = tuple(map(str, range(2015, 2020)))
FEW = {"algorithms": (), "n_trials": 1, "replicas": 1, "steps": 20, "min_rows": 20}


def drifting(years=YEARS, rows=60, seed=0):
    """Return a table in which the slope of `b` gets smaller every year."""
    rng, parts = np.random.default_rng(seed), []
    for k, year in enumerate(years):
        x = rng.normal(size=(rows, 2))
        y = x @ [2.0, 2.0 - 1.0 * k] + rng.logistic(size=rows) > 0
        kind = rng.choice(["p", "q"], rows)
        parts.append(pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "kind": kind, "y": y, "year": year}))
    return pd.concat(parts, ignore_index=True)


def changed_after(frame, year):
    """Return the table with other rows after a year: other values and categories, missing values, more rows."""
    later = frame[frame["year"] > year]
    other = later.assign(a=1e6 * later["b"], b=np.nan, kind="a new kind", y=~later["y"])
    return pd.concat([frame[frame["year"] <= year], other, other], ignore_index=True)


def table_of(frame, **options):
    return read(frame, "y", "year", min_rows=20, ordered=True, **options)


def test_folds_train_on_earlier_environments():
    table = table_of(drifting())
    assert protocol.make_folds(table) == (("2017",), ("2018",), ("2019",), ())
    assert protocol.make_folds(table_of(drifting(YEARS[:3]))) == (("2016",), ("2017",), ())
    assert protocol.untested_environments(table, protocol.make_folds(table)) == ("2015", "2016")
    many = protocol.make_folds(table_of(drifting(tuple(map(str, range(1990, 2010))))))
    assert len(many) == 13
    assert many[0] == ("1998",)


def test_future_rows_change_nothing_that_a_model_sees():
    frame = drifting()
    tables = [protocol.subsample(table_of(f), 40, 3) for f in (frame, changed_after(frame, "2017"))]
    parts = [TableSource(t).with_test_environments(("2017",)).sample(0) for t in tables]
    assert parts[0].names == parts[1].names == ("2015", "2016", "2017")
    assert parts[0].fingerprint() == parts[1].fingerprint()
    folds = protocol.make_folds(tables[0])
    assert protocol.run_settings(tables[0], {}, folds[0]) == protocol.run_settings(tables[1], {}, folds[0])
    constants = [baseline_scores(t, TableSource(t).task, METRICS["accuracy"], folds) for t in tables]
    assert constants[0]["2017"] == constants[1]["2017"]
    # The past does change what models see.
    other = changed_after(frame, "2015")
    sample = TableSource(table_of(other)).with_test_environments(("2017",)).sample(0)
    assert sample.fingerprint() != parts[0].fingerprint()


def predictions(folder, year):
    """Return the out-of-domain predictions in a year, by method."""
    with Store(folder) as store:
        runs = store.table()
        runs = runs[[each == (year,) for each in runs["test_environments"]]]
        chosen = runs.groupby("algorithm")["run"].first()
        return {m: store.predictions(run)[year, "test"].logits for m, run in chosen.items()}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordered")
    frame = drifting(YEARS[:4])
    return compare(frame, target="y", environment="year", ordered=True, out=folder, **FEW)


@pytest.mark.filterwarnings("ignore")
def test_future_rows_change_no_bit_of_an_earlier_prediction(compared, tmp_path):
    source = TableSource(table_of(changed_after(drifting(YEARS[:4]), "2017")))
    plan = protocol.plan(source, "changed", ORDINARY, None, 1, 1, 0, {"steps": 20})
    with begin(tmp_path, replace(plan.study, test_environments=(("2017",),))):
        pass
    local.sweep(tmp_path, replace(plan.study, test_environments=(("2017",),)), execution="sequential")
    before, after = predictions(compared.folder, "2017"), predictions(tmp_path, "2017")
    assert set(before) == {"linear", "boosted-trees", "erm"}
    for method, logits in before.items():
        assert np.array_equal(logits, after[method]), method


def test_every_score_is_that_of_the_next_environment(compared):
    results = compared.results
    assert results.environments == ("2017", "2018")
    assert "for the next year" in compared.recommendation.headline
    assert all(cell.id_score.count == 1 for cell in results.baseline.values())
    assert results.missing[0].startswith("2015, 2016: not tested")
    page = compared.page.read_text(encoding="utf-8")
    assert "How does the score change over time?" in page
    assert "Not tested: 2015, 2016." in page
    assert list(compared.to_dict()["over_time"]["next"]) == ["2017", "2018"]
    # The causes compare with earlier rows only.
    assert all(cause.elsewhere == "before" for cause in results.causes.values())


def test_order_in_time_is_suggested_and_not_applied_silently():
    kinds = [f.kind for f in check_data(read(drifting(), "y", "year", min_rows=20))]
    assert "ordered environments" in kinds
    assert "ordered environments" not in [f.kind for f in check_data(table_of(drifting()))]
