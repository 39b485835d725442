"""The answer in words: one plain paragraph that somebody can act on, and what to do next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envariant.comparison.evidence import Cell, Evidence
from envariant.comparison.stability import ColumnStability
from envariant.studies import trees
from envariant.studies.comparison import BASELINE
from envariant.studies.shift import NOTABLE, Shift

# Less than this of the metric, lost without a column, is no leaning on it.
_LEAN = 0.005

_NAMED = {
    "erm": "ERM",
    "irm": "IRM",
    "vrex": "V-REx",
    "groupdro": "GroupDRO",
    "coral": "CORAL",
    "and-mask": "AND-mask",
    trees.NAME: "boosted trees",
}


@final
@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        recommended: an algorithm; `erm` where no other helps beyond noise.
        paragraph: in plain words.
        next: steps to take, each a sentence.
    """

    recommended: str
    paragraph: str
    next: tuple[str, ...]


def named(method: str) -> str:
    """A method as people write it."""
    return _NAMED.get(method, method)


def verdict(
    found: Evidence, columns: Sequence[ColumnStability], shifts: Mapping[str, Shift], target: str
) -> Verdict:
    """Puts the numbers into words.

    Args:
        found: by the comparison.
        columns: their stability, the least stable first.
        shifts: of each place against all others.
        target: the name of the column that is predicted.
    """
    best = _recommended(found)
    unstable = [c for c in columns if c.unstable]
    parts = [
        _drop(found, target),
        _help(found, best),
        _trees(found, best),
        _blame(found, unstable),
    ]
    return Verdict(best, " ".join(part for part in parts if part), _next(found, unstable, shifts, best))


def _recommended(found: Evidence) -> str:
    return next((m for m in found.helping if m != trees.NAME), BASELINE)


def _drop(found: Evidence, target: str) -> str:
    """Whether performance falls at a new place, and by how much."""
    worst, usual = found.worst(BASELINE)
    who = f"An ordinary model (ERM) that predicts {target}"
    lost = {place: drop(found, cell) for place, cell in found.cells[BASELINE].items()}
    fallen = {place: gone for place, (gone, noise) in lost.items() if gone > noise and gone >= _least(found)}
    if not fallen:
        known = "" if any(math.isfinite(gone) for gone, _ in lost.values()) else ", as far as can be told"
        return (
            f"{who} holds at places that it was not trained on{known}: at the worst, {worst}, it has "
            f"{_score(found, usual.score.mean)}."
        )
    place = max(fallen, key=fallen.__getitem__)
    cell = found.cells[BASELINE][place]
    where = f"at {place}" if len(fallen) == 1 else f"at {len(fallen)} of {len(lost)}, {place} most of all"
    return (
        f"{who} gets worse at places that it was not trained on, {where}: {_score(found, cell.score.mean)}, "
        f"against {cell.inside.mean:.3f} where rows of {place} were in training."
    )


def drop(found: Evidence, cell: Cell) -> tuple[float, float]:
    """How much worse a method is where a place is new than where it was trained on, and how much is noise.

    NaN where no model was trained on the place.
    """
    lost = found.sign * (cell.inside.mean - cell.score.mean)
    halves = [(each.high - each.low) / 2 for each in (cell.score, cell.inside) if each.count > 1]
    return lost, math.hypot(*halves)


def _least(found: Evidence) -> float:
    """A difference nobody would act on is none; of metrics between 0 and 1, two hundredths."""
    if found.metric.name in ("squared error", "RMSE"):
        return 0.05 * abs(found.worst(BASELINE)[1].score.mean)
    return 0.02


def _help(found: Evidence, best: str) -> str:
    place, _ = found.worst(BASELINE)
    if best == BASELINE:
        others = ", ".join(named(m) for m in found.cells if m not in (BASELINE, trees.NAME))
        if not others:
            return "No other method was tried to the end: stay with ERM."
        return f"No method tried ({others}) helps beyond noise where ERM is worst, at {place}: stay with ERM."
    cell, (worst, lowest) = found.cells[best][place], found.worst(best)
    gain = 0.0 if cell.gain is None else cell.gain.mean
    text = (
        f"{named(best)} is better at {place} by {gain:.3f}, beyond noise (p = {cell.p_value:.2g}), and its "
        f"own worst is {worst} with {lowest.score.mean:.3f}: use {named(best)}."
    )
    losing = [
        f"{where} ({-c.gain.mean:.3f})"
        for where, c in found.cells[best].items()
        if c.beyond and c.gain is not None and c.gain.mean < 0
    ]
    return text + (f" It has its price: it is worse than ERM at {', '.join(losing)}." if losing else "")


def _trees(found: Evidence, best: str) -> str:
    if not found.whole(trees.NAME) or not found.whole(best):
        return ""
    where, cell = found.worst(trees.NAME)
    ours = found.worst(best)[1].score.mean
    better = found.sign * (cell.score.mean - ours)
    if better > _least(found):
        return (
            f"Gradient-boosted trees do better still: {_score(found, cell.score.mean)} at their worst place, "
            f"{where}. If nothing else speaks against them, take those."
        )
    return f"Gradient-boosted trees reach {_score(found, cell.score.mean)} at their worst place, {where}."


def _blame(found: Evidence, unstable: Sequence[ColumnStability]) -> str:
    """Which columns carry the relation that does not hold, of those that ERM leans on."""
    usual = found.reliance.get(BASELINE, {})
    leaning = [c for c in unstable if c.column in usual and usual[c.column].within > _LEAN]
    chosen = [c for c in leaning if c.turns] or leaning
    if not chosen:
        return ""
    names = ", ".join(f"'{c.column}'" for c in chosen[:3]) + (", …" if len(chosen) > 3 else "")
    how = (
        "points one way in some places and the other way in others"
        if chosen[0].turns
        else "is much stronger in some places than in others"
    )
    return f"ERM leans on {names}, whose relation with the target {how}."


def _next(
    found: Evidence, unstable: Sequence[ColumnStability], shifts: Mapping[str, Shift], best: str
) -> tuple[str, ...]:
    steps: list[str] = []
    turning = [c for c in unstable if c.turns]
    if turning:
        names = ", ".join(f"'{c.column}'" for c in turning[:3])
        steps.append(
            f"Find out why {names} {'mean' if len(turning) > 1 else 'means'} something else in different "
            f"places; if no model should use {'them' if len(turning) > 1 else 'it'}, leave "
            f"{'them' if len(turning) > 1 else 'it'} out (--exclude) and compare again."
        )
    diverse = [name for name, shift in shifts.items() if shift.diversity.mean >= NOTABLE]
    if diverse:
        steps.append(
            f"Rows of {', '.join(diverse[:3])}{', …' if len(diverse) > 3 else ''} do not occur elsewhere "
            f"(diversity shift): no method can be sure of them; collect rows like these."
        )
    small = [place for place, cell in found.cells[BASELINE].items() if _wide(cell)]
    if small:
        steps.append(
            f"At {', '.join(small[:3])}{', …' if len(small) > 3 else ''} there are too few rows to tell a "
            f"difference of a tenth from noise; more rows there would sharpen the answer."
        )
    if best != BASELINE:
        steps.append(
            "Before relying on it, try the saved model on rows of a place that had no part in this "
            "comparison: envariant predict."
        )
    elif not turning and not diverse:
        steps.append("Nothing here calls for more than ERM; compare again when a new place is added.")
    return tuple(steps)


def _wide(cell: Cell) -> bool:
    return (cell.score.high - cell.score.low) / 2 > 0.1


def _score(found: Evidence, value: float) -> str:
    return f"{found.metric.name} {value:.3f}"
