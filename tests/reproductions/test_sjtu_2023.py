"""The declared report: every part runs to its end and finds what can be known beforehand; small data, few steps."""

import csv
import re

import pytest

from envariant.reproductions import reproduction, sjtu_2023
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Lab, Run

SJTU = reproduction("sjtu-2023")
NAMES = [part.name for part in SJTU.parts]


@pytest.fixture
def small(monkeypatch):
    """The same declarations on colored digits, a network 4 wide, a dozen steps."""
    for name, value in {
        "THIRDS": "colored-digits", "PAPER": "colored-digits", "GRAY": "colored-digits-grayscale",
        "CHANNELS": "colored-digits", "SWITCH": 4, "STEPS": 10, "LATER": 6, "LONG": 12,
    }.items():  # fmt: skip
        monkeypatch.setattr(sjtu_2023, name, value)
    whole = Lab.train

    def train(self, run):
        settings = {k: v for k, v in run.settings.items() if k != "augmentation"}
        settings |= {
            "model": "mlp(hidden=4)",
            "evaluate_every": 1,
            "steps": min(settings.get("steps", 12), 14),
        }
        settings |= {"batch_size": 16 if "augmentation" in run.settings else "full"}
        return whole(self, Run(run.data, run.algorithm, settings))

    monkeypatch.setattr(Lab, "train", train)


def test_every_part_of_the_report_is_there():
    assert NAMES == [
        "overview", "lenet", "augmentation", "derivation", "irm-base", "irm-stuck", "irm-coefficient",
        "irm-stages", "irm-growth", "irm-power", "irm-why", "irm-best", "and-mask", "vrex", "summary",
    ]  # fmt: skip
    assert all(part.says and part.title for part in SJTU.parts)


def test_every_part_runs_to_its_end_and_all_of_it_is_on_the_page(small, tmp_path):
    sections = list(perform(SJTU, tmp_path, "quick"))
    assert [section.part.name for section in sections] == NAMES
    assert all(section.claims or section.part.name == "irm-why" for section in sections)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([^"]+)">', page) == NAMES
    assert "Not run yet" not in page
    known = {s.part.name: {c.text: c.holds for c in s.claims} for s in sections}
    # What needs no training, or no more than this, is as the report says.
    assert known["derivation"] == {
        "The distance is the squared gradient.": True,
        "The penalty grows as w leaves the optimum, to both sides.": True,
    }
    assert known["and-mask"]["Its mask is the middle column."]
    assert known["and-mask"]["0 ≤ det H_A∧B ≤ det H_A+B."]
    # What a dozen steps cannot show is not confirmed.
    assert not known["vrex"]["V-REx reaches 0.64, the report 0.3, the paper 0.687."]
    assert not known["irm-best"]["Its mean test accuracy is 0.67 or more."]
    for path in (tmp_path / "tables").iterdir():
        header, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
        assert lines
        assert all(len(line) == len(header) for line in lines)
    for path in (tmp_path / "figures").iterdir():
        assert path.with_suffix(".png").stat().st_size > 2000
        assert path.with_suffix(".svg").stat().st_size > 2000
