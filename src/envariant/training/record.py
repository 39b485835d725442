"""What a run was: its settings and its provenance, as stored in `run.json` and shown in every report."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from pydantic import TypeAdapter, ValidationError

from envariant.core.errors import EnvariantError
from envariant.training.execution import Execution
from envariant.training.replicas import Seeds

SCHEMA = 5


@final
@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's numbers, as text and numbers.

    Attributes:
        data, algorithm, model, optimizer, augmentation, init, freeze: as written on the command line.
        hyperparameters: of the algorithm, every one.
        steps: updates of each replica.
        batch_size: rows of each training environment a step; None is all of them.
        learning_rate, weight_decay: of the optimizer.
        evaluate_every: steps between measurements.
        test_environments: names of those held out.
        replicas: how many.
        seed: from which every replica's three seeds follow.
        precision: of the matrix products.
        execution: how replicas were to be run; the record says how they were.
        compiled: whether programs were compiled.
        device: where it ran.
        threads: of PyTorch; rounding depends on them.
        source: where what was not given comes from.
        changed: names of the settings that were given and differ from that source's.
    """

    data: str
    algorithm: str
    hyperparameters: Mapping[str, Any]
    model: str
    optimizer: str
    steps: int
    batch_size: int | None
    learning_rate: float
    weight_decay: float
    evaluate_every: int
    augmentation: str | None
    init: str | None
    freeze: str | None
    test_environments: tuple[str, ...]
    holdout_fraction: float
    replicas: int
    seed: int
    precision: str
    execution: str
    compiled: bool
    device: str
    threads: int
    source: str
    changed: tuple[str, ...]


@final
@dataclass(frozen=True)
class Record:
    """A run's settings and where they were used.

    Attributes:
        settings: what decides the numbers.
        execution: how replicas were run, and why so.
        task, metric, higher_is_better: what is predicted, and how it is measured.
        chance, optimum: what theory says, in the metric; None where it says nothing.
        input_shape: of one row.
        outputs: numbers a model gives per row.
        roles: "train", "validation" or "test" by environment, in order.
        sizes: rows by environment.
        constant_loss: by environment, the least loss of a model that says the same of every row.
        fingerprints: digests of the first replica's "data" and of its "model" before training.
        seeds: of each replica.
        versions, hardware, command: where the numbers were made.
    """

    settings: Settings
    execution: Execution
    task: str
    metric: str
    higher_is_better: bool
    chance: float | None
    optimum: float | None
    input_shape: tuple[int, ...]
    outputs: int
    roles: Mapping[str, str]
    sizes: Mapping[str, int]
    constant_loss: Mapping[str, float]
    fingerprints: Mapping[str, str]
    seeds: tuple[Seeds, ...]
    versions: Mapping[str, str]
    hardware: Mapping[str, str | int]
    command: str
    schema: int = field(default=SCHEMA)


_RECORD = TypeAdapter(Record)


def write(record: Record, path: Path) -> None:
    """Stores a record; the file is whole or absent."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> Record:
    """The stored record.

    Raises:
        EnvariantError: there is none, or it is damaged, or of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _check_schema(text, path)
    except OSError:
        raise EnvariantError(
            f"{path.parent}: holds no run (no {path.name}); give a folder that `train --out` wrote"
        ) from None
    except UnicodeDecodeError:
        raise EnvariantError(f"{path}: is damaged; it is not text") from None
    try:
        return _RECORD.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise EnvariantError(f"{path}: is damaged at '{place}': {first['msg']}") from None


def _check_schema(text: str, path: Path) -> None:
    """Says first that a file is of another version, whatever else may not fit then."""
    try:
        found = json.loads(text).get("schema")
    except (ValueError, AttributeError):
        return
    if found not in (None, SCHEMA):
        raise EnvariantError(f"{path}: has schema {found}, this version reads {SCHEMA}; train it again")
