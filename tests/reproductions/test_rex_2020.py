"""The sections of rex-2020 on small data, and the numbers that the program prints."""

import pytest
import scipy.stats

from envariant import published
from envariant.data import ColoredMNIST, source
from envariant.reproductions import (
    reproduction,
    rex_2020,
    rex_finance_training,
    rex_hybrid,
    rex_protocols,
    rex_sem,
    rex_variants,
)
from envariant.reproductions.rex_protocols import PAPER, README
from envariant.reproductions.runner import Run, Runner
from envariant.training.resolution import resolve
from envariant.training.run_spec import RunSpec

REX = reproduction("rex-2020")


@pytest.fixture
def small(monkeypatch):
    """Train all declared runs on colored digits, with a network 2 wide, for a few steps."""
    monkeypatch.setattr(rex_2020, "GRAY", "flip-0.5")
    monkeypatch.setattr(rex_sem, "STEPS", 50)
    monkeypatch.setattr(rex_hybrid, "DATA", {"CMNIST": "colored-digits", "hetero-CMNIST": "colored-digits"})
    monkeypatch.setattr(rex_hybrid, "SIZES", {"hidden": 2, "steps": 2, "label_steps": 2, "batch": 4})
    monkeypatch.delenv(rex_finance_training.FOLDER_VARIABLE, raising=False)
    train_as_declared = Runner.train

    def train(self, run):
        data = "colored-digits"
        if run.data == rex_variants.RANGE:
            data += run.data.partition(", strided")[0].removeprefix("colored-mnist") + ")"
        elif "gray_test" in run.data:
            # Two test environments, as in the data with a gray one.
            data += "(test_flips=(0.9, 0.5))"
        settings = {**run.settings, "model": "mlp(hidden=2)", "steps": 4, "evaluate_every": 2}
        return train_as_declared(self, Run(data, run.algorithm, settings))

    monkeypatch.setattr(Runner, "train", train)


def test_every_section_runs_to_its_end(small, tmp_path):
    runner = Runner(tmp_path, "quick")
    for section in REX.sections:
        if section.name != "sem":
            assert list(section.find(runner)), section.name


def test_the_readme_row_is_what_the_data_suggest():
    """The suggestion has one update more, as all suggestions of the program's number of steps."""
    run = README.run("V-REx", data="colored-mnist")
    declared = resolve(RunSpec(data=run.data, algorithm=run.algorithm, **run.settings)).spec
    suggested = resolve(RunSpec(data=ColoredMNIST("irm"), algorithm="vrex")).spec
    for option in ("hyperparameters", "model", "learning_rate", "optimizer"):
        assert getattr(declared, option) == getattr(suggested, option), option
    assert (declared.steps, suggested.steps) == (500, 501)


def test_the_text_names_the_settings_of_the_irm_paper():
    irm = published.protocol("colored_mnist_irm")
    assert (PAPER.hidden, PAPER.l2, PAPER.rate) == (irm["hidden"], irm["l2"], irm["lr"])
    assert (PAPER.switch, PAPER.weight, PAPER.steps) == (190, irm["penalty_weight"], 500)
    assert rex_protocols.README.at(0).run("IRM").algorithm == (
        "irm(coefficient=10000.0, risk_aggregator=sum, l2=0.001)"
    )


def test_the_highest_accuracy_needs_a_training_accuracy_at_least_as_large(tmp_path):
    settings = {"model": "mlp(hidden=4)", "steps": 12, "evaluate_every": 3, "replicas": 2}
    result = Runner(tmp_path, "quick").train(Run("colored-digits", "erm", settings))
    rows = result.history
    rows = rows[rows["metric"] == "accuracy"]
    for k, found in enumerate(rex_2020.highest(result, "flip-0.9")):
        best = float("nan")
        for step in (0, 3, 6, 9, 12):
            at = rows[(rows["replica"] == k) & (rows["step"] == step)].set_index("environment")["value"]
            if (at["flip-0.2"] + at["flip-0.1"]) / 2 >= at["flip-0.9"] and not best >= at["flip-0.9"]:
                best = at["flip-0.9"]
        assert found == pytest.approx(best, nan_ok=True)


def test_the_data_of_every_covariate_shift_can_be_read():
    for kind in rex_variants.KINDS:
        assert source(rex_variants._shifted(kind, 0.1)).kind == kind


def test_the_interval_of_a_slope_is_that_of_scipy():
    x, y = (0.0, 0.1, 0.2, 0.5, 1.0), (0.70, 0.72, 0.69, 0.71, 0.68)
    fitted = scipy.stats.linregress(x, y)
    margin = scipy.stats.t.ppf(0.975, 3) * fitted.stderr
    own = rex_variants._slope_interval(x, y)
    assert (own.mean, own.low, own.high) == pytest.approx(
        (fitted.slope, fitted.slope - margin, fitted.slope + margin)
    )
