"""Callbacks: user-defined methods that are called during training with the state of the replicas."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, final

from envariant.core.errors import EnvariantError, first_line, shown
from envariant.training.checkpoint import Checkpoint, ReplicaState
from envariant.training.engine import Evaluated, Stepped
from envariant.training.history import HistoryRow
from envariant.training.record import Record


@final
@dataclass(frozen=True)
class RunLabel:
    """Name and settings of one replica, for logs.

    Attributes:
        label: Name that is unique in the output folder and does not change when a run is resumed.
        settings: Settings by name, as strings: data set, algorithm, hyperparameters and others.
    """

    label: str
    settings: Mapping[str, str]


@final
@dataclass(frozen=True)
class TrainingState:
    """State of the replicas that train together, as passed to callbacks. It is valid during the call only.

    Attributes:
        record: Record of the run: options, data and provenance.
        labels: Name and settings of each replica, by index.
        replicas: Indices of the replicas; in a study, IDs of the runs.
        step: Number of completed updates.
        rows: Metric values, one per row: in `on_evaluation`, those of the evaluation that has just ended; in
            `on_end`, those of the last evaluation; empty in `on_step`. Metrics reported by the algorithm have
            the role "batch".
    """

    record: Record
    labels: Mapping[int, RunLabel] = field(repr=False)
    replicas: tuple[int, ...]
    step: int
    rows: tuple[HistoryRow, ...] = field(repr=False)
    _checkpoint: Any = field(repr=False)

    @property
    def checkpoint(self) -> Checkpoint:
        """Parameters, buffers, optimizer state and algorithm state; the first axis is the replica axis."""
        return self._checkpoint()

    @property
    def states(self) -> Mapping[int, ReplicaState]:
        """Parameters, buffers and reason for divergence of each replica, by index."""
        return self.checkpoint.states()

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        """Metrics of the last training batch, such as risk and penalty: replica → name → value.

        Every access copies the values from the device, which is slow on a GPU.
        """
        checkpoint = self.checkpoint
        values = checkpoint.watch.get("metrics")
        each = [] if values is None else values.tolist()
        return {
            replica: dict(zip(checkpoint.metrics, own, strict=True))
            for replica, own in zip(checkpoint.replicas, each, strict=False)
        }


class Callback(Protocol):
    """Base class of callbacks. Override the methods you need.

    An object of any other class that has at least one of these methods is a callback as well.
    """

    def on_step(self, state: TrainingState) -> None:
        """Run after each training step. If no callback overrides this method, steps have no overhead."""
        del state

    def on_evaluation(self, state: TrainingState) -> None:
        """Run after each evaluation of all environments, including the evaluation before the first step."""
        del state

    def on_end(self, state: TrainingState) -> None:
        """Run after the last evaluation of the replicas that train together."""
        del state


_METHODS = ("on_step", "on_evaluation", "on_end")


def check_callbacks(callbacks: object) -> tuple[Any, ...]:
    """Convert one callback, or a collection of callbacks, to a tuple.

    Raises:
        EnvariantError: If an object has no callback method, or is a class instead of an instance.
    """
    is_list = isinstance(callbacks, Sequence) and not isinstance(callbacks, str)
    several = callbacks if is_list else [] if callbacks is None else [callbacks]
    for each in (checked := tuple(cast("Iterable[Any]", several))):
        if isinstance(each, type) or not any(hasattr(each, name) for name in _METHODS):
            got = f"the class {each.__name__}; pass an object" if isinstance(each, type) else shown(each)
            raise EnvariantError(
                f"callbacks must be objects with a method {', '.join(_METHODS[:2])} or {_METHODS[2]}; "
                f"got {got}"
            )
    return checked


@final
class CallbackRunner:
    """Runner that calls the callbacks of a run.

    Args:
        callbacks: One callback, several callbacks, or None.
        record: Record of the run.
        labels: Name and settings of each replica, by index.

    Raises:
        EnvariantError: If an object is not a callback.
    """

    def __init__(self, callbacks: object, record: Record, labels: Mapping[int, RunLabel]) -> None:
        checked = check_callbacks(callbacks)
        self._by_method = {name: [c for c in checked if _overrides(c, name)] for name in _METHODS}
        self._record, self._labels = record, labels

    def __call__(self, event: Stepped | Evaluated, rows: Iterable[HistoryRow] = ()) -> None:
        """Call the callback methods that belong to an event of the engine.

        Args:
            event: Event of the engine.
            rows: Measured values to pass to the callbacks in addition to those of the event.

        Raises:
            EnvariantError: If a callback fails.
        """
        if isinstance(event, Stepped):
            if self._by_method["on_step"]:
                self._call("on_step", event, ())
            return
        self._call("on_evaluation", event, (*event.rows, *rows))
        if event.finished:
            self._call("on_end", event, (*event.rows, *rows))

    def _call(self, method: str, event: Stepped | Evaluated, rows: tuple[HistoryRow, ...]) -> None:
        labels, checkpoint = self._labels, event.checkpoint
        state = TrainingState(self._record, labels, event.replicas, event.step, rows, checkpoint)
        for callback in self._by_method[method]:
            try:
                getattr(callback, method)(state)
            # A user's callback can raise anything.
            except Exception as error:
                where = f"callback {type(callback).__name__}: {method} fails at step {event.step}"
                remedy = "correct it; a run with a folder resumes when the call is repeated"
                raise EnvariantError(f"{where} ({first_line(error)}); {remedy}", retryable=True) from error


def _overrides(callback: object, method: str) -> bool:
    own = getattr(type(callback), method, None)
    return hasattr(callback, method) and own is not getattr(Callback, method)


def run_label(run: int) -> str:
    """Return the label that identifies a run of a study in experiment trackers."""
    return f"run-{run:06d}"


def labels_of(record: Record) -> dict[int, RunLabel]:
    """Return the name and settings of each replica of a single run."""
    spec = record.spec.to_dict()
    options = spec.pop("hyperparameters") | {key: value for key, value in spec.items() if value is not None}
    settings = {key: str(value) for key, value in options.items()}
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in record.spec.algorithm)
    name = f"{name}-{record.identity[:8]}-replica"
    replicas = range(record.spec.replicas)
    return {k: RunLabel(f"{name}-{k}", {**settings, "replica": str(k)}) for k in replicas}
