"""Sweeps on small digits: the runs that `train` makes, killed and gone on with, by one process or several."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from filelock import FileLock

import envariant
from envariant.core.errors import EnvariantError
from envariant.data.validation_split import SUFFIX
from envariant.studies import Store, Study, progress, sweep
from envariant.studies.estimate import estimate
from envariant.studies.executors import local
from envariant.studies.selection import TrainingValidation, select
from envariant.studies.significance import compare
from envariant.training.store import Outcome

SETTINGS = {"steps": 30, "evaluate_every": 10, "model": "mlp(hidden=16)", "precision": "float32"}
STUDY = Study(("colored-digits",), ("erm", "vrex"), n_trials=2, replicas=2, settings=SETTINGS)


def swept(folder, study=STUDY, **how):
    Store.begin(folder, study).close()
    sweep(folder, execution="sequential", **how)
    with Store(folder) as store:
        return store.listing().drop(columns="seconds"), store.history()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *swept(folder)


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_a_run_of_a_study_is_the_run_that_the_same_words_train(whole):
    folder, listed, history = whole
    assert set(listed["state"]) == {"done"}
    with Store(folder) as store:
        drawn = store.listing().query("algorithm == 'vrex' and draw == 1 and replica == 1").iloc[0]
    result = envariant.train(
        "colored-digits", "vrex", hyperparameters=json.loads(drawn["hyperparameters"]),
        learning_rate=drawn["learning_rate"], holdout_fraction=0.2, replicas=2, execution="sequential", **SETTINGS,
    )  # fmt: skip
    ours = {
        (r.step, r.environment, r.metric): r.value
        for r in history[history["run"] == drawn["id"]].itertuples()
    }
    theirs = {(r.step, r.environment, r.metric): r.value for r in result.rows if r.replica == 1}
    assert ours == theirs
    assert {place for _, place, _ in ours} >= {"flip-0.1" + SUFFIX, "flip-0.9"}


def test_stacked_in_one_process_or_apart_in_two_the_table_is_the_same(whole, tmp_path):
    two = swept(tmp_path / "two", workers=2)
    columns = ["batch"] if "batch" in two[0] else []
    same((two[0].drop(columns=columns), two[1]), whole[1:])
    folder = tmp_path / "stacked"
    Store.begin(folder, STUDY).close()
    sweep(folder, execution="stacked")
    with Store(folder) as store:
        stacked = store.history()
        facts = store.facts(1)
    assert facts.execution["mode"] == "stacked"
    assert facts.execution["group"] == 4, "draws and replicas side by side"
    pd.testing.assert_frame_equal(stacked, whole[2], rtol=2e-3, atol=2e-3)


def test_processes_share_the_threads_and_the_work(tmp_path):
    study = Study(("colored-digits",), ("erm",), n_trials=4, replicas=4, settings=SETTINGS | {"steps": 3})
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        swept(tmp_path, study, workers=2, on_progress=lambda *_: seen.add(torch.get_num_threads()))
        assert seen == {1}, "a process of two has half of the threads"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with Store(tmp_path) as store:
        sizes = [len(store.members(batch)) for batch in range(1, 6)]
    assert sizes == [8, 4, 2, 1, 1], "half of what is left, so that none waits long for the other"


def test_what_a_killed_worker_left_is_trained_by_the_first_process(tmp_path):
    study = Study(("colored-digits",), ("erm",), n_trials=2, replicas=2, settings=SETTINGS | {"steps": 300})
    killed = []

    def on_progress(run, done, of):
        if not killed:
            with Store(tmp_path) as store:
                wait_until(lambda: set(store.history()["run"]) - set(range(1, 3)), 90)
            (child,) = multiprocessing.active_children()
            child.kill()
            killed.append(child)

    listed, _ = swept(tmp_path, study, workers=2, on_progress=on_progress)
    assert killed[0].exitcode == -signal.SIGKILL
    assert set(listed["state"]) == {"done"}


def test_progress_counts_what_trains_here_and_what_has_ended_elsewhere(tmp_path, monkeypatch, capsys):
    Store.begin(tmp_path, STUDY).close()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_LOOK_EVERY", -1.0)
    with progress.watching("mine", 8, tmp_path) as on_progress:
        on_progress(1, 3, 6)
        with Store(tmp_path) as store:
            store.claim()
            store.add((), [Outcome(run, None, 0.0, None) for run in (2, 3)])
        on_progress(1, 3, 6)
    assert "2.5/8 runs" in capsys.readouterr().err


SCRIPT = """
import sys
from pathlib import Path
from envariant.studies import executors, sweep
from envariant.studies.executors import local
local.CHECKPOINT_INTERVAL_S = 0.0
sweep(Path(sys.argv[1]), execution="sequential", workers=int(sys.argv[2]))
"""


def test_killed_three_times_and_called_again_ends_with_the_same_table(whole, tmp_path):
    Store.begin(tmp_path, STUDY).close()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "1"]
    seen = []
    for rows in (5, 100, 250):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 90
        with Store(tmp_path) as store:
            while time.monotonic() < deadline and len(store.history()) < rows and process.poll() is None:
                time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Store(tmp_path) as store:
            seen.append(store.counts()["done"])
    assert seen == sorted(seen)
    assert seen[-1] < 8, "it was killed before its end"
    subprocess.run(command, check=True)
    with Store(tmp_path) as store:
        same((store.listing().drop(columns="seconds"), store.history()), whole[1:])


def test_a_process_stops_when_the_one_that_started_it_is_killed(tmp_path):
    study = Study(("colored-digits",), ("erm",), n_trials=2, replicas=1, settings=SETTINGS | {"steps": 10**6})
    Store.begin(tmp_path, study).close()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), "2"])
    with Store(tmp_path) as store:
        wait_until(lambda: store.history()["run"].nunique() == 2, 90)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for batch in (1, 2):
            with FileLock(local.place(store, batch) / ".lock", timeout=30):
                assert batch in store.unfinished()


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_cannot_train_fails_with_its_reason_and_the_rest_goes_on(tmp_path):
    held = (("flip-0.1", "flip-0.9"), ("flip-0.9",))
    study = Study(("colored-digits",), ("vrex", "erm"), replicas=1, test_environments=held, settings=SETTINGS)
    listed, _ = swept(tmp_path, study)
    states = {(r.algorithm, r.test_environments): r.state for r in listed.itertuples()}
    assert states.pop(("vrex", '["flip-0.1", "flip-0.9"]')) == "failed"
    assert set(states.values()) == {"done"}
    assert "vrex: needs at least 2 training environments" in listed["error"].dropna().iloc[0]
    with Store(tmp_path) as store:
        failed = int(listed.loc[listed["state"] == "failed", "id"].iloc[0])
        store.forget([failed], planned=True)
        assert store.counts()["planned"] == 1
    sweep(tmp_path)
    with Store(tmp_path) as store:
        assert store.counts() == {"planned": 0, "running": 0, "done": 3, "failed": 1}


def test_a_replica_that_becomes_infinite_is_a_failed_run_beside_its_neighbors(tmp_path):
    study = Study(
        ("colored-digits",),
        ("erm",),
        n_trials=2,
        replicas=2,
        lr_range=1e38,
        settings={**SETTINGS, "optimizer": "sgd"},
    )
    listed, _ = swept(tmp_path, study)
    assert "done" in set(listed["state"])
    for error in listed["error"].dropna():
        assert "infinite or NaN" in error or "became" in error


def test_more_draws_train_only_what_is_new(whole, tmp_path):
    small = Study(("colored-digits",), ("vrex",), n_trials=1, replicas=2, settings=SETTINGS)
    before = swept(tmp_path, small)[1]
    asked = []
    larger = Study(("colored-digits",), ("vrex", "erm"), n_trials=2, replicas=2, settings=SETTINGS)
    Store.begin(tmp_path, larger).close()
    sweep(tmp_path, execution="sequential", on_progress=lambda run, done, of: asked.append(run))
    assert set(asked) & {1, 2} == set()
    with Store(tmp_path) as store:
        pd.testing.assert_frame_equal(store.history([1, 2]), before)
        # The same runs as in the study that was planned at once, under other numbers.
        ours, theirs = (
            t.set_index(["algorithm", "trial", "replica"])["p_value"].sort_index()
            for t in (store.listing(), whole[1])
        )
    pd.testing.assert_series_equal(ours, theirs)


def test_the_plan_says_how_much_and_how_long():
    found = estimate(STUDY)
    assert [(b.algorithm, b.runs, b.steps) for b in found.batches] == [("erm", 4, 30), ("vrex", 4, 30)]
    assert all(0 < b.seconds < 60 for b in found.batches)
    assert found.lines()[-1].startswith("8 runs, about ")
    held = (("flip-0.1", "flip-0.9"),)
    wrong = estimate(
        Study(("colored-digits",), ("vrex",), test_environments=held, settings=SETTINGS)
    ).batches[0]
    assert "needs at least 2 training environments" in wrong.problem


def test_a_comparison_of_two_replicas_says_that_they_are_too_few(whole):
    with Store(whole[0]) as store:
        found = compare(select(store.table(), TrainingValidation()))
    assert [row.algorithm for row in found.rows] == ["erm", "vrex"]
    assert found.rows[0].gain is None
    assert found.rows[1].gain.count == 2
    assert found.verdict.startswith("Too few replicas: with 2 pairs")


def test_wrong_wishes_are_refused_before_anything_trains(tmp_path):
    Store.begin(tmp_path, STUDY).close()
    with pytest.raises(EnvariantError, match="unknown execution 'stack'"):
        sweep(tmp_path, execution="stack")
    with pytest.raises(EnvariantError, match="workers must be at least 1; got 0"):
        sweep(tmp_path, workers=0)
    with pytest.raises(EnvariantError, match="holds no study"):
        sweep(tmp_path / "nowhere")
