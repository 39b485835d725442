"""Draws and selection rules of DomainBed, and the reproduction on very few and small images."""

import numpy as np
import pytest

from envariant.reproductions import domainbed_2020, publish
from envariant.reproductions.domainbed import draws, selection
from envariant.reproductions.domainbed_2020 import REPRODUCTION, Protocol


def test_draws_are_those_of_the_program():
    first = draws.values("IRM", 1, 0)
    assert first["lr"] == pytest.approx(2.7601856e-4)
    assert first["batch_size"] == 479
    assert first["irm_lambda"] == pytest.approx(999.814, abs=1e-3)
    assert first["irm_penalty_anneal_iters"] == 135
    second = draws.values("IRM", 2, 0)
    assert second["lr"] == pytest.approx(7.463145e-5)
    assert (second["batch_size"], second["irm_penalty_anneal_iters"]) == (13, 250)
    assert second["irm_lambda"] == pytest.approx(1682.87, abs=1e-2)
    assert draws.values("VREx", 1, 0)["vrex_lambda"] == first["irm_lambda"]
    assert {draws.values("Mixup", k, 0)["mixup_alpha"] for k in range(1, 5)} == {0.1}


def test_draw_0_has_the_defaults():
    assert draws.draw_of("ERM", 0, 2) == draws.Draw("erm", 1e-3, 64)
    text = "irm(coefficient=step(1, 100.0, at=500), normalize_loss=false, form=halves)"
    assert draws.draw_of("IRM", 0, 0) == draws.Draw(text, 1e-3, 64, 500)
    assert draws.draw_of("IRM", 0, 0).optimizer == "adam(reset=500)"


def test_penalties_set_in_earlier_in_shorter_runs_or_not_at_all():
    short = draws.draw_of("VREx", 0, 0, steps=500, most_rows=32)
    assert (short.reset, short.batch_size) == (50, 32)
    late = [d for d in range(1, 40) if draws.values("VREx", d, 0)["vrex_penalty_anneal_iters"] >= draws.STEPS]
    assert late
    drawn = draws.draw_of("VREx", late[0], 0)
    assert drawn.algorithm == "vrex(coefficient=1, normalize_loss=false)"
    assert drawn.optimizer == "adam"


def test_every_draw_of_every_method_is_an_algorithm():
    from envariant.algorithms import composing

    names = [composing.recipe(draws.draw_of(m, d, 1).algorithm).name for m in draws.METHODS for d in (0, 1)]
    assert len(set(names)) == len(draws.METHODS)


def curves(seed):
    generator = np.random.default_rng(seed)
    parts = [part for name in "abc" for part in (name, name + " out")]
    return {part: {step: float(generator.random()) for step in (100, 200)} for part in parts}


def test_selection_rules_are_those_of_plain_loops():
    own = [curves(k) for k in range(5)]
    pairs = {other: [curves(f) for f in range(first, first + 5)] for other, first in (("b", 10), ("c", 20))}
    best = {"training_domain": (-1.0, 0.0), "leave_one_domain_out": (-1.0, 0.0), "oracle": (-1.0, 0.0)}
    for k in range(5):
        for step in (100, 200):
            test = own[k]["a"][step]
            validation = (own[k]["b out"][step] + own[k]["c out"][step]) / 2
            left = (pairs["b"][k]["b"][step] + pairs["c"][k]["c"][step]) / 2
            best["training_domain"] = max(best["training_domain"], (validation, test))
            best["leave_one_domain_out"] = max(best["leave_one_domain_out"], (left, test))
        best["oracle"] = max(best["oracle"], (own[k]["a out"][200], own[k]["a"][200]))
    assert selection.training_domain(own, "a") == best["training_domain"][1]
    assert selection.leave_one_domain_out(own, pairs, "a") == best["leave_one_domain_out"][1]
    assert selection.oracle(own, "a") == best["oracle"][1]


def small(data, table, names, methods, paired):
    return Protocol(
        data, table, names, methods, paired, draws=2, trials=1, steps=2, every=1, rows=10, most_rows=4
    )


@pytest.mark.filterwarnings("ignore::envariant.core.errors.EnvariantWarning")
def test_every_section_runs_to_its_end(tmp_path, monkeypatch):
    data = "colored-mnist:domainbed(size=7, two_logits=true)"
    names = ("+90%", "+80%", "-90%")
    colors = small(data, "domainbed_coloredmnist", names, ("ERM", "IRM"), ("ERM",))
    data = "rotated-mnist(interpolation=bicubic, size=7, rows=10)"
    names = ("0", "15", "30", "45", "60", "75")
    angles = small(data, "domainbed_rotatedmnist", names, ("ERM",), ())
    monkeypatch.setattr(domainbed_2020, "colored", lambda runner: colors)
    monkeypatch.setattr(domainbed_2020, "rotated", lambda runner: angles)
    results = list(publish.perform(REPRODUCTION, tmp_path, "quick"))
    assert all(result.done for result in results)
    verdicts = {claim.verdict for result in results for claim in result.claims}
    assert verdicts <= {"holds", "undecided"}
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "oracle (looks at the test environment)" in page
    assert "2 of 14 methods, 2 of 20 draws, 1 of 3 trials" in page
    # All results are loaded: nothing is trained twice.
    monkeypatch.setattr(domainbed_2020, "train_all", None)
    assert list(publish.perform(REPRODUCTION, tmp_path, "quick"))


def test_the_number_of_runs_is_that_of_the_page():
    from envariant.reproductions.runner import Runner

    for profile, expected in (("quick", (108, 504)), ("full", (5040, 540))):
        runner = Runner(None, profile)
        assert (domainbed_2020.colored(runner).runs, domainbed_2020.rotated(runner).runs) == expected
