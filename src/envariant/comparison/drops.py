"""Test whether the score of the baseline drops in new environments.

Three tests detect three kinds of drops: a large drop in a single environment, drops that vary between many
small environments, and a small drop in all environments. For a table without a drop, the probability that any
test rejects is at most about 5 %.
"""

import math

from scipy import stats

from envariant.comparison.results import ComparisonResults

MATTERS = 5.0
"""Smallest insignificant drop that is still mentioned, as a multiple of the relevant difference."""

EXPECTED_LEVEL = 0.0125
"""Significance level of Cochran's Q test that shortfalls are equal in all environments."""

SHORTFALL_LEVEL = 0.05
"""Significance level of the tests of single environments, which require a significant Cochran's Q."""


def in_domain_drops(results: ComparisonResults) -> dict[str, float]:
    """Return the significant drops from in-domain to out-of-domain scores, by environment.

    Drops below `ComparisonResults.relevant_difference` are omitted. Intervals are Bonferroni-corrected over
    environments.
    """
    drops = {name: results.drop(cell) for name, cell in results.baseline.items()}
    widening = float(stats.norm.isf(0.025 / len(drops)) / stats.norm.isf(0.025))
    return {
        name: drop.mean
        for name, drop in drops.items()
        if drop.mean > widening * drop.half_width and drop.mean >= results.relevant_difference
    }


def shortfalls(results: ComparisonResults) -> dict[str, float]:
    """Return the significant shortfalls by environment.

    A shortfall is the amount by which the observed score is worse than the expected score. Shortfalls below
    `ComparisonResults.relevant_difference` are omitted. Individual environments are tested only if Cochran's
    Q shows that shortfalls differ between environments. P-values are corrected for the number of
    environments; see `expected_scores`.
    """
    if not varies(results):
        return {}
    return {
        name: each.shortfall
        for name, each in results.expected.by_environment.items()
        if each.p_value <= SHORTFALL_LEVEL and each.shortfall >= results.relevant_difference
    }


def significant_drops(results: ComparisonResults) -> dict[str, float]:
    """Return each environment's significant drop or, if there is none, its significant shortfall.

    A shortfall is the amount by which the observed score is worse than the expected score. Environments with
    neither are omitted.
    """
    return shortfalls(results) | in_domain_drops(results)


def varies(results: ComparisonResults) -> bool:
    """Return whether shortfalls differ between environments, significantly and by a relevant amount.

    A shortfall is the amount by which the observed score is worse than the expected score. Cochran's Q tests
    all environments together, and so detects differences that are not significant in any single small
    environment. Relevant means that the standard deviation between environments is at least
    `ComparisonResults.relevant_difference`.
    """
    pooled = results.expected.pooled
    return (
        pooled is not None
        and results.expected.p_value <= EXPECTED_LEVEL
        and pooled.between_sd >= results.relevant_difference
    )


def drops_on_average(results: ComparisonResults) -> bool:
    """Return whether the random-effects mean of the drops is significant and relevant.

    Relevant means at least `ComparisonResults.relevant_difference`.
    """
    pooled = results.pooled_drop
    return pooled is not None and pooled.low > 0 and pooled.mean >= results.relevant_difference


def has_drop(results: ComparisonResults) -> bool:
    """Return whether the baseline's score drops in new environments.

    True if at least one of three effects is significant: a drop in some environment, a difference in
    shortfalls between environments (see `varies`), or a drop on average.
    """
    return bool(significant_drops(results)) or varies(results) or drops_on_average(results)


def hidden_drop(results: ComparisonResults) -> str:
    """Return the name of the environment where an undetected drop could be largest.

    This is the environment with the highest upper end of the drop's confidence interval. Return "" if a drop
    was detected, or if the highest upper end does not exceed `MATTERS` times the relevant difference.
    """
    upper = {name: results.drop(cell).upper for name, cell in results.baseline.items()}
    known = {name: most for name, most in upper.items() if math.isfinite(most)}
    name = max(known, key=known.__getitem__, default="")
    matters = known and known[name] > MATTERS * results.relevant_difference
    return name if matters and not has_drop(results) else ""
