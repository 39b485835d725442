"""`Study.run` and its results: tables, tests, the page, and the command line on the same runs."""

import json
from pathlib import Path

import numpy as np
import pytest

import envariant
from envariant.core.errors import EnvariantError
from envariant.studies import Study, StudyResults, begin
from envariant.studies.selection import Oracle, SelectedRun

STUDY = Study(
    "colored-digits", ("erm", "vrex"), name="two", replicas=2, test_environments="each",
    settings={"steps": 4, "model": "linear"},
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return STUDY.run(tmp_path_factory.mktemp("study"), progress=False)


def test_the_table_equals_the_selected_runs(results):
    table = results.table("oracle")
    assert table.columns == ("flip-0.2", "flip-0.1", "flip-0.9")
    for method in ("erm", "vrex"):
        for column in table.columns:
            chosen = [
                each.choice.test
                for each in results.selections(Oracle())
                if (each.algorithm, each.test_environments) == (method, (column,))
                and isinstance(each.choice, SelectedRun)
            ]
            assert table.score(method, column).mean == pytest.approx(np.mean(chosen))
            assert table.score(method, column).sd == pytest.approx(np.std(chosen, ddof=1))
    assert "by oracle (uses test labels)" in table.caption()
    assert results.table().notes == ("Hyperparameters and step by training-domain validation.",)


def test_results_are_loaded_from_the_folder_and_a_second_run_trains_nothing(results):
    again = StudyResults.load(results.folder)
    assert again.runs.equals(results.runs)
    assert STUDY.run(results.folder, progress=False).runs.equals(results.runs)


def test_results_describe_themselves(results):
    lines = repr(results).splitlines()
    assert len(lines) <= 8
    assert lines[0] == "StudyResults"
    assert "12 done" in lines[-1]
    assert results._repr_html_().count("<tr>") >= 3
    assert repr(STUDY).splitlines()[0] == "Study 'two'"
    assert len(repr(STUDY).splitlines()) <= 8
    assert repr(results.selections()[0]).startswith(
        "SelectionResult(colored-digits, test flip-0.2, replica 0: erm, trial 0, step"
    )
    assert repr(results.compare()).startswith("Comparison with ERM")
    assert "p (Holm)" in results.compare()._repr_html_()


def test_the_page_is_written_where_it_is_asked_for(results, tmp_path):
    assert results.report(tmp_path / "page.html") == tmp_path / "page.html"
    assert "two" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert results.report() == results.folder / "report.html"
    with pytest.raises(EnvariantError, match=r"page.pdf: the file name of a report must end in .html"):
        results.report("page.pdf")


def test_the_chart_has_the_average_of_every_replica(results):
    chart = results.plot().to_dict(validate=False)
    rows = chart["data"]["values"]
    for method in ("erm", "vrex"):
        drawn = [row["score"] for row in rows if (row["name"], row["kind"]) == (method, "replica")]
        assert drawn == pytest.approx(results.table().averages(method))


def test_the_command_line_reports_the_same_numbers(results, here):
    folder = results.folder
    done = here(
        "sweep", "--data", "colored-digits", "--algorithms", "erm", "vrex", "--name", "two", "--replicas", 2,
        "--test-environments", "each", "--steps", 4, "--model", "linear", "-o", folder, "--json",
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["runs"]["done"] == 12
    pooled = [each.choice.test for each in results.selections(pooled=True)]
    assert answer["selections"]["training-domain validation"]["test"] == pytest.approx(np.mean(pooled))
    assert Path(answer["page"]) == folder / "report.html"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be in"),
        ({"executor": "dask"}, "executor must be 'local', 'ray' or 'slurm', got 'dask'"),
        ({"address": "here"}, "the option 'address' requires executor='ray'"),
        ({"out": "/dev/null/study"}, "cannot be written"),
    ],
)
def test_wrong_options_are_one_sentence(options, message):
    with pytest.raises(EnvariantError, match=message):
        STUDY.run(**options)


def test_unknown_rules_and_folders_are_named(results, tmp_path):
    with pytest.raises(EnvariantError, match="unknown selection rule 'orcale'; did you mean 'oracle'"):
        results.table("orcale")
    with pytest.raises(EnvariantError):
        StudyResults.load(tmp_path / "nowhere")


def test_a_study_without_finished_runs_says_so(tmp_path):
    with begin(tmp_path, Study("colored-digits", "erm", replicas=1)) as store:
        store.finish(store.claim(), "diverged")
    results = StudyResults.load(tmp_path)
    assert repr(results).splitlines()[-1] == "  runs: 1 failed"
    with pytest.raises(EnvariantError, match="study: no run is done; first error: diverged"):
        results.table()


def test_a_study_is_a_public_name():
    assert envariant.Study is Study
