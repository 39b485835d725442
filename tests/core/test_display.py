"""Descriptions of objects: at most eight lines of text without numbers by the screen, and escaped HTML."""

import html.parser

import pytest
import torch

import envariant
from envariant import Binary, Environment, EnvironmentSet, Regression
from envariant.core.display import Displayed, Summary, counted, named
from envariant.core.environments import EnvironmentSource
from envariant.training.run_spec import RunSpec

EVIL = "<script>alert(1)</script>\x1b[31m"


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1] == "style" else data


def site(name, rows, seed=0):
    inputs = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    return Environment(name, inputs, (inputs[:, 0] > 0).float())


def patients(*names):
    return EnvironmentSet(
        "patients", tuple(site(n, 40 + k) for k, n in enumerate(names)), Binary(), test=names[-1:]
    )


def described(value):
    """Check the rules for every description, and return its lines and the tags and text of its HTML."""
    lines = repr(value).splitlines()
    assert 1 <= len(lines) <= 8
    assert all(len(line) <= 240 for line in lines)
    assert "tensor(" not in repr(value)
    page = Tags(value._repr_html_())
    assert "script" not in page.seen
    return lines, page


def test_a_set_shows_environments_sizes_inputs_task_and_tests():
    lines, page = described(patients("north", "south", "east"))
    assert lines == [
        "EnvironmentSet 'patients'",
        "  environments: north (40), south (41), east (42)",
        "  test environments: east",
        "  inputs: 4, float32",
        "  task: binary (0, 1)",
    ]
    for text in ("north", "test", "42", "share of 1"):
        assert text in page.text
    assert described(patients("north", "south")["south"])[0][:3] == [
        "Environment 'south'",
        "  rows: 41",
        "  inputs: 4, float32",
    ]


def test_a_set_with_many_environments_says_how_many_are_not_shown():
    lines, page = described(patients(*(f"site {k}" for k in range(30))))
    assert "… (30 in all)" in lines[1]
    assert "10 more environments" in page.text


def test_a_set_with_numbers_or_class_names_as_targets():
    numbers = EnvironmentSet(
        "n", (Environment("a", torch.randn(9, 3, 8, 8), torch.arange(9.0)),), Regression()
    )
    assert "  task: regression" in described(numbers)[0]
    assert "3 × 8 × 8" in repr(numbers)
    words = EnvironmentSet.from_arrays([[1.0]] * 6, ["yes", "no", "no"] * 2, [1, 1, 1, 2, 2, 2])
    assert "no, yes" in repr(words)
    assert "share of yes" in described(words)[1].text


def test_names_from_data_are_escaped():
    each = EnvironmentSet(
        "<b>x</b>\x1b[0m", (Environment("<i>a</i>", torch.ones(2, 1), torch.ones(2)),), Binary()
    )
    assert "\x1b" not in repr(each)
    _, page = described(each)
    assert "<b>x</b>" in page.text
    assert "<i>a</i>" in page.text
    _, page = described(
        type(
            "Own",
            (Displayed,),
            {
                "_display": lambda self: Summary(
                    EVIL, {EVIL: EVIL}, {}, (EVIL,), (EVIL,), ((EVIL, EVIL),), (EVIL,)
                )
            },
        )()
    )
    assert page.text.count("<script>alert(1)</script>") == 8


def test_a_source_of_a_user_describes_itself_without_loading_data():
    class Own(EnvironmentSource):
        name = "own"

        def sample(self, seed):
            raise AssertionError("a description loads no data")

    assert described(Own())[0] == ["Own", "  name: own", "  environments: see sample(seed), plot()"]
    assert "ColoredMNIST(" in repr(envariant.data.colored_mnist("irm"))


def test_a_run_and_its_record_describe_themselves():
    result = envariant.train("colored-digits", "irm", steps=4, replicas=2, model="linear")
    lines, page = described(result)
    assert lines[0] == "TrainingResult: irm on colored-digits"
    assert "flip-0.9 " in lines[1]
    assert "2 of 2 finished, 4 steps" in lines[2]
    assert page.text.count("±") >= 6
    assert "<td>test</td>" in result._repr_html_()
    assert described(result.record)[0][0] == "Record: irm on colored-digits"


def test_only_options_that_were_changed_are_printed():
    spec = RunSpec(data="colored-digits", algorithm="irm", steps=200)
    assert repr(spec) == "RunSpec(data='colored-digits', algorithm='irm', steps=200)"
    assert str(spec) == "data='colored-digits' algorithm='irm' steps=200"
    assert "learning_rate" not in spec._repr_html_()


def test_long_lists_are_cut_and_counted():
    assert named("abc", most=2) == "a, b, … (3 in all)"
    assert counted({"a": 1, "b": 2_000}, most=5) == "a (1), b (2,000)"
    text = Summary("title", {str(k): "x" for k in range(20)}).text()
    assert len(text.splitlines()) == 8
    assert text.endswith("…")


@pytest.mark.parametrize("shade", ["background", "color"])
def test_the_style_fits_light_and_dark_notebooks(shade):
    style = Summary("x").html().partition("<style>")[2].partition("</style>")[0]
    values = {
        rule.partition(":")[2]
        for rule in style.replace("}", ";").replace("{", ";").split(";")
        if rule.startswith(f"{shade}:")
    }
    assert values <= {"none", "inherit"}
