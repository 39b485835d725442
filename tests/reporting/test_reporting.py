"""Tables, figures and the page: everything shown, nothing fetched, nothing trusted."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
import torch

import envariant
from envariant import published
from envariant.core.environments import Environment, EnvironmentSet, ReferenceScores
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression
from envariant.reporting import comparison, figures, run_page, tables
from envariant.reporting.labels import labels, verdict
from envariant.training.history import HistoryRow
from envariant.training.result import TrainingResult


@pytest.fixture(scope="module")
def results():
    return [
        envariant.train("colored-digits", "erm", steps=20, replicas=2),
        envariant.train("colored-digits", "vrex", steps=20, replicas=2),
        envariant.train("colored-digits-grayscale", "erm", steps=20, replicas=2),
    ]


def with_scores(result: TrainingResult, **scores: float) -> TrainingResult:
    """The same run with other final accuracies, by environment."""
    last = result.record.spec.steps
    changed = [
        dataclasses.replace(row, value=scores[row.environment.replace("-", "_").replace(".", "_")])
        if row.step == last and row.metric == "accuracy"
        else row
        for row in result.rows
    ]
    return dataclasses.replace(result, rows=changed)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (0.85, 0.15, "worse than guessing"),
        (0.52, 0.51, "no better than guessing"),
        (0.85, 0.60, ": 0.250 less"),
        (0.60, 0.75, "better than in training"),
        (0.71, 0.69, "it holds"),
    ],
)
def test_the_verdict_follows_the_numbers(results, train, test, words):
    sentence = verdict(with_scores(results[0], flip_0_2=train, flip_0_1=train, flip_0_9=test))
    assert words in sentence
    assert f"{test:.3f} at flip-0.9" in sentence


def test_the_table_shows_each_environment_the_worst_the_spread_and_the_replicas(results):
    table = tables.scores(results)
    assert table.header[:6] == (
        "accuracy", "flip-0.2 (train)", "flip-0.1 (train)", "flip-0.9 (test)", "worst", "replicas",
    )  # fmt: skip
    line = table.lines[0]
    final = results[0].final("flip-0.9", "accuracy")
    assert line[3] == f"{final.mean:.3f} ± {final.sd:.3f}"
    assert line[5] == "2"
    assert "divisor n − 1" in " ".join(table.notes)
    assert [line[0] for line in table.lines] == ["erm", "vrex", "erm (grayscale oracle)"]


def test_published_figures_stand_beside_runs_of_the_same_protocol_only(results):
    assert comparison.published_for(results[0]) is None
    settings = dataclasses.replace(results[1].record.spec, data="colored-mnist:irm", changed=())
    real = dataclasses.replace(results[1], record=dataclasses.replace(results[1].record, settings=settings))
    found = comparison.published_for(real)
    mean, spread = published.table("rex_colored_mnist").fraction("V-REx", "test")
    assert found.test == (mean, spread)
    other = dataclasses.replace(real.record, settings=dataclasses.replace(settings, changed=("steps",)))
    assert comparison.published_for(dataclasses.replace(real, record=other)) is None
    assert tables.scores([real]).lines[0][-1] == f"{mean:.3f} ± {spread:.3f}"
    for data, algorithm in comparison._PUBLISHED:
        name, row = comparison._PUBLISHED[data, algorithm]
        assert row in published.table(name).rows


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []
        self.tags = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data") and v]


def test_the_page_fetches_nothing_and_runs_nothing(results):
    parser = Links()
    text = run_page.render(results, "Title")
    parser.feed(text)
    assert parser.found
    assert all(link.startswith(("data:", "#")) for link in parser.found)
    assert not {"script", "link", "iframe", "object", "embed"} & set(parser.tags)
    assert not re.search(r"url\((?!#)", text)
    for word in ("flip-0.2", "flip-0.9", "worst", "replicas", "Seeds", "torch", "learning rate", "Bayes"):
        assert word in text


def test_the_same_runs_give_the_same_page(results):
    assert run_page.render(results, "Title") == run_page.render(results, "Title")


def nasty(task) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(0)
    names = ("<script>alert(1)</script>", 'a"b & c')
    made = tuple(
        Environment(
            n, torch.randn(30, 2, generator=generator), (torch.rand(30, generator=generator) > 0.5).float()
        )
        for n in names
    )
    return EnvironmentSet("<img src=x>", made, task, test=names[:1], known=ReferenceScores())


@pytest.mark.parametrize("task", [Binary(), Regression()])
def test_names_from_outside_are_escaped_and_any_task_has_a_page(task):
    result = envariant.train(nasty(task), "erm", model="linear", steps=3)
    text = run_page.render([result], "<b>heading</b>")
    assert "<script>" not in text
    assert "<img src=x>" not in text
    assert "<b>heading" not in text
    assert "&lt;script&gt;" in text


def test_a_failed_run_says_why_on_its_page():
    result = envariant.train("colored-digits", "erm", steps=3, optimizer="sgd", learning_rate=1e30)
    text = run_page.render([result], "Title")
    assert "no replica finished" in text
    assert "learning rate or a coefficient is too large" in text


def test_runs_with_different_metrics_are_not_mixed(results):
    with pytest.raises(EnvariantError, match="different metrics"):
        run_page.render(
            [results[0], envariant.train(nasty(Regression()), "erm", model="linear", steps=1)], "x"
        )
    with pytest.raises(EnvariantError, match="at least one run"):
        run_page.render([], "x")


def test_the_page_is_written_whole_or_refused(results, tmp_path):
    run_page.write(results, tmp_path / "new" / "page.html", "Title")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(EnvariantError, match="cannot be written"):
        run_page.write(results, tmp_path / "new" / "page.html" / "x.html", "Title")


def test_curves_draw_held_out_solid_and_training_dotted_with_chance_and_optimum(results):
    figure = figures.curves(results[:1])
    axes = figure.axes[0]
    styles = [line.get_linestyle() for line in axes.get_lines()[:3]]
    assert styles == [":", ":", "-"]
    measured = results[0].history.query("environment == 'flip-0.9' and metric == 'accuracy'")
    drawn = axes.get_lines()[2].get_ydata()
    assert list(drawn) == pytest.approx(list(measured.groupby("step")["value"].mean()))
    assert {text.get_text().strip() for text in axes.texts} == {"chance 50%", "optimum 75%"}


def test_the_overview_shows_each_digit_over_its_label_in_the_color_it_has():
    source = envariant.data.colored.digits()
    drawn = source.sample(0)
    figure = figures.overview(drawn, source.facts(drawn), columns=5)
    pictures = [axes for axes in figure.axes if axes.get_images()]
    assert len(pictures) == 15
    environment = drawn["flip-0.2"]
    for row, axes in enumerate(pictures[:5]):
        image = axes.get_images()[0].get_array()
        darkest = image[image.sum(axis=2) == image.sum(axis=2).min()][0]
        green = darkest[1] > darkest[0]
        assert green == bool(environment.attributes["color"][row])
        assert axes.get_xlabel() == str(int(environment.targets[row]))


def test_a_history_row_is_typed():
    assert [f.name for f in dataclasses.fields(HistoryRow)] == [
        "replica", "step", "environment", "split", "metric", "value",
    ]  # fmt: skip


def test_runs_are_told_apart_by_what_differs_between_them(results):
    a, b = (envariant.train("colored-digits", f"and-mask(threshold={t})", steps=1) for t in (0.5, 1))
    assert labels([a, b]) == ["and-mask, threshold=0.5", "and-mask, threshold=1"]
    assert labels([results[0], a]) == ["erm", "and-mask"]


def test_a_dollar_sign_in_a_name_begins_no_formula():
    made = tuple(Environment(n, torch.randn(9, 2), torch.zeros(9)) for n in (r"$\frac$", "b"))
    result = envariant.train(EnvironmentSet("x", made, Binary(), test=("b",)), "erm", model="linear", steps=1)
    assert "<svg" in run_page.render([result], "x")
