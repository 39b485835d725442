"""What a comparison runs: times, rows, places, stages, and what is refused before anything runs."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from envariant.studies.baselines import boosted_trees

from envariant.comparison import protocol
from envariant.core.errors import EnvariantError
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.studies import Store, Study
from envariant.training.store import Outcome


def table(sizes=(200, 100, 80), rare=0.5, task=None):
    rng = np.random.default_rng(0)
    site = np.repeat([f"s{k:02}" for k in range(len(sizes))], sizes)
    x = rng.normal(size=len(site))
    y = x if task == "regression" else np.where(rng.random(len(site)) < rare, "ill", "well")
    return tables.read(pd.DataFrame({"x": x, "y": y, "site": site}), "y", "site", min_rows=10, task=task)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (30, 30), ("45", 45), (" 2M ", 120)]
)
def test_times_are_read_as_people_write_them(text, seconds):
    assert protocol.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "-5m", "0", "inf", "nan", "10 minutes"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(EnvariantError, match="budget: expected a time such as 90s, 10m or 1.5h"):
        protocol.seconds_of(text)


def test_rows_are_drawn_of_each_environment_and_the_account_says_so():
    whole = table()
    part = protocol.thinned(whole, 90, 0)
    assert np.bincount(part.environment.values).tolist() == [90, 90, 80]
    assert part.preprocessing_log[-1].what == "methods are compared on 260 of 380 rows, at most 90 of a place"
    # Rows stay whole: x and its target belong together still.
    pairs = set(zip(whole.columns[0].values.tolist(), whole.target.values.tolist(), strict=True))
    assert set(zip(part.columns[0].values.tolist(), part.target.values.tolist(), strict=True)) <= pairs
    same = protocol.thinned(whole, 90, 0)
    np.testing.assert_array_equal(part.columns[0].values, same.columns[0].values)
    other = protocol.thinned(whole, 90, 1)
    assert not np.array_equal(part.columns[0].values, other.columns[0].values)
    assert protocol.thinned(whole, None, 0) is whole is protocol.thinned(whole, 200, 0)
    with pytest.raises(EnvariantError, match="rows: must be at least 5; got 0"):
        protocol.thinned(whole, 0, 0)


def test_many_places_are_held_out_several_at_a_time_each_once():
    few = protocol.places_at_a_time(table())
    assert few == (("s00",), ("s01",), ("s02",))
    many = protocol.places_at_a_time(table(sizes=tuple(range(20, 70, 2))))
    assert len(many) == 10
    assert sorted(name for fold in many for name in fold) == [f"s{k:02}" for k in range(25)]
    # A place by itself among pairs would be taken for the only one that is shown.
    assert min(map(len, many)) >= 2
    assert min(map(len, protocol.places_at_a_time(table(sizes=(20,) * 13)))) >= 2


def test_the_usual_metric_suits_the_target():
    def usual(found, name=None):
        return protocol.usual_metric(name, found, TableSource(found)).name

    assert usual(table()) == "accuracy"
    assert usual(table(rare=0.1)) == "AUROC"
    assert usual(table(task="regression")) == "RMSE"
    assert usual(table(task="regression"), "r2") == "R²"
    assert usual(table(), "auroc") == "AUROC"
    with pytest.raises(EnvariantError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        usual(table(), "acuracy")


def test_algorithms_that_need_more_places_than_are_left_are_named():
    places = (("a",), ("b",))
    assert protocol.fitting(("erm", boosted_trees.NAME, "irm"), places, 2) == (
        ("erm", boosted_trees.NAME),
        ("irm: needs 2 environments to train on; where one is held out, 1 is left",),
    )
    assert protocol.fitting(("erm", "irm"), places, 3) == (("erm", "irm"), ())
    with pytest.raises(EnvariantError, match="unknown algorithm 'irmm'; did you mean 'irm'"):
        protocol.fitting(("irmm",), places, 3)


def test_the_same_table_goes_on_and_another_is_refused(tmp_path):
    protocol.keep(table(), tmp_path / "table")
    protocol.keep(table(), tmp_path / "table")
    with pytest.raises(EnvariantError, match="holds a comparison of another table or other columns"):
        protocol.keep(table(sizes=(200, 100, 81)), tmp_path / "table")
    with pytest.raises(EnvariantError, match="holds a comparison of another table or other columns"):
        protocol.keep(table(task="regression"), tmp_path / "table")


class Runner:
    """Marks what is planned as done, as if it took some time, until the time is over."""

    def __init__(self, folder, seconds):
        self.folder, self.seconds, self.left = folder, seconds, []

    def __call__(self, left, until):
        self.left.append(left)
        with Store(self.folder) as store:
            while (batch := store.claim(among=1_000)) is not None:
                if until is not None and time.monotonic() > until:
                    store.finish(batch, "out of time")
                    return
                time.sleep(self.seconds)
                store.add((), [Outcome(stored.id, None, 0.0, None) for stored in store.members(batch)])
                store.finish(batch)


STUDY = Study(("colored-digits",), ("vrex",), n_trials=8, replicas=1)


def test_without_an_end_to_the_time_all_draws_are_one_stage(tmp_path):
    run = Runner(tmp_path, 0.0)
    assert protocol.staged(tmp_path, STUDY, None, run) == 8
    assert run.left == [8]


def test_with_an_end_draws_are_added_as_long_as_it_lasts(tmp_path):
    run = Runner(tmp_path / "enough", 0.01)
    assert protocol.staged(tmp_path / "enough", STUDY, time.monotonic() + 60, run) == 8
    assert run.left == [1, 1, 2, 4]
    # 0.5 s a run: after two draws the next two would end after the time.
    short = Runner(tmp_path / "short", 0.5)
    assert protocol.staged(tmp_path / "short", STUDY, time.monotonic() + 1.9, short) == 2
    assert short.left == [1, 1]


def test_a_first_stage_that_does_not_come_to_its_end_is_all_there_is(tmp_path):
    study = replace(STUDY, replicas=5)
    run = Runner(tmp_path, 0.3)
    assert protocol.staged(tmp_path, study, time.monotonic() + 0.7, run) == 1
    with Store(tmp_path) as store:
        counts = store.counts()
    assert counts["done"] >= 1
    assert counts["planned"] >= 1
