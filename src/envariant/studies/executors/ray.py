"""Execute a study on a Ray cluster: workers train, this process alone writes the store.

A worker may die with its node. What it was training is trained again elsewhere, from the start, to the same
numbers; nothing of a job is written before all of it has come back.
"""

from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from envariant.core.errors import EnvariantError
from envariant.studies.jobs import Job, compared_in, perform, warn_of_remarks
from envariant.studies.study import Study, stored_study
from envariant.training.execution import Execution, execution_request
from envariant.training.history import HistoryRow
from envariant.training.progress import ProgressCallback, ignore
from envariant.training.record import Record
from envariant.training.store import RunOutcome, Store
from envariant.training.store.recorder import Recorder

# How often a job is tried on another node when its own dies.
_TRIES = 10
# Jobs handed out for every core, so that none waits.
_AHEAD = 2

JobResult = tuple[Record, list[HistoryRow], list[RunOutcome]]


def sweep(
    folder: Path,
    study: Study | None = None,
    *,
    address: str | None = None,
    execution: object = "auto",
    memory: str | float | None = None,
    on_progress: ProgressCallback = ignore,
) -> None:
    """Train every planned run of the study in a folder on a cluster.

    Args:
        folder: Folder of the study; only this process needs it.
        study: The study, if it was declared with objects; None reads it from the folder.
        address: Address of the cluster, as Ray writes it; None is the running one, or this machine.
        execution: How runs of a job are executed: an option of `envariant.train`.
        memory: Memory limit of a replica stack per worker.
        on_progress: Called for every run that has come back.

    Raises:
        EnvariantError: If Ray is not installed or cannot be reached, or the store cannot be written.

    Warns:
        EnvariantWarning: If a schedule never takes effect within a run.
    """
    if not isinstance(execution, Execution):
        execution_request(cast("Any", execution))
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EnvariantError(f"ray: no cluster at {address or 'this machine'} ({error})") from None
    remote = ray.remote(num_cpus=1, max_retries=_TRIES)(train)
    with Store(folder) as store:
        declared = stored_study(store) if study is None else study
        warn_of_remarks(declared)
        template = Job(declared, (), execution, memory)
        _drive(ray, remote, store, template, on_progress)


def train(job: Job) -> JobResult:
    """Train a job from its start: what a worker does.

    Args:
        job: Runs to train.

    Raises:
        EnvariantError: If the runs cannot train.
    """
    torch.set_num_threads(1)
    records: list[Record] = []
    rows: list[HistoryRow] = []
    outcomes: list[RunOutcome] = []
    for update in perform(job):
        records += [update.record] if update.record is not None else []
        rows += update.rows
        outcomes += update.outcomes
    return records[0], rows, outcomes


def _drive(ray: Any, remote: Any, store: Store, template: Job, on_progress: ProgressCallback) -> None:
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(store.unfinished())
    under_way: dict[Any, tuple[int, Job]] = {}
    with ExitStack() as locks:
        while True:
            while len(under_way) < _AHEAD * cores:
                number = waiting.pop(0) if waiting else store.claim(cores)
                if number is None:
                    break
                recorder = Recorder.open(store, number)
                if recorder is not None:
                    locks.callback(recorder.close)
                if recorder is not None and number in store.unfinished():
                    store.discard_after(number, {})
                    job = replace(template, runs=store.members(number))
                    under_way[remote.remote(job)] = (number, job)
            if not under_way:
                return
            for done in ray.wait(list(under_way), num_returns=1)[0]:
                _write(ray, store, *under_way.pop(done), done, on_progress)


def _write(ray: Any, store: Store, number: int, job: Job, done: Any, on_progress: ProgressCallback) -> None:
    """Store what came back of a job, or why nothing did."""
    try:
        record, rows, outcomes = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, EnvariantError):
            raise
        store.finish(number, str(error.cause))
    except ray.exceptions.RayError as error:
        store.finish(number, f"its workers died, {_TRIES} times: {type(error).__name__}")
    else:
        store.begin(number, record, *compared_in(job.study, record))
        store.add(rows, outcomes)
        store.finish(number)
    steps = job.steps()
    for stored in job.runs:
        on_progress(stored.id, steps, steps)


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise EnvariantError(
            "executor ray: needs Ray; pip install 'envariant[ray]', or use the local executor"
        ) from None
