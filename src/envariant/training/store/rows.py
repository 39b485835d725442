"""What the store holds of runs, as dataclasses."""

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
    """One sampled hyperparameter configuration of an algorithm, the same for every replica.

    Attributes:
        number: 0 is what the data suggest.
        hyperparameters: Changes to what is suggested.
        learning_rate: Learning rate, or the text of its schedule.
    """

    number: int
    hyperparameters: Mapping[str, Any]
    learning_rate: float | str


@final
@dataclass(frozen=True)
class PlannedRun:
    """One replica of one trial of one algorithm on one split into training and test environments.

    Attributes:
        data: Name of the data source.
        test_environments: Names of the environments that are not trained on.
        algorithm: Name or text of the algorithm.
        trial: Its hyperparameters.
        replica: Number of the replica, from which its seeds follow.
        data_identity: Content hash of the data.
        identity: Content hash of everything that decides the run's numbers.
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
        """Place in the study: equal for runs that may not both be in one store."""
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
    """A run and its number in the store."""

    id: int
    run: PlannedRun


@final
@dataclass(frozen=True, eq=False)
class Predictions:
    """What one run predicts for some rows of an environment.

    Attributes:
        environment: Name of the environment.
        role: "validation" or "test".
        of: Number of rows of the environment.
        logits: `[rows]` or `[rows, classes]`, float32.
        targets: `[rows]`, float32.
    """

    environment: str
    role: str
    of: int
    logits: NDArray[np.float32]
    targets: NDArray[np.float32]


@final
@dataclass(frozen=True)
class RunOutcome:
    """How a run ended.

    Attributes:
        id: Number of the run.
        error: Why it failed; None if it did not.
        seconds: Time spent on it.
        p_value: P value of the invariance test on validation rows; None where there are none.
        predictions: For some rows of every environment that it did not train on.
    """

    id: int
    error: str | None
    seconds: float
    p_value: float | None = None
    predictions: tuple[Predictions, ...] = field(default=(), repr=False)
