"""The published figures: every table is whole, and every number can be had as a fraction."""

import math
import tomllib
from importlib import resources

import pytest

from envariant import published
from envariant.core.errors import EnvariantError

EVERYTHING = tomllib.loads(
    resources.files("envariant.published").joinpath("results.toml").read_text(encoding="utf-8")
)
TABLES = sorted(EVERYTHING["tables"])


@pytest.mark.parametrize("name", TABLES)
def test_every_table_reads_and_its_rows_fit_its_columns(name):
    table = published.table(name)
    assert table.rows
    assert len(set(table.columns)) == len(table.columns) > 0
    for row in table.rows.values():
        assert len(row.mean) == len(table.columns)
        assert not all(map(math.isnan, row.mean))
        assert row.spread is None or len(row.spread) == len(table.columns)
        assert all(math.isnan(s) or s >= 0 for s in row.spread or ())


@pytest.mark.parametrize("name", TABLES)
def test_every_table_says_where_it_comes_from_and_under_which_protocol(name):
    table = published.table(name)
    source = published.source(table.source)
    assert source.title
    assert source.checked
    assert published.protocol(table.protocol)["dataset"]
    assert table.metric
    assert table.spread_kind


def test_every_source_reads():
    assert all(published.source(name).title for name in EVERYTHING["sources"])


@pytest.mark.parametrize("name", TABLES)
def test_accuracies_and_shares_are_fractions_of_one(name):
    table = published.table(name)
    if "accuracy" in table.metric or "share" in table.metric:
        assert table.unit in ("percent", "fraction")
        for row in table.rows:
            for column in table.columns:
                mean, _ = table.fraction(row, column)
                assert math.isnan(mean) or 0 <= mean <= 1


def test_percent_is_divided_by_a_hundred_and_a_fraction_stays():
    printed = published.table("irm_colored_mnist")
    assert printed.unit == "percent"
    assert printed.fraction("IRM", "test") == pytest.approx((0.669, 0.025))
    recorded = published.table("irm_colored_mnist_recorded_run")
    assert recorded.unit == "fraction"
    assert recorded.fraction("IRM", "test") == (0.66902, 0.025403263)


def test_a_figure_without_a_spread_has_none():
    assert published.table("irm_colored_mnist").fraction("Optimal invariant model", "test") == (0.75, None)


def test_derived_figures_are_marked_as_theory():
    rows = published.table("irm_colored_mnist").rows
    marked = [name for name, row in rows.items() if row.theory]
    assert marked == ["Random guessing", "Optimal invariant model"]


def test_numbers_of_a_protocol_are_numbers():
    paper = published.protocol("colored_mnist_irm")
    found = [paper[key] for key in ("hidden", "l2", "lr", "anneal_steps", "penalty_weight", "steps")]
    assert found == [390, 0.00110794568, 0.0004898536566546834, 190, 91257.18613115903, 501]


@pytest.mark.parametrize(
    ("ask", "kind", "name", "near"),
    [
        (published.table, "tables", "irm_colored_mist", "irm_colored_mnist"),
        (published.source, "sources", "irm2019", "irm_2019"),
        (published.protocol, "protocols", "domain_bed", "domainbed"),
    ],
)
def test_an_unknown_entry_is_rejected_with_a_suggestion(ask, kind, name, near):
    with pytest.raises(EnvariantError) as refusal:
        ask(name)
    assert str(refusal.value).startswith(f"unknown entry of {kind} '{name}'; did you mean '{near}'? known: ")
