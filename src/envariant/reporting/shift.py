"""Pictures of shift: how far environments lie apart, and what a model makes of ever larger shifts."""

import re
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from envariant.analysis.distribution_shift import NOTABLE, Shift
from envariant.core.errors import EnvariantError
from envariant.reporting.figures import INK, MUTED, TEST, TRAIN, plain_text, quiet, references
from envariant.reporting.labels import labels
from envariant.training.result import TrainingResult

# "flip-0.9" ends in 0.9: a dash after a word is no sign.
_NUMBER = re.compile(r"(?<![\d.])\d+(?:\.\d+)?$")
_LEAST = 3


def plane(shifts: Sequence[Shift]) -> Figure:
    """Diversity across, correlation up: a point for each pair of places, with its interval over trials."""
    figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    axes = figure.subplots()
    top = max(0.3, *(1.15 * s.correlation.mean for s in shifts), *(1.15 * s.diversity.mean for s in shifts))
    for place, words in (((top, 0.0), "diversity"), ((0.0, top), "correlation"), ((top, top), "both")):
        axes.annotate(
            words, place, (-4 if place[0] else 4, -4 if place[1] else 4), textcoords="offset points",
            ha="right" if place[0] else "left", va="top" if place[1] else "bottom", fontsize=9, color=MUTED,
            rotation=0 if place[0] else 90,
        )  # fmt: skip
    axes.axvline(NOTABLE, color=MUTED, lw=0.8, ls=(0, (5, 3)), zorder=0)
    axes.axhline(NOTABLE, color=MUTED, lw=0.8, ls=(0, (5, 3)), zorder=0)
    for shift, color in zip(shifts, (TEST, *TRAIN) * len(shifts), strict=False):
        across, up = shift.diversity, shift.correlation
        if across.count > 1:
            axes.plot([across.low, across.high], [up.mean, up.mean], color=color, lw=1.5)
            axes.plot([across.mean, across.mean], [up.low, up.high], color=color, lw=1.5)
        name = plain_text(f"{shift.first} → {shift.second}")
        axes.plot([across.mean], [up.mean], "o", color=color, ms=7, label=name)
    axes.set_xlim(-0.02, top)
    axes.set_ylim(-0.02, top)
    axes.set_xlabel("diversity shift: rows that do not occur in the other", fontsize=9, color=INK)
    axes.set_ylabel("correlation shift: same rows, other targets", fontsize=9, color=INK)
    figure.legend(loc="outside upper left", ncols=1, frameon=False, fontsize=8.5, labelcolor=INK)
    quiet(axes)
    return figure


def can_be_ordered(results: Sequence[TrainingResult]) -> bool:
    """Whether there are environments enough whose names end in numbers of one kind, to draw a curve."""
    roles = results[0].record.roles if results else {}
    _, places = _places(roles)
    return len(places) >= _LEAST and all(result.record.roles == roles for result in results)


def curve(results: Sequence[TrainingResult]) -> Figure:
    """The last score against the number in each environment's name: how far a shift may go.

    Args:
        results: runs on the same environments, such as flip-0.1 to flip-0.9 or year-2009 to year-2019.

    Raises:
        EnvariantError: fewer than three environments bear a number, or the runs have different ones.
    """
    if not can_be_ordered(results):
        raise EnvariantError(
            "shift curve: needs runs on the same environments, at least 3 of them with a number that ends "
            "their names"
        )
    record = results[0].record
    stem, places = _places(record.roles)
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for result, name, color in zip(results, labels(results), (TEST, *TRAIN) * len(results), strict=False):
        spreads = {x: result.final(place, record.metric) for x, place in places.items()}
        axes.plot(
            list(spreads), [s.mean for s in spreads.values()], color=color, lw=2, label=plain_text(name)
        )
        for x, spread in spreads.items():
            axes.plot([x] * len(spread.values), spread.values, ".", color=color, alpha=0.45, ms=5)
    for x, place in places.items():
        if record.roles[place] == "train":
            axes.axvline(x, color="#e4e7eb", lw=6, zorder=-1)
    references(axes, record)
    axes.set_xlabel(plain_text(f"{stem.rstrip('-_ ')} (shaded: trained on)"), fontsize=9, color=INK)
    axes.set_ylabel(record.metric, color=INK)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    quiet(axes)
    return figure


def _places(names: Iterable[str]) -> tuple[str, dict[float, str]]:
    """Environments by the number that ends their name, in order, and how the names begin.

    Of several beginnings, that which the most environments have.
    """
    stems: dict[str, dict[float, str]] = {}
    for name in names:
        if number := _NUMBER.search(name):
            stems.setdefault(name[: number.start()], {})[float(number.group())] = name
    stem, places = max(stems.items(), key=lambda found: len(found[1]), default=("", {}))
    return stem, dict(sorted(places.items()))
