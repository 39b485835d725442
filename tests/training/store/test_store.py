"""The store: planned, claimed, measured and forgotten runs; two writers; a full disk and a damaged file."""

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

import processes
from envariant.core.errors import EnvariantError
from envariant.studies import Store, Study, begin
from envariant.studies.selection import Invariance, TrainingValidation, select
from envariant.studies.study import stored_study
from envariant.training.history import HistoryRow
from envariant.training.store import Predictions, RunOutcome
from envariant.training.store.reader import FILE
from envariant.training.store.records import record_of_job, record_of_run
from envariant.training.store.writer import INSERT_VALUE
from stored import RECORD

STUDY = Study(("colored-digits",), ("erm", "irm"), n_trials=2, replicas=2)


def rows(run, step, value=0.5):
    return [
        HistoryRow(run, step, environment, role, "accuracy", value + k / 10)
        for k, (environment, role) in enumerate((("a", "train"), ("a", "validation"), ("t", "test")))
    ]


def test_runs_are_planned_once_and_more_may_be_added(tmp_path):
    with begin(tmp_path, STUDY) as store:
        assert store.counts() == {"planned": 8, "running": 0, "done": 0, "failed": 0}
        before = store.listing()
    more = Study(("colored-digits",), ("erm", "irm", "vrex"), n_trials=3, replicas=2)
    with begin(tmp_path, more) as store:
        after = store.listing()
        assert len(after) == 18
        assert after.head(8).equals(before)
        assert stored_study(store) == more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "runs made with seed 0, not 1"),
        ({"holdout_fraction": 0.3}, "runs made with holdout_fraction 0.2, not 0.3"),
        ({"settings": {"steps": 3}}, "runs made with settings "),
    ],
)
def test_study_with_other_settings_is_rejected(tmp_path, changes, message):
    begin(tmp_path, STUDY).close()
    other = Study(STUDY.data, STUDY.algorithms, n_trials=2, replicas=2, **changes)
    with pytest.raises(EnvariantError, match=message):
        begin(tmp_path, other)


def test_job_holds_runs_of_one_algorithm_and_split_and_is_claimed_once(tmp_path):
    with begin(tmp_path, STUDY) as store:
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


def test_measured_numbers_are_read_as_written(tmp_path):
    with begin(tmp_path, STUDY) as store:
        batch = store.claim()
        assert record_of_job(store, batch) is None
        store.begin(batch, RECORD, "accuracy", True)
        assert record_of_job(store, batch) == record_of_run(store, 1) == RECORD
        store.add([*rows(1, 0), *rows(1, 5, 0.7)], [RunOutcome(1, None, 1.5, 0.25)])
        store.add(rows(2, 0, float("nan")), [RunOutcome(2, "the loss became NaN", 0.5, None)])
        history = store.history([1])
        assert list(history["value"]) == [r.value for r in [*rows(1, 0), *rows(1, 5, 0.7)]]
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


def test_measurements_after_the_last_checkpoint_are_discarded(tmp_path):
    with begin(tmp_path, STUDY) as store:
        batch = store.claim()
        store.begin(batch, RECORD, "accuracy", True)
        store.add([*rows(1, 0), *rows(1, 5)])
        store.add([*rows(2, 0), *rows(2, 5)], [RunOutcome(2, None, 1.0, 0.5)])
        store.discard_after(batch, {1: 0})
        assert set(store.history([1])["step"]) == {0}
        assert set(store.history([2])["step"]) == {0, 5}


def test_runs_are_planned_again_or_removed_but_not_while_running(tmp_path):
    with begin(tmp_path, STUDY) as store:
        batch = store.claim()
        store.begin(batch, RECORD, "accuracy", True)
        with pytest.raises(EnvariantError, match="run 1: is running"):
            store.forget([1], planned=True)
        store.add(rows(1, 0), [RunOutcome(1, "it broke", 1.0, None)])
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
            store.add(rows(first, step), [RunOutcome(first, None, 1.0, 0.5)] if step == 29 else [])


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    with begin(tmp_path, STUDY) as store:
        store.begin(store.claim(), RECORD, "accuracy", True)
        writers = [processes.start(_write, tmp_path, run) for run in (1, 2)]
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0, 0]
        for run in (1, 2):
            assert len(store.history([run])) == 90
        assert store.counts()["done"] == 2


def test_full_disk_raises_one_line_and_keeps_finished_runs(tmp_path):
    with begin(tmp_path, STUDY) as store:
        store.begin(store.claim(), RECORD, "accuracy", True)
        store.add(rows(1, 0), [RunOutcome(1, None, 1.0, 0.5)])
        # SQLite's own limit on the file's size: it answers as it does when there is no space left.
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        many = [row for step in range(5000) for row in rows(2, step)]
        with pytest.raises(EnvariantError, match="database or disk is full; finished runs are not lost"):
            store.add(many)
        assert store.counts()["done"] == 1
    with Store(tmp_path) as again:
        assert len(again.history([1])) == 3


@pytest.mark.parametrize(
    "damage",
    [b"not a database at all", b"SQLite format 3\x00" + b"\xff" * 4000],
)
def test_damaged_file_is_one_line(tmp_path, damage):
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(EnvariantError) as error:
        Store(tmp_path)
    assert str(tmp_path / FILE) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_study_and_another_schema_are_rejected(tmp_path):
    with pytest.raises(EnvariantError, match="holds no runs"):
        Store(tmp_path)
    begin(tmp_path / "s", STUDY).close()
    with sqlite3.connect(tmp_path / "s" / FILE) as connection:
        connection.execute("UPDATE facts SET value = '0' WHERE name = 'schema'")
    with pytest.raises(EnvariantError, match="has schema 0, this version reads"):
        Store(tmp_path / "s")
    with pytest.raises(EnvariantError, match="cannot be written"):
        begin(tmp_path / "s" / FILE / "inside", STUDY)


def test_number_of_queries_does_not_depend_on_the_number_of_runs(tmp_path):
    counts = []
    for runs in (20, 200):
        with many_runs(tmp_path / str(runs), runs) as store:
            queries = []
            store._connection.set_trace_callback(queries.append)
            assert len(store.listing()) == runs
            table = store.table()
            counts.append(len(queries))
            for rule in (TrainingValidation(), Invariance()):
                assert len(select(table, rule, pooled=True)) == 3
    assert counts[0] == counts[1] < 15


@pytest.mark.verify
def test_hundred_thousand_runs_are_listed_within_a_second(tmp_path):
    """Five million measurements in one file, a table of a hundred thousand runs."""
    with many_runs(tmp_path, 100_000) as store:
        started = time.perf_counter()
        assert len(store.listing()) == 100_000
        listed = time.perf_counter() - started
        started = time.perf_counter()
        table = store.table()
        for rule in (TrainingValidation(), Invariance()):
            assert len(select(table, rule, pooled=True)) == 3
        selected = time.perf_counter() - started
    print(f"listed in {listed:.2f} s, read and selected from in {selected:.2f} s")
    assert listed < 1.0
    assert selected < 5.0


def many_runs(folder, count):
    """Return a store of so many runs with 50 measured numbers each."""
    store = begin(folder, Study(("colored-digits",), ("erm",)))
    connection = store._connection
    connection.execute("BEGIN")
    connection.execute("DELETE FROM runs")
    connection.execute("DELETE FROM names")
    names = ["accuracy", "loss", "train", "validation", "test", "a", "b", "t", "full", ""]
    connection.executemany("INSERT INTO names VALUES (?, ?, NULL)", list(enumerate(names)))
    connection.execute("INSERT INTO jobs VALUES (1, NULL, 'accuracy', 1, 1, NULL)")
    connection.executemany(
        "INSERT INTO runs VALUES (?, ?, 'x', 'd', 1, ?, ?, ?, '{}', '0.1', 'done', NULL, 1.0, 0.5, 1, NULL)",
        ((i, str(i), f"algorithm {i % 7}", i // 21, i // 7 % 3) for i in range(count)),
    )
    places = ((5, 2), (6, 2), (5, 3), (6, 3), (7, 4))
    connection.executemany(
        INSERT_VALUE,
        (
            (i, step, place, role, metric, 8, 9, (i * 31 + step * 7 + place) % 1000 / 1000)
            for i in range(count)
            for step in range(5)
            for place, role in places
            for metric in (0, 1)
        ),
    )
    store._seal()
    connection.execute("COMMIT")
    return store


def test_store_adds_no_other_files_to_its_folder(tmp_path):
    store = begin(tmp_path, STUDY)
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", FILE]


def test_history_keeps_every_bit_and_every_character(tmp_path):
    kept = [
        HistoryRow(1, 5, "a, b", "train", "loss", 0.1 + 0.2),
        HistoryRow(1, 7, "ü", "test", "x", 1e-300),
        HistoryRow(1, 7, "ü", "test", "x", 0.25, "shuffled", 'column "1"'),
    ]
    with begin(tmp_path, STUDY) as store:
        store.add(kept)
        assert store.history_rows([1]) == kept
        (nan,) = [HistoryRow(2, 0, "a", "train", "loss", float("nan"))]
        store.add([nan])
        assert np.isnan(store.history_rows([2])[0].value)


def test_interrupted_write_leaves_all_of_a_batch_or_nothing(tmp_path):
    def broken():
        yield HistoryRow(1, 0, "a", "train", "loss", 0.5)
        raise RuntimeError("interrupted")

    with begin(tmp_path, STUDY) as store:
        with pytest.raises(RuntimeError):
            store.add(broken())
        assert store.history([1]).empty
        # Names of the failed batch are not remembered.
        store.add([HistoryRow(1, 0, "a", "train", "loss", 0.5)])
        assert len(store.history([1])) == 1


def test_predictions_are_read_as_written(tmp_path):
    binary = Predictions("a", "validation", 9, np.float32([0.1, 0.2]), np.float32([0, 1]))
    multiclass = Predictions("t", "test", 9, np.float32([[0.1, 0.2, 0.3]]), np.float32([2]))
    with begin(tmp_path, STUDY) as store:
        store.add([], [RunOutcome(1, None, 1.0, None, (binary, multiclass))])
        stored = store.predictions(1)
    assert set(stored) == {("a", "validation"), ("t", "test")}
    for written in (binary, multiclass):
        read = stored[written.environment, written.role]
        np.testing.assert_array_equal(read.logits, written.logits)
        np.testing.assert_array_equal(read.targets, written.targets)
        assert read.of == 9


def test_moved_folder_is_the_same_store(tmp_path):
    begin(tmp_path / "old", STUDY).close()
    (tmp_path / "old").rename(tmp_path / "new")
    with begin(tmp_path / "new", replace(STUDY, replicas=3)) as store:
        assert store.counts()["planned"] == 12
    with closing(Store(tmp_path / "new")) as store:
        assert store.declaration()["replicas"] == 3
