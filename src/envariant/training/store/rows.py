"""Dataclasses for stored runs: trials, planned runs, outcomes and predictions."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

STATES = ("planned", "running", "done", "failed")


@final
@dataclass(frozen=True)
class Trial:
    """One sampled hyperparameter configuration of an algorithm, shared by all replicas.

    Attributes:
        number: Index of the trial; trial 0 has the default settings of the data set.
        hyperparameters: Hyperparameters that override the defaults, by name.
        learning_rate: Learning rate: a number, or a schedule as a string.
    """

    number: int
    hyperparameters: Mapping[str, Any]
    learning_rate: float | str


@final
@dataclass(frozen=True)
class PlannedRun:
    """Planned run: one replica of one trial, for a given algorithm, data source and test environments.

    Attributes:
        data: Name of the data source.
        test_environments: Names of the test environments.
        algorithm: Algorithm as a string, such as `vrex + and-mask`.
        trial: Hyperparameter configuration.
        replica: Index of the replica, which determines its seeds.
        data_identity: Content hash of the data.
        identity: Content hash of all settings that affect the results.
    """

    data: str
    test_environments: tuple[str, ...]
    algorithm: str
    trial: Trial
    replica: int
    data_identity: str = ""
    identity: str = ""

    @property
    def slot(self) -> str:
        """Unique key of the run: a hash of data, test environments, algorithm, trial and replica."""
        place = [
            self.data_identity or self.data,
            self.test_environments,
            self.algorithm,
            self.trial.number,
            self.replica,
        ]
        return hashlib.blake2b(json.dumps(place).encode(), digest_size=16).hexdigest()


@final
@dataclass(frozen=True)
class StoredRun:
    """Planned run with its ID in the store."""

    id: int
    run: PlannedRun


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one run for all rows of an environment, or for a sample of its rows.

    Attributes:
        environment: Name of the environment.
        role: "validation" or "test".
        of: Number of rows of the whole environment, which may exceed the number of predictions.
        logits: Predicted logits, `[rows]` or `[rows, classes]`, float32.
        targets: Targets, `[rows]`, float32.
    """

    environment: str
    role: str
    of: int
    logits: NDArray[np.float32]
    targets: NDArray[np.float32]


@final
@dataclass(frozen=True)
class RunOutcome:
    """Outcome of a run: success or error, time and predictions.

    Attributes:
        id: ID of the run.
        error: Reason for the failure; None if the run succeeded.
        seconds: Training time in seconds.
        p_value: P-value of the invariance test on validation rows; None if there are no such rows.
        predictions: Predictions for validation and test environments.
    """

    id: int
    error: str | None
    seconds: float
    p_value: float | None = None
    predictions: tuple[Predictions, ...] = field(default=(), repr=False)
