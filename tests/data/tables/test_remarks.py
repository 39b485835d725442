"""What is left out, merged or suspicious is said when a table is read, not on the report page alone."""

import numpy as np
import pandas as pd
import pytest

import envariant
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read
from envariant.saved_model import SavedModel

ROWS = 240
rng = np.random.default_rng(0)
X = rng.normal(size=ROWS).round(3)


def frame(**columns):
    usual = {"site": np.repeat(["a", "b", "c"], ROWS // 3), "y": (X > 0).astype(int), "x": X}
    return pd.DataFrame(usual | columns)


def said(data, **options):
    """The table, and the warnings without the name of the table."""
    with pytest.warns(EnvariantWarning) as caught:
        table = read(data, "y", "site", **{"min_rows": 5, **options})
    return table, [str(w.message).partition(": ")[2] for w in caught]


SAMPLED = np.sort(rng.choice(6000, ROWS, replace=False))


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("n", np.arange(ROWS), "it numbers the rows"),
        ("n", np.arange(ROWS)[::-1] + 1, "it numbers the rows"),
        ("n", rng.permutation(ROWS), "it numbers the rows"),
        ("n", SAMPLED, "it numbers the rows of a larger table"),
        ("n", SAMPLED[::-1], "it numbers the rows of a larger table"),
        ("n", np.tile(np.arange(ROWS // 3), 3), "it numbers the rows of each environment"),
        ("Unnamed: 0", rng.permutation(SAMPLED), "it is a row index, judging by its name and values"),
        ("index", rng.permutation(SAMPLED), "it is a row index, judging by its name and values"),
        ("Unnamed: 0", np.tile(rng.permutation(SAMPLED[:80]), 3), "it is a row index, judging by its name and values"),
    ],
)  # fmt: skip
def test_an_index_is_no_input(name, values, why):
    table, lines = said(frame(**{name: values}))
    assert [c.name for c in table.columns] == ["x"]
    assert lines == [f"columns left out: '{name}' ({why})"]


def test_the_nameless_index_of_a_sampled_table_is_no_input(tmp_path):
    big = pd.concat([frame()] * 10, ignore_index=True)
    for some in (big.sample(300, random_state=0), big.sample(300, random_state=0).sort_index()):
        some.to_csv(tmp_path / "x.csv")
        table, lines = said(tmp_path / "x.csv")
        assert [c.name for c in table.columns] == ["x"]
        assert lines[0].startswith("columns left out: 'column 1' (it ")


@pytest.mark.parametrize(
    "values",
    [rng.permutation(SAMPLED), np.sort(X * 100), np.repeat(np.arange(ROWS // 2), 2), SAMPLED * 10_000, -SAMPLED, SAMPLED // 20],
)  # fmt: skip
def test_other_columns_are_inputs(values, recwarn):
    assert [c.name for c in read(frame(n=values), "y", "site").columns] == ["x", "n"]
    assert not recwarn


def test_all_columns_left_out_are_said_in_one_line():
    names = [f"name {k}" for k in range(ROWS)]
    _, lines = said(frame(id=names, empty=None, same=3))
    assert lines == [
        "columns left out: 'id' (240 different texts in 240 rows: a name, not a category), 'empty' (it holds no "
        "value), 'same' (its value is the same in every row)"
    ]


def test_small_environments_are_said():
    site = np.repeat(["a", "b", "c", "d"], [100, 100, 37, 3])
    _, lines = said(frame(site=site))
    assert lines == ["'site': 1 of 4 environments have fewer than 5 rows (d): left out, 3 rows"]
    _, lines = said(frame(site=site), min_rows=38)
    assert lines == ["'site': 2 of 4 environments have fewer than 38 rows (c, d): pooled, 40 rows together"]


@pytest.mark.parametrize("role", ["y", "site"])
@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("Died", "died", "capitals"),
        ("New York", "NewYork", "blanks or character form"),
        ("ＡＢ", "AB", "blanks or character form"),
    ],
)
def test_look_alikes_are_said_and_count_as_different(role, first, second, how):
    values = np.array([first, second, "alive"])[np.arange(ROWS) % 3]
    table, lines = said(frame(**{role: values}))
    names = table.classes if role == "y" else table.environments
    assert set(names) == {first, second, "alive"}
    pair = " and ".join(f"'{name}'" for name in names if name != "alive")
    assert lines == [
        f"'{role}': {pair} differ in {how} only, and are treated as different; if they mean the same, spell them identically"
    ]


@pytest.mark.parametrize("role", ["y", "site"])
@pytest.mark.parametrize(
    ("first", "second"), [("died", "died "), ("café", "cafe\u0301"), ("died", "di\u200bed")]
)
def test_texts_that_look_the_same_are_merged_and_said(role, first, second):
    values = np.array([first, second, "alive"])[np.arange(ROWS) % 3]
    table, lines = said(frame(**{role: values}))
    assert set(table.classes if role == "y" else table.environments) == {first, "alive"}
    assert lines == [
        f"'{role}': '{first}' and '{second}' are treated as one: they differ only in blanks or invisible characters"
    ]


def test_many_remarks_are_shortened():
    columns = {f"c{k}": [f"{v:,.2f}" for v in np.exp(8 + X)] for k in range(20)}
    _, lines = said(frame(**columns))
    assert len(lines) == 13
    assert lines[-1] == "8 more remarks in the preprocessing log"


def test_the_console_of_every_command_says_it(here, tmp_path):
    frame(y=np.where(np.arange(ROWS) % 10 == 0, "", np.where(X > 0, "p", "q")), id=np.arange(ROWS)).to_csv(
        tmp_path / "x.csv", index=False
    )
    done = here(
        "train",
        "--data",
        f"table('{tmp_path / 'x.csv'}', target=y, environment=site)",
        "--steps",
        1,
        "--model",
        "linear",
    )
    assert done.returncode == 0
    for line in (
        "'y': target; 24 of 240 rows without a value are left out",
        "columns left out: 'id' (it numbers the rows)",
    ):
        assert f"envariant: {tmp_path / 'x.csv'}: {line}" in done.stderr


@pytest.mark.parametrize(
    "names", [(0, 1, 2, 3), (("a", "site"), ("a", "y"), ("b", "x"), ("b", "z")), ("site", None, 2.5, "z")]
)
def test_columns_may_have_any_names(names):
    data = frame(z=X[::-1]).set_axis(list(names), axis=1)
    if isinstance(names[0], tuple):
        data.columns = pd.MultiIndex.from_tuples(names)
    table = read(data, names[1], names[0], exclude=[names[3]])
    assert (table.target.name, table.environment.name) == (str(names[1]), str(names[0]))
    assert [c.name for c in table.columns] == [str(names[2])]
    source = TableSource(table)
    model = SavedModel.of(source, envariant.train(source, model="linear", steps=2, test_environments=()))
    assert len(model.predict(data)) == ROWS
    with pytest.raises(EnvariantError, match="lacks target column '7'"):
        read(data, 7, names[0])


def test_names_that_are_alike_as_text_are_rejected():
    with pytest.raises(EnvariantError, match="column name '1' is used twice"):
        read(frame(z=X).rename(columns={"z": 1, "x": "1"}), "y", "site")


def test_one_excluded_name_is_a_name():
    assert [c.name for c in read(frame(age=X), "y", "site", exclude="age").columns] == ["x"]
