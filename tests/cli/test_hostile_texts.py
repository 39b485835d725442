"""Texts of a stranger's table or store reach neither a terminal nor a page as control characters."""

import sqlite3

import numpy as np
import pandas as pd
import pytest

from envariant.reporting import charts
from envariant.reporting.page import Block, Page, Section, render
from envariant.reporting.tables import TextTable
from envariant.training.store.reader import FILE, checksum

TINY = ["--data", "colored-digits", "--n-trials", 1, "--replicas", 1, "--steps", 2, "--model", "linear"]
CLEAR, TITLE = "\x1b[2J", "\x1b]0;x\x07"


def is_printable(text):
    return all(character.isprintable() or character in "\n\t" for character in text)


def test_emoji_codes_and_markup_in_names_are_printed_as_they_are(here):
    result = here("report", "a:x:b[red]c[/red]")
    assert result.returncode == 2
    assert "a:x:b[red]c[/red]" in result.stderr


@pytest.mark.parametrize("name", [f"a{CLEAR}ge", "a\u202ege", "a\x9b31mge", "a\x85ge"])
def test_column_names_in_error_messages(name, here, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"{name},site,sick\n1,a,0\n2,b,1\n", encoding="utf-8")
    result = here("compare", table, "-t", "nope", "-e", "site", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert is_printable(result.stderr)


def test_long_names_in_messages_are_shortened(here, tmp_path):
    (tmp_path / "table.csv").write_text(f"{'n' * 100_000},site,sick\n1,a,0\n", encoding="utf-8")
    result = here("compare", tmp_path / "table.csv", "-t", "nope", "-e", "site", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "table.csv: lacks target column 'nope'" in result.stderr
    assert len(result.stderr) < 2_100


def test_names_of_files_that_are_no_text(here, tmp_path):
    result = here("predict", tmp_path / f"{CLEAR}\udcff\n[bold]", "table.csv")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert is_printable(result.stderr)
    assert "\\udcff\\n[bold]" in result.stderr


def test_stored_runs(here, tmp_path):
    study = tmp_path / "study"
    assert here("sweep", *TINY, "--algorithms", "erm", "--out", study).returncode == 0
    with sqlite3.connect(study / FILE) as connection:
        connection.execute("UPDATE runs SET error = ?, algorithm = ?", (f"{CLEAR}\nnext", TITLE))
        for number, *row, _ in connection.execute("SELECT rowid, * FROM runs").fetchall():
            connection.execute("UPDATE runs SET checksum = ? WHERE rowid = ?", (checksum(row), number))
    connection.close()
    for command in (["list", study], ["show", study, 1], ["list", study, "--json"]):
        result = here("runs", *command)
        assert result.returncode == 0
        assert is_printable(result.stdout + result.stderr)
    assert here("runs", "list", study).stdout.count("\n") == 1


def test_predicted_classes_and_remarks(here, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=160)
    frame = pd.DataFrame(
        {
            "x": x,
            f"b{CLEAR}": draw.choice([f"u{TITLE}", "v"], 160),
            "site": np.repeat(["a", f"b{CLEAR}"], 80),
            "class": np.where(x > 0, f"yes{CLEAR}", "no"),
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    compare = here(
        "compare", tmp_path / "table.csv", "-t", "class", "-e", "site", "--algorithms", "erm", "--n-trials", 1,
        "--replicas", 2, "--steps", 5, "--out", tmp_path / "out",
    )  # fmt: skip
    assert compare.returncode == 0, compare.stderr
    assert is_printable(compare.stdout + compare.stderr)
    assert is_printable((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    frame[f"b{CLEAR}"] = f"w{TITLE}"
    frame.to_csv(tmp_path / "new.csv", index=False)
    model, new, out = tmp_path / "out" / "model", tmp_path / "new.csv", tmp_path / "predictions.csv"
    for options in ([], ["--check"], ["--out", out], ["--json"]):
        result = here("predict", model, new, *options)
        assert result.returncode == 0, result.stderr
        assert is_printable(result.stdout + result.stderr)
    assert f"yes{CLEAR}" in set(pd.read_csv(out).prediction), "the file holds the classes as they are"


def test_pages_hold_no_control_characters():
    table = TextTable((CLEAR, "<b>"), (("\udcff\0", "\u202e"),))
    chart = charts.lines({f"{CLEAR}</script><b>": ([1, 2], [3, 4])}, "\u202e", "y")
    blocks = (Block.table(table, ""), Block.chart(chart, CLEAR), Block("definitions", [(CLEAR, "\x9b")]))
    page = render(
        Page("runs", TITLE, CLEAR, "\x9b", sections=[Section("a", "\u202e", blocks)], methods=[CLEAR])
    )
    page, _, library = page.rpartition("<script>")
    assert is_printable(library)
    assert page.count("</script>") == 1, "the data of the chart end where they should"
    assert is_printable(page)
    assert "\\x1b[2J" in page
    page.encode("utf-8")
