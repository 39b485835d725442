"""Sweeps on a machine that fails, and beside other processes: no run is lost, and none fails without reason."""

import errno
import os
import signal
from dataclasses import replace

import pytest
import torch

from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.studies import Store, Study, begin, sweep
from envariant.studies.executors import local
from envariant.training import record as records
from envariant.training.store import recorder as recorders
from envariant.training.store.recorder import Recorder

SETTINGS = {"steps": 6, "evaluate_every": 3, "model": "linear"}
STUDY = Study(("colored-digits",), ("erm", "vrex"), replicas=2, settings=SETTINGS)


def results(folder, study=STUDY):
    begin(folder, study).close()
    sweep(folder, execution="sequential")
    with Store(folder) as store:
        assert store.counts() == {"planned": 0, "running": 0, "done": 4, "failed": 0}
        return store.history()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return results(tmp_path_factory.mktemp("whole"))


def counts(folder):
    with Store(folder) as store:
        return store.counts()


def interrupt(folder, monkeypatch, study=STUDY, after=5):
    """Sweep until some events of the engine are stored."""
    monkeypatch.setattr(recorders, "CHECKPOINT_INTERVAL_S", -1.0)
    add, calls = Recorder.add, []

    def add_and_stop(self, *arguments):
        add(self, *arguments)
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "add", add_and_stop)
    begin(folder, study).close()
    with pytest.raises(KeyboardInterrupt):
        sweep(folder, execution="sequential")
    monkeypatch.setattr(Recorder, "add", add)


@pytest.mark.parametrize("place", ["checkpoint", "store"])
def test_full_disk_is_not_the_failure_of_a_run(tmp_path, monkeypatch, whole, place):
    def full(*_: object) -> None:
        if place == "store":
            raise EnvariantError("database or disk is full", retryable=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    begin(tmp_path, STUDY).close()
    with monkeypatch.context() as patch:
        patch.setattr(*((Store, "add") if place == "store" else ("os.fsync",)), full)
        with pytest.raises(EnvariantError, match="disk is full|No space left on device"):
            sweep(tmp_path, execution="sequential")
    assert counts(tmp_path)["failed"] == 0
    assert not list(tmp_path.rglob("*.partial"))
    assert results(tmp_path).equals(whole)


def test_runs_of_another_declaration_are_left_alone(tmp_path, monkeypatch, whole):
    """An interrupted study of two algorithms is continued with one of them, then with both."""
    interrupt(tmp_path, monkeypatch)
    only = replace(STUDY, algorithms=("vrex",))
    begin(tmp_path, only).close()
    sweep(tmp_path, execution="sequential")
    assert counts(tmp_path) == {"planned": 0, "running": 2, "done": 2, "failed": 0}
    with Store(tmp_path) as store:
        assert store.counts(only.declares) == {"planned": 0, "running": 0, "done": 2, "failed": 0}
    assert results(tmp_path).equals(whole)


def test_unfinished_runs_are_resumed_with_the_threads_they_were_begun_with(tmp_path, monkeypatch, whole):
    interrupt(tmp_path, monkeypatch)
    used = []
    monkeypatch.setattr(local.torch, "set_num_threads", used.append)
    monkeypatch.setattr(local.torch, "get_num_threads", lambda: used[-1] if used else 2)
    monkeypatch.setattr(records.torch, "get_num_threads", lambda: used[-1] if used else 2)
    assert results(tmp_path).equals(whole)
    assert torch.get_num_threads() == 2
    assert 1 in used


def test_unfinished_runs_of_another_version_are_trained_again(tmp_path, monkeypatch, whole):
    interrupt(tmp_path, monkeypatch, after=12)
    with Store(tmp_path) as store, store._transaction() as execute:
        execute('UPDATE jobs SET record = replace(record, \'"torch": "\', \'"torch": "0.\'), checksum = NULL')
        before = store.counts()
    assert before["running"] + before["done"] > 0
    assert results(tmp_path).equals(whole)


def test_sweep_waits_for_runs_of_another_process_and_takes_over_if_it_ends(tmp_path, monkeypatch, whole):
    with begin(tmp_path, STUDY) as store:
        job = store.claim()
        other = Recorder.open(store, job)
        monkeypatch.setattr(local.time, "sleep", lambda _: other.close())
        with pytest.warns(
            EnvariantWarning, match="waiting for another process, which trains 2 runs of this study"
        ):
            assert results(tmp_path).equals(whole)


def test_worker_without_space_ends_without_a_traceback(tmp_path, monkeypatch, capfd):
    def full(*_: object, **__: object) -> None:
        raise EnvariantError("database or disk is full", retryable=True)

    monkeypatch.setattr(local, "_work", full)
    plan = local._Plan(STUDY, "sequential", None, 2, None)
    with pytest.raises(SystemExit) as end:
        local._apart(local._sent(tmp_path, plan, 1))
    assert end.value.code == 1
    assert capfd.readouterr().err == ""


class Worker:
    """Stands for a process: records what happens to it."""

    def __init__(self, target, args):
        self.pid, self.exitcode, self.calls = 1, None, []
        workers.append(self)

    def start(self):
        self.calls.append("start")
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def terminate(self):
        self.calls.append("terminate")

    def join(self):
        self.calls.append("join")


workers: list[Worker] = []


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signal masks of POSIX systems")
def test_interruption_ends_the_workers_which_ignore_ctrl_c_themselves(tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    begin(tmp_path, STUDY).close()
    workers.clear()
    monkeypatch.setattr(type(local.multiprocessing.get_context("spawn")), "Process", Worker)
    monkeypatch.setattr(local, "_work", interrupted)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, workers=3)
    assert [worker.calls for worker in workers] == [["start", "terminate", "join"]] * 2
    assert all(signal.SIGINT in worker.mask for worker in workers)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
