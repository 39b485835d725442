"""Create history rows from the measurements of one replica."""

from collections.abc import Mapping, Sequence

from envariant.training.history import BATCH, LOSS, OUTPUT_SD, HistoryRow


def environment_rows(
    replica: int, step: int, metric: str, places: Sequence[tuple[str, str]], values: Sequence[Sequence[float]]
) -> list[HistoryRow]:
    """Return history rows with loss, score and standard deviation of the outputs in all environments.

    Args:
        replica: Index of the replica.
        step: Number of completed updates.
        metric: Metric of the task.
        places: Name and role of each environment.
        values: Loss, score and standard deviation in each environment.
    """
    return [
        HistoryRow(replica, step, name, role, each, value)
        for (name, role), measured in zip(places, values, strict=True)
        for each, value in zip((LOSS, metric, OUTPUT_SD), measured, strict=True)
    ]


def batch_rows(replica: int, step: int, metrics: Mapping[str, float]) -> list[HistoryRow]:
    """Return history rows with the metrics measured on training batches.

    Args:
        replica: Index of the replica.
        step: Number of completed updates.
        metrics: Values by name.
    """
    return [HistoryRow(replica, step, "*", BATCH, name, value) for name, value in metrics.items()]
