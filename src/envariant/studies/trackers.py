"""Export the runs of a study to experiment trackers: TensorBoard and MLflow.

The store remains the complete record of all results. Finished runs are sent to a tracker during or after a
sweep; runs that the tracker already has are skipped.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, final

import pandas as pd

from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.files import writing
from envariant.training.history import FULL
from envariant.training.store import Store


class Tracker(ABC):
    """Base class of experiment trackers that receive the runs of a study."""

    @abstractmethod
    def has(self, run: int) -> bool:
        """Return whether the tracker has all metrics of a run."""

    @abstractmethod
    def send(self, run: int, settings: Mapping[str, str], history: pd.DataFrame) -> None:
        """Send a run to the tracker.

        Args:
            run: ID of the run in the study.
            settings: Mapping from the names of the run's settings, such as data set, algorithm and
                hyperparameters, to their values as text.
            history: Metrics of the run, one row per value, from `Store.history`.
        """


@final
class TensorBoard(Tracker):
    """TensorBoard log directory with one subfolder per run.

    Args:
        folder: Log directory; created if it does not exist.

    Raises:
        EnvariantError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("TensorBoard") from None
        self._writer: Any = SummaryWriter
        self._folder = folder

    def has(self, run: int) -> bool:
        return (self._folder / _label(run) / _COMPLETE).exists()

    def send(self, run: int, settings: Mapping[str, str], history: pd.DataFrame) -> None:
        folder = self._folder / _label(run)
        with writing(folder):
            for incomplete in folder.glob("events.*"):
                incomplete.unlink()
            writer = self._writer(log_dir=str(folder))
            for key, value in settings.items():
                writer.add_text(key, value)
            for step, name, value in _points(history):
                writer.add_scalar(name, value, step)
            writer.close()
            (folder / _COMPLETE).touch()


@final
class MLflow(Tracker):
    """Experiment on an MLflow tracking server.

    Args:
        experiment: Name of the experiment; created if it does not exist.
        address: Tracking URI of the server. Default: the environment variable `MLFLOW_TRACKING_URI`.

    Raises:
        EnvariantError: If MLflow is not installed, or the server returns an error.
    """

    def __init__(self, experiment: str, address: str | None) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise _missing("MLflow") from None
        self._mlflow: Any = mlflow
        self._sent: set[int] = set()
        try:
            self._client: Any = self._mlflow.MlflowClient(address)
            known = self._client.get_experiment_by_name(experiment)
            self._experiment = known.experiment_id if known else self._client.create_experiment(experiment)
            page: Any = None
            while page is None or page.token:
                page = self._client.search_runs([self._experiment], page_token=page and page.token)
                self._register(page)
        except self._mlflow.exceptions.MlflowException as error:
            raise _refused(error) from None

    def _register(self, runs: Any) -> None:
        """Find the complete runs on the server, and delete incomplete runs so that they are sent again."""
        for each in runs:
            if _TAG in each.data.tags and each.info.status == "FINISHED":
                self._sent.add(int(each.data.tags[_TAG]))
            elif _TAG in each.data.tags:
                self._client.delete_run(each.info.run_id)

    def has(self, run: int) -> bool:
        return run in self._sent

    def send(self, run: int, settings: Mapping[str, str], history: pd.DataFrame) -> None:
        entities, client = self._mlflow.entities, self._client
        run_id = None
        try:
            created = client.create_run(self._experiment, tags={_TAG: str(run)}, run_name=_label(run))
            run_id = created.info.run_id
            parameters = [entities.Param(key, value[:6000]) for key, value in settings.items()]
            client.log_batch(run_id, params=parameters)
            # The timestamp is 0: only the step matters here.
            metrics = [entities.Metric(_safe(name), value, 0, step) for step, name, value in _points(history)]
            for start in range(0, len(metrics), _BATCH_SIZE):
                client.log_batch(run_id, metrics=metrics[start : start + _BATCH_SIZE])
            client.set_terminated(run_id)
        except self._mlflow.exceptions.MlflowException as error:
            if run_id is not None:
                # Otherwise the next attempt would leave a second incomplete run.
                with suppress(self._mlflow.exceptions.MlflowException):
                    client.delete_run(run_id)
            raise _refused(error) from None
        self._sent.add(run)


TRACKERS: dict[str, Callable[[Store, str | None], Tracker]] = {
    "tensorboard": lambda store, to: TensorBoard(Path(to) if to else store.folder / "tensorboard"),
    "mlflow": lambda store, to: MLflow(store.declaration()["name"], to),
}
"""Functions that create a tracker, by name. Arguments: store of the study; destination, None: default."""
_TAG, _COMPLETE, _BATCH_SIZE = "envariant.run", "whole", 1000
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
    """Return a mapping from the ID of each finished run to its row of `Store.listing`."""
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


def _points(history: pd.DataFrame) -> list[tuple[int, str, float]]:
    """Return step, name and value of each finite metric.

    Names are, for example, `accuracy/flip-0.9`, `accuracy/flip-0.1 (validation)` or `auroc/north/shuffled
    age`.
    """
    points: list[tuple[int, str, float]] = []
    columns = ("step", "environment", "role", "metric", "kind", "column", "value")
    for step, environment, role, metric, kind, column, value in zip(
        *(history[c] for c in columns), strict=True
    ):
        if value is None or not math.isfinite(value):
            continue
        name = str(metric) if environment == "*" else f"{metric}/{environment}"
        name += " (validation)" if role == "validation" else ""
        name += f"/{kind} {column}".rstrip() if kind != FULL else ""
        points.append((int(step), name, float(value)))
    return points


def _label(run: int) -> str:
    return f"run-{run:06d}"


def _safe(name: str) -> str:
    """Replace characters that MLflow does not allow in names by underscores."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _missing(package: str) -> EnvariantError:
    return EnvariantError(f'{package} is not installed; pip install "envariant[tracking]"')


def _refused(error: Exception) -> EnvariantError:
    return EnvariantError(f"MLflow: {str(error).splitlines()[0]}")
