"""What a run was: options, data, execution and provenance, as stored with its results."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from pydantic import TypeAdapter, ValidationError

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.training import provenance
from envariant.training.execution import Execution
from envariant.training.replicas import Seeds
from envariant.training.run_spec import RunSpec


@final
@dataclass(frozen=True)
class EnvironmentRecord:
    """One environment of a run.

    Attributes:
        name: Name of the environment; of validation rows, of the environment they were held out from.
        role: "train", "validation" or "test".
        rows: Number of rows.
        constant_loss: Lowest mean loss of any constant prediction: label entropy in nats, or variance.
    """

    name: str
    role: str
    rows: int
    constant_loss: float

    @property
    def label(self) -> str:
        """Name that is unique in the run."""
        return f"{self.name} (validation)" if self.role == "validation" else self.name


@final
@dataclass(frozen=True)
class Record:
    """A run's options and where they were used.

    Attributes:
        spec: The options, all resolved; objects as their text.
        identity: Content hash of the options without seeds and execution.
        changed: Options in which the run differs from what the data suggest for the algorithm.
        defaults: Where options that were left open come from.
        execution: How replicas were executed, and why.
        task: Name of the task.
        metric: Name of the task's metric.
        higher_is_better: Direction of the metric.
        chance: Metric of uniform guessing; None where it has no meaning.
        optimum: Metric of the best invariant predictor; None where it is unknown.
        input_shape: Shape of one row of inputs.
        outputs: Numbers that a model gives per row.
        environments: Every environment, in order.
        fingerprints: Digests of the first replica's "data" and untrained "model".
        seeds: Seeds of each replica.
        threads: Threads of PyTorch; rounding depends on them.
        versions: Versions of Python and of the packages whose numbers enter a result.
        hardware: Processor, cores, accelerator.
        command: Command line that started the run; "" where it was another program.
        remarks: What the user should know before reading the numbers, a sentence each.
    """

    spec: RunSpec
    identity: str
    changed: tuple[str, ...]
    defaults: str
    execution: Execution
    task: str
    metric: str
    higher_is_better: bool
    chance: float | None
    optimum: float | None
    input_shape: tuple[int, ...]
    outputs: int
    environments: tuple[EnvironmentRecord, ...]
    fingerprints: Mapping[str, str]
    seeds: tuple[Seeds, ...]
    threads: int = field(default_factory=torch.get_num_threads)
    versions: Mapping[str, str] = field(default_factory=provenance.versions)
    hardware: Mapping[str, str | int] = field(default_factory=dict[str, str | int])
    command: str = field(default_factory=provenance.command)
    remarks: tuple[str, ...] = ()

    @property
    def roles(self) -> dict[str, str]:
        """Role of every environment, by label."""
        return {each.label: each.role for each in self.environments}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of every environment, by label."""
        return {each.label: each.rows for each in self.environments}

    @property
    def constant_loss(self) -> dict[str, float]:
        """Lowest loss of a constant prediction in every environment, by label."""
        return {each.label: each.constant_loss for each in self.environments}

    @property
    def test_environments(self) -> tuple[str, ...]:
        """Names of the test environments."""
        return tuple(each.name for each in self.environments if each.role == "test")

    @property
    def training_environments(self) -> tuple[str, ...]:
        """Names of the environments trained on."""
        return tuple(each.name for each in self.environments if each.role == "train")

    def provenance(self) -> dict[str, Any]:
        """Return where the numbers were made: versions, hardware, precision, execution and command."""
        return {
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
            "precision": self.spec.precision,
            "execution": asdict(self.execution),
            "command": self.command,
        }

    def to_json(self) -> str:
        """Return the record as JSON that `of_json` reads back."""
        return json.dumps({**asdict(self), "spec": self.spec.to_dict()})

    @classmethod
    def of_json(cls, text: str, where: str) -> "Record":
        """Read a stored record.

        Args:
            text: What `to_json` returned.
            where: File that holds it, for errors.

        Raises:
            EnvariantError: If it is damaged.
        """
        try:
            return _STORED.validate_json(text)
        except (ValidationError, EnvariantError) as error:
            reason = str(error).splitlines()[0]
            raise EnvariantError(f"{where}: is damaged ({reason}); train into another folder") from None


def environments_of(sample: EnvironmentSet, roles: Mapping[str, str]) -> tuple[EnvironmentRecord, ...]:
    """Return what a record stores of each environment.

    Args:
        sample: The environments of the first replica.
        roles: Role of each, by name in the sample.
    """
    return tuple(
        EnvironmentRecord(e.origin or e.name, roles[e.name], len(e), sample.task.constant_loss(e.targets))
        for e in sample.environments
    )


def conflict(stored: Record, requested: Record, *, unfinished: bool) -> str:
    """Return the first thing in which a stored run differs from a requested one; "" where it is the same.

    Args:
        stored: Record of the stored run.
        requested: Record of the run that is to be resumed.
        unfinished: Whether steps remain to be made. These need the same versions, device, threads and
            precision as well.
    """
    before, now = _comparable(stored, unfinished), _comparable(requested, unfinished)
    for key, value in now.items():
        if before.get(key) != value:
            return f"{key} {before.get(key)}, not {value}"
    for what, digest in requested.fingerprints.items():
        if stored.fingerprints.get(what) != digest:
            return f"other {what} under the same name"
    return ""


def _comparable(record: Record, unfinished: bool) -> dict[str, Any]:
    options = record.spec.to_dict()
    # Where the data lie and how replicas were executed is not what they are.
    for key in ("data", "memory", "execution", *(() if unfinished else ("device", "precision"))):
        options.pop(key)
    machine = {**record.versions, "threads": record.threads} if unfinished else {}
    return {**options, "seeds": [asdict(seeds) for seeds in record.seeds], **machine}


_STORED = TypeAdapter(Record)
