"""A replica's state between two steps: a safetensors file and a JSON side file, nothing pickled.

Training resumed from one gives the bits that an uninterrupted run gives, because everything else (data,
rows of a step, augmentation) follows from seeds and the step's number.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from envariant.errors import EnvariantError


@final
@dataclass(frozen=True)
class Checkpoint:
    """Everything that changes while a replica trains.

    Attributes:
        replica: its number.
        step: updates made.
        params, buffers: of the model, by name.
        optimizer: PyTorch's state of each parameter, by parameter name and then by key.
        algorithm: the algorithm's state.
        failure: why training stopped early, or None.
        seconds: spent training so far.
    """

    replica: int
    step: int
    params: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    algorithm: Mapping[str, Any]
    failure: str | None = None
    seconds: float = 0.0


_GROUPS = ("params", "buffers", "optimizer", "algorithm")
_SEPARATOR = "/"


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the two files; a kill at any moment leaves the former pair or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: value.detach().contiguous()
        for group in _GROUPS
        for key, value in _flat(getattr(checkpoint, group), group).items()
    }
    side = {
        "replica": checkpoint.replica,
        "step": checkpoint.step,
        "failure": checkpoint.failure,
        "seconds": checkpoint.seconds,
    }
    path = _path(folder, checkpoint.replica)
    # The side file goes into the tensors' header as well, so that a kill between the two writes cannot
    # pair a new file with an old one.
    header = json.dumps(side)
    save_file(tensors, partial := path.with_suffix(".partial"), metadata={"checkpoint": header})
    partial.replace(path)
    partial.write_text(json.dumps(side, indent=2) + "\n", encoding="utf-8")
    partial.replace(path.with_suffix(".json"))


def load(folder: Path, replica: int) -> Checkpoint | None:
    """The replica's checkpoint, or None where there is none yet.

    Raises:
        EnvariantError: the file is not a checkpoint.
    """
    path = _path(folder, replica)
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            side: dict[str, Any] = json.loads(file.metadata()["checkpoint"])
        groups: dict[str, Any] = {group: {} for group in _GROUPS} | _nested(load_file(path))
        return Checkpoint(**side, **groups)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
        raise EnvariantError(f"{path}: is not a checkpoint; remove it to train this replica anew") from None


def _path(folder: Path, replica: int) -> Path:
    return folder / f"replica-{replica:03d}.safetensors"


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
