"""The course report on small data with few steps: every section runs, and known claims have known verdicts."""

import csv
import re

import pytest

from envariant.reproductions import reproduction, sjtu_2023
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.verdicts import Claim

SJTU = reproduction("sjtu-2023")
NAMES = [section.name for section in SJTU.sections]


@pytest.fixture
def small(monkeypatch):
    """Train all declared runs on colored digits, with a network 4 wide, for a dozen steps."""
    for name, value in {
        "THIRDS": "colored-digits", "PAPER": "colored-digits", "GRAY": "colored-digits-grayscale",
        "CHANNELS": "colored-digits", "SWITCH": 4, "STEPS": 10, "LATER": 6, "LONG": 12,
    }.items():  # fmt: skip
        monkeypatch.setattr(sjtu_2023, name, value)
    train_as_declared = Runner.train

    def train(self, run):
        settings = {k: v for k, v in run.settings.items() if k != "augmentation"}
        settings |= {
            "model": "mlp(hidden=4)",
            "evaluate_every": 2,
            "steps": min(settings.get("steps", 12), 14),
        }
        settings |= {"batch_size": 16 if "augmentation" in run.settings else "full"}
        return train_as_declared(self, Run(run.data, run.algorithm, settings))

    monkeypatch.setattr(Runner, "train", train)


def test_every_section_of_the_report_is_declared():
    assert NAMES == [
        "overview", "lenet", "augmentation", "derivation", "irm-base", "irm-stuck", "irm-coefficient",
        "irm-stages", "irm-growth", "irm-power", "irm-why", "irm-best", "and-mask", "vrex", "summary",
    ]  # fmt: skip
    assert all(section.statement and section.title for section in SJTU.sections)


def test_every_section_runs_to_its_end(small, tmp_path):
    """Trains all runs but draws no figures, which takes most of the time of a page."""
    runner = Runner(tmp_path, "quick")
    findings = {section.name: list(section.find(runner)) for section in SJTU.sections}
    verdicts = {
        name: {each.text: each.in_profile("quick").verdict for each in found if isinstance(each, Claim)}
        for name, found in findings.items()
    }
    # Claims that need no training hold.
    assert verdicts["derivation"] == {
        "The distance is the squared gradient.": "holds",
        "The penalty grows as w moves away from the optimum in both directions.": "holds",
    }
    assert verdicts["and-mask"]["Its mask is the middle column."] == "holds"
    assert verdicts["and-mask"]["0 ≤ det H_A∧B ≤ det H_A+B."] == "holds"
    # Claims that a dozen steps cannot support do not hold.
    assert verdicts["vrex"]["V-REx reaches 0.64, the report 0.3, the paper 0.687."] == "undecided"
    assert verdicts["irm-best"]["Its mean test accuracy is 0.67 or more."] == "undecided"
    assert all(found for name, found in verdicts.items() if name != "irm-why")


@pytest.mark.verify
def test_every_section_runs_to_its_end_and_is_on_the_page(small, tmp_path):
    results = list(perform(SJTU, tmp_path, "quick"))
    assert [result.section.name for result in results] == NAMES
    assert all(result.claims or result.section.name == "irm-why" for result in results)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [
        name for name in re.findall(r'<details class="section" id="([^"]+)"', page) if name in NAMES
    ] == NAMES
    assert "Not run yet" not in page
    for path in (tmp_path / "tables").iterdir():
        header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
        assert rows
        assert all(len(row) == len(header) for row in rows)
    for path in (tmp_path / "figures").iterdir():
        assert path.with_suffix(".png").stat().st_size > 2000
        assert path.with_suffix(".svg").stat().st_size > 2000
