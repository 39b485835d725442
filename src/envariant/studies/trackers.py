"""A study's runs in the tools that teams already look at: TensorBoard and MLflow.

The store stays the truth. A tracker is given runs that are done, and leaves alone those it already has; so
it may be called while a sweep is going on, again and again.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import pandas as pd

from envariant.errors import EnvariantError, unknown_name
from envariant.studies.store import Store


class Tracker(ABC):
    """Where runs are sent."""

    name: ClassVar[str]

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
        study: name of the study.
        where: the folder; by default `tensorboard` in the study's.
        folder: of the study.
    """

    name: ClassVar[str] = "tensorboard"

    def __init__(self, study: str, where: str | None, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("TensorBoard") from None
        del study
        self._write: Any = SummaryWriter
        self._folder = folder / "tensorboard" if where is None else Path(where)

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
    """An experiment of the study's name at a tracking server.

    Args:
        study: name of the study.
        where: the server's address; by default what `MLFLOW_TRACKING_URI` says.
        folder: of the study.
    """

    name: ClassVar[str] = "mlflow"

    def __init__(self, study: str, where: str | None, folder: Path) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise _missing("MLflow") from None
        del folder
        self._mlflow: Any = mlflow
        try:
            self._client: Any = self._mlflow.MlflowClient(where)
            experiment = self._client.get_experiment_by_name(study)
            self._experiment = (
                experiment.experiment_id if experiment else self._client.create_experiment(study)
            )
            found = self._client.search_runs([self._experiment], max_results=50_000)
        except self._mlflow.exceptions.MlflowException as error:
            raise _refused(error) from None
        self._sent = {
            int(each.data.tags[_TAG])
            for each in found
            if _TAG in each.data.tags and each.info.status == "FINISHED"
        }

    def has(self, run: int) -> bool:
        return run in self._sent

    def send(self, run: int, settings: Mapping[str, str], history: pd.DataFrame) -> None:
        entities, client = self._mlflow.entities, self._client
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
            raise _refused(error) from None
        self._sent.add(run)


TRACKERS: dict[str, type[TensorBoard] | type[MLflow]] = {cls.name: cls for cls in (TensorBoard, MLflow)}
_TAG, _WHOLE, _AT_ONCE = "envariant.run", "whole", 1000


def track(folder: Path, tracker: str, where: str | None = None) -> tuple[int, int]:
    """Sends every run that is done and was not sent before.

    Args:
        folder: of the study.
        tracker: "tensorboard" or "mlflow".
        where: a folder for the first, a tracking address for the second.

    Returns:
        How many were sent now, and how many before.

    Raises:
        EnvariantError: there is no such tracker, it is not installed, or it refuses.
    """
    if tracker not in TRACKERS:
        raise unknown_name("tracker", tracker, TRACKERS)
    sent = before = 0
    with Store(folder) as store:
        target: Tracker = TRACKERS[tracker](store.study.name, where, folder)
        listed = store.listing()
        for row in listed[listed["state"] == "done"].to_dict("records"):
            run = int(row["id"])
            if target.has(run):
                before += 1
                continue
            kept = ("data", "held_out", "algorithm", "draw", "replica", "learning_rate")
            settings = {key: str(row[key]) for key in kept}
            settings |= {k: str(v) for k, v in json.loads(row["hyperparameters"]).items()}
            target.send(run, settings, store.history([run]))
            sent += 1
    return sent, before


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
