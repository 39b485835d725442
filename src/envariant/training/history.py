"""History of a run: a table with one row per measured value."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import pandas as pd

BATCH = "batch"
"""Role of values measured on a training batch instead of an environment."""

LOSS, OUTPUT_SD, GRADIENT_RMS, CLIP_SHARE = "loss", "output sd", "gradient rms", "clip share"
"""Metrics of all networks: mean loss; standard deviation of the outputs over rows (with several outputs, root
mean square of their standard deviations); root mean square of the gradient over all trained parameters; with
gradient clipping, share of the steps since the last measurement whose gradient was clipped."""

CURRENT_LOSS = "validation loss of the current weights"
"""Metric recorded if the averaging rule uses it: validation loss of the weights being trained, not of the
averaged weights; mean over training environments."""

FULL, SUBSAMPLE, SHUFFLED, REPLACED = "full", "subsample", "shuffled", "replaced"
"""Kinds of measurement: on all rows; on some rows; on the same rows with one column shuffled within the
environment; on the same rows with one column replaced by values from training environments."""


@final
@dataclass(frozen=True)
class HistoryRow:
    """One measured value.

    Attributes:
        replica: Index of the replica; in a study, ID of the run.
        step: Number of updates before the measurement.
        environment: Name of the environment. Validation rows have the name of their training environment;
            values of a training batch have the name "*".
        role: "train", "validation", "test", or "batch" for values of a training batch.
        metric: Name of the metric, such as "accuracy", "loss" or a metric of the algorithm.
        value: Measured value; accuracies are between 0 and 1.
        kind: "full" for all rows of the environment or batch, "subsample" for a sample of the rows. For the
            same sample, "shuffled" if the values of one column are shuffled, and "replaced" if they are
            replaced by values of training rows.
        column: Name of the shuffled or replaced column, else "".
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
    """Sort rows in the order of sequential execution: by replica, step, environment and metric.

    Metrics of the algorithm keep their order.

    Args:
        rows: Measured values to sort.
        environments: Name and role of every environment, in order.
    """
    position = {environment: number for number, environment in enumerate(environments)}
    rank = {LOSS: 0, OUTPUT_SD: 2, GRADIENT_RMS: 3, CLIP_SHARE: 4, CURRENT_LOSS: 5}

    def key(row: HistoryRow) -> tuple[int, int, int, int]:
        place = position.get((row.environment, row.role), len(position))
        return row.replica, row.step, place, rank.get(row.metric, 1)

    return sorted(rows, key=key)


def frame(rows: Iterable[HistoryRow]) -> "pd.DataFrame":
    """Return the rows as a DataFrame with the columns of `HistoryRow`."""
    import pandas as pd

    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
