"""Verdicts follow the rule that means agree within two standard errors of their difference."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envariant import published
from envariant.analysis.statistics import Interval
from envariant.core.errors import EnvariantError
from envariant.reproductions.verdicts import PublishedMean, agreement, beyond, statement, within

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=12)


@given(st.floats(0, 1), st.floats(0, 0.2), st.integers(2, 20), VALUES)
def test_agreement_is_the_rule_of_two_standard_errors(mean, sd, count, values):
    n = len(values)
    ours = math.fsum(values) / n
    variance = math.fsum((v - ours) ** 2 for v in values) / (n - 1)
    distance, allowed = abs(ours - mean), 2 * math.sqrt(sd * sd / count + variance / n)
    claim = agreement("x", PublishedMean(mean, sd, count), values)
    if abs(distance - allowed) > 1e-9:
        assert claim.verdict == ("reproduced" if distance < allowed else "not reproduced")
    assert f"{n} runs; published" in claim.numbers


def test_one_run_decides_nothing():
    assert agreement("x", PublishedMean(0.5, 0.1, 10), [0.5]).verdict == "undecided"
    assert agreement("x", PublishedMean(0.5, 0.1, 10), []).verdict == "undecided"


def test_the_quick_profile_neither_reproduces_nor_contradicts():
    same = agreement("x", PublishedMean(0.5, 0.1, 10), [0.5, 0.51])
    other = statement("x", False, "")
    assert (same.verdict, other.verdict) == ("reproduced", "not reproduced")
    assert (same.in_profile("quick").verdict, other.in_profile("quick").verdict) == ("holds", "undecided")
    assert same.in_profile("full") == same
    exact = statement("x", False, "", exact=True)
    assert exact.in_profile("quick").verdict == "not reproduced"
    assert statement("x", None, "").in_profile("full").verdict == "undecided"


def test_published_spreads_are_converted_to_divisor_n_minus_one():
    entry = published.table("rex_colored_mnist")
    cell = PublishedMean.of("rex_colored_mnist", "V-REx", "test")
    assert "ddof 0" in entry.spread_kind
    assert cell == PublishedMean(pytest.approx(0.687), pytest.approx(0.009 * math.sqrt(10 / 9)), 10)
    domainbed = published.table("domainbed_coloredmnist_training_domain")
    row, column = next(iter(domainbed.rows)), domainbed.columns[0]
    mean, error = domainbed.fraction(row, column)
    cell = PublishedMean.of("domainbed_coloredmnist_training_domain", row, column)
    # The standard error is the standard deviation with divisor 3, divided by √3.
    assert (cell.mean, cell.sd, cell.count) == (mean, pytest.approx(error * 3 / math.sqrt(2)), 3)
    with pytest.raises(EnvariantError, match="no spread over runs is published for 'Optimum'"):
        PublishedMean.of("rex_colored_mnist", "Optimum", "test")


def test_an_interval_that_contains_the_bound_decides_nothing():
    interval = Interval(0.5, 0.4, 0.6, 3)
    assert beyond(interval, above=0.3) is True
    assert beyond(interval, above=0.7) is False
    assert beyond(interval, below=0.7) is True
    assert beyond(interval, below=0.3) is False
    assert beyond(interval, above=0.45) is None
    with pytest.raises(EnvariantError, match="exactly one"):
        beyond(interval)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.04, 0.04, True), (0.06, 0.2, False), (-0.2, -0.06, False), (0.0, 0.06, None), (-0.06, 0.0, None),
     (-0.2, 0.2, None)],
)  # fmt: skip
def test_a_difference_is_within_a_margin_only_with_its_whole_interval(low, high, expected):
    assert within(Interval((low + high) / 2, low, high, 5), 0.05) is expected
