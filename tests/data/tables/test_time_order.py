"""Order of environments in time from their names."""

import numpy as np
import pandas as pd
import pytest

from envariant.core.errors import EnvariantError
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import load, read
from envariant.data.tables.time_order import seems_ordered, time_order


@pytest.mark.parametrize(
    "ordered",
    [
        ("9", "10", "11.5"),
        ("2009", "2010"),
        ("2020-02", "2020-11"),
        ("31.01.2020", "01.02.2020"),
        ("Sep 2020", "Oct 2020"),
        ("2020-Q4", "2021-Q1"),
        ("Q4 2020", "Q1 2021"),
        ("2020W9", "2020W10"),
        ("wave 2", "wave 10"),
    ],
)
def test_names_are_sorted_by_time(ordered):
    assert time_order(ordered[::-1]) == ordered


@pytest.mark.parametrize("names", [("north", "south"), ("2020", "later"), ("a1", "b2"), ("1", "1.0")])
def test_other_names_have_no_order(names):
    assert time_order(names) is None


def test_years_and_dates_seem_ordered_and_numbered_sites_do_not():
    assert seems_ordered("when", ("2012", "2013"))
    assert seems_ordered("when", ("2012-01-01", "2012-01-02"))
    assert seems_ordered("survey_wave", ("1", "2"))
    assert seems_ordered("week", ("week 1", "week 2"))
    assert not seems_ordered("hospital", ("1", "2"))
    assert not seems_ordered("site", ("site 1", "site 2"))
    assert not seems_ordered("someday_inn", ("1", "2"))


def frame(names=("Oct 2020", "Sep 2020", "Nov 2020"), rows=10):
    y = np.arange(len(names) * rows) % 2
    return pd.DataFrame({"x": y + np.arange(len(y)) % 3, "y": y, "month": np.repeat(names, rows)})


def test_ordered_environments_follow_time_and_models_know_earlier_rows_only(tmp_path):
    table = read(frame(), "y", "month", min_rows=5, ordered=True)
    assert table.environments == ("Sep 2020", "Oct 2020", "Nov 2020")
    assert set(table.environment.values[table.training_rows(("Oct 2020",))]) == {0}
    assert table.training_rows(()).all()
    assert table.in_domain_environments(("Nov 2020",)) == ("Oct 2020",)
    known = TableSource(table).with_test_environments(("Oct 2020",)).sample(0)
    assert known.names == ("Sep 2020", "Oct 2020")
    plain = read(frame(), "y", "month", min_rows=5)
    assert plain.fingerprint != table.fingerprint
    table.write(tmp_path)
    assert load(tmp_path).ordered


def test_small_ordered_environments_are_left_out_not_pooled():
    table = frame(("2000", "2001", "2002", "2003"))
    table = pd.concat([table, frame(("1998", "1999"), 4)])
    with pytest.warns(UserWarning, match="left out, 8 rows"):
        read_table = read(table, "y", "month", min_rows=5, ordered=True)
    assert read_table.environments == ("2000", "2001", "2002", "2003")


def test_names_without_order_are_an_error():
    with pytest.raises(EnvariantError, match="order of column 'month' in time is unknown .'north', 'south'"):
        read(frame(("north", "south")), "y", "month", min_rows=5, ordered=True)
