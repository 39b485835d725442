"""Measurements besides training: another metric, permutation importance of columns, stored predictions."""

import numpy as np
import pandas as pd
import pytest

from envariant.core.errors import EnvariantError
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.studies import Store, Study, begin, sweep
from envariant.studies.selection import Invariance, select
from envariant.training.history import REPLACED, SHUFFLED, SUBSAMPLE

SITES = ("north", "south", "west")


def table(rows=300, seed=0):
    """Return a table where 'sign' predicts the target, 'noise' does not, and 'clock' reverses at one site."""
    rng = np.random.default_rng(seed)
    parts = []
    for site, reversed_ in zip(SITES, (False, False, True), strict=True):
        sick = rng.random(rows) < 0.5
        clock = sick ^ (rng.random(rows) < 0.05) ^ reversed_
        parts.append(
            pd.DataFrame(
                {
                    "sign": sick + 0.7 * rng.normal(size=rows),
                    "clock": np.where(clock, "late", "early"),
                    "noise": rng.normal(size=rows),
                    "sick": sick,
                    "site": site,
                }
            )
        )
    return tables.read(pd.concat(parts), "sick", "site")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measures")
    table().write(folder / "table")
    study = Study(
        (f"table({str(folder / 'table')!r})",),
        ("erm", "boosted-trees"),
        n_trials=2,
        replicas=2,
        test_environments=(("west",), ("north",)),
        metric="AUROC",
        store_predictions=True,
        settings={"steps": 60, "evaluate_every": 60},
    )
    begin(folder / "study", study).close()
    sweep(folder / "study", execution="stacked")
    with Store(folder / "study") as store:
        yield store


def test_runs_are_compared_in_the_requested_metric(swept):
    table = swept.table()
    assert set(table["metric"]) == {"AUROC"}
    assert set(table["state"]) == {"done"}
    last = table[table["step"] > 0]
    assert last["validation"].between(0, 1).all()
    # Boosted trees have one trial, because nothing of them is searched.
    assert len(table[table["algorithm"] == "boosted-trees"]["run"].unique()) == 2 * 2


def test_importance_of_a_column_is_the_score_lost_without_it(swept):
    history = swept.history()
    listing = swept.listing()
    erm = listing[(listing["algorithm"] == "erm") & listing["test_environments"].map(("west",).__eq__)]["id"]
    own = history[history["run"].isin(erm) & history["kind"].isin([SUBSAMPLE, SHUFFLED, REPLACED])]
    own = own.pivot_table(index=["run", "environment", "role"], columns=["kind", "column"], values="value")
    inside = own.xs("validation", level="role")
    assert set(inside.index.get_level_values("environment")) == {"north", "south"}
    drop = inside.rsub(inside[SUBSAMPLE, ""], axis=0)
    assert (drop[SHUFFLED, "clock"] > 0.1).all()
    assert (drop[SHUFFLED, "noise"].abs() < 0.05).all()
    # Where the clock is reversed, a model scores better with values from the other sites.
    west = own.xs("test", level="role")
    assert (west[REPLACED, "clock"] > west[SUBSAMPLE, ""] + 0.1).all()
    assert (west[REPLACED, "sign"] < west[SUBSAMPLE, ""]).all()
    # Values are replaced in test environments only.
    assert inside[REPLACED].isna().all(axis=None)


def test_predictions_are_stored_for_the_same_rows_in_every_run(swept):
    listing = swept.listing()
    runs = listing[listing["test_environments"].map(("west",).__eq__)]["id"].tolist()
    west = ("west", "test")
    stored = [swept.predictions(run) for run in runs]
    assert all(set(each) == {west, ("north", "validation"), ("south", "validation")} for each in stored)
    sample = TableSource(table(), "table").sample(0)["west"]
    for each in stored:
        np.testing.assert_array_equal(each[west].targets, sample.targets.numpy())
        assert each[west].of == len(sample) == len(each[west].logits)
    assert not np.array_equal(stored[0][west].logits, stored[-1][west].logits)


def test_invariance_selection_covers_every_split(swept):
    selected = select(swept.table(), Invariance(), pooled=True)
    assert {each.test_environments for each in selected} == {("west",), ("north",)}


def test_another_metric_and_one_that_does_not_apply_are_rejected(tmp_path):
    with pytest.raises(EnvariantError, match="study: unknown metric 'auroc'"):
        Study(("colored-digits",), ("erm",), metric="auroc")
    study = Study(("colored-digits",), ("erm",), metric="RMSE", settings={"steps": 2})
    with pytest.raises(EnvariantError, match="metric 'RMSE' does not apply to binary"):
        begin(tmp_path, study)
    begin(tmp_path, Study(("colored-digits",), ("erm",), metric="log loss", settings={"steps": 2})).close()
    with pytest.raises(EnvariantError, match="holds runs made with metric 'log loss', not 'AUROC'"):
        begin(tmp_path, Study(("colored-digits",), ("erm",), metric="AUROC", settings={"steps": 2}))
