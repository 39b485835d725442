"""Tests of whether the score of the baseline drops in new environments.

Three tests find three kinds of drops: a large one in a single environment, different ones in many small
environments, and a small one in all of them. Together they err in at most about 5 % of tables without a drop.
"""

import math

from scipy import stats

from envariant.comparison.results import ComparisonResults

MATTERS = 5.0
"""Smallest drop that is mentioned although it is not significant, in units of the relevant difference."""

EXPECTED_LEVEL = 0.0125
"""Level of the test that expected scores fall short by different amounts, Cochran's Q."""

SHORTFALL_LEVEL = 0.05
"""Level of the test of single environments, once Cochran's Q is significant."""


def in_domain_drops(results: ComparisonResults) -> dict[str, float]:
    """Return the significant and relevant drops from in-domain scores, by environment.

    Intervals are Bonferroni-corrected over environments.
    """
    drops = {name: results.drop(cell) for name, cell in results.baseline.items()}
    widening = float(stats.norm.isf(0.025 / len(drops)) / stats.norm.isf(0.025))
    return {
        name: drop.mean
        for name, drop in drops.items()
        if drop.mean > widening * drop.half_width and drop.mean >= results.relevant_difference
    }


def shortfalls(results: ComparisonResults) -> dict[str, float]:
    """Return the significant and relevant shortfalls of expected scores, by environment.

    Single environments are tested only if Cochran's Q shows that shortfalls differ at all (a protected test),
    and their p-values are corrected over environments; see `expected_scores`.
    """
    if not varies(results):
        return {}
    return {
        name: each.shortfall
        for name, each in results.expected.by_environment.items()
        if each.p_value <= SHORTFALL_LEVEL and each.shortfall >= results.relevant_difference
    }


def significant_drops(results: ComparisonResults) -> dict[str, float]:
    """Return the significant drops from in-domain scores, and the shortfalls of other environments."""
    return shortfalls(results) | in_domain_drops(results)


def varies(results: ComparisonResults) -> bool:
    """Return whether scores fall short of expected scores in some environments, significantly and relevantly.

    Cochran's Q tests all environments together, so that differences are found that no single small
    environment shows.
    """
    pooled = results.expected.pooled
    return (
        pooled is not None
        and results.expected.p_value <= EXPECTED_LEVEL
        and pooled.between_sd >= results.relevant_difference
    )


def drops_on_average(results: ComparisonResults) -> bool:
    """Return whether the random-effects mean of the drops is significant and relevant."""
    pooled = results.pooled_drop
    return pooled is not None and pooled.low > 0 and pooled.mean >= results.relevant_difference


def has_drop(results: ComparisonResults) -> bool:
    """Return whether the baseline's score drops in one environment, in some, or on average."""
    return bool(significant_drops(results)) or varies(results) or drops_on_average(results)


def hidden_drop(results: ComparisonResults) -> str:
    """Return the environment with the largest drop that cannot be ruled out.

    Return "" if no such drop is relevant, or if any drop is significant.
    """
    upper = {name: results.drop(cell).upper for name, cell in results.baseline.items()}
    known = {name: most for name, most in upper.items() if math.isfinite(most)}
    name = max(known, key=known.__getitem__, default="")
    matters = known and known[name] > MATTERS * results.relevant_difference
    return name if matters and not has_drop(results) else ""
