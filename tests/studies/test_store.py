"""The store: what is planned, claimed, measured and forgotten; two writers; what a broken disk does."""

import json
import multiprocessing
import sqlite3
import time

import pytest

from envariant.core.errors import EnvariantError
from envariant.studies import Store, Study
from envariant.studies.selection import Invariance, TrainingValidation, select
from envariant.training.history import HistoryRow
from envariant.training.store import FILE, Facts, Outcome

STUDY = Study(("colored-digits",), ("erm", "irm"), n_trials=2, replicas=2)
FACTS = Facts({"mode": "sequential"}, "accuracy", True, {"a": "train", "t": "test"}, {"versions": {}})


def rows(run, step, value=0.5):
    return [
        HistoryRow(run, step, place, split, "accuracy", value + k / 10)
        for k, (place, split) in enumerate((("a", "train"), ("a (held out)", "validation"), ("t", "test")))
    ]


def test_runs_are_planned_once_and_more_may_be_added(tmp_path):
    with Store.begin(tmp_path, STUDY) as store:
        assert store.counts() == {"planned": 8, "running": 0, "done": 0, "failed": 0}
        before = store.listing()
    more = Study(("colored-digits",), ("erm", "irm", "vrex"), n_trials=3, replicas=2)
    with Store.begin(tmp_path, more) as store:
        after = store.listing()
        assert len(after) == 18
        assert after.head(8).equals(before)
        assert store.study == more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "with other hyperparameters; a study keeps its seed"),
        ({"holdout_fraction": 0.3}, "runs made with holdout_fraction 0.2, not 0.3"),
        ({"settings": {"steps": 3}}, "runs made with settings "),
    ],
)
def test_what_would_mix_other_runs_in_is_refused(tmp_path, changes, message):
    Store.begin(tmp_path, STUDY).close()
    other = Study(STUDY.data, STUDY.algorithms, n_trials=2, replicas=2, **changes)
    with pytest.raises(EnvariantError, match=message):
        Store.begin(tmp_path, other)


def test_a_batch_is_of_one_algorithm_and_one_place_and_is_claimed_once(tmp_path):
    with Store.begin(tmp_path, STUDY) as store:
        first, second = store.claim(), store.claim(among=2)
        assert {s.run.algorithm for s in store.members(first)} == {"erm"}
        assert [s.run.algorithm for s in store.members(second)] == ["irm"] * 2
        third = store.claim()
        assert len(store.members(third)) == 2
        assert store.claim() is None
        assert store.unfinished() == (first, second, third)
        store.finish(second, "it broke")
        assert store.counts() == {"planned": 0, "running": 6, "done": 0, "failed": 2}
        assert set(store.listing()["error"].dropna()) == {"it broke"}


def test_what_is_measured_is_read_as_it_was_written(tmp_path):
    with Store.begin(tmp_path, STUDY) as store:
        batch = store.claim()
        assert store.facts(batch) is None
        store.under_way(batch, FACTS)
        assert store.facts(batch) == FACTS
        store.add([*rows(1, 0), *rows(1, 5, 0.7)], [Outcome(1, None, 1.5, 0.25)])
        store.add(rows(2, 0, float("nan")), [Outcome(2, "the loss became NaN", 0.5, None)])
        found = store.history([1])
        assert list(found["value"]) == [r.value for r in [*rows(1, 0), *rows(1, 5, 0.7)]]
        table = store.table().set_index(["run", "step"])
        line = table.loc[(1, 5)]
        assert (line["validation"], line["test"], line["p_value"]) == (
            0.7999999999999999,
            0.8999999999999999,
            0.25,
        )
        assert json.loads(line["tests"]) == {"t": pytest.approx(0.9, rel=1e-14)}
        assert store.listing().set_index("id").loc[2, "error"] == "the loss became NaN"
        assert store.counts()["done"] == store.counts()["failed"] == 1


def test_of_what_is_not_done_only_what_a_checkpoint_reached_is_kept(tmp_path):
    with Store.begin(tmp_path, STUDY) as store:
        batch = store.claim()
        store.under_way(batch, FACTS)
        store.add([*rows(1, 0), *rows(1, 5)])
        store.add([*rows(2, 0), *rows(2, 5)], [Outcome(2, None, 1.0, 0.5)])
        store.keep(batch, {1: 0})
        assert set(store.history([1])["step"]) == {0}
        assert set(store.history([2])["step"]) == {0, 5}


def test_runs_are_planned_anew_or_removed_but_not_while_they_train(tmp_path):
    with Store.begin(tmp_path, STUDY) as store:
        batch = store.claim()
        store.under_way(batch, FACTS)
        with pytest.raises(EnvariantError, match="run 1: is training"):
            store.forget([1], planned=True)
        store.add(rows(1, 0), [Outcome(1, "it broke", 1.0, None)])
        store.finish(batch, "stopped")
        store.forget([1], planned=True)
        assert store.history([1]).empty
        assert store.listing().set_index("id").loc[1, "state"] == "planned"
        store.forget([2], planned=False)
        assert 2 not in set(store.listing()["id"])
        with pytest.raises(EnvariantError, match="holds no run 99"):
            store.forget([99], planned=True)


def _write(folder, first):
    with Store(folder) as store:
        for step in range(30):
            store.add(rows(first, step), [Outcome(first, None, 1.0, 0.5)] if step == 29 else [])


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    with Store.begin(tmp_path, STUDY) as store:
        store.under_way(store.claim(), FACTS)
        context = multiprocessing.get_context("spawn")
        writers = [context.Process(target=_write, args=(tmp_path, run)) for run in (1, 2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0, 0]
        for run in (1, 2):
            assert len(store.history([run])) == 90
        assert store.counts()["done"] == 2


def test_a_full_disk_is_one_clear_line_and_loses_no_finished_run(tmp_path):
    with Store.begin(tmp_path, STUDY) as store:
        store.under_way(store.claim(), FACTS)
        store.add(rows(1, 0), [Outcome(1, None, 1.0, 0.5)])
        # SQLite's own limit on the file's size: it answers as it does when there is no space left.
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        many = [row for step in range(5000) for row in rows(2, step)]
        with pytest.raises(EnvariantError, match="database or disk is full; no finished run is lost"):
            store.add(many)
        assert store.counts()["done"] == 1
    with Store(tmp_path) as again:
        assert len(again.history([1])) == 3


@pytest.mark.parametrize(
    "damage",
    [b"not a database at all", b"SQLite format 3\x00" + b"\xff" * 4000],
)
def test_a_corrupt_file_is_one_clear_line(tmp_path, damage):
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(EnvariantError) as error:
        Store(tmp_path)
    assert str(tmp_path / FILE) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_study_and_another_version_are_refused(tmp_path):
    with pytest.raises(EnvariantError, match="holds no study; `envariant sweep"):
        Store(tmp_path)
    Store.begin(tmp_path / "s", STUDY).close()
    with sqlite3.connect(tmp_path / "s" / FILE) as connection:
        connection.execute("UPDATE facts SET value = '0' WHERE name = 'schema'")
    with pytest.raises(EnvariantError, match="is of another version"):
        Store(tmp_path / "s")
    with pytest.raises(EnvariantError, match="cannot hold a study"):
        Store.begin(tmp_path / "s" / FILE / "inside", STUDY)


def test_thousands_of_runs_are_listed_and_selected_from_quickly(tmp_path):
    """A tenth of what `make verify` does: 10,000 runs of 50 rows."""
    listed, selected = timed(tmp_path, 10_000)
    assert listed < 1.0
    assert selected < 5.0


@pytest.mark.verify
def test_a_hundred_thousand_runs_are_listed_and_selected_from_quickly(tmp_path):
    """Five million measurements in one file, a table of a hundred thousand runs."""
    listed, selected = timed(tmp_path, 100_000)
    print(f"listed in {listed:.2f} s, read and selected from in {selected:.2f} s")
    assert listed < 1.0
    assert selected < 5.0


def timed(folder, count):
    """Seconds to list and to select from a store of so many runs of 50 rows."""
    with Store.begin(folder, Study(("colored-digits",), ("erm",))) as store:
        connection = store._connection
        connection.execute("BEGIN")
        connection.execute("DELETE FROM runs")
        store.__dict__["_names"] = {}
        names = ["accuracy", "loss", "train", "validation", "test", "a", "b", "av", "bv", "t"]
        connection.executemany("INSERT INTO names VALUES (?, ?)", list(enumerate(names)))
        connection.execute(
            "INSERT INTO batches VALUES (1, '{}', 'accuracy', 1, '{}', '{}', 1)",
        )
        connection.executemany(
            "INSERT INTO runs VALUES (?, ?, 'd', '[\"t\"]', ?, ?, ?, '{}', 0.1, 'done', NULL, 1.0, 0.5, 1)",
            ((i, str(i), f"algorithm {i % 7}", i // 21, i // 7 % 3) for i in range(count)),
        )
        places = ((5, 2), (6, 2), (7, 3), (8, 3), (9, 4))
        connection.executemany(
            "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)",
            (
                (i, step, place, split, metric, (i * 31 + step * 7 + place) % 1000 / 1000)
                for i in range(count)
                for step in range(5)
                for place, split in places
                for metric in (0, 1)
            ),
        )
        connection.execute("COMMIT")
        started = time.perf_counter()
        assert len(store.listing()) == count
        listed = time.perf_counter() - started
        started = time.perf_counter()
        table = store.table()
        for way in (TrainingValidation(), Invariance()):
            assert len(select(table, way, pooled=True)) == 3
        return listed, time.perf_counter() - started


def test_the_folder_of_a_store_is_only_opened_where_it_is(tmp_path):
    store = Store.begin(tmp_path, STUDY)
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", FILE]
