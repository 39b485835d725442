"""Sweeps on small digits: equal to `train`, resumed after a kill, by one process or several."""

import json
import multiprocessing
import os
import signal
import sys
import time

import pandas as pd
import pytest
import threadpoolctl
import torch
from filelock import FileLock

import envariant
import processes
from envariant.core.errors import EnvariantError
from envariant.studies import Store, Study, begin, sweep
from envariant.studies import estimate as estimates
from envariant.studies.estimate import estimate
from envariant.studies.executors import local
from envariant.studies.selection import TrainingValidation, select
from envariant.studies.significance import compare
from envariant.training import progress
from envariant.training.store import RunOutcome, recorder
from envariant.training.store.records import record_of_job

SETTINGS = {"steps": 30, "evaluate_every": 10, "model": "mlp(hidden=16)", "precision": "float32"}
STUDY = Study(("colored-digits",), ("erm", "vrex"), n_trials=2, replicas=2, settings=SETTINGS)


def swept(folder, study=STUDY, **how):
    begin(folder, study).close()
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


def test_run_of_a_study_equals_train_with_the_same_options(whole):
    folder, listed, history = whole
    assert set(listed["state"]) == {"done"}
    with Store(folder) as store:
        sampled = store.listing().query("algorithm == 'vrex' and trial == 1 and replica == 1").iloc[0]
    result = envariant.train(
        "colored-digits", "vrex", hyperparameters=json.loads(sampled["hyperparameters"]),
        learning_rate=sampled["learning_rate"], holdout_fraction=0.2, replicas=2, execution="sequential", **SETTINGS,
    )  # fmt: skip
    ours = {
        (r.step, r.environment, r.role, r.metric): r.value
        for r in history[history["run"] == sampled["id"]].itertuples()
    }
    theirs = {(r.step, r.environment, r.role, r.metric): r.value for r in result.rows if r.replica == 1}
    assert ours == theirs
    assert {each[1:3] for each in ours} >= {("flip-0.1", "validation"), ("flip-0.9", "test")}


def test_one_process_two_processes_and_stacked_execution_give_the_same_table(whole, tmp_path):
    two = swept(tmp_path / "two", workers=2)
    same(two, whole[1:])
    folder = tmp_path / "stacked"
    begin(folder, STUDY).close()
    sweep(folder, execution="stacked")
    with Store(folder) as store:
        stacked = store.history()
        execution = record_of_job(store, 1).execution
    assert execution.mode == "stacked"
    assert execution.group == 4, "trials and replicas are one stack"
    pd.testing.assert_frame_equal(stacked, whole[2], rtol=2e-3, atol=2e-3)


def test_processes_share_threads_and_work(tmp_path):
    study = Study(
        ("colored-digits",),
        ("erm",),
        n_trials=4,
        replicas=4,
        settings=SETTINGS | {"steps": 3, "evaluate_every": 3},
    )
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        swept(tmp_path, study, workers=2, on_progress=lambda *_: seen.add(torch.get_num_threads()))
        assert seen == {1}, "a process of two has half of the threads"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    with Store(tmp_path) as store:
        sizes = [len(store.members(job)) for job in range(1, 6)]
    assert sizes == [8, 4, 2, 1, 1], "half of the runs left, so that no process waits long"


def test_runs_of_a_killed_worker_are_trained_by_the_first_process(tmp_path):
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


def test_progress_counts_running_runs_here_and_ended_runs_elsewhere(tmp_path, monkeypatch, capsys):
    begin(tmp_path, STUDY).close()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_LOOK_EVERY", -1.0)
    with progress.show_sweep("mine", 8, tmp_path) as on_progress:
        on_progress(1, 3, 6)
        with Store(tmp_path) as store:
            store.claim()
            store.add((), [RunOutcome(run, None, 0.0, None) for run in (2, 3)])
        on_progress(1, 3, 6)
    assert "2.5/8 runs" in capsys.readouterr().err


def sweep_and_die(folder, workers=1, last=0):
    """Sweep a folder, and kill this process after `last` events unless that is 0."""
    recorder.CHECKPOINT_INTERVAL_S = -1.0
    add, calls = recorder.Recorder.add, []

    def add_and_die(*arguments):
        add(*arguments)
        calls.append(0)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    recorder.Recorder.add = add_and_die
    sweep(folder, execution="sequential", workers=workers)


def test_sweep_killed_three_times_ends_with_the_same_table(whole, tmp_path):
    begin(tmp_path, STUDY).close()
    done = []
    for last in (7, 50, 100):
        assert processes.run(sweep_and_die, tmp_path, 1, last) == -signal.SIGKILL
        with Store(tmp_path) as store:
            done.append(store.counts()["done"])
    assert done == sorted(done)
    assert 0 < done[-1] < 8
    sweep(tmp_path, execution="sequential")
    with Store(tmp_path) as store:
        same((store.listing().drop(columns="seconds"), store.history()), whole[1:])


def test_worker_stops_when_its_parent_is_killed(tmp_path):
    study = Study(("colored-digits",), ("erm",), n_trials=2, replicas=1, settings=SETTINGS | {"steps": 10**6})
    begin(tmp_path, study).close()
    process = processes.start(sweep_and_die, tmp_path, 2)
    with Store(tmp_path) as store:
        wait_until(lambda: store.history()["run"].nunique() == 2, 90)
        process.kill()
        process.join()
        for job in (1, 2):
            with FileLock(store.checkpoints(job) / ".lock", timeout=60):
                assert job in store.unfinished()


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_runs_that_cannot_train_fail_with_a_reason_and_others_train(tmp_path):
    held = (("flip-0.1", "flip-0.9"), ("flip-0.9",))
    study = Study(("colored-digits",), ("vrex", "erm"), replicas=1, test_environments=held, settings=SETTINGS)
    listed, _ = swept(tmp_path, study)
    states = {(r.algorithm, r.test_environments): r.state for r in listed.itertuples()}
    assert states.pop(("vrex", ("flip-0.1", "flip-0.9"))) == "failed"
    assert set(states.values()) == {"done"}
    assert "vrex: needs at least 2 training environments" in listed["error"].dropna().iloc[0]
    with Store(tmp_path) as store:
        failed = int(listed.loc[listed["state"] == "failed", "id"].iloc[0])
        store.forget([failed], planned=True)
        assert store.counts()["planned"] == 1
    sweep(tmp_path)
    with Store(tmp_path) as store:
        assert store.counts() == {"planned": 0, "running": 0, "done": 3, "failed": 1}


def test_diverged_replica_is_a_failed_run_and_others_finish(tmp_path):
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


def test_more_trials_train_only_new_runs(whole, tmp_path):
    small = Study(("colored-digits",), ("vrex",), n_trials=1, replicas=2, settings=SETTINGS)
    before = swept(tmp_path, small)[1]
    asked = []
    larger = Study(("colored-digits",), ("vrex", "erm"), n_trials=2, replicas=2, settings=SETTINGS)
    begin(tmp_path, larger).close()
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


def test_estimate_has_runs_steps_and_seconds_of_each_job():
    cost = estimate(STUDY)
    assert [(b.algorithm, b.runs, b.steps) for b in cost.jobs] == [("erm", 4, 30), ("vrex", 4, 30)]
    assert all(b.seconds > 0 for b in cost.jobs)
    assert cost.lines()[-1].startswith("8 runs, about ")
    held = (("flip-0.1", "flip-0.9"),)
    with pytest.raises(EnvariantError, match="needs at least 2 training environments"):
        estimate(Study(("colored-digits",), ("vrex",), test_environments=held, settings=SETTINGS))


def test_estimate_leaves_out_the_first_start_of_the_process(monkeypatch):
    clock, starts = [0.0], []

    def perform(job):
        # The first run of the process loads modules and data for 30 s; every start takes 1 s, a step 0.1 s.
        clock[0] += 1 if starts else 30
        starts.append(job)
        for _ in range(8):
            clock[0] += 0.1
            yield job

    monkeypatch.setattr(estimates, "perform", perform)
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: clock[0])
    seconds = []
    for algorithms in (("erm", "vrex"), ("vrex", "erm")):
        starts.clear()
        jobs = estimate(Study(("colored-digits",), algorithms, replicas=10, settings={"steps": 2})).jobs
        seconds += [job.seconds for job in jobs]
    assert seconds == pytest.approx([10 * (1.3 + 2 * 0.1)] * 4)


def test_equal_scores_of_two_replicas_are_no_significant_difference(whole):
    with Store(whole[0]) as store:
        comparison = compare(select(store.table(), TrainingValidation()))
    assert [row.algorithm for row in comparison.rows] == ["erm", "vrex"]
    assert comparison.rows[0].gain is None
    assert comparison.rows[1].gain.count == 2
    assert comparison.verdict == "No algorithm differs significantly from ERM."


def test_wrong_options_are_rejected_before_anything_trains(tmp_path):
    begin(tmp_path, STUDY).close()
    with pytest.raises(EnvariantError, match="unknown execution 'stack'"):
        sweep(tmp_path, execution="stack")
    with pytest.raises(EnvariantError, match=r"workers must be in \[1, \d+\]; got 0"):
        sweep(tmp_path, workers=0)
    with pytest.raises(EnvariantError, match="holds no runs"):
        sweep(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("threads", "jobs", "expected"), [(1, 40, 1), (2, 40, 2), (64, 40, 4), (64, 3, 3), (2, 0, 1)]
)
def test_by_default_there_is_one_process_per_thread_but_at_most_four(monkeypatch, threads, jobs, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert local.default_workers(jobs) == expected


def test_processes_limit_the_threads_of_numpy_and_scikit_learn_too():
    before = {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    with local._limited(1):
        assert {pool["num_threads"] for pool in threadpoolctl.threadpool_info()} == {1}
        assert any("scikit_learn" in pool["filepath"] for pool in threadpoolctl.threadpool_info())
    assert (
        before.items() <= {p["filepath"]: p["num_threads"] for p in threadpoolctl.threadpool_info()}.items()
    )
