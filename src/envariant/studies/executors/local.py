"""Runs a study on this machine: in this process, and in others beside it that work on the same store."""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from envariant.errors import EnvariantError
from envariant.studies.batches import Batch, Update, perform, reached, steps_of
from envariant.studies.store import Store
from envariant.training import checkpoint as checkpoints
from envariant.training.execution import Execution, wish

# Seconds between two checkpoints of a batch.
_PATIENCE = 10.0

Told = Callable[[int, int, int], None]
"""Is given a run's number, updates made and updates in all."""


def sweep(
    folder: Path,
    *,
    execution: str = "auto",
    workers: int = 1,
    told: Told | None = None,
    until: float | None = None,
) -> None:
    """Trains every planned run of the study in a folder, and what others left unfinished.

    Args:
        folder: of the study.
        execution: how runs of a batch are executed, as for `envariant.train`.
        workers: processes, which share the cores.
        told: hears of every step made in this process.
        until: when to stop, by `time.monotonic`; what is not done then goes on in the next call.

    Raises:
        EnvariantError: the store cannot be written.
    """
    wish(execution)
    if workers < 1:
        raise EnvariantError(f"workers must be at least 1; got {workers}")
    with Store(folder) as store:
        planned = store.counts()["planned"]
    most = None if workers == 1 else max(1, -(-planned // workers))
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_apart, args=(folder, execution, most, threads, until))
        for _ in range(workers - 1)
    ]
    for other in others:
        other.start()
    try:
        work(folder, execution, most, told, until)
    finally:
        for other in others:
            other.join()


def work(
    folder: Path, execution: str, most: int | None, told: Told | None = None, until: float | None = None
) -> None:
    """Takes batches of the study in a folder until there is none that is not taken, or the time is over."""
    with Store(folder) as store:
        for batch in store.unfinished():
            if not _over(until):
                _locked(store, batch, execution, told, until)
        while not _over(until) and (batch := store.claim(most)) is not None:
            _locked(store, batch, execution, told, until)


def _over(until: float | None) -> bool:
    return until is not None and time.monotonic() > until


def _apart(folder: Path, execution: str, most: int | None, threads: int, until: float | None) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    work(folder, execution, most, None, until)


def place(store: Store, batch: int) -> Path:
    """Where a batch's checkpoints are."""
    return store.folder / "batches" / f"{batch:06d}"


def _locked(store: Store, batch: int, execution: str, told: Told | None, until: float | None) -> None:
    """Trains a batch, unless another process does."""
    folder = place(store, batch)
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(folder / ".lock", timeout=0):
        if batch in store.unfinished():
            _train(store, batch, folder, execution, told, until)


def _train(
    store: Store, batch: int, folder: Path, execution: str, told: Told | None, until: float | None
) -> None:
    members = store.members(batch)
    begun = store.facts(batch)
    known = None if begun is None else Execution(**begun.execution)
    study = store.study
    if not members:
        store.finish(batch)
        return
    try:
        whole = Batch(study, members)
        steps = steps_of(whole)
        store.keep(batch, reached(folder))
        saved = time.monotonic()
        for update in perform(whole, wish(execution), known, folder):
            if update.facts is not None and begun is None:
                store.under_way(batch, update.facts)
            saved = _store(store, update, folder, saved)
            if told is not None:
                for run in update.runs:
                    told(run, steps if update.outcomes else update.step, steps)
            if _over(until):
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
    if update.event is not None and (update.outcomes or time.monotonic() - saved > _PATIENCE):
        checkpoints.save(update.event.checkpoint(), folder)
        return time.monotonic()
    return saved
