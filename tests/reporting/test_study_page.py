"""The page of a study: complete, reproducible, offline and escaped."""

import re

import pytest

import envariant
from envariant.core.errors import EnvariantError
from envariant.reporting import study_page as page
from envariant.studies import Store, Study, begin, sweep
from envariant.studies.selection import SELECTIONS, SelectedRun, SelectionResult, select
from envariant.training.history import HistoryRow
from envariant.training.store import RunOutcome
from reporting.sample_pages import stored_study

SETTINGS = {"steps": 8, "evaluate_every": 4, "model": "linear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = Study(
        ("colored-digits",), ("erm", "vrex"), name="<b>mine</b>", n_trials=2, replicas=2, test_environments="each-and-pairs",
        settings=SETTINGS,
    )  # fmt: skip
    begin(folder, study).close()
    sweep(folder)
    return folder


@pytest.fixture(scope="module")
def record():
    return envariant.train("colored-digits", "erm", model="linear", steps=1).record


def test_page_shows_every_rule_every_environment_and_failures(folder):
    with Store(folder) as store:
        text = page.render(store)
        assert page.render(store) == text, "equal each time"
    for name in SELECTIONS:
        assert f'id="{name.replace(" ", "-")}"' in text
    for phrase in (
        "oracle (uses test labels)", "flip-0.9", "paired t test", "Holm", "not rejected", "Failed runs",
        "vrex: needs at least 2 training environments", "envariant train --data colored-digits", "--holdout-fraction 0.2",
        "&lt;b&gt;mine&lt;/b&gt;", "learning rate",
    ):  # fmt: skip
        assert phrase in text or phrase in text.replace("\n", " "), phrase
    assert "<b>mine" not in text
    assert "http://" not in text[: text.rindex("<script>")]
    assert "(an oracle)" not in text


def test_significance_and_intervals_of_three_replicas_agree(tmp_path):
    with stored_study(tmp_path) as store:
        text = page.render(store)
    rows = re.findall(
        r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', text[text.index('id="training-domain-validation"') :]
    )
    cells = {name: re.findall(r'data-label="([^"]+)"[^>]*>([^<]*)<', row) for name, row in rows[:3]}
    for name in ("irm", "vrex"):
        own = dict(cells[name])
        low, high = map(float, re.search(r"\[(.*), (.*)\]", own["gain over ERM"]).groups())
        p = float(own["p"].removeprefix("&lt; "))
        assert (low > 0 or high < 0) == (p < 0.05)
        for key in ("mean",):
            low, high = map(float, re.search(r"\[(.*), (.*)\]", own[key]).groups())
            assert 0 <= low <= high <= 1
    assert "Significant differences" in text
    assert "mean rank" in dict(cells["irm"]), "three algorithms on two sets of test environments"


def test_ranks_are_left_out_where_there_are_none(tmp_path):
    with stored_study(tmp_path, ("erm", "irm")) as store:
        text = page.render(store)
    assert "mean rank" not in text


def test_command_on_the_page_can_be_run(folder, capsys, tmp_path):
    import shlex

    from envariant.cli import main

    with Store(folder) as store:
        table = store.table()
        command = page.rerun(
            store.declaration(), store, select(table, SELECTIONS["training-domain validation"](), pooled=True)
        )
    program, *arguments = shlex.split(command)
    assert program == "envariant"
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--json"])
    assert end.value.code == 0
    assert '"learning_rate"' in capsys.readouterr().out


def test_page_without_finished_runs_is_rejected_with_the_reason(tmp_path, record):
    with begin(tmp_path, Study(("colored-digits",), ("erm",))) as store:
        with pytest.raises(EnvariantError, match="study: no run is done"):
            page.render(store)
        job = store.claim()
        store.begin(job, record, "accuracy", True)
        store.finish(job, "diverged")
        with pytest.raises(EnvariantError, match="first error: diverged"):
            page.render(store)


def test_page_says_why_no_run_was_selected(tmp_path, record):
    with begin(tmp_path, Study(("colored-digits",), ("erm",), replicas=1)) as store:
        job = store.claim()
        store.begin(job, record, "accuracy", True)
        store.add([HistoryRow(1, 0, "flip-0.9", "test", "accuracy", 0.5)], [RunOutcome(1, None, 1.0)])
        store.finish(job)
        text = page.render(store)
    assert "No run has a score on validation rows." in text
    assert "No run was selected." in text


@pytest.mark.parametrize(("higher_is_better", "worst"), [(True, 0.2), (False, 0.7)])
def test_worst_score_of_a_rule_follows_the_direction_of_the_metric(higher_is_better, worst):
    runs = [SelectedRun(k, 10, "erm", 0, 0.5, 0.4, score, None) for k, score in enumerate((0.2, 0.7))]
    selected = [SelectionResult("d", ("t",), "erm", k, run) for k, run in enumerate(runs)]
    assert page.to_dict(selected, higher_is_better=higher_is_better)["worst"] == worst
