"""Train the runs of a study on a Ray cluster, where only the calling process writes to the store.

If a worker dies, its job is restarted on another node with the same results. The results of a job are stored
only when the whole job has finished.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from envariant.core.cluster import connected
from envariant.core.errors import EnvariantError
from envariant.studies.jobs import Job, compared_in, perform, unfinished, warn_of_remarks
from envariant.studies.study import Study, stored_study
from envariant.training.execution import Execution, execution_request
from envariant.training.history import HistoryRow
from envariant.training.progress import ProgressCallback, ignore
from envariant.training.record import Record
from envariant.training.store import RunOutcome, Store
from envariant.training.store.recorder import Recorder

# Maximum number of times that a job is restarted when its node dies.
_TRIES = 10
# Submitted jobs per core, so that no core is idle.
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
    """Train all planned runs of the study in a folder on a Ray cluster.

    Args:
        folder: Folder of the study; workers do not access it.
        study: Study to train. Required if the study was declared with Python objects. Default: the study
            stored in the folder.
        address: Address for `ray.init`. Default: the running cluster, or a new one on this machine.
        execution: Execution mode of each job: the option `execution` of `envariant.train`, or an `Execution`.
        memory: Memory limit of each replica stack, per worker, such as "8GB". Default: half of the free
            memory.
        on_progress: Function called after every finished run.

    Raises:
        EnvariantError: If Ray is not installed, the cluster cannot be reached, the store cannot be written,
            or `study` is required but missing.

    Warns:
        EnvariantWarning: If a schedule has no effect within a run.
    """
    if not isinstance(execution, Execution):
        execution_request(cast("Any", execution))
    ray = connected(address)
    remote = ray.remote(num_cpus=1, max_retries=_TRIES)(train)
    with Store(folder) as store:
        declared = stored_study(store) if study is None else study
        warn_of_remarks(declared)
        template = Job(declared, (), execution, memory)
        _drive(ray, remote, store, template, on_progress)


def train(job: Job) -> JobResult:
    """Train a job from the start in a worker process.

    Args:
        job: Job with the runs to train.

    Raises:
        EnvariantError: If the runs cannot be trained.
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
    waiting = unfinished(store, template.study)
    under_way: dict[Any, tuple[int, Job]] = {}
    with ExitStack() as locks:
        while True:
            while len(under_way) < _AHEAD * cores:
                study = template.study
                new = store.claim(cores, study.declares, study.searched_options) if not waiting else None
                number = waiting.pop(0) if waiting else new
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
                waiting = unfinished(store, template.study)
                if not waiting:
                    return
                # Other processes train these; they are trained here if those processes end.
                time.sleep(1.0)
            for done in ray.wait(list(under_way), num_returns=1)[0] if under_way else ():
                _write(ray, store, *under_way.pop(done), done, on_progress)


def _write(ray: Any, store: Store, number: int, job: Job, done: Any, on_progress: ProgressCallback) -> None:
    """Store the results of a job, or the reason for its failure."""
    try:
        record, rows, outcomes = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, EnvariantError):
            raise
        if error.cause.retryable:
            raise error.cause from None
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
