"""Tables of distribution shift and drift."""

import math
from collections.abc import Mapping

from envariant.analysis import drift as drifts
from envariant.analysis.distribution_shift import MEASURES, Shift
from envariant.analysis.drift import Drift
from envariant.reporting.tables import NONE, TextTable


def shift_table(shifts: Mapping[str, Shift], label: str, note: str) -> TextTable:
    """Return a table of shift measures, one row per pair of groups; each measure is a mean over trials.

    Args:
        shifts: Measured shift of each pair of groups, by name of the pair.
        label: Header of the first column.
        note: Sentence about the compared groups, shown below the table.
    """
    rows = [
        (name, *(f"{getattr(shift, measure).mean:.3f}" for measure in MEASURES), shift.kind)
        for name, shift in shifts.items()
    ]
    legacy = any(shift.legacy for shift in shifts.values())
    formulas = "Ye et al. 2022" if legacy else "squared Hellinger distances, as in its code since 2025"
    note += (
        " From 0 to 1. Diversity: new inputs, which do not occur on the other side; correlation: equal "
        f"inputs with new targets (OoD-Bench, {formulas}); label: total variation distance of "
        "the targets; covariate: 2·AUROC − 1 of a classifier that tells the two apart."
    )
    return TextTable((label, *MEASURES, "shift"), tuple(rows), (note,))


def drift_table(drift: Drift) -> TextTable:
    """Return a table of drift with one row per column; columns that drifted come first."""
    order = ("further", "within", "alike")
    lines = [
        (
            c.name,
            c.kind,
            _number(c.distance),
            _number(c.between),
            _number(c.p_value),
            f"{c.missing:.1%}",
            f"{c.missing_trained:.1%}",
            NONE if c.unseen is None else f"{sum(c.unseen.values()):,}",
            NONE if c.outside is None else f"{c.outside:,}",
            c.standing if drift.rows >= drifts.FEWEST_ROWS else NONE,
        )
        for c in sorted(drift.columns, key=lambda c: order.index(c.standing))
    ]
    header = (
        "column", "kind", "distance", "between training", "p (Holm)", "missing", "in training",
        "unseen", "outside", "standing",
    )  # fmt: skip
    notes = [
        f"{drift.verdict}.",
        "distance: between new rows and all training rows, from 0 to 1 (Kolmogorov–Smirnov for numbers, "
        "total variation for categories). between training: largest distance of a training environment from "
        "the others.",
        f"further: p < {drifts.LEVEL:g}, distance ≥ {drifts.NOTABLE:g}, and a larger distance than between "
        f"training environments. Columns are compared one by one; changes of their joint distribution or of "
        f"the target are not detected.",
    ]
    if any(c.kind.endswith(("feature", "features")) for c in drift.columns):
        notes.append("A column of texts or images is compared by the mean distance of its features.")
    k = len(drift.environments)
    if 1 < k < 10:
        notes.append(
            f"With only {k} training environments, a new one of the same kind has the largest distance in a "
            f"given column in 1 of {k + 1} cases."
        )
    return TextTable(header, tuple(lines), tuple(notes))


def _number(value: float) -> str:
    if math.isnan(value):
        return NONE
    return f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.0e}"
