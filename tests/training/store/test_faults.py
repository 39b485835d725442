"""Faults of the machine: a full disk, damaged pages and rows, a folder that cannot be written."""

import json
import os
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch

import envariant
from benchmarks import hostile
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import write_tensors
from envariant.studies import Store, Study, begin
from envariant.training import checkpoint
from envariant.training.history import HistoryRow
from envariant.training.store import Predictions, RunOutcome, writer
from envariant.training.store.reader import FILE
from envariant.training.store.records import record_of_job
from stored import RECORD

STUDY = Study(("colored-digits",), ("erm", "irm"), n_trials=2, replicas=2)


def rows(run, step):
    places = (("a", "train"), ("a", "validation"), ("t", "test"))
    return [HistoryRow(run, step, *place, "accuracy", 0.5 + k / 10) for k, place in enumerate(places)]


@pytest.fixture
def folder(tmp_path):
    """A store with a row in every table."""
    with begin(tmp_path / "s", STUDY) as store:
        store.begin(store.claim(), RECORD, "accuracy", True)
        values = Predictions("t", "test", 9, np.float32([0.1, 0.2]), np.float32([0, 1]))
        store.add(rows(1, 0), [RunOutcome(1, None, 1.0, 0.5, (values,))])
        store.add(rows(2, 0))
    return tmp_path / "s"


def read(folder):
    with Store(folder) as store:
        predicted = {key: (p.of, *p.logits, *p.targets) for key, p in store.predictions(1).items()}
        return (
            [frame.to_json() for frame in (store.listing(), store.history(), store.table())],
            predicted,
            record_of_job(store, 1),
            store.declaration(),
            store.fact("data"),
        )


def test_store_on_a_full_disk_leaves_no_file_and_is_created_later(tmp_path, monkeypatch):
    create = writer.create_tables

    def fail(connection):
        create(connection)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(writer, "create_tables", fail)
    with pytest.raises(EnvariantError, match=r"cannot be written \(database or disk is full\)") as raised:
        begin(tmp_path, STUDY)
    assert raised.value.retryable
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    monkeypatch.setattr(writer, "create_tables", create)
    with begin(tmp_path, STUDY) as store:
        assert store.counts()["planned"] == 8


@pytest.mark.parametrize("fill", ["zeros", "garbage"])
def test_every_damaged_page_is_noticed_or_without_effect(folder, fill):
    sound, whole = read(folder), (folder / FILE).read_bytes()
    page, messages = 4096, []
    for start in range(0, len(whole), page):
        content = bytes(page) if fill == "zeros" else np.random.default_rng(start).bytes(page)
        (folder / FILE).write_bytes(whole[:start] + content + whole[start + page :])
        try:
            result = read(folder)
        except EnvariantError as error:
            messages.append(str(error))
        else:
            assert result == sound
    assert len(messages) > 15
    assert all(m.startswith(f"{folder / FILE}: ") and "\n" not in m for m in messages)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column)
        for table, columns in {
            "facts": ("value", "checksum"),
            "runs": ("id", "state", "hyperparameters", "p_value", "replica", "test_set", "seconds", "error"),
            "test_environments": ("name", "position"),
            "jobs": ("record", "metric", "done", "higher_is_better"),
            "names": ("name", "id"),
            "history": (
                "run",
                "step",
                "environment",
                "role",
                "metric",
                "kind",
                "column",
                "value",
                "copy",
                "code",
            ),
            "predictions": ("run", "environment", "role", "rows", "targets", "logits"),
        }.items()
        for column in columns
    ],
)
def test_every_changed_value_is_noticed(folder, table, column):
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as connection:
        ((kind,),) = connection.execute(f'SELECT typeof("{column}") FROM {table} LIMIT 1')
        changed = {"integer": f'"{column}" + 100', "blob": "zeroblob(8)", "null": "'x'"}.get(
            kind, f'substr("{column}", 2)'
        )
        changed = f'"{column}" * 1.0000000001' if kind == "real" else changed
        changed = "upper(name)" if table == "names" and column == "name" else changed
        condition = "name = 'study'" if table == "facts" else "TRUE"
        connection.execute(f'UPDATE {table} SET "{column}" = {changed} WHERE {condition}')
    with pytest.raises(EnvariantError, match=rf"{FILE}: is damaged \("):
        read(folder)


def test_added_tables_and_triggers_are_noticed(folder):
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("CREATE TRIGGER t AFTER UPDATE ON runs BEGIN DELETE FROM history; END")
    with pytest.raises(EnvariantError, match=r"is damaged"):
        Store(folder)


def test_changed_tables_are_noticed(folder):
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("DROP INDEX runs_of_state")
    with pytest.raises(EnvariantError, match=r"is damaged \(tables were added or changed\)"):
        Store(folder)


@pytest.mark.parametrize("log", [False, True])
def test_store_in_a_folder_that_cannot_be_written_is_read(folder, monkeypatch, log):
    sound = read(folder)
    with Store(folder) as other:
        if log:
            other.set_fact("x", "y")
        else:
            other.close()
        before = {path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sqlite-shm"}
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        assert read(folder) == sound
        with (
            Store(folder) as store,
            pytest.raises(EnvariantError, match="readonly database; change its permissions"),
        ):
            store.set_fact("a", "b")
        assert {
            path: path.read_bytes() for path in folder.iterdir() if path.suffix != ".sqlite-shm"
        } == before


def test_failed_commit_leaves_a_usable_store(folder, monkeypatch):
    with Store(folder) as store:
        monkeypatch.setattr(
            store, "_seal", lambda: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O error"))
        )
        with pytest.raises(EnvariantError, match="disk I/O error"):
            store.set_fact("a", "b")
        monkeypatch.undo()
        assert store.fact("a") is None
        store.set_fact("a", "c")
    with Store(folder) as store:
        assert store.fact("a") == "c"


def test_runs_planned_by_two_processes_at_once_are_planned_once(tmp_path):
    with begin(tmp_path, STUDY) as one, Store(tmp_path) as other:
        more = Study(("colored-digits",), ("erm", "irm"), n_trials=3, replicas=2).runs()
        one.plan(more)
        other.plan(more)
        assert len(other.listing()) == 12


def test_damaged_checkpoint_is_named_and_its_replica_trained_again(tmp_path):
    first = envariant.train(
        "colored-digits", "erm", steps=4, replicas=2, execution="sequential", out=tmp_path
    )
    saved = tmp_path / "jobs" / "000001" / "replica-001.safetensors"
    whole = saved.read_bytes()
    saved.write_bytes(whole[:2000] + b"\1" + whole[2001:])
    with pytest.raises(EnvariantError, match=r"replica-001\.safetensors: is damaged"):
        envariant.TrainingResult.load(tmp_path)
    with pytest.warns(
        EnvariantWarning, match=r"replica-001\.safetensors: is damaged .* have to be trained again"
    ):
        again = envariant.train(
            "colored-digits", "erm", steps=4, replicas=2, execution="sequential", out=tmp_path
        )
    assert list(again.rows) == list(first.rows)
    states = {s.replicas: s.params for s in checkpoint.load(saved.parent)}
    assert all(
        (v == first.checkpoints[1].params[n]).all() for n, v in ((n, v[0]) for n, v in states[(1,)].items())
    )


def test_partial_files_of_a_killed_process_are_removed_when_a_finished_run_is_repeated(tmp_path):
    options = {"model": "linear", "steps": 2, "execution": "sequential", "out": tmp_path}
    envariant.train("colored-digits", "erm", **options)
    # No process has this number.
    part = tmp_path / "jobs" / "000001" / ".replica-000.json.99999999.1.partial"
    part.touch()
    envariant.train("colored-digits", "erm", **options)
    assert not part.exists()


@pytest.mark.parametrize(
    ("replicas", "tensors"),
    [
        ([], {"params/a": torch.zeros(0)}),
        ([1], {"params/a": torch.zeros(2)}),
        ([1], {"params/a": torch.zeros(())}),
        ([1], {"params/a": torch.zeros(1), "params/a/b": torch.zeros(1)}),
        ([1], {"params/a/b": torch.zeros(1), "params/a": torch.zeros(1)}),
        ([1], {"params": torch.zeros(1)}),
    ],
)
def test_checkpoint_of_a_stranger_is_validated(replicas, tensors, tmp_path):
    header = {"replicas": replicas, "step": 1, "measured": 1, "metrics": [], "failures": {}, "seconds": 1.0}
    write_tensors(tmp_path / "replica-001.safetensors", tensors, {"checkpoint": json.dumps(header)})
    with pytest.raises(EnvariantError, match=r"replica-001\.safetensors: is not a checkpoint"):
        checkpoint.load(tmp_path)


def test_folder_of_an_unreadable_store_is_one_line(tmp_path, monkeypatch):
    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.stat", denied)
    with pytest.raises(EnvariantError, match="cannot be opened"):
        Store(tmp_path)


def test_copy_of_a_store_is_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert read(tmp_path / "copy") == read(folder)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE test_environments SET test_set = 99", "a test environment belongs to an unknown set"),
        ("UPDATE names SET id = id + 1000", "unknown environment, role, metric, kind or column"),
    ],
)
def test_references_of_a_stranger_to_nothing_are_noticed(statement, words, folder):
    # The checksums of the rows are right.
    hostile.sql(statement, file=FILE)(folder)
    with pytest.raises(EnvariantError, match=words):
        Store(folder)
