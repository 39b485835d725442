"""Tables that compare runs say so if their networks differ."""

import pytest

import envariant
from envariant.comparison.page.scores import methods_table
from envariant.comparison.results import ComparisonResults
from envariant.core.environments import DefaultSettings
from envariant.core.metrics import METRICS
from envariant.data.colored.digits import ColoredDigits
from envariant.reporting import study_page, tables
from envariant.reporting.tables import network_notes
from envariant.studies.executors.local import sweep
from envariant.studies.study import Study, begin
from envariant.training.store import Store

QUICK = {"steps": 2, "evaluate_every": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def results():
    models = {"erm": "linear", "irm(coefficient=1)": "mlp(hidden=4)", "boosted-trees": None}
    return [envariant.train("colored-digits", name, model=model, **QUICK) for name, model in models.items()]


def test_table_of_runs_has_a_column_and_a_note_for_differing_networks(results):
    table = tables.scores(results)
    column = table.header.index("model")
    assert [row[column] for row in table.rows] == ["linear", "mlp(hidden=4)", tables.NONE]
    assert all(len(row) == len(table.header) for row in table.rows)
    (note,) = [note for note in table.notes if note.startswith("Networks differ")]
    assert "(erm: linear; irm: mlp(hidden=4))" in note


def test_table_of_one_network_has_no_such_column(results):
    for some in (results[:1], [results[0], results[0]], results[2:]):
        table = tables.scores(some)
        assert "model" not in table.header
        assert not any("Networks differ" in note for note in table.notes)


def test_same_network_of_several_algorithms_is_listed_once():
    assert network_notes({"erm": ("a",), "irm": ("a",)}) == []
    (note,) = network_notes({"erm": ("a",), "irm": ("b",), "vrex": ("b",)})
    assert "(erm: a; irm, vrex: b)" in note


def test_study_names_differing_networks_in_its_tables_and_on_its_page(tmp_path, monkeypatch, here):
    suggested = ColoredDigits.default_settings

    def wider(self, algorithm):
        from dataclasses import replace

        settings: DefaultSettings = suggested(self, algorithm)
        return replace(settings, model="linear" if algorithm == "erm" else "mlp(hidden=4)")

    monkeypatch.setattr(ColoredDigits, "default_settings", wider)
    algorithms = ("erm", "irm(coefficient=1)", "boosted-trees")
    study = Study("colored-digits", algorithms, replicas=1, settings=QUICK)
    begin(tmp_path, study).close()
    sweep(tmp_path)
    with Store(tmp_path) as store:
        assert store.networks() == {"erm": ("linear",), "irm(coefficient=1)": ("mlp(hidden=4)",)}
        page = study_page.render(store)
        summary, _ = study_page.overview(store)
    assert any("(erm: linear; irm(coefficient=1): mlp(hidden=4))" in note for note in summary.notes)
    # Under the summary, and under the table of algorithms of every rule.
    assert page.count("Networks differ") >= 2
    done = here(
        "sweep", "--data", "colored-digits", "--algorithms", *algorithms, "--replicas", 1, "--steps", 2,
        "--evaluate-every", 2, "--precision", "float32", "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Networks differ (erm: linear" in done.stdout


def test_methods_of_a_comparison_with_differing_networks():
    for networks, count in ((("a",), 0), (("b",), 1)):
        results = ComparisonResults(
            METRICS["accuracy"], ("x",), {"erm": {}}, {}, {}, (), 1, networks={"erm": ("a",), "irm": networks}
        )
        assert sum("Networks differ" in note for note in methods_table(results).notes) == count
