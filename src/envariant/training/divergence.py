"""Detect that a replica has diverged, and describe the cause."""

import math
from collections.abc import Mapping, Sequence

from envariant.training.checkpoint import Failure
from envariant.training.history import OUTPUT_SD, HistoryRow


def divergence(failed_at: int, rows: Sequence[HistoryRow], metrics: Mapping[str, float]) -> Failure | None:
    """Return the divergence of a replica: its step and its cause; None if the replica has not diverged.

    A replica has diverged if its gradient, or a value measured in a training environment, is infinite or NaN.

    Args:
        failed_at: Step at which the gradient was infinite or NaN; −1 if it never was.
        rows: Measured values of the replica.
        metrics: Metrics of the algorithm in the last step.
    """
    if failed_at >= 0:
        values = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
        where = f" ({values})" if values else ""
        return Failure(
            failed_at,
            f"the gradient became infinite or NaN at step {failed_at}{where}; {_causes(failed_at)}",
        )
    diverged = [row for row in rows if row.role == "train" and not math.isfinite(row.value)]
    if not diverged:
        return None
    row = diverged[0]
    reason = f"{row.metric} of '{row.environment}' became {row.value} by step {row.step}"
    if not row.step:
        outputs = any(each.metric == OUTPUT_SD for each in diverged)
        what = "outputs of the network are infinite or NaN" if outputs else f"{row.metric} is {row.value}"
        reason = f"{what} in '{row.environment}' before the first update"
    return Failure(row.step, f"{reason}; {_causes(row.step)}")


def _causes(step: int) -> str:
    """Return the usual causes of a divergence at a step; the learning rate cannot be the cause at step 0."""
    if step:
        return "usual causes: the learning rate or a coefficient is too large"
    return (
        "usual causes: operations such as log, sqrt or a division in the network or loss, initial weights or "
        "a coefficient that are too large, or inputs that are not scaled"
    )
