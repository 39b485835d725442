"""Default training settings and reference scores of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass(frozen=True)
class DefaultSettings:
    """Default training settings of a data set for one algorithm, taken from a protocol or paper.

    Attributes:
        hyperparameters: Hyperparameters of the algorithm by name. Switch points of schedules refer to a run
            of `steps` updates, and are rescaled for runs of other lengths.
        model: Model, such as `mlp(hidden=64)`.
        optimizer: Optimizer, such as `adam`.
        steps: Number of optimizer updates.
        learning_rate: Learning rate of the optimizer.
        batch_size: Rows of each training environment per step; None for all rows.
        source: Paper or protocol from which the settings are taken.
    """

    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str = "mlp(hidden=64)"
    optimizer: str = "adam"
    steps: int = 500
    learning_rate: float = 1e-3
    batch_size: int | None = None
    source: str = "the library's general defaults"


@final
@dataclass(frozen=True)
class ReferenceScores:
    """Theoretical scores of a data set, in the metric of its task.

    Attributes:
        chance: Score of random guessing; None if unknown.
        optimum: Score of the best invariant predictor; None if unknown.
    """

    chance: float | None = None
    optimum: float | None = None
