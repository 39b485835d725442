"""Records of runs: options, data, execution and provenance, stored with the results."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, final

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from envariant.core.display import Displayed, Summary, counted
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.training import provenance
from envariant.training.execution import Execution
from envariant.training.replicas import Seeds
from envariant.training.run_spec import RunSpec

MOST_UNSEEN = 0.1
"""Maximum share of rows with classes absent from training. A test environment with a larger share gets no
verdict."""


@final
@dataclass(frozen=True)
class EnvironmentRecord:
    """Description of one environment of a run.

    Attributes:
        name: Name of the environment. Validation rows have the name of their training environment.
        role: "train", "validation" or "test".
        rows: Number of rows.
        constant_loss: Mean loss of the best constant prediction: entropy of the labels in nats, or variance
            of the target for regression.
        majority: Share of the most frequent class; None for regression.
        unseen: Share of rows whose class occurs in no training environment.
    """

    name: str
    role: str
    rows: int
    constant_loss: float
    majority: float | None = None
    unseen: float = 0.0

    @property
    def label(self) -> str:
        """Unique name of the environment in the run; for validation rows, with the suffix "(validation)"."""
        return f"{self.name} (validation)" if self.role == "validation" else self.name


@final
@dataclass(frozen=True, repr=False)
class Record(Displayed):
    """Record of a run: options, data, execution and provenance.

    Attributes:
        spec: Options with defaults filled in; objects are represented by strings.
        identity: Content hash of the run, independent of file locations (`RunSpec.identity`).
        changed: Names of options that differ from the default settings of the data set for the algorithm.
        defaults: Source of the default settings, such as a paper.
        execution: Execution mode, and why it was chosen.
        task: Name of the task.
        metric: Name of the task's metric.
        higher_is_better: Whether higher values of the metric are better.
        chance: Score of uniform guessing; None if it is not defined for the task.
        optimum: Score of the best invariant predictor; None if unknown.
        input_shape: Shape of one row of inputs.
        outputs: Number of model outputs per row.
        environments: All environments, in order.
        fingerprints: Digests of the first replica's data ("data") and initial model ("model"), and, if the
            option `loss` is set, of the loss ("loss").
        seeds: Seeds of each replica.
        threads: Number of PyTorch threads, which affects rounding.
        versions: Versions of Python and of all packages that affect results.
        hardware: System, processor, numbers of cores and PyTorch threads, device and accelerator.
        command: `envariant` command line that started the run; "" for other programs.
        remarks: Warnings about the run, one sentence each.
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
        """Role of each environment, by environment label."""
        return {each.label: each.role for each in self.environments}

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of each environment, by environment label."""
        return {each.label: each.rows for each in self.environments}

    @property
    def unpredictable(self) -> dict[str, float]:
        """Share of rows whose class does not occur in training, by test environment.

        Only shares above `MOST_UNSEEN` are included. Reports draw no conclusion about these environments.
        """
        tests = (each for each in self.environments if each.role == "test")
        return {each.name: each.unseen for each in tests if each.unseen > MOST_UNSEEN}

    @property
    def constant_loss(self) -> dict[str, float]:
        """Mean loss of the best constant prediction in each environment, by environment label."""
        return {each.label: each.constant_loss for each in self.environments}

    @property
    def test_environments(self) -> tuple[str, ...]:
        """Names of the test environments."""
        return tuple(each.name for each in self.environments if each.role == "test")

    @property
    def training_environments(self) -> tuple[str, ...]:
        """Names of the training environments."""
        return tuple(each.name for each in self.environments if each.role == "train")

    def _display(self) -> Summary:
        spec = self.spec
        return Summary(
            f"Record: {spec.algorithm} on {spec.data}",
            {
                "environments": counted(self.sizes),
                "test environments": ", ".join(self.test_environments) or "none",
                "inputs": " × ".join(map(str, self.input_shape)) or "one number",
                "task": f"{self.task}, measured by {self.metric}",
                "options": ", ".join(f"{key}={value}" for key, value in spec.non_defaults().items()),
                "execution": f"{spec.replicas} replicas, {spec.device}, {spec.precision}",
                "remarks": "; ".join(self.remarks),
            },
        )

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of the run: versions, hardware, precision, execution and command."""
        return {
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
            "precision": self.spec.precision,
            "execution": asdict(self.execution),
            "command": self.command,
        }

    def to_json(self) -> str:
        """Return the record as a JSON string that `of_json` can read."""
        return json.dumps({**asdict(self), "spec": self.spec.to_dict()})

    @classmethod
    def of_json(cls, text: str, where: str) -> "Record":
        """Create a record from a JSON string.

        Args:
            text: JSON string returned by `to_json`.
            where: Path of the file, for error messages.

        Raises:
            EnvariantError: If the string is not a valid record.
        """
        try:
            return _STORED.validate_json(text)
        except (ValidationError, EnvariantError) as error:
            reason = str(error).splitlines()[0]
            raise EnvariantError(f"{where}: is damaged ({reason}); choose another folder") from None


def environments_of(sample: EnvironmentSet, roles: Mapping[str, str]) -> tuple[EnvironmentRecord, ...]:
    """Return an `EnvironmentRecord` for each environment.

    Args:
        sample: Environments of the first replica.
        roles: Role of each environment, by name in `sample`.
    """
    task = sample.task
    has_classes = task.chance is not None and not task.target_shape
    trained = [e.targets for e in sample.environments if roles[e.name] == "train"] if has_classes else []
    classes = torch.cat(trained).unique() if trained else None
    return tuple(
        EnvironmentRecord(
            e.origin or e.name,
            roles[e.name],
            len(e),
            task.constant_loss(e.targets),
            None if task.chance is None else _majority(e.targets),
            0.0 if classes is None else float((~torch.isin(e.targets, classes)).double().mean()),
        )
        for e in sample.environments
    )


def _majority(targets: Tensor) -> float:
    """Return the share of the most frequent class; with several labels per row, the mean over the labels."""
    columns = targets.reshape(len(targets), -1).unbind(1)
    return fmean(float(each.unique(return_counts=True)[1].max()) / len(each) for each in columns)


def conflict(stored: Record, requested: Record, *, unfinished: bool) -> str:
    """Describe the first difference between a stored and a requested run; return "" if there is none.

    Args:
        stored: Record of the stored run.
        requested: Record of the requested run.
        unfinished: Whether the stored run is unfinished. If so, versions, device, threads and precision must
            agree as well.
    """
    before, now = _comparable(stored, unfinished), _comparable(requested, unfinished)
    for key, value in now.items():
        if before.get(key) != value:
            return f"{key} {before.get(key)}, not {value}"
    for what, digest in requested.fingerprints.items():
        if stored.fingerprints.get(what) != digest:
            name = f", {requested.spec.data}" if what == "data" else ""
            return f"other {what} under the same name{name}"
    return ""


def _comparable(record: Record, unfinished: bool) -> dict[str, Any]:
    options = record.spec.to_dict()
    # The location of the data and the execution do not identify a run.
    for key in ("data", "memory", "execution", *(() if unfinished else ("device", "precision"))):
        options.pop(key)
    machine = {**record.versions, "threads": record.threads} if unfinished else {}
    return {**options, "seeds": [asdict(seeds) for seeds in record.seeds], **machine}


_STORED = TypeAdapter(Record)
