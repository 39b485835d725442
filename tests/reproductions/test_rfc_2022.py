"""RFC's reproduction on small data with few steps; settings against the published ones."""

from dataclasses import replace

import pytest

from envariant import published
from envariant.algorithms import Composition
from envariant.algorithms.penalties.clove import CLOvE
from envariant.algorithms.penalties.fishr import Fishr
from envariant.algorithms.penalties.irm import IRM
from envariant.algorithms.penalties.sd import SpectralDecoupling
from envariant.algorithms.penalties.vrex import VREx
from envariant.algorithms.risk_aggregators.sum import SumRisk
from envariant.core.schedules import Step
from envariant.data import source
from envariant.reproductions import reproduction, rfc_2022, rfc_heads
from envariant.reproductions.publish import perform
from envariant.reproductions.rfc_heads import COLORED, INVERSE, Curves, middle
from envariant.reproductions.runner import Run, Runner
from envariant.training.resolution import resolve_algorithm

RFC = reproduction("rfc-2022")
TINY = {"model": "mlp(hidden=4)", "steps": 4, "evaluate_every": 2, "replicas": 2}
SHORT = {
    "data": "colored-digits(test_flips=(0.9, 0.1, 0.5))",
    "init": "rfc(first_steps=2, steps=2, synthesis_steps=2)",
    "steps": 6,
    "irm_steps": 8,
}


@pytest.fixture
def small(monkeypatch):
    """Train all declared runs and heads on colored digits, with a network 4 wide, for a few steps."""
    monkeypatch.setattr(rfc_2022, "COLORED", replace(COLORED, **SHORT))
    monkeypatch.setattr(rfc_2022, "INVERSE", replace(INVERSE, **SHORT))
    monkeypatch.setattr(rfc_2022, "MODEL", "mlp(hidden=4)")
    monkeypatch.setattr(rfc_2022, "LONG_STEPS", 4)
    monkeypatch.setattr(rfc_2022, "EARLY", 2)
    monkeypatch.setattr(rfc_heads, "EVERY_LONG", 2)
    train_as_declared = Runner.train

    def shrunk(run):
        start = None if run.start is None else shrunk(run.start)
        batch = run.settings["batch_size"]
        return Run(run.data, run.algorithm, {**run.settings, **TINY, "batch_size": batch}, start)

    monkeypatch.setattr(Runner, "train", lambda self, run: train_as_declared(self, shrunk(run)))


def test_every_section_runs_to_its_end(small, monkeypatch, tmp_path):
    # Two restarts on frozen features; quick lists of runs.
    monkeypatch.setattr(rfc_2022, "LONG_RESTARTS", 2)
    monkeypatch.setattr(Runner, "pick", lambda self, *, quick, full: 2 if full in (3, 10) else quick)
    results = list(perform(RFC, tmp_path, "full"))
    assert [result.section.name for result in results] == ["frozen", "starts", "inverse", "long"]
    assert all(result.done and result.claims for result in results)


def test_the_lists_and_steps_are_those_of_the_code():
    paper = published.protocol("colored_mnist_rfc")
    assert paper["l2"] == COLORED.l2 == 0.0011
    irm, _, sd, _, fishr, clove, erm = COLORED.groups()
    assert (irm["steps"], sd["steps"], sd["weights"]) == (3001, 1001, [10, 50, 100, 500, 1000])
    assert fishr["l2"] == clove["l2"] == [0.0] * 5
    assert sd["l2"] == [0.0011] * 5
    assert erm["l2"] == [2e-4, 1e-3, 2e-3, 1e-2, 2e-2]
    inverse = {group["method"]: group for group in INVERSE.groups()}
    assert (inverse["IRMv1"]["steps"], inverse["vREx"]["steps"]) == (10_001, 2001)
    assert inverse["SD"]["weights"] == [0.05, 0.1, 0.5, 1, 5]
    assert middle(rfc_heads.WEIGHTS["vREx"]) == 1e4


def test_readings_are_of_the_mean_curve():
    """The best step of the mean is not the mean of the best steps."""
    curves = Curves((1.0, 2.0), (5, 10, 15), (((0.9, 0.2, 0.1), (0.1, 0.6, 0.1)), ((0.3, 0.3, 0.3),) * 2))
    assert curves.mean(0) == pytest.approx([0.5, 0.4, 0.1])
    assert curves.best_last() == 1
    assert curves.best() == (0, 0)
    assert curves.at(*curves.best()) == (0.9, 0.1)


@pytest.mark.parametrize("name", rfc_2022._ALGORITHMS)
def test_unfrozen_runs_have_the_losses_of_the_code(name):
    """No default of the data set may remain: on Colored MNIST, V-REx has the penalty of the REx code."""
    run = rfc_2022.unfrozen(Runner(None, "full"), name, 150, 1001, 3)
    trained = resolve_algorithm(run.algorithm, {}, source(run.data), run.settings["steps"]).trained
    expected = {
        "IRMv1": IRM(Step(1, 1e4, at=150)),
        "vREx": VREx(Step(2, 2e4, at=150)),
        "SD": SpectralDecoupling(Step(2, 200, at=150)),
        "Fishr": Fishr(Step(1, 1e4, at=150), memory=0.0, centered=False, summed=True),
        "CLOvE": CLOvE(Step(2, 2e4, at=150)),
    }
    l2 = 0.0 if name == "CLOvE" else 0.0011
    assert trained == Composition(SumRisk(), (expected[name],), l2=l2, normalize_loss=True)


def test_the_perfect_start_has_colors_that_do_not_predict_labels():
    full = Runner(None, "full")
    perfect = rfc_2022.perfect_runs(full)["Fishr"]
    assert perfect.start.data == ("colored-mnist(train_flips=(0.5, 0.5), test_flips=(0.9, 0.1, 0.5))")
    assert (perfect.start.settings["steps"], perfect.settings["steps"]) == (80, 2000)
