"""Runs a study on a Ray cluster: workers train, this process alone writes the store.

A worker may die with its node: what it was training is trained again elsewhere, from the start, to the same
numbers; nothing of a batch is written before all of it has come back.
"""

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from envariant.core.errors import EnvariantError
from envariant.studies.executors.local import ProgressCallback, place
from envariant.studies.jobs import Batch, perform, steps_of
from envariant.studies.store import Facts, Outcome, Store
from envariant.training.execution import execution_request
from envariant.training.history import HistoryRow

# How often a batch is tried on another node when its own dies.
_TRIES = 10
# Batches handed out for every core, so that none waits.
_AHEAD = 2

Came = tuple[Facts, list[HistoryRow], list[Outcome]]


def sweep(
    folder: Path,
    *,
    address: str | None = None,
    execution: str = "auto",
    on_progress: ProgressCallback | None = None,
) -> None:
    """Trains every planned run of the study in a folder on a cluster.

    Args:
        folder: of the study; only this process needs it.
        address: of the cluster, as Ray writes it; None is the one that is at hand, or this machine.
        execution: how runs of a batch are executed, as for `envariant.train`.
        on_progress: hears of every run that has come back.

    Raises:
        EnvariantError: Ray is not installed or cannot be reached, or the store cannot be written.
    """
    execution_request(execution)
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EnvariantError(f"ray: no cluster at {address or 'this machine'} ({error})") from None
    remote = ray.remote(num_cpus=1, max_retries=_TRIES)(train)
    with Store(folder) as store:
        _drive(ray, remote, store, execution, on_progress)


def train(batch: Batch, execution: str) -> Came:
    """Trains a batch from its start: what a worker does.

    Raises:
        EnvariantError: the runs cannot train.
    """
    torch.set_num_threads(1)
    facts: list[Facts] = []
    rows: list[HistoryRow] = []
    outcomes: list[Outcome] = []
    for update in perform(batch, execution_request(execution)):
        facts += [update.facts] if update.facts is not None else []
        rows += update.rows
        outcomes += update.outcomes
    return facts[0], rows, outcomes


def _drive(ray: Any, remote: Any, store: Store, execution: str, on_progress: ProgressCallback | None) -> None:
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = list(store.unfinished())
    under_way: dict[Any, int] = {}
    with ExitStack() as locks:
        while True:
            while len(under_way) < _AHEAD * cores:
                batch = waiting.pop(0) if waiting else store.claim(cores)
                if batch is None:
                    break
                if _mine(locks, store, batch):
                    store.keep(batch, {})
                    whole = Batch(store.study, store.members(batch))
                    under_way[remote.remote(whole, execution)] = batch
            if not under_way:
                return
            for done in ray.wait(list(under_way), num_returns=1)[0]:
                _written(ray, store, under_way.pop(done), done, on_progress)


def _mine(locks: ExitStack, store: Store, batch: int) -> bool:
    """Takes a batch's lock for as long as the sweep lasts, unless another process has it."""
    folder = place(store, batch)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        locks.enter_context(FileLock(folder / ".lock", timeout=0))
    except Timeout:
        return False
    return batch in store.unfinished()


def _written(ray: Any, store: Store, batch: int, done: Any, on_progress: ProgressCallback | None) -> None:
    members = store.members(batch)
    try:
        facts, rows, outcomes = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, EnvariantError):
            raise
        store.finish(batch, str(error.cause))
    except ray.exceptions.RayError as error:
        store.finish(batch, f"its workers died, {_TRIES} times: {type(error).__name__}")
    else:
        store.under_way(batch, facts)
        store.add(rows, outcomes)
        store.finish(batch)
    if on_progress is not None:
        steps = steps_of(Batch(store.study, members))
        for stored in members:
            on_progress(stored.id, steps, steps)


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise EnvariantError(
            "executor ray: needs Ray; pip install 'envariant[ray]', or use --executor local"
        ) from None
