"""Verdicts, tables, figures and the page of runs: complete, offline and escaped."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import torch

import envariant
from envariant import published
from envariant.core.environments import Environment, EnvironmentSet, ReferenceScores
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression
from envariant.reporting import charts, figures, published_figures, run_page, tables
from envariant.reporting.labels import labels, verdict
from envariant.training.history import HistoryRow
from envariant.training.result import TrainingResult
from envariant.training.run_spec import RunSpec
from reporting.sample_pages import run


@pytest.fixture(scope="module")
def results():
    return [
        envariant.train("colored-digits", "erm", steps=20, replicas=2),
        envariant.train("colored-digits", "vrex", steps=20, replicas=2),
        envariant.train("colored-digits-grayscale", "erm", steps=20, replicas=2),
    ]


def with_scores(result: TrainingResult, **scores: float) -> TrainingResult:
    """Return the run with other final accuracies, by environment."""
    last = result.record.spec.steps
    changed = [
        dataclasses.replace(row, value=scores[row.environment.replace("-", "_").replace(".", "_")])
        if row.step == last and row.metric == "accuracy"
        else row
        for row in result.rows
    ]
    return dataclasses.replace(result, rows=changed)


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        (0.85, 0.15, "worse than chance"),
        (0.52, 0.51, "no better than chance"),
        (0.85, 0.60, ": a drop of 0.250"),
        (0.60, 0.75, "better than in training"),
        (0.71, 0.69, "no notable drop"),
    ],
)
def test_verdict_follows_the_scores(results, train, test, text):
    sentence = verdict(with_scores(results[0], flip_0_2=train, flip_0_1=train, flip_0_9=test))
    assert text in sentence
    assert f"{test:.3f} in flip-0.9" in sentence


def test_score_table_has_environments_worst_spread_and_replicas(results):
    table = tables.scores(results)
    assert table.header[:6] == (
        "accuracy", "flip-0.2 (train)", "flip-0.1 (train)", "flip-0.9 (test)", "worst", "replicas",
    )  # fmt: skip
    row = table.rows[0]
    final = results[0].final("flip-0.9", "accuracy")
    assert row[3] == f"{final.mean:.3f} ± {final.sd:.3f}"
    assert row[5] == "2"
    assert "divisor n − 1" in " ".join(table.notes)
    assert [row[0] for row in table.rows] == ["erm", "vrex", "erm (grayscale oracle)"]


def with_record(result: TrainingResult, **changes) -> TrainingResult:
    return dataclasses.replace(result, record=dataclasses.replace(result.record, **changes))


def test_published_scores_are_shown_only_for_runs_in_the_settings_of_the_paper(results):
    assert published_figures.comparable(results[0].record) is None
    spec = results[1].record.spec.but(data="colored-mnist:irm")
    paper = with_record(results[1], spec=spec, changed=())
    mean, spread = published.table("rex_colored_mnist").fraction("V-REx", "test")
    assert published_figures.comparable(paper.record).test == (mean, spread)
    assert tables.scores([paper]).rows[0][-1] == f"{mean:.3f} ± {spread:.3f}"
    changed = with_record(paper, changed=("steps",))
    assert published_figures.comparable(changed.record) is None
    assert tables.scores([paper, changed]).rows[1][-2:] == (tables.NONE, tables.NONE)
    assert "published test" not in tables.scores([changed]).header


def test_settings_table_has_every_option(results):
    names = [row[0] for row in tables.settings(results).rows]
    for option in RunSpec.model_fields.keys() - {"algorithm", "hyperparameters"}:
        assert option.replace("_", " ") in names


def test_every_listed_published_row_exists():
    for table, row in published_figures.ROWS.values():
        assert row in published.table(table).rows


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags, self.scripts, self.inside = [], [], [], False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data") and v]
        if tag == "script":
            self.scripts.append([dict(attributes).get("type", ""), ""])
        self.inside = tag == "script"

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1][1] += data

    def handle_endtag(self, tag):
        self.inside = False


def elements(text):
    parser = Elements()
    parser.feed(text)
    return parser


def test_page_loads_nothing_and_runs_only_the_script_with_the_digest_of_its_policy(results):
    text = run_page.render(results, "Title")
    page = elements(text)
    assert page.links
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    *charts, (kind, script) = page.scripts
    assert {kind for kind, _ in charts} == {"application/json"}
    assert all(json.loads(content)["data"]["values"] for _, content in charts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert kind == ""
    assert f"script-src 'sha256-{digest}'\">" in text
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)", text[: text.rindex("<script>")])
    for word in ("flip-0.2", "flip-0.9", "worst", "replicas", "Seeds", "torch", "learning rate", "Bayes"):
        assert word in text


def test_equal_runs_give_equal_pages(results):
    assert run_page.render(results, "Title") == run_page.render(results, "Title")


def with_markup_in_names(task) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(0)
    names = ("<script>alert(1)</script>", 'a"b & c')
    environments = tuple(
        Environment(
            n, torch.randn(30, 2, generator=generator), (torch.rand(30, generator=generator) > 0.5).float()
        )
        for n in names
    )
    return EnvironmentSet("<img src=x>", environments, task, test=names[:1], known=ReferenceScores())


@pytest.mark.parametrize("task", [Binary(), Regression()])
def test_names_are_escaped_and_every_task_has_a_page(task):
    result = envariant.train(with_markup_in_names(task), "erm", model="linear", steps=3)
    text = run_page.render([result], "<b>heading</b>")
    assert text.count("<script>") == 1, "the page's own"
    assert "<img src=x>" not in text
    assert "<b>heading" not in text
    assert "&lt;script&gt;" in text


def test_page_shows_why_a_run_failed():
    result = envariant.train("colored-digits", "erm", steps=3, optimizer="sgd", learning_rate=1e12)
    text = run_page.render([result], "Title")
    assert "no replica finished" in text
    assert "learning rate or a coefficient is too large" in text


def test_runs_with_different_metrics_and_no_run_are_rejected(results):
    with pytest.raises(EnvariantError, match="different metrics"):
        run_page.render(
            [results[0], envariant.train(with_markup_in_names(Regression()), "erm", model="linear", steps=1)],
            "x",
        )
    with pytest.raises(EnvariantError, match="at least one run"):
        run_page.render([], "x")


def test_page_is_written_or_an_error_is_raised(results, tmp_path):
    run_page.write(results, tmp_path / "new" / "page.html", "Title")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(EnvariantError, match="cannot be written"):
        run_page.write(results, tmp_path / "new" / "page.html" / "x.html", "Title")


def test_validation_rows_have_their_own_panel_and_column():
    result = envariant.train("colored-digits", "erm", steps=4, holdout_fraction=0.2)
    history = result.history.query("environment == 'flip-0.1' and metric == 'accuracy'")
    rows = charts.data_of(charts.curves([result]))
    for role in ("train", "validation"):
        drawn = [row["score"] for row in rows if row["panel"] == f"flip-0.1 ({role})"]
        assert drawn == pytest.approx(list(history[history["role"] == role]["value"]))
    header = tables.scores([result]).header
    assert header.count("flip-0.1 (train)") == header.count("flip-0.1 (validation)") == 1


def test_overview_shows_each_digit_in_its_color_above_its_label():
    source = envariant.data.colored_digits()
    environments = source.sample(0)
    figure = figures.overview(environments, source.facts(environments), columns=5)
    pictures = [axes for axes in figure.axes if axes.get_images()]
    assert len(pictures) == 15
    environment = environments["flip-0.2"]
    for row, axes in enumerate(pictures[:5]):
        image = axes.get_images()[0].get_array()
        darkest = image[image.sum(axis=2) == image.sum(axis=2).min()][0]
        green = darkest[1] > darkest[0]
        assert green == bool(environment.attributes["color"][row])
        assert axes.get_xlabel() == str(int(environment.targets[row]))


def test_fields_of_a_history_row():
    assert [f.name for f in dataclasses.fields(HistoryRow)] == [
        "replica", "step", "environment", "role", "metric", "value", "kind", "column",
    ]  # fmt: skip


def test_labels_name_the_settings_in_which_runs_differ(results):
    a, b = (envariant.train("colored-digits", f"and-mask(threshold={t})", steps=1) for t in (0.5, 1))
    assert labels([a, b]) == ["and-mask, threshold=0.5", "and-mask, threshold=1"]
    assert labels([results[0], a]) == ["erm", "and-mask"]


def test_dollar_sign_in_a_name_is_not_read_as_a_formula():
    environments = tuple(Environment(n, torch.randn(9, 2), torch.zeros(9)) for n in (r"$\frac$", "b"))
    result = envariant.train(
        EnvironmentSet("x", environments, Binary(), test=("b",)), "erm", model="linear", steps=1
    )
    assert r"$\frac$ (train)" in run_page.render([result], "x")


def test_page_shows_the_remarks_of_a_run():
    result = envariant.train("colored-digits", "irm", model="linear", steps=3)
    (remark,) = result.record.remarks
    assert "scaled to step(1, 100000, at=1) for 3 steps" in remark
    assert f"irm: {remark}" in run_page.render([result], "One run")


def headline(text):
    return re.search(r'<p class="headline">(.*?)</p>', text)[1]


def test_headline_names_a_run_only_if_it_is_significantly_better_than_erm():
    text = run_page.render([run("irm"), run("vrex"), run("erm")], "Title")
    assert re.fullmatch(
        r"In flip-0.9, vrex is better than erm: accuracy 0.68\d against 0.1[45]\d", headline(text)
    )
    assert re.findall(r'data-method="(.*?)"', text)[0] == "erm", "ERM first"
    same = run_page.render([run("erm"), run("coral", final=(0.8, 0.9, 0.151))], "Title")
    assert headline(same) == "No run is significantly better than erm in flip-0.9"
    one = run_page.render([run("irm", replicas=1)], "Title")
    assert re.fullmatch(r"irm: accuracy 0.7\d\d in training, 0.6\d\d in flip-0.9", headline(one))


def test_equal_settings_are_folded_and_the_others_compared():
    text = run_page.render([run("erm"), run("irm", data="other")], "Title")
    differing, _, equal = text[text.index('id="settings"') :].partition("Equal in all runs")
    assert 'data-label="irm">other</td>' in differing
    assert "<dt>steps</dt><dd>10</dd>" in equal
    assert "batch size" not in differing


def test_equal_diagnoses_and_remarks_are_one_paragraph():
    results = [
        dataclasses.replace(run(name), rows=run(name, final=(0.5, 0.5, 0.5)).rows) for name in ("erm", "irm")
    ]
    remarked = [
        dataclasses.replace(r, record=dataclasses.replace(r.record, remarks=("something",))) for r in results
    ]
    text = run_page.render(remarked, "Title")
    assert "erm, irm: something" in text
    assert text.count("something") == 1
    lines = run_page._diagnoses(["a", "b"], [envariant_diagnosed(), envariant_diagnosed()])
    assert len(lines) == 1
    assert lines[0].startswith("a, b: ")


def envariant_diagnosed():
    """Return a run whose test accuracy decays after a peak."""
    result = run("irm")
    rows = [
        HistoryRow(0, step, "flip-0.9", "test", "accuracy", value)
        for step, value in enumerate([0.5, 0.7, 0.7, 0.7, 0.7, 0.6, 0.55, 0.52, 0.5, 0.5, 0.5])
    ]
    assert dataclasses.replace(result, rows=rows).diagnoses
    return dataclasses.replace(result, rows=rows)


def test_absolute_paths_are_cut_to_file_names():
    command = "envariant train --data 'table(/home/me/my.csv, target=y)' --out runs/a --mnist ~/data/mnist"
    result = run("erm", data="table('/home/me/my.csv', target=y)")
    result = dataclasses.replace(result, record=dataclasses.replace(result.record, command=command))
    text = run_page.render([result], "Title")
    page = text[: text.rindex("<script>")]
    assert "/home" not in page
    assert "~/" not in page
    assert "my.csv" in page
    assert "--out runs/a" in page
