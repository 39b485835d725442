"""Experiment trackers as callbacks that log during training: TensorBoard, MLflow and Weights & Biases."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from envariant.core.errors import EnvariantError, EnvariantWarning, first_line, unknown_name
from envariant.core.files import writing
from envariant.training.callbacks import TrainingState, run_label
from envariant.training.history import FULL

if TYPE_CHECKING:
    import pandas as pd

Point = tuple[int, str, float]
"""Step, name and value of a metric."""


class Tracker(ABC):
    """Base class of experiment trackers to which the finished runs of a study are exported."""

    @abstractmethod
    def has(self, run: int) -> bool:
        """Return whether a run has been exported completely."""

    @abstractmethod
    def send(self, run: int, settings: Mapping[str, str], history: "pd.DataFrame") -> None:
        """Export one run.

        Args:
            run: ID of the run in the study.
            settings: Settings of the run by name: data set, algorithm, hyperparameters and others.
            history: Metrics of the run, one row per value, from `Store.history`.
        """


class LiveTracker(ABC):
    """Base class of callbacks that log to an experiment tracker after every evaluation.

    If the tracker raises an error, a warning is issued and logging stops, but training continues.
    """

    _open: set[str] | None = None
    _is_broken = False

    @abstractmethod
    def begin(self, label: str, settings: Mapping[str, str], step: int) -> None:
        """Begin the log of a run, or continue the log of an interrupted run.

        Args:
            label: Name of the run.
            settings: Settings of the run by name.
            step: Step of the first values; above 0 if an interrupted run is resumed.
        """

    @abstractmethod
    def log(self, label: str, points: Sequence[Point]) -> None:
        """Log metric values of a run."""

    @abstractmethod
    def end(self, label: str) -> None:
        """Mark the log of a run as complete."""

    def on_evaluation(self, state: TrainingState) -> None:
        """Log the metric values of an evaluation."""
        if self._is_broken:
            return
        self._open = set() if self._open is None else self._open
        try:
            for replica in state.replicas:
                run = state.labels[replica]
                if run.label not in self._open:
                    self.begin(run.label, run.settings, state.step)
                    self._open.add(run.label)
                self.log(run.label, points(row for row in state.rows if row.replica == replica))
        except EnvariantError as error:
            self._stop(error)

    def on_end(self, state: TrainingState) -> None:
        """Mark the logs of the replicas in `state` as complete."""
        try:
            for label in (state.labels[replica].label for replica in state.replicas):
                if not self._is_broken and label in (self._open or ()):
                    self.end(label)
        except EnvariantError as error:
            self._stop(error)

    def _stop(self, error: EnvariantError) -> None:
        self._is_broken = True
        text = f"{error}; training continues, and no more values are logged"
        warnings.warn(text, EnvariantWarning, stacklevel=2)


@final
class TensorBoard(LiveTracker, Tracker):
    """TensorBoard log directory with one subfolder per run.

    Args:
        folder: Log directory; created if it does not exist.

    Raises:
        EnvariantError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        _tensorboard()
        self._folder = Path(folder)
        self._writers: dict[str, Any] = {}

    def has(self, run: int) -> bool:
        return (self._folder / run_label(run) / _COMPLETE).exists()

    def send(self, run: int, settings: Mapping[str, str], history: "pd.DataFrame") -> None:
        self.begin(run_label(run), settings, 0)
        self.log(run_label(run), points(history.itertuples()))
        self.end(run_label(run))

    def begin(self, label: str, settings: Mapping[str, str], step: int) -> None:
        folder = self._folder / label
        with writing(folder):
            for earlier in [] if step else [*folder.glob("events.*"), folder / _COMPLETE]:
                earlier.unlink(missing_ok=True)
            # Values of an interrupted run after its last checkpoint are replaced.
            writer = self._writers[label] = _tensorboard()(log_dir=str(folder), purge_step=step or None)
            for key, value in settings.items():
                writer.add_text(key, value)

    def log(self, label: str, points: Sequence[Point]) -> None:
        writer = self._writers[label]
        with writing(self._folder / label):
            for step, name, value in points:
                writer.add_scalar(name, value, step)
            writer.flush()

    def end(self, label: str) -> None:
        with writing(self._folder / label):
            self._writers.pop(label).close()
            (self._folder / label / _COMPLETE).touch()


@final
class MLflow(LiveTracker, Tracker):
    """Experiment on an MLflow tracking server.

    Args:
        experiment: Name of the experiment; created if it does not exist.
        address: Address of the server. Default: the environment variable `MLFLOW_TRACKING_URI`.

    Raises:
        EnvariantError: If MLflow is not installed, or the server returns an error.
    """

    def __init__(self, experiment: str = "envariant", address: str | None = None) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise _missing("MLflow", '"envariant[tracking]"') from None
        self._arguments = experiment, address
        self._mlflow: Any = mlflow
        self._sent: set[str] = set()
        self._incomplete: dict[str, str] = {}
        try:
            self._client: Any = self._mlflow.MlflowClient(address)
            known = self._client.get_experiment_by_name(experiment)
            self._experiment = known.experiment_id if known else self._client.create_experiment(experiment)
            page: Any = None
            while page is None or page.token:
                page = self._client.search_runs([self._experiment], page_token=page and page.token)
                for each in page:
                    if _TAG in each.data.tags and each.info.status == "FINISHED":
                        self._sent.add(each.data.tags[_TAG])
                    elif _TAG in each.data.tags:
                        self._incomplete[each.data.tags[_TAG]] = each.info.run_id
        except self._mlflow.exceptions.MlflowException as error:
            raise _refused(error) from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes of a study connect to the server themselves.
        return type(self), self._arguments

    def has(self, run: int) -> bool:
        return str(run) in self._sent

    def send(self, run: int, settings: Mapping[str, str], history: "pd.DataFrame") -> None:
        try:
            self.begin(run_label(run), settings, 0)
            self.log(run_label(run), points(history.itertuples()))
            self.end(run_label(run))
        except EnvariantError:
            # Delete the incomplete run, because the next attempt starts a new one.
            self._discard(_tag(run_label(run)))
            raise

    def begin(self, label: str, settings: Mapping[str, str], step: int) -> None:
        tag = _tag(label)
        if not step:
            self._discard(tag)
        if tag in self._incomplete:
            return
        with self._errors():
            created = self._client.create_run(self._experiment, tags={_TAG: tag}, run_name=label)
            self._incomplete[tag] = created.info.run_id
            parameters = [self._mlflow.entities.Param(key, value[:6000]) for key, value in settings.items()]
            self._client.log_batch(created.info.run_id, params=parameters)

    def log(self, label: str, points: Sequence[Point]) -> None:
        # The timestamp is 0: only the step matters here.
        metrics = [self._mlflow.entities.Metric(_safe(name), value, 0, step) for step, name, value in points]
        with self._errors():
            for start in range(0, len(metrics), _BATCH_SIZE):
                batch = metrics[start : start + _BATCH_SIZE]
                self._client.log_batch(self._incomplete[_tag(label)], metrics=batch)

    def end(self, label: str) -> None:
        with self._errors():
            self._client.set_terminated(self._incomplete[_tag(label)])
        del self._incomplete[_tag(label)]
        self._sent.add(_tag(label))

    def _discard(self, tag: str) -> None:
        if (run_id := self._incomplete.pop(tag, None)) is not None:
            with suppress(self._mlflow.exceptions.MlflowException):
                self._client.delete_run(run_id)

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except self._mlflow.exceptions.MlflowException as error:
            raise _refused(error) from None


@final
class WeightsAndBiases(LiveTracker):
    """Project of Weights & Biases with one run per replica.

    Args:
        project: Name of the project.
        options: Additional arguments for `wandb.init`, such as `entity` or `mode`.

    Raises:
        EnvariantError: If the package `wandb` is not installed.
    """

    def __init__(self, project: str = "envariant", **options: Any) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise _missing("Weights & Biases", "wandb") from None
        self._wandb: Any = wandb
        self._options = {"project": project, **options}
        self._runs: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._options), ()

    def begin(self, label: str, settings: Mapping[str, str], step: int) -> None:
        named = {"id": label, "name": label, "resume": "allow" if step else None}
        with self._errors():
            self._runs[label] = self._wandb.init(
                config=dict(settings), reinit="create_new", **named, **self._options
            )

    def log(self, label: str, points: Sequence[Point]) -> None:
        with self._errors():
            for step in sorted({point[0] for point in points}):
                self._runs[label].log({name: value for s, name, value in points if s == step}, step=step)

    def end(self, label: str) -> None:
        with self._errors():
            self._runs.pop(label).finish()

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        # The errors of several versions of wandb have no common class.
        except Exception as error:
            raise EnvariantError(f"Weights & Biases: {first_line(error)}") from error


_TAG, _COMPLETE, _BATCH_SIZE = "envariant.run", "whole", 1000


def points(rows: Iterable[Any]) -> list[Point]:
    """Return the step, name and value of each metric value that is finite.

    Examples of names: `accuracy/flip-0.9`, `accuracy/flip-0.1 (validation)`, `auroc/north/shuffled age`.

    Args:
        rows: Objects with the attributes of `HistoryRow`.
    """
    named: list[Point] = []
    for row in rows:
        if row.value is None or not math.isfinite(row.value):
            continue
        name = str(row.metric) if row.environment == "*" else f"{row.metric}/{row.environment}"
        name += " (validation)" if row.role == "validation" else ""
        name += f"/{row.kind} {row.column}".rstrip() if row.kind != FULL else ""
        named.append((int(row.step), name, float(row.value)))
    return named


def _tag(label: str) -> str:
    """Return the tag of a run on an MLflow server: its number for a run of a study, otherwise its label."""
    number = label.removeprefix("run-")
    return str(int(number)) if number.isdecimal() else label


def _safe(name: str) -> str:
    """Replace characters that MLflow does not allow in names by underscores."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("TensorBoard", '"envariant[tracking]"') from None
    return SummaryWriter


def _missing(package: str, installed: str) -> EnvariantError:
    return EnvariantError(f"{package} is not installed; pip install {installed}")


def _refused(error: Exception) -> EnvariantError:
    return EnvariantError(f"MLflow: {str(error).splitlines()[0]}")


def live_tracker(name: str, destination: str | None = None) -> LiveTracker:
    """Create a tracker that logs during training, given its name.

    Args:
        name: "tensorboard", "mlflow" or "wandb".
        destination: Log directory of TensorBoard (default: `tensorboard`), address of the MLflow server
            (default: the environment variable `MLFLOW_TRACKING_URI`), or name of the W&B project (default:
            `envariant`).

    Raises:
        EnvariantError: If the tracker is unknown or not installed.
    """
    known = {
        "tensorboard": lambda: TensorBoard(destination or "tensorboard"),
        "mlflow": lambda: MLflow(address=destination),
        "wandb": lambda: WeightsAndBiases(destination or "envariant"),
    }
    if name not in known:
        raise unknown_name("tracker", name, known)
    return known[name]()
