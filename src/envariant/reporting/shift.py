"""Figures and tables of distribution shift, drift, and scores under increasing shift."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from envariant.analysis import drift as drifts
from envariant.analysis.distribution_shift import MEASURES, NOTABLE, Shift
from envariant.analysis.drift import Drift
from envariant.core.errors import EnvariantError
from envariant.reporting.figures import references
from envariant.reporting.labels import labels
from envariant.reporting.tables import NONE, TextTable
from envariant.reporting.theme import (
    DASHED,
    LINE,
    MUTED,
    colors,
    legend,
    name_axes,
    new_axes,
    plain_text,
    quiet,
)
from envariant.training.result import TrainingResult

# "flip-0.9" ends in 0.9: a dash after a word is not a sign.
_NUMBER = re.compile(r"(?<![\d.])\d+(?:\.\d+)?$")
_FEWEST_POINTS = 3

AXES = "diversity shift: new inputs", "correlation shift: equal inputs, new targets"
"""Labels of the horizontal and vertical axes of `plane`."""


def plane(shifts: Sequence[Shift]) -> Figure:
    """Plot correlation shift (y-axis) against diversity shift (x-axis), one point per pair of groups."""
    figure, axes = new_axes(5.6, 4.4)
    top = max(0.3, *(1.15 * s.correlation.mean for s in shifts), *(1.15 * s.diversity.mean for s in shifts))
    for (x, y), kind in (((top, 0.0), "diversity"), ((0.0, top), "correlation"), ((top, top), "both")):
        axes.annotate(
            kind, (x, y), (-4 if x else 4, -4 if y else 4), textcoords="offset points",
            ha="right" if x else "left", va="top" if y else "bottom", fontsize=9, color=MUTED,
            rotation=0 if x else 90,
        )  # fmt: skip
    for line in (axes.axvline, axes.axhline):
        line(NOTABLE, color=MUTED, lw=0.8, ls=DASHED, zorder=0)
    for shift, color in zip(shifts, colors(), strict=False):
        x, y = shift.diversity, shift.correlation
        if x.count > 1:
            axes.plot([x.low, x.high], [y.mean, y.mean], color=color, lw=1.5)
            axes.plot([x.mean, x.mean], [y.low, y.high], color=color, lw=1.5)
        name = plain_text(f"{shift.first} → {shift.second}")
        axes.plot([x.mean], [y.mean], "o", color=color, ms=7, label=name)
    axes.set_xlim(-0.02, top)
    axes.set_ylim(-0.02, top)
    name_axes(axes, *AXES)
    legend(figure, columns=1)
    quiet(axes)
    return figure


def can_be_ordered(results: Sequence[TrainingResult]) -> bool:
    """Return whether all runs have the same environments, and at least three names end in a number."""
    roles = results[0].record.roles if results else {}
    _, positions = _numbered(roles)
    return len(positions) >= _FEWEST_POINTS and all(result.record.roles == roles for result in results)


def curve(results: Sequence[TrainingResult]) -> Figure:
    """Draw the final score against the number at the end of each environment's name.

    Args:
        results: Results of runs on the same environments, such as flip-0.1, …, flip-0.9 or year-2009, …,
            year-2019.

    Raises:
        EnvariantError: If fewer than three environments have names that end in a number, or the runs have
            different environments.
    """
    if not can_be_ordered(results):
        raise EnvariantError(
            "shift curve: needs runs on the same environments, at least 3 of them with names that end in a "
            "number"
        )
    record = results[0].record
    stem, positions = _numbered(record.roles)
    figure, axes = new_axes(7.4, 3.8)
    for result, label, color in zip(results, labels(results), colors(), strict=False):
        spreads = {x: result.final(name, record.metric) for x, name in positions.items()}
        axes.plot(
            list(spreads), [s.mean for s in spreads.values()], color=color, lw=2, label=plain_text(label)
        )
        for x, spread in spreads.items():
            axes.plot([x] * len(spread.values), spread.values, ".", color=color, alpha=0.45, ms=5)
    for x, name in positions.items():
        if record.roles[name] == "train":
            axes.axvline(x, color=LINE, lw=6, zorder=-1)
    references(axes, record)
    name_axes(axes, f"{stem.rstrip('-_ ')} (shaded: training environments)", record.metric)
    legend(figure)
    quiet(axes)
    return figure


def _numbered(names: Iterable[str]) -> tuple[str, dict[float, str]]:
    """Return the most frequent stem of names that end in a number, and a mapping from number to name."""
    stems: dict[str, dict[float, str]] = {}
    for name in names:
        if number := _NUMBER.search(name):
            stems.setdefault(name[: number.start()], {})[float(number.group())] = name
    stem, positions = max(stems.items(), key=lambda item: len(item[1]), default=("", {}))
    return stem, dict(sorted(positions.items()))


def shift_table(shifts: Mapping[str, Shift], label: str, note: str) -> TextTable:
    """Return a table of shift measures, one row per pair of groups; each measure is a mean over trials.

    Args:
        shifts: Mapping from the name of a pair of groups to the measured shift.
        label: Header of the first column.
        note: Description of the compared groups.
    """
    rows = [
        (name, *(f"{getattr(shift, measure).mean:.3f}" for measure in MEASURES), shift.kind)
        for name, shift in shifts.items()
    ]
    note += (
        " From 0 to 1. Diversity: new inputs, which do not occur on the other side; correlation: equal "
        "inputs with new targets (OoD-Bench, Ye et al. 2022); label: total variation distance of "
        "the targets; covariate: 2·AUROC − 1 of a classifier that tells the two apart."
    )
    return TextTable((label, *MEASURES, "shift"), tuple(rows), (note,))


def drift_table(drift: Drift) -> TextTable:
    """Return a table of drift with one row per column, drifted columns first."""
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
        f"further: p < {drifts.LEVEL:g}, distance ≥ {drifts.NOTABLE:g}, and larger than between training "
        f"environments. Columns are compared one by one; changes of their joint distribution or of the "
        f"target are not detected.",
    ]
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
