"""The answer in words: one plain paragraph that somebody can act on, and what to do next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from scipy import stats

from envariant.analysis.column_stability import ColumnStability
from envariant.analysis.distribution_shift import NOTABLE, Shift
from envariant.comparison.results import Cell, Evidence
from envariant.studies.baselines import boosted_trees
from envariant.studies.significance import BASELINE

# In differences that nobody would act on: what a column must be worth to be leaned on, and from where on
# noise could hide something that matters.
_LEAN = 0.25
_MATTERS = 5.0

_NAMED = {
    "erm": "ERM",
    "irm": "IRM",
    "vrex": "V-REx",
    "groupdro": "GroupDRO",
    "coral": "CORAL",
    "and-mask": "AND-mask",
    boosted_trees.NAME: "boosted trees",
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
        _partial(found),
        _given_away(found, target),
        _drop(found, target),
        _useless(found),
        _unknown(found),
        _help(found, best),
        _trees(found, best),
        _blame(found, unstable),
    ]
    return Verdict(best, " ".join(part for part in parts if part), _next(found, unstable, shifts, best))


def _partial(found: Evidence) -> str:
    """What the rest speaks of, where the time was over before every place was tried."""
    tried, every = len(found.cells[BASELINE]), len(found.places)
    return f"Only {tried} of {every} places could be tried in the time there was." if tried < every else ""


def where(found: Evidence, place: str) -> str:
    """A place in a sentence: with what kind of place it is where its name is a number."""
    number = place.replace(".", "", 1).lstrip("-").isdigit()
    return f"{found.environment} {place}" if number and found.environment else place


def _given_away(found: Evidence, target: str) -> str:
    if not (names := found.giving_away):
        return ""
    listed = ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
    verb, it, each = ("say", "they are", "them") if len(names) > 1 else ("says", "it is", "it")
    return (
        f"Beware: {listed} {verb} nearly all of {target} alone; if {it} made from it, or known only "
        f"afterwards, nothing here holds: leave {each} out (--exclude) and compare again."
    )


def _recommended(found: Evidence) -> str:
    return next((m for m in found.helping if m != boosted_trees.NAME), BASELINE)


def _drop(found: Evidence, target: str) -> str:
    """Whether performance falls at a new place, and by how much."""
    who = f"An ordinary model (ERM) that predicts {target}"
    lost = {place: drop(found, cell) for place, cell in found.cells[BASELINE].items()}
    if fallen := _fallen(found):
        place = max(fallen, key=fallen.__getitem__)
        name = where(found, place)
        at = f"at {name}" if len(fallen) == 1 else f"at {len(fallen)} of {len(lost)}, {name} most of all"
        return f"{who} gets worse at places that it was not trained on, {at}: {_against(found, place)}."
    if place := _hidden(found):
        up_to = shown(found, sum(drop(found, found.cells[BASELINE][place])))
        return (
            f"{who} loses nothing beyond noise at places that it was not trained on, but the noise is too "
            f"large to say that it holds: at {where(found, place)}, {_against(found, place)}; it may lose up "
            f"to {up_to} there."
        )
    worst, usual = found.worst(BASELINE)
    if not any(math.isfinite(gone) for gone, _ in lost.values()):
        return (
            f"{who} was never trained on a place that was held out elsewhere, so nothing tells whether it "
            f"loses there: at the worst, {where(found, worst)}, it has {_score(found, usual.score.mean)}."
        )
    return (
        f"{who} holds at places that it was not trained on: at the worst, {where(found, worst)}, "
        f"{_against(found, worst)}."
    )


def _against(found: Evidence, place: str) -> str:
    cell = found.cells[BASELINE][place]
    beside = (
        f", against {shown(found, cell.inside.mean)} where rows of {where(found, place)} were in training"
    )
    return _score(found, cell.score.mean) + (beside if cell.inside.count else "")


def _fallen(found: Evidence) -> dict[str, float]:
    """Places at which ERM loses by being new there, beyond noise and enough to matter, and what it loses.

    Of many places one seems to lose by chance: as Bonferroni has it, each must lose by more.
    """
    lost = {place: drop(found, cell) for place, cell in found.cells[BASELINE].items()}
    more = float(stats.norm.isf(0.025 / len(lost)) / stats.norm.isf(0.025))
    return {p: gone for p, (gone, noise) in lost.items() if gone > more * noise and gone >= _least(found)}


def _hidden(found: Evidence) -> str:
    """The place at which noise could hide the largest loss, if that would matter; "" if none does."""
    lost = {place: sum(drop(found, cell)) for place, cell in found.cells[BASELINE].items()}
    known = {place: most for place, most in lost.items() if math.isfinite(most)}
    place = max(known, key=known.__getitem__, default="")
    return place if known and known[place] > _MATTERS * _least(found) and not _fallen(found) else ""


def _useless(found: Evidence) -> str:
    """Where a model is no better than none, which a loss or a gain of its own does not tell."""
    cells = found.cells[BASELINE]
    none = [
        place
        for place, guess in found.guess.items()
        if place in cells and found.sign * (cells[place].score.mean - guess) <= 0
    ]
    if not none:
        return ""
    place = max(none, key=lambda name: found.sign * (found.guess[name] - cells[name].score.mean))
    told = f"{where(found, place)} ({shown(found, found.guess[place])})"
    told = told if len(none) == 1 else f"{len(none)} of {len(cells)} places"
    return f"At {told} it is no better than {guessing(found)} of the other places."


def guessing(found: Evidence) -> str:
    """What can be done without a model."""
    if found.metric.for_regression:
        return "always saying the mean"
    if found.metric.name in ("accuracy", "balanced accuracy"):
        return "always saying the most frequent class"
    return "always giving each class its share"


def _unknown(found: Evidence) -> str:
    """Classes that a model cannot know at the place where it would need them."""
    told = [
        f"{', '.join(map(repr, classes[:3]))} at {where(found, place)} only"
        for place, classes in found.only.items()
    ]
    if not told:
        return ""
    listed = "; ".join(told[:3]) + ("; …" if len(told) > 3 else "")
    return f"Some classes occur at one place: {listed}. No model that was trained elsewhere can know them."


def drop(found: Evidence, cell: Cell) -> tuple[float, float]:
    """How much worse a method is where a place is new than where it was trained on, and how much is noise.

    NaN where no model was trained on the place.
    """
    lost = found.sign * (cell.inside.mean - cell.score.mean)
    halves = [(each.high - each.low) / 2 for each in (cell.score, cell.inside) if math.isfinite(each.high)]
    return lost, math.hypot(*halves)


def _least(found: Evidence) -> float:
    """A difference nobody would act on is none; of metrics between 0 and 1, two hundredths."""
    if found.metric.name in ("squared error", "RMSE"):
        return 0.05 * abs(found.worst(BASELINE)[1].score.mean)
    return 0.02


def _help(found: Evidence, best: str) -> str:
    place, _ = found.worst(BASELINE)
    at = where(found, place)
    if best == BASELINE:
        others = ", ".join(
            named(m) for m in found.cells if m not in (BASELINE, boosted_trees.NAME) and found.whole(m)
        )
        if not others:
            few = next((line for line in found.missing if "environments to train on" in line), "")
            reason = few or "none was tried at every place, for want of time or of a choice"
            return f"No method for new places could be compared with it ({reason})."
        return f"No method tried ({others}) helps beyond noise where ERM is worst, at {at}: stay with ERM."
    cell, (worst, lowest) = found.cells[best][place], found.worst(best)
    gain = 0.0 if cell.gain is None else cell.gain.mean
    text = (
        f"{named(best)} is better at {at} by {shown(found, gain)}, beyond noise ({chance(cell.p_value)}), "
        f"and its own worst is {where(found, worst)} with {shown(found, lowest.score.mean)}: use "
        f"{named(best)}."
    )
    losing = [
        f"{where(found, other)} ({shown(found, -c.gain.mean)})"
        for other, c in found.cells[best].items()
        if c.beyond and c.gain is not None and c.gain.mean < 0
    ]
    return text + (f" It has its price: it is worse than ERM at {', '.join(losing)}." if losing else "")


def _trees(found: Evidence, best: str) -> str:
    if not found.whole(boosted_trees.NAME) or not found.whole(best):
        return ""
    place, cell = found.worst(boosted_trees.NAME)
    reached = f"{_score(found, cell.score.mean)} at their worst place, {where(found, place)}"
    better = found.sign * (cell.score.mean - found.worst(best)[1].score.mean)
    if better <= _least(found):
        return f"Gradient-boosted trees do no better: {reached}."
    if boosted_trees.NAME not in found.helping:
        return f"Gradient-boosted trees reach {reached}, no better beyond noise."
    if best == BASELINE:
        return (
            f"But gradient-boosted trees, as ordinary, do better: {reached}. Take those; they are not kept "
            f"here."
        )
    return (
        f"Gradient-boosted trees reach {reached}; whether that is better than {named(best)} was not tested."
    )


def _blame(found: Evidence, unstable: Sequence[ColumnStability]) -> str:
    """Which columns carry the relation that does not hold, of those that ERM leans on."""
    usual = found.reliance.get(BASELINE, {})
    leaning = [c for c in unstable if c.column in usual and usual[c.column].within > _LEAN * _least(found)]
    chosen = [c for c in leaning if c.turns] or leaning
    if not chosen:
        return ""
    names = ", ".join(f"'{c.column}'" for c in chosen[:3]) + (", …" if len(chosen) > 3 else "")
    how = (
        "points one way in some places and the other way in others"
        if chosen[0].turns
        else "is stronger in some places than in others"
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
    diverse = [where(found, name) for name, s in shifts.items() if s.diversity.mean >= NOTABLE]
    if diverse:
        steps.append(
            f"Some rows of {', '.join(diverse[:3])}{', …' if len(diverse) > 3 else ''} look like none "
            f"elsewhere (diversity shift): no method can be sure of them; collect rows like these."
        )
    small = [where(found, place) for place, cell in found.cells[BASELINE].items() if _wide(found, cell)]
    if small:
        steps.append(
            f"Scores at {', '.join(small[:3])}{', …' if len(small) > 3 else ''} are uncertain by more than "
            f"± {shown(found, _MATTERS * _least(found))}: more rows there, or more replicas, would sharpen "
            f"the answer."
        )
    if best != BASELINE:
        steps.append(
            "Before relying on it, try the saved model on rows of a place that had no part in this "
            "comparison: envariant predict."
        )
    elif _fallen(found):
        steps.append(
            "Nothing that was tried mends the loss. Before a model is relied on at a new place, measure it "
            "on rows of that place, or train on some of them."
        )
    elif _hidden(found) and not small:
        steps.append("More replicas, or more rows of each place, would tell a loss from noise.")
    elif not turning and not diverse and not small and not found.giving_away:
        steps.append("Nothing here calls for more than ERM; compare again when a new place is added.")
    return tuple(steps)


def _wide(found: Evidence, cell: Cell) -> bool:
    return (cell.score.high - cell.score.low) / 2 > _MATTERS * _least(found)


def shown(found: Evidence, value: float, *, signed: bool = False) -> str:
    """A value in the metric: three decimals, and of errors in the target's unit as many as say something."""
    places = 3
    if found.metric.name in ("squared error", "RMSE"):
        size = abs(found.worst(BASELINE)[1].score.mean)
        places = max(0, 2 - math.floor(math.log10(size))) if size > 0 else 3
    # Rounded first, for −0.000 is 0.000.
    return f"{round(value, places) + 0.0:{'+' if signed else ''},.{places}f}"


def chance(p_value: float | None) -> str:
    """A p-value as people write it."""
    if p_value is None:
        return "p unknown"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _score(found: Evidence, value: float) -> str:
    return f"{found.metric.name} {shown(found, value)}"
