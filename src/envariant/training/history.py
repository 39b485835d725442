"""Measured numbers, one row each."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import final

import pandas as pd

BATCH = "batch"
"""Role of numbers that belong to a training step and to no environment."""

LOSS, OUTPUT_SD, GRADIENT_RMS = "loss", "output sd", "gradient rms"
"""Metrics that every network reports: mean loss; spread of the outputs (standard deviation over rows, mean
over outputs); root mean square of the gradient over all trained numbers."""

FULL, SUBSAMPLE, SHUFFLED, REPLACED = "full", "subsample", "shuffled", "replaced"
"""Kinds of measurement: on all rows; on some rows; on the same rows with one column shuffled within the
environment; on the same rows with one column replaced by values from training environments."""


@final
@dataclass(frozen=True)
class HistoryRow:
    """One measured number.

    Attributes:
        replica: Number of the replica, or of the run in a study.
        step: Updates made before the measurement.
        environment: Name of the environment; for validation rows, of the environment they were held out
            from; "*" for numbers of a training step.
        role: "train", "validation", "test", or "batch" for numbers of a training step.
        metric: Name of the metric: the task's own, another one, "loss", or what the algorithm reports.
        value: The number; accuracies are fractions of 1.
        kind: "full", "subsample", "shuffled" or "replaced".
        column: Column that was shuffled or replaced, else "".
    """

    replica: int
    step: int
    environment: str
    role: str
    metric: str
    value: float
    kind: str = FULL
    column: str = ""


COLUMNS = tuple(f.name for f in fields(HistoryRow))


def ordered(rows: Iterable[HistoryRow], environments: Sequence[tuple[str, str]]) -> list[HistoryRow]:
    """Return rows as a sequential run measures them: by replica, step, environment and metric.

    Other metrics than those that every network reports keep their order.

    Args:
        rows: Measured numbers.
        environments: Name and role of every environment, in order.
    """
    position = {environment: number for number, environment in enumerate(environments)}
    rank = {LOSS: 0, OUTPUT_SD: 2, GRADIENT_RMS: 3}

    def key(row: HistoryRow) -> tuple[int, int, int, int]:
        place = position.get((row.environment, row.role), len(position))
        return row.replica, row.step, place, rank.get(row.metric, 1)

    return sorted(rows, key=key)


def frame(rows: Iterable[HistoryRow]) -> pd.DataFrame:
    """Return the rows as a DataFrame with the columns of `HistoryRow`."""
    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
