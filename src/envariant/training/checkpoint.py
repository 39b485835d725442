"""The state of replicas that train together, between two steps: one safetensors file, nothing pickled.

Training resumed from one gives the bits that an uninterrupted run gives, because everything else (data,
rows of a step, augmentation) follows from seeds and the step's number. What is not a tensor stands in the
file's header, and once more beside it as JSON for people to read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import safetensors
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from envariant.core.errors import EnvariantError


@final
@dataclass(frozen=True)
class Failure:
    """Why a replica stopped early.

    Attributes:
        step: updates it had made.
        reason: in words.
    """

    step: int
    reason: str


@final
@dataclass(frozen=True)
class ReplicaState:
    """One replica's network, as far as it has come.

    Attributes:
        step: updates made.
        params, buffers: of the model, by name, as they predict.
        failure: why training stopped early, or None.
        seconds: spent on it; a group's time is shared out evenly.
    """

    step: int
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    failure: str | None
    seconds: float


@final
@dataclass(frozen=True)
class Checkpoint:
    """Everything that changes while a group of replicas trains.

    Attributes:
        replicas: their numbers, in the order of the tensors' first axis.
        step: updates made by those that have not failed.
        measured: the step at which they were last measured; -1 if they never were.
        params, buffers: of the models, by name.
        optimizer: what the update rule remembers, by PyTorch's names.
        algorithm: the algorithm's state.
        watch: what was seen of each replica in its last step: where it failed, and its metrics.
        metrics: the names of those.
        failures: of the replicas that stopped early, as far as they have been measured.
        seconds: spent on all of them so far.
        eval_params: the parameters that predict, where those are not the ones that train.
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

    def clone(self) -> "Checkpoint":
        """Return a copy that does not change with the stack's next step."""
        return replace(self, **{group: _copied(getattr(self, group)) for group in _GROUPS})

    def reached(self, replica: int) -> int:
        """The step at which that replica was last measured."""
        return self.failures[replica].step if replica in self.failures else self.measured

    def states(self) -> dict[int, ReplicaState]:
        """Each replica by itself; the tensors are views of the group's."""
        found: dict[int, ReplicaState] = {}
        for k, index in enumerate(self.replicas):
            failure = self.failures.get(index)
            params, buffers = (
                {name: value[k] for name, value in held.items()}
                for held in (self.eval_params or self.params, self.buffers)
            )
            found[index] = ReplicaState(
                self.step if failure is None else failure.step,
                params,
                buffers,
                None if failure is None else failure.reason,
                self.seconds / len(self.replicas),
            )
        return found


@final
@dataclass(frozen=True)
class _Side:
    replicas: tuple[int, ...]
    step: int
    measured: int
    metrics: tuple[str, ...]
    failures: dict[int, Failure]
    seconds: float


_SIDE = TypeAdapter(_Side)
_GROUPS = ("params", "buffers", "optimizer", "algorithm", "watch", "eval_params")
_SEPARATOR = "/"


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the two files; a kill at any moment leaves the former pair or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        # Copied where it stands in two places: what predicts may be part of the algorithm's state.
        key: value.detach().clone() if group == "eval_params" else value.detach().contiguous()
        for group in _GROUPS
        for key, value in _flat(getattr(checkpoint, group), group).items()
    }
    side = asdict(
        _Side(
            checkpoint.replicas,
            checkpoint.step,
            checkpoint.measured,
            checkpoint.metrics,
            dict(checkpoint.failures),
            checkpoint.seconds,
        )
    )
    path = folder / f"{_name(checkpoint.replicas)}.safetensors"
    # The side file is in the tensors' header as well, so that a kill between the two writes cannot pair a
    # new file with an old one.
    save_file(tensors, partial := path.with_suffix(".partial"), metadata={"checkpoint": json.dumps(side)})
    partial.replace(path)
    partial.write_text(json.dumps(side, indent=2) + "\n", encoding="utf-8")
    partial.replace(path.with_suffix(".json"))


def load(folder: Path) -> list[Checkpoint]:
    """Every checkpoint of a folder, in the order of their replicas.

    Raises:
        EnvariantError: a file is not a checkpoint.
    """
    found = [_read(path) for path in folder.glob("replica*.safetensors")]
    return sorted(found, key=lambda checkpoint: checkpoint.replicas)


def _read(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            side = _SIDE.validate_json(file.metadata()["checkpoint"])
        tensors: dict[str, Any] = {group: {} for group in _GROUPS} | _nested(load_file(path))
    except (safetensors.SafetensorError, ValidationError, KeyError, TypeError):
        raise EnvariantError(f"{path}: is not a checkpoint; remove it to train these replicas anew") from None
    return Checkpoint(
        replicas=side.replicas,
        step=side.step,
        measured=side.measured,
        metrics=side.metrics,
        failures=side.failures,
        seconds=side.seconds,
        **{group: tensors[group] for group in _GROUPS},
    )


def _name(replicas: tuple[int, ...]) -> str:
    if len(replicas) == 1:
        return f"replica-{replicas[0]:03d}"
    return f"replicas-{replicas[0]:03d}-{replicas[-1]:03d}"


def _copied(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else _copied(value)
        for key, value in tree.items()
    }


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        path = f"{prefix}{_SEPARATOR}{key}"
        if isinstance(value, Tensor):
            flat[path] = value
        else:
            # An empty branch leaves no trace, so the algorithm's init has to fill it in again.
            flat |= _flat(value, path)
    return flat


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, tensor in flat.items():
        *branches, leaf = path.split(_SEPARATOR)
        place = tree
        for branch in branches:
            place = place.setdefault(branch, {})
        place[leaf] = tensor
    return tree
