"""Checkpoints: the training state of a replica stack, in one safetensors file without pickled objects.

A run resumed from a checkpoint is bit-identical to an uninterrupted run, because data, batches and
augmentation depend only on seeds and the step. Values other than tensors are stored in the file's header, and
copied to a JSON file for inspection.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from envariant.core.errors import EnvariantError
from envariant.core.files import read_tensors, write_tensors, write_text, writing


@final
@dataclass(frozen=True)
class Failure:
    """Divergence of a replica.

    Attributes:
        step: Number of updates before the divergence.
        reason: Name of the quantity that became infinite or NaN, and usual causes.
    """

    step: int
    reason: str


@final
@dataclass(frozen=True)
class Stop:
    """End of a replica's training before the last step, because of early stopping or an averaging rule.

    Attributes:
        step: Number of completed updates.
        reason: Reason for the end, such as a validation metric that did not improve.
    """

    step: int
    reason: str


@final
@dataclass(frozen=True)
class ReplicaState:
    """State of one replica: weights, completed steps and training time.

    Attributes:
        step: Number of updates after which the weights were obtained.
        params: Parameters used for prediction, by name.
        buffers: Buffers of the model, such as running statistics, by name.
        failure: Reason for divergence; None if the replica has not diverged.
        seconds: Training time in seconds; the time of a stack is divided equally among its replicas.
        trained: Number of updates that the replica completed. It is larger than `step` if the option `keep`
            selected the weights of an earlier step. Default: `step`.
        stopped: Reason why training ended before the last step; None if it did not.
        waited: Part of the training time spent waiting for rows on disk, in seconds.
    """

    step: int
    params: Mapping[str, Tensor] = field(repr=False)
    buffers: Mapping[str, Tensor] = field(repr=False)
    failure: str | None
    seconds: float
    trained: int | None = None
    stopped: str | None = None
    waited: float = 0.0

    def completed(self, steps: int) -> bool:
        """Return whether training ended as planned: after `steps` updates, or earlier because of a rule.

        The rule is an early-stopping rule or an averaging rule, such as SWAD.
        """
        updates = self.step if self.trained is None else self.trained
        return self.failure is None and (self.stopped is not None or updates >= steps)


@final
@dataclass(frozen=True)
class Checkpoint:
    """Full training state of a stack of replicas.

    Attributes:
        replicas: Indices of the replicas, in the order of the tensors' first axis.
        step: Number of completed updates of the replicas that have neither diverged nor stopped.
        measured: Step of the last measurement; -1 before the first.
        params: Trained parameters by name, `[replicas, *shape]` each.
        buffers: Buffers by name, `[replicas, *shape]` each.
        optimizer: Tensors of the optimizer's state, with PyTorch's names.
        algorithm: State of the algorithm, as nested mappings of tensors.
        watch: Tensors by name: "metrics" of the last step; "gradient_rms", the root mean square of the
            gradient; "clipped", the number of clipped gradients since the last measurement; and "failed_at",
            the step at which each replica diverged, or −1.
        metrics: Names of the columns of `watch["metrics"]`.
        failures: Reported divergences, by replica.
        seconds: Training time of the stack, in seconds.
        eval_params: Parameters used for prediction; empty if they equal `params`.
        eval_buffers: Buffers used for prediction; empty if they equal `buffers`.
        averaging: State of the averaging rule (`training.averaging`).
        selection: Best validation scores and their weights (`ValidationWatch.state`).
        stops: Steps and reasons of replicas that stopped before the last step, by replica.
        waited: Part of the training time spent waiting for rows on disk, in seconds.
    """

    replicas: tuple[int, ...]
    step: int
    measured: int
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    algorithm: Mapping[str, Any]
    watch: Mapping[str, Tensor]
    metrics: tuple[str, ...]
    failures: Mapping[int, Failure]
    seconds: float
    eval_params: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    eval_buffers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    averaging: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    selection: Mapping[str, Any] = field(default_factory=dict[str, Any])
    stops: Mapping[int, Stop] = field(default_factory=dict[int, Stop])
    waited: float = 0.0

    def clone(self) -> "Checkpoint":
        """Return a copy in main memory, which is not changed by later training steps."""
        return replace(self, **{group: _copied(getattr(self, group)) for group in _GROUPS})

    def reached(self, replica: int) -> int:
        """Return the step of a replica's last measurement.

        Args:
            replica: Index of the replica.
        """
        ended = self.failures.get(replica) or self.stops.get(replica)
        return self.measured if ended is None else ended.step

    def states(self) -> dict[int, ReplicaState]:
        """Return the state of each replica, by index; tensors are views of the checkpoint's tensors."""
        states: dict[int, ReplicaState] = {}
        last = (self.eval_params or self.params, self.eval_buffers or self.buffers)
        kept = self.selection.get("kept")
        for k, index in enumerate(self.replicas):
            failure, stop = self.failures.get(index), self.stops.get(index)
            ended = failure or stop
            trained = self.step if ended is None else ended.step
            # A replica that diverged before its first evaluation has no kept weights.
            step = -1 if kept is None else int(kept[k, 1])
            chosen = last if step < 0 else (self.selection["params"], self.selection.get("buffers", {}))
            params, buffers = ({name: value[k] for name, value in held.items()} for held in chosen)
            states[index] = ReplicaState(
                trained if step < 0 else step,
                params,
                buffers,
                None if failure is None else failure.reason,
                self.seconds / len(self.replicas),
                trained,
                None if stop is None else f"stopped at step {stop.step}: {stop.reason}",
                self.waited / len(self.replicas),
            )
        return states

    def for_prediction(self) -> "Checkpoint":
        """Return a checkpoint with only the weights used for prediction; training cannot resume from it."""
        return replace(
            self,
            params=self.eval_params or self.params,
            buffers=self.eval_buffers or self.buffers,
            **{name: {} for name in _GROUPS if name not in ("params", "buffers")},
        )


@final
@dataclass(frozen=True)
class _Header:
    replicas: tuple[int, ...]
    step: int
    measured: int
    metrics: tuple[str, ...]
    failures: dict[int, Failure]
    seconds: float
    stops: dict[int, Stop] = field(default_factory=dict[int, Stop])
    waited: float = 0.0


_HEADER = TypeAdapter(_Header)
_GROUPS = (
    "params",
    "buffers",
    "optimizer",
    "algorithm",
    "watch",
    "eval_params",
    "eval_buffers",
    "averaging",
    "selection",
)
_STACKED = ("params", "buffers", "eval_params", "eval_buffers", "watch", "averaging")
_SEPARATOR = "/"
_KEPT = "step-"
_REMEDY = "its replicas have to be trained again"


def save(checkpoint: Checkpoint, folder: Path, prefix: str = "") -> None:
    """Write a checkpoint atomically: if the process is killed, the previous checkpoint stays intact.

    Args:
        checkpoint: Checkpoint to write.
        folder: Folder for all checkpoints of a run; it is created if necessary.
        prefix: Beginning of the file name.

    Raises:
        EnvariantError: If the folder cannot be written.
    """
    tensors = {
        # Copied, because parameters used for prediction may share memory with the algorithm's state.
        key: value.detach().clone() if group in ("eval_params", "eval_buffers") else value.detach()
        for group in _GROUPS
        for key, value in _flat(getattr(checkpoint, group), group).items()
    }
    header = asdict(
        _Header(
            checkpoint.replicas,
            checkpoint.step,
            checkpoint.measured,
            checkpoint.metrics,
            dict(checkpoint.failures),
            checkpoint.seconds,
            dict(checkpoint.stops),
            checkpoint.waited,
        )
    )
    path = folder / f"{prefix}{_name(checkpoint.replicas)}.safetensors"
    write_tensors(path, tensors, {"checkpoint": json.dumps(header)})
    # The JSON file repeats the header and is never read, so the two files need not be written atomically.
    write_text(json.dumps(header, indent=2) + "\n", path.with_suffix(".json"))


def save_kept(checkpoint: Checkpoint, folder: Path) -> None:
    """Save the weights of a step selected by the `keep` rule, next to the run's checkpoints.

    Args:
        checkpoint: Checkpoint at that step.
        folder: Folder for all checkpoints of the run.

    Raises:
        EnvariantError: If the folder cannot be written.
    """
    save(checkpoint.for_prediction(), folder, f"{_KEPT}{checkpoint.step:010d}-")


def kept_states(folder: Path, measured: Collection[tuple[int, int]]) -> dict[int, dict[int, ReplicaState]]:
    """Return the states written by `save_kept`, by step and replica.

    Args:
        folder: Folder for all checkpoints of the run.
        measured: Pairs (replica, step) for which measured values exist; states of other pairs are omitted.

    Raises:
        EnvariantError: If a file cannot be read.
    """
    kept: dict[int, dict[int, ReplicaState]] = {}
    for path in sorted(folder.glob(f"{_KEPT}*.safetensors")):
        saved = _read(path)
        for number, state in saved.states().items():
            if state.step == saved.step and (number, saved.step) in measured:
                kept.setdefault(saved.step, {})[number] = state
    return kept


def load(folder: Path, on_damage: Callable[[EnvariantError], None] | None = None) -> list[Checkpoint]:
    """Load all checkpoints in a folder, sorted by replica.

    Args:
        folder: Folder passed to `save`.
        on_damage: Function called with the error of each damaged checkpoint, which is then skipped.
            Default: raise the error.

    Raises:
        EnvariantError: If a file cannot be read, or if a checkpoint is damaged and `on_damage` is None.
    """
    checkpoints: list[Checkpoint] = []
    for path in folder.glob("replica*.safetensors"):
        try:
            checkpoints.append(_read(path))
        except EnvariantError as error:
            if on_damage is None or error.retryable:
                raise
            on_damage(error)
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.replicas)


def clear(folder: Path) -> None:
    """Delete all checkpoints in a folder.

    Raises:
        EnvariantError: If the folder cannot be written.
    """
    with writing(folder):
        for path in (*folder.glob("replica*"), *folder.glob(f"{_KEPT}*")):
            path.unlink(missing_ok=True)


def _read(path: Path) -> Checkpoint:
    texts, flat = read_tensors(path, _REMEDY)
    try:
        header = _HEADER.validate_json(texts["checkpoint"])
    except (ValidationError, KeyError):
        raise _no_checkpoint(path) from None
    tensors: dict[str, Any] = {group: {} for group in _GROUPS} | _nested(flat, path)
    stacked = [tensors[group] for group in _STACKED]
    if not header.replicas or not all(
        isinstance(value, Tensor) and value.dim() and len(value) == len(header.replicas)
        for values in stacked
        for value in values.values()
    ):
        raise _no_checkpoint(path)
    return Checkpoint(
        replicas=header.replicas,
        step=header.step,
        measured=header.measured,
        metrics=header.metrics,
        failures=header.failures,
        seconds=header.seconds,
        stops=header.stops,
        waited=header.waited,
        **{group: tensors[group] for group in _GROUPS},
    )


def _name(replicas: tuple[int, ...]) -> str:
    if len(replicas) == 1:
        return f"replica-{replicas[0]:03d}"
    return f"replicas-{replicas[0]:03d}-{replicas[-1]:03d}"


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else _copied(value)
        for key, value in tree.items()
    }


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        path = f"{prefix}{_SEPARATOR}{key}"
        if isinstance(value, Tensor):
            flat[path] = value
        else:
            # Empty branches are not stored; the algorithm's `init` provides them again.
            flat |= _flat(value, path)
    return flat


def _nested(flat: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, tensor in flat.items():
        *branches, leaf = name.split(_SEPARATOR)
        place: Any = tree
        for branch in branches:
            place = place.setdefault(branch, {})
            if isinstance(place, Tensor):
                raise _no_checkpoint(path)
        if not branches or leaf in place:
            raise _no_checkpoint(path)
        place[leaf] = tensor
    return tree


def _no_checkpoint(path: Path) -> EnvariantError:
    return EnvariantError(f"{path}: is not a checkpoint; {_REMEDY}")
