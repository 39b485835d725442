"""Runs a study on this machine: in this process, and in others beside it that work on the same store."""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from filelock import FileLock, Timeout

from envariant.core.errors import EnvariantError
from envariant.studies.jobs import Batch, Update, perform, reached, steps_of
from envariant.studies.store import Store
from envariant.training import checkpoint as checkpoints
from envariant.training.execution import Execution, execution_request

# Seconds between two checkpoints of a batch.
CHECKPOINT_INTERVAL_S = 10.0

ProgressCallback = Callable[[int, int, int], None]
"""Is given a run's number, updates made and updates in all."""


def sweep(
    folder: Path,
    *,
    execution: str | Execution = "auto",
    workers: int = 1,
    on_progress: ProgressCallback | None = None,
    until: float | None = None,
) -> None:
    """Trains every planned run of the study in a folder, and what others left unfinished.

    Args:
        folder: of the study.
        execution: how runs of a batch are executed, as for `envariant.train`; or known beforehand.
        workers: processes, which share the cores.
        on_progress: hears of every step made in this process.
        until: when to stop, by `time.monotonic`; what is not done then goes on in the next call.

    Raises:
        EnvariantError: the store cannot be written.
    """
    if isinstance(execution, str):
        execution_request(execution)
    if workers < 1:
        raise EnvariantError(f"workers must be at least 1; got {workers}")
    how = _How(execution, workers, until)
    before = torch.get_num_threads()
    threads = max(1, before // workers)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_apart, args=(folder, how, threads)) for _ in range(workers - 1)]
    torch.set_num_threads(threads)
    try:
        for other in others:
            other.start()
        _work(folder, how, on_progress)
        for other in others:
            other.join()
        if any(other.exitcode for other in others):
            # One was killed, or failed in a way that this process will see as well.
            _work(folder, how, on_progress)
    finally:
        torch.set_num_threads(before)
        for other in others:
            if other.pid is not None:
                other.join()


@final
@dataclass(frozen=True)
class _How:
    """What all processes of a sweep keep to: how runs are executed, by how many of them, and until when."""

    execution: str | Execution
    workers: int
    until: float | None

    @property
    def over(self) -> bool:
        """Whether the time is up, or whoever started this process is gone: nobody would stop it then."""
        parent = multiprocessing.parent_process()
        orphaned = parent is not None and not parent.is_alive()
        return orphaned or (self.until is not None and time.monotonic() > self.until)


def _work(folder: Path, how: _How, on_progress: ProgressCallback | None = None) -> None:
    """Takes batches of the study in a folder until there is none that is not taken, or the time is over."""
    with Store(folder) as store:
        for batch in store.unfinished():
            if not how.over:
                _locked(store, batch, how, on_progress)
        while not how.over and (batch := store.claim(how.workers)) is not None:
            _locked(store, batch, how, on_progress)


def _apart(folder: Path, how: _How, threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    _work(folder, how)


def place(store: Store, batch: int) -> Path:
    """Where a batch's checkpoints are."""
    return store.folder / "batches" / f"{batch:06d}"


def _locked(store: Store, batch: int, how: _How, on_progress: ProgressCallback | None) -> None:
    """Trains a batch, unless another process does."""
    folder = place(store, batch)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder / ".lock", timeout=0):
        if batch in store.unfinished():
            _train(store, batch, folder, how, on_progress)


def _train(store: Store, batch: int, folder: Path, how: _How, on_progress: ProgressCallback | None) -> None:
    members = store.members(batch)
    begun = store.facts(batch)
    given = how.execution if isinstance(how.execution, Execution) else None
    wanted = execution_request("auto" if given is not None else str(how.execution))
    known = given if begun is None else Execution(**begun.execution)
    study = store.study
    if not members:
        store.finish(batch)
        return
    try:
        whole = Batch(study, members)
        steps = steps_of(whole)
        store.keep(batch, reached(folder))
        saved = time.monotonic()
        for update in perform(whole, wanted, known, folder):
            if update.facts is not None and begun is None:
                store.under_way(batch, update.facts)
            saved = _store(store, update, folder, saved)
            if on_progress is not None:
                for run in update.runs:
                    on_progress(run, steps if update.outcomes else update.step, steps)
            if how.over:
                return
    except EnvariantError as error:
        store.finish(batch, str(error))
    else:
        store.finish(batch)


def _store(store: Store, update: Update, folder: Path, saved: float) -> float:
    """Writes what was measured, then, when it is time, where the runs stand; when that was last done."""
    if update.rows or update.outcomes:
        store.add(update.rows, update.outcomes)
    # After that, so that what a checkpoint has reached is always known; a run that is done may be trained
    # from its last checkpoint again, to the same bits.
    if update.event is not None and (update.outcomes or time.monotonic() - saved > CHECKPOINT_INTERVAL_S):
        checkpoints.save(update.event.checkpoint(), folder)
        return time.monotonic()
    return saved
