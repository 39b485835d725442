"""Train the runs of a study on this machine, in one or several processes that share the study's store."""

import importlib
import linecache
import multiprocessing
import os
import pickle
import signal
import sys
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, cast, final

import cloudpickle
import threadpoolctl
import torch

from envariant.core import machine
from envariant.core.errors import EnvariantError, EnvariantWarning, first_line
from envariant.studies.jobs import Job, Update, compared_in, perform, unfinished, warn_of_remarks
from envariant.studies.study import Study, stored_study
from envariant.training.callbacks import CallbackRunner, check_callbacks
from envariant.training.engine import Evaluated
from envariant.training.execution import Execution, execution_request
from envariant.training.progress import ProgressCallback, ignore
from envariant.training.store import Store
from envariant.training.store.recorder import Recorder

MAX_WORKERS = max(64, 2 * (os.cpu_count() or 1))
"""Largest number of worker processes."""
# Largest default number of processes; each needs about 0.4 GB for its libraries.
_DEFAULT_WORKERS = 4
# Seconds between two checks of the jobs of other processes.
_WAIT_S = 0.5


def default_workers(jobs: int) -> int:
    """Return the number of processes for small models: one per CPU thread, at most 4, at most one per job.

    A second thread hardly speeds up the step of a small model, whereas a second process trains another model.

    Args:
        jobs: Number of jobs of the study.
    """
    return max(1, min(torch.get_num_threads(), _DEFAULT_WORKERS, jobs))


@final
@dataclass(frozen=True)
class _Plan:
    """Settings of a call of `sweep`, shared by all of its processes.

    Attributes:
        study: Study to train.
        execution: Execution mode of a job: an option of `envariant.train`, or an `Execution`.
        memory: Memory limit of a replica stack per process. None: half of the free memory.
        workers: Number of processes.
        until: Value of `time.monotonic()` at which training stops; None for no time limit.
    """

    study: Study
    execution: object
    memory: str | float | None
    workers: int
    until: float | None
    callbacks: Any = None

    @property
    def is_over(self) -> bool:
        """Whether the time limit has passed or the parent process has ended."""
        parent = multiprocessing.parent_process()
        orphaned = parent is not None and not parent.is_alive()
        return orphaned or (self.until is not None and time.monotonic() > self.until)


def sweep(
    folder: Path,
    study: Study | None = None,
    *,
    execution: object = "auto",
    memory: str | float | None = None,
    workers: int = 1,
    on_progress: ProgressCallback = ignore,
    until: float | None = None,
    callbacks: Any = None,
) -> None:
    """Train all planned runs of the study in a folder, and resume unfinished runs.

    Several processes may train the same study; no two processes train the same job at the same time. The call
    returns when all runs of the study have ended, including runs that other processes train.

    Args:
        folder: Folder of the study.
        study: Study to train. Required if the study was declared with Python objects. Default: the study
            stored in the folder.
        execution: Execution mode of each job: the option `execution` of `envariant.train`, or an `Execution`.
        memory: Memory limit of each replica stack, per process, such as "8GB". Default: half of the free
            memory.
        workers: Number of processes; the CPU threads are divided among them.
        on_progress: Function called after every step of a run in this process.
        until: Value of `time.monotonic()` at which training stops; a later call resumes it. Default: no
            limit.
        callbacks: Objects whose methods are called during training (`training.callbacks.Callback`); every
            process has its own copies.

    Raises:
        EnvariantError: If the store cannot be written, a callback fails, an option is invalid, or `study` is
            required but missing.

    Warns:
        EnvariantWarning: If a schedule has no effect within a run.
    """
    if not isinstance(execution, Execution):
        execution_request(cast("Any", execution))
    if not 1 <= workers <= MAX_WORKERS:
        raise EnvariantError(f"workers must be in [1, {MAX_WORKERS}]; got {workers}")
    if study is None:
        with Store(folder) as store:
            study = stored_study(store)
    warn_of_remarks(study)
    plan = _Plan(study, execution, memory, workers, until, check_callbacks(callbacks))
    before = torch.get_num_threads()
    threads = max(1, before // workers)
    context = multiprocessing.get_context("spawn")
    sent = _sent(folder, plan, threads) if workers > 1 else b""
    others = [context.Process(target=_apart, args=(sent,)) for _ in range(workers - 1)]
    torch.set_num_threads(threads)
    try:
        with _limited(threads) if workers > 1 else nullcontext():
            for other in others:
                _start(other)
            _work(folder, plan, on_progress)
            for other in others:
                other.join()
            if any(other.exitcode for other in others):
                # A process was killed or failed; its jobs are trained here, or raise the same error.
                _work(folder, plan, on_progress)
    finally:
        torch.set_num_threads(before)
        for other in others:
            if other.pid is not None:
                # Only after an error or an interruption are they alive; the next call resumes their jobs.
                other.terminate()
                other.join()


def train_job(
    folder: Path, job: int, *, execution: object = "auto", memory: str | float | None = None
) -> bool:
    """Train one job of the study stored in a folder, or resume it.

    Args:
        folder: Folder of the study.
        job: ID of the job.
        execution: Execution mode, as in `sweep`.
        memory: Memory limit of each replica stack, such as "8GB". Default: half of the free memory.

    Returns:
        Whether the job is finished; False if another process is training it.

    Raises:
        EnvariantError: If the study has no such job, the store cannot be written, or an option is invalid.
    """
    with Store(folder, verify=False) as store:
        if not store.members(job):
            raise EnvariantError(f"{folder}: has no job {job}")
        plan = _Plan(stored_study(store), execution, memory, 1, None)
        return _train_if_free(store, job, plan, ignore)


def _limited(threads: int) -> AbstractContextManager[Any]:
    """Limit the threads of NumPy and scikit-learn, which do not follow PyTorch's limit."""
    # scikit-learn brings its own OpenMP library, which must be loaded before its threads can be limited.
    importlib.import_module("sklearn.utils._openmp_helpers")
    return threadpoolctl.threadpool_limits(threads)


def _sent(folder: Path, plan: _Plan, threads: int) -> bytes:
    """Serialize the inputs of a worker process, including the code of objects from notebooks and scripts."""
    # The cells of a notebook, from which workers read the source code of its functions.
    cells = {name: entry for name, entry in linecache.cache.items() if len(entry) == 4 and entry[1] is None}
    try:
        return cloudpickle.dumps((folder, plan, threads, cells))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise EnvariantError(
            f"workers: this study's objects cannot be sent to other processes ({first_line(error)}); use one "
            f"worker"
        ) from None


def _start(process: SpawnProcess) -> None:
    """Start a worker process that ignores Ctrl-C.

    After Ctrl-C, the parent process stops the worker.
    """
    masks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else None
    try:
        process.start()
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(folder: Path, plan: _Plan, on_progress: ProgressCallback = ignore) -> None:
    """Train jobs of a study until all of them are finished or the time limit has passed."""
    is_waiting = False
    with Store(folder, verify=False) as store:
        while not plan.is_over:
            left = unfinished(store, plan.study)
            trained = [job for job in left if _train_if_free(store, job, plan, on_progress)]
            options = plan.study.searched_options
            new = None if plan.is_over else store.claim(plan.workers, plan.study.declares, options)
            if new is not None:
                _train_if_free(store, new, plan, on_progress)
            elif not (left := unfinished(store, plan.study)):
                return
            elif not trained:
                if plan.workers == 1 and not is_waiting:
                    runs = sum(len(store.members(job)) for job in left)
                    text = f"{folder}: waiting for another process, which trains {runs} runs of this study"
                    warnings.warn(text, EnvariantWarning, stacklevel=3)
                is_waiting = True
                time.sleep(_WAIT_S)


def _apart(sent: bytes) -> None:
    # Only ever the bytes that the parent process made a moment ago.
    folder, plan, threads, cells = pickle.loads(sent)
    linecache.cache |= cells
    if not hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    try:
        with _limited(threads):
            _work(folder, plan)
    except EnvariantError:
        # The parent process trains the job of this process, or raises the same error.
        sys.exit(1)


def _train_if_free(store: Store, job: int, plan: _Plan, on_progress: ProgressCallback) -> bool:
    """Train a job; return False if another process is training it, or if the time limit has passed."""
    recorder = None if plan.is_over else Recorder.open(store, job, lambda r: compared_in(plan.study, r))
    if recorder is None:
        return False
    try:
        if job in store.unfinished():
            _train(store, job, recorder, plan, on_progress)
    finally:
        recorder.close()
    return True


def _train(store: Store, number: int, recorder: Recorder, plan: _Plan, on_progress: ProgressCallback) -> None:
    members = store.members(number)
    if not members:
        recorder.finish()
        return
    job = Job(plan.study, members, plan.execution, plan.memory)
    threads = torch.get_num_threads()
    if recorder.record is not None and recorder.record.threads <= machine.cores():
        # Rounding depends on the number of threads.
        torch.set_num_threads(recorder.record.threads)
    called: CallbackRunner | None = None
    try:
        steps = job.steps()
        for update in perform(job, recorder):
            if update.record is not None:
                called = CallbackRunner(plan.callbacks, update.record, job.labels())
            _store(recorder, update, called)
            for run in update.runs:
                on_progress(run, steps if update.outcomes else update.step, steps)
            if plan.is_over:
                return
    except EnvariantError as error:
        if recorder.other_machine:
            recorder.plan_again()
        elif error.retryable:
            # The machine failed, not the runs: the next call resumes them.
            raise
        else:
            recorder.finish(str(error))
    else:
        recorder.finish()
    finally:
        torch.set_num_threads(threads)


def _store(recorder: Recorder, update: Update, called: CallbackRunner | None) -> None:
    if update.event is not None:
        # Update.rows include the rows of the event.
        own = len(update.event.rows) if isinstance(update.event, Evaluated) else 0
        recorder.add(update.event, update.rows, update.outcomes)
        if called is not None:
            called(update.event, update.rows[own:])
