"""Export the runs of a study to experiment trackers: TensorBoard and MLflow.

The store remains the complete record of all results. Finished runs are sent to a tracker during or after a
sweep; runs that the tracker already has are skipped.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any, final

from envariant.core.errors import EnvariantError, unknown_name
from envariant.training.store import Store
from envariant.training.trackers import MLflow, TensorBoard, Tracker

TRACKERS: dict[str, Callable[[Store, str | None], Tracker]] = {
    "tensorboard": lambda store, to: TensorBoard(Path(to) if to else store.folder / "tensorboard"),
    "mlflow": lambda store, to: MLflow(store.declaration()["name"], to),
}
"""Functions that create trackers, by name; arguments: store of the study, destination (None: default)."""
# Maximum waiting time for a tracker at the end of a sweep.
TIMEOUT_S = 60.0


def track(folder: Path, tracker: str, destination: str | None = None) -> tuple[int, int]:
    """Send finished runs to a tracker, except those sent before.

    Args:
        folder: Folder of the study.
        tracker: Kind of tracker: "tensorboard" or "mlflow".
        destination: For TensorBoard, the log directory (default: in the study's folder). For MLflow, the
            tracking URI (default: the environment variable `MLFLOW_TRACKING_URI`).

    Returns:
        Number of runs sent by this call, and number of runs sent before.

    Raises:
        EnvariantError: If the tracker is unknown, not installed, or returns an error.
    """
    with Store(folder) as store:
        target = _tracker(store, tracker, destination)
        before = sum(target.has(run) for run in _finished(store))
        return sum(1 for _ in _send_new(store, target)), before


@final
class BackgroundTracking:
    """Context manager that sends finished runs to a tracker during a sweep, from a background thread.

    Errors of the tracker do not stop the sweep: the runs are stored and can be sent later.

    Args:
        folder: Folder of the study.
        tracker: Kind of tracker: "tensorboard" or "mlflow".
        destination: For TensorBoard, the log directory (default: in the study's folder). For MLflow, the
            tracking URI (default: the environment variable `MLFLOW_TRACKING_URI`).
        interval_s: Seconds between two checks for finished runs.

    Attributes:
        sent: Number of runs sent so far.
        problem: Message of the last error; "" if there was none.

    Raises:
        EnvariantError: If the tracker is unknown, not installed, or cannot be reached.
    """

    def __init__(
        self, folder: Path, tracker: str, destination: str | None = None, interval_s: float = 5.0
    ) -> None:
        self._folder, self._interval_s = folder, interval_s
        with Store(folder) as store:
            self._target = _tracker(store, tracker, destination)
        self._is_over = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self.sent, self.problem = 0, ""

    def __enter__(self) -> "BackgroundTracking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(TIMEOUT_S)
        if self._thread.is_alive():
            self.problem = f"no answer within {TIMEOUT_S:g} seconds"

    def _run(self) -> None:
        is_over, failures = False, 0
        while not is_over:
            # The store is queried once more after the end, and less often while the tracker returns errors.
            is_over = self._is_over.wait(self._interval_s * 2 ** min(failures, 6))
            try:
                with Store(self._folder, verify=False) as store:
                    for _ in _send_new(store, self._target):
                        self.sent += 1
                failures, self.problem = 0, ""
            except Exception as error:
                # Any exception: raised in a thread, it would be lost.
                failures, self.problem = failures + 1, str(error) or type(error).__name__


def _tracker(store: Store, tracker: str, destination: str | None) -> Tracker:
    if tracker not in TRACKERS:
        raise unknown_name("tracker", tracker, TRACKERS)
    return TRACKERS[tracker](store, destination)


def _finished(store: Store) -> dict[int, dict[str, Any]]:
    """Return the rows of `Store.listing` of finished runs, by run ID."""
    listing = store.listing()
    rows = listing[listing["state"] == "done"].to_dict("records")
    return {int(row["id"]): {str(key): value for key, value in row.items()} for row in rows}


def _send_new(store: Store, target: Tracker) -> Iterator[int]:
    """Send finished runs that the tracker lacks, and yield their IDs; raise the first error at the end."""
    errors: list[EnvariantError] = []
    for run, row in _finished(store).items():
        if target.has(run):
            continue
        settings = {key: str(row[key]) for key in ("data", "algorithm", "trial", "replica", "learning_rate")}
        settings["test_environments"] = ", ".join(row["test_environments"])
        settings |= {k: str(v) for k, v in json.loads(row["hyperparameters"]).items()}
        try:
            target.send(run, settings, store.history([run]))
        except EnvariantError as error:
            errors.append(error)
        else:
            yield run
    if errors:
        raise errors[0]
