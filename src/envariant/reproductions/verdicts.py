"""Claims of a publication and the verdicts on them, computed from results.

Two results agree if their means differ by at most two standard errors of the difference,

    |m₁ − m₂| ≤ 2 √(s₁²/n₁ + s₂²/n₂),

where s₁ and s₂ are standard deviations with divisor n − 1. Publications often use divisor n, or print
standard errors; `PublishedMean.of` converts both.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from envariant import published
from envariant.analysis.statistics import Interval
from envariant.core.errors import EnvariantError

Verdict = Literal["reproduced", "holds", "not reproduced", "undecided"]
"""Verdict on a claim.

"reproduced": the published numbers and ours agree. "holds": the statement is true of our results, although
numbers may differ. "not reproduced": our results contradict the claim. "undecided": our results are
compatible with the claim and with its opposite, or there are too few of them.
"""

VERDICTS: tuple[Verdict, ...] = ("reproduced", "holds", "not reproduced", "undecided")


@final
@dataclass(frozen=True)
class Claim:
    """Claim about a publication's results, and the verdict of the reproduction on this claim.

    Attributes:
        text: The claim, as a sentence.
        verdict: Verdict on the claim.
        numbers: Results from which the verdict was computed, as text.
        exact: Whether the results are the same in every profile, for example because they are deterministic.
    """

    text: str
    verdict: Verdict
    numbers: str
    exact: bool = False

    @property
    def supported(self) -> bool:
        """Whether the verdict is "reproduced" or "holds"."""
        return self.verdict in ("reproduced", "holds")

    def in_profile(self, profile: Literal["quick", "full"]) -> "Claim":
        """Return the claim, with its verdict weakened if the profile requires it.

        The quick profile changes network sizes and numbers of runs. Unless a claim is exact, this profile can
        neither reproduce published numbers nor contradict them: "reproduced" becomes "holds", and "not
        reproduced" becomes "undecided".
        """
        weaker: dict[Verdict, Verdict] = {"reproduced": "holds", "not reproduced": "undecided"}
        if profile == "full" or self.exact:
            return self
        return replace(self, verdict=weaker.get(self.verdict, self.verdict))


@final
@dataclass(frozen=True)
class PublishedMean:
    """Published mean over runs, with its standard deviation.

    Attributes:
        mean: Mean over runs.
        sd: Standard deviation over runs, with divisor n − 1.
        count: Number of runs n.
    """

    mean: float
    sd: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.sd:.2g}"

    @classmethod
    def of(cls, table: str, row: str, column: str) -> "PublishedMean":
        """Return one cell of a published table; percentages are converted to fractions.

        The published spread is interpreted as a standard error if the table says so. Otherwise, it is
        interpreted as a standard deviation with divisor n, even if the table does not name the divisor.

        Args:
            table: Name of the table in `envariant.published`.
            row: Name of the row.
            column: Name of the column.

        Raises:
            EnvariantError: If the table states no spread for the cell, or fewer than 2 runs.
        """
        entry = published.table(table)
        mean, spread = entry.fraction(row, column)
        if spread is None or entry.n_runs is None or entry.n_runs < 2:
            raise EnvariantError(f"{table}: no spread over runs is published for {row!r}")
        n = entry.n_runs
        if "standard error" in entry.spread_kind:
            spread *= math.sqrt(n)
        # The DomainBed tables divide a standard deviation of divisor n by √n, hence the same conversion.
        return cls(mean, spread * math.sqrt(n / (n - 1)), n)


def statement(text: str, holds: bool | None, numbers: str, *, exact: bool = False) -> Claim:
    """Return a claim that consists of a statement only, with no published numbers to compare with.

    Args:
        text: The statement, as a sentence.
        holds: Whether the results support the statement; None if they do not decide it.
        numbers: Results on which `holds` is based, as text.
        exact: Whether the results are the same in every profile.
    """
    verdict: Verdict = "undecided" if holds is None else "holds" if holds else "not reproduced"
    return Claim(text, verdict, numbers, exact)


def agreement(text: str, paper: PublishedMean, values: Sequence[float], *, exact: bool = False) -> Claim:
    """Return a claim of agreement with a published mean, and the verdict computed from our results.

    Args:
        text: The claim, as a sentence.
        paper: Published mean.
        values: Our results, one per independent run.
        exact: Whether the results are the same in every profile.

    Returns:
        Claim whose `numbers` contain both means, both standard deviations and the allowed difference. The
        verdict is "undecided" if there are fewer than two values.
    """
    if len(values) < 2:
        ours = f"{values[0]:.4g}, one run" if values else "no finished run"
        return Claim(text, "undecided", f"{ours}; published {paper}, {paper.count} runs", exact)
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    allowed = 2 * math.sqrt(paper.sd**2 / paper.count + sd**2 / len(values))
    difference = mean - paper.mean
    numbers = (
        f"{mean:.4g} ± {sd:.2g}, {len(values)} runs; published {paper}, {paper.count} runs; "
        f"difference {difference:+.3g}, at most {allowed:.2g} allowed"
    )
    return Claim(text, "reproduced" if abs(difference) <= allowed else "not reproduced", numbers, exact)


def beyond(interval: Interval, *, above: float | None = None, below: float | None = None) -> bool | None:
    """Return whether a confidence interval lies on one side of a bound.

    Args:
        interval: Confidence interval.
        above: Bound that the interval must exceed. Exactly one of `above` and `below` must be given.
        below: Bound that the interval must stay below.

    Returns:
        True if the whole interval is on the required side, False if it is on the other side, None if it
        contains the bound.

    Example:
        >>> from envariant.analysis.statistics import interval
        >>> beyond(interval([0.61, 0.66, 0.70, 0.65, 0.68]), above=0.6)
        True
    """
    if (above is None) == (below is None):
        raise EnvariantError("beyond: give exactly one of above and below")
    bound = above if above is not None else below
    assert bound is not None
    if interval.low <= bound <= interval.high:
        return None
    return (interval.low > bound) == (above is not None)


def within(interval: Interval, margin: float) -> bool | None:
    """Return whether a confidence interval lies between −margin and margin.

    Args:
        interval: Confidence interval of a difference.
        margin: Positive bound.

    Returns:
        True if the whole interval is between the bounds, False if it is wholly outside, None if it contains
        a bound.
    """
    return all_hold((beyond(interval, above=-margin), beyond(interval, below=margin)))


def all_hold(parts: Iterable[bool | None]) -> bool | None:
    """Return False if any part of a statement is false; otherwise None if any is undecided, else True.

    Args:
        parts: Whether each part holds; None for undecided parts.
    """
    known = list(parts)
    return False if False in known else None if None in known else True
