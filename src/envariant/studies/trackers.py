"""A study's runs in the tools that teams already look at: TensorBoard and MLflow.

The store stays the truth. A tracker is given runs that are done, and leaves alone those it already has: as
they end, beside a sweep, or all at once, as often as one likes.
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
from envariant.training.store import Store


class Tracker(ABC):
    """Where runs are sent."""

    @abstractmethod
    def has(self, run: int) -> bool:
        """Whether that run was sent before."""

    @abstractmethod
    def send(self, run: int, settings: Mapping[str, str], history: pd.DataFrame) -> None:
        """Sends one run.

        Args:
            run: its number in the study.
            settings: what it is.
            history: its measured numbers: step, environment, metric, value.
        """


@final
class TensorBoard(Tracker):
    """A folder of event files, one below it for each run.

    Args:
        folder: made where it is not there.

    Raises:
        EnvariantError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("TensorBoard") from None
        self._write: Any = SummaryWriter
        self._folder = folder

    def has(self, run: int) -> bool:
        return (self._folder / _label(run) / _WHOLE).exists()

    def send(self, run: int, settings: Mapping[str, str], history: pd.DataFrame) -> None:
        place = self._folder / _label(run)
        try:
            for half in place.glob("events.*"):
                half.unlink()
            writer = self._write(log_dir=str(place))
            for key, value in settings.items():
                writer.add_text(key, value)
            for step, name, value in _points(history):
                writer.add_scalar(name, value, step)
            writer.close()
            (place / _WHOLE).touch()
        except OSError as error:
            raise EnvariantError(f"{place}: cannot be written ({error.strerror or error})") from None


@final
class MLflow(Tracker):
    """An experiment at a tracking server.

    Args:
        experiment: its name; made where it is not there.
        address: of the server; by default what `MLFLOW_TRACKING_URI` says.

    Raises:
        EnvariantError: MLflow is not installed, or the server refuses.
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
                self._note(page)
        except self._mlflow.exceptions.MlflowException as error:
            raise _refused(error) from None

    def _note(self, runs: Any) -> None:
        """Takes down which runs are there; half of one, as a kill leaves it, makes room for the whole."""
        for each in runs:
            if _TAG in each.data.tags and each.info.status == "FINISHED":
                self._sent.add(int(each.data.tags[_TAG]))
            elif _TAG in each.data.tags:
                self._client.delete_run(each.info.run_id)

    def has(self, run: int) -> bool:
        return run in self._sent

    def send(self, run: int, settings: Mapping[str, str], history: pd.DataFrame) -> None:
        entities, client = self._mlflow.entities, self._client
        number = None
        try:
            number = client.create_run(
                self._experiment, tags={_TAG: str(run)}, run_name=_label(run)
            ).info.run_id
            parameters = [entities.Param(key, value[:6000]) for key, value in settings.items()]
            client.log_batch(number, params=parameters)
            # Time is the client's business; ours is the step.
            metrics = [entities.Metric(_safe(name), value, 0, step) for step, name, value in _points(history)]
            for start in range(0, len(metrics), _AT_ONCE):
                client.log_batch(number, metrics=metrics[start : start + _AT_ONCE])
            client.set_terminated(number)
        except self._mlflow.exceptions.MlflowException as error:
            if number is not None:
                # Or the next attempt would leave another half beside this one.
                with suppress(self._mlflow.exceptions.MlflowException):
                    client.delete_run(number)
            raise _refused(error) from None
        self._sent.add(run)


TRACKERS: dict[str, Callable[[Store, str | None], Tracker]] = {
    "tensorboard": lambda store, at: TensorBoard(Path(at) if at else store.folder / "tensorboard"),
    "mlflow": lambda store, at: MLflow(store.study.name, at),
}
"""By name: of a study's store, and of where to send its runs, if that was said."""
_TAG, _WHOLE, _AT_ONCE = "envariant.run", "whole", 1000
# Seconds that a tracker may take at the end of a sweep.
CHECKPOINT_INTERVAL_S = 60.0


def track(folder: Path, tracker: str, at: str | None = None) -> tuple[int, int]:
    """Sends every run that is done and was not sent before.

    Args:
        folder: of the study.
        tracker: "tensorboard" or "mlflow".
        at: a folder for the first, by default in the study's; a tracking address for the second.

    Returns:
        How many were sent now, and how many before.

    Raises:
        EnvariantError: there is no such tracker, it is not installed, or it refuses.
    """
    with Store(folder) as store:
        target = _tracker(store, tracker, at)
        before = sum(target.has(run) for run in _done(store))
        return sum(1 for _ in _sending(store, target)), before


@final
class Following:
    """Sends runs to a tracker as they end, while a sweep goes on: `with Following(…) as following: …`.

    What goes wrong at the tracker does not stop the sweep: runs are in the store, and can be sent later.

    Args:
        folder: of the study.
        tracker, at: as for `track`.
        seconds: between two looks at the store.

    Attributes:
        sent: runs sent by now.
        problem: why the last attempt failed, or "".

    Raises:
        EnvariantError: there is no such tracker, it is not installed, or it refuses from the start.
    """

    def __init__(self, folder: Path, tracker: str, at: str | None = None, seconds: float = 5.0) -> None:
        self._folder, self._seconds = folder, seconds
        with Store(folder) as store:
            self._target = _tracker(store, tracker, at)
        self._over = Event()
        self._thread = Thread(target=self._follow, daemon=True)
        self.sent, self.problem = 0, ""

    def __enter__(self) -> "Following":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(CHECKPOINT_INTERVAL_S)
        if self._thread.is_alive():
            self.problem = f"it did not answer within {CHECKPOINT_INTERVAL_S:g} seconds"

    def _follow(self) -> None:
        over, failed = False, 0
        while not over:
            # One more look after the end, for what ended last; ever fewer at a tracker that refuses.
            over = self._over.wait(self._seconds * 2 ** min(failed, 6))
            try:
                with Store(self._folder) as store:
                    for _ in _sending(store, self._target):
                        self.sent += 1
                failed, self.problem = 0, ""
            except Exception as error:
                # Whatever it is, nobody would see it in a thread.
                failed, self.problem = failed + 1, str(error) or type(error).__name__


def _tracker(store: Store, tracker: str, at: str | None) -> Tracker:
    if tracker not in TRACKERS:
        raise unknown_name("tracker", tracker, TRACKERS)
    return TRACKERS[tracker](store, at)


def _done(store: Store) -> dict[int, dict[str, Any]]:
    """What is known of each run that is done."""
    listed = store.listing()
    rows = listed[listed["state"] == "done"].to_dict("records")
    return {int(row["id"]): {str(key): value for key, value in row.items()} for row in rows}


def _sending(store: Store, target: Tracker) -> Iterator[int]:
    """Sends what is done and was not sent, run by run; one that is refused does not keep others back."""
    refused: list[EnvariantError] = []
    for run, row in _done(store).items():
        if target.has(run):
            continue
        kept = ("data", "test_environments", "algorithm", "trial", "replica", "learning_rate")
        settings = {key: str(row[key]) for key in kept}
        settings |= {k: str(v) for k, v in json.loads(row["hyperparameters"]).items()}
        try:
            target.send(run, settings, store.history([run]))
        except EnvariantError as error:
            refused.append(error)
        else:
            yield run
    if refused:
        raise refused[0]


def _points(history: pd.DataFrame) -> list[tuple[int, str, float]]:
    """Step, name and value of what is finite; names such as `accuracy/flip-0.9`."""
    columns = zip(history["step"], history["metric"], history["environment"], history["value"], strict=True)
    return [
        (int(step), str(metric) if place == "*" else f"{metric}/{place}", float(value))
        for step, metric, place, value in columns
        if value is not None and math.isfinite(value)
    ]


def _label(run: int) -> str:
    return f"run-{run:06d}"


def _safe(name: str) -> str:
    """A name as MLflow allows it."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _missing(what: str) -> EnvariantError:
    return EnvariantError(f'{what} is not installed; pip install "envariant[tracking]"')


def _refused(error: Exception) -> EnvariantError:
    return EnvariantError(f"MLflow: {str(error).splitlines()[0]}")
