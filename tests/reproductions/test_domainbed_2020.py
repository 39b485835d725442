"""Draws and selection rules of DomainBed, and the reproduction on very few and small images."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from envariant.data import colored_digits
from envariant.reproductions import domainbed_2020, publish
from envariant.reproductions.base import CaptionedTable
from envariant.reproductions.domainbed import draws, selection
from envariant.reproductions.domainbed.runs import train_all
from envariant.reproductions.domainbed_2020 import REPRODUCTION
from envariant.reproductions.runner import Runner
from envariant.reproductions.verdicts import Claim
from envariant.training.resolution import resolve
from envariant.training.run_spec import RunSpec


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
    assert drawn.optimizer is None


def test_methods_that_compare_environments_are_erm_on_a_single_one():
    texts = {m: draws.draw_of(m, 1, 0, single=True).algorithm for m in draws.METHODS}
    assert {m for m, text in texts.items() if text == "erm"} == {"ERM", *draws.COMPARING}


def test_every_draw_of_every_method_can_be_trained():
    source = colored_digits()
    names: set[str] = set()
    for method, number in itertools.product(draws.METHODS, (0, 1)):
        drawn = draws.draw_of(method, number, 1)
        spec = RunSpec(
            data=source, algorithm=drawn.algorithm, model="mnist-cnn", optimizer=drawn.optimizer,
            learning_rate=drawn.learning_rate, batch_size=drawn.batch_size, steps=draws.STEPS,
        )  # fmt: skip
        names.add(resolve(spec, source).algorithm.name)
    assert len(names) == len(draws.METHODS)


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


def made_up(data, method, left_out, draws, trials, steps, every, rows, most_rows, single, *, mnist):
    """Return random accuracies in place of those of trained models; one run of RSC diverges."""
    generator = np.random.default_rng([len(data), len(method), *map(ord, "".join(left_out))])
    angles = ("0", "15", "30", "45", "60", "75")
    names = angles if data.startswith("rotated") else ("+90%", "+80%", "-90%")
    parts = [part for name in names for part in (name, name + " out")]
    runs = [
        [{p: {s: generator.random() for s in (every, steps)} for p in parts} for _ in range(draws)]
        for _ in range(trials)
    ]
    if method == "RSC":
        runs[0][0] = None
    return runs


@pytest.fixture
def untrained(monkeypatch):
    """Replace training by random accuracies, which are read as from a file."""
    monkeypatch.setattr(domainbed_2020, "train_all", made_up)
    compute = lambda self, name, inputs, function: json.loads(json.dumps(function(**inputs)))  # noqa: E731
    monkeypatch.setattr(Runner, "compute", compute)


def test_every_section_runs_to_its_end(tmp_path, untrained):
    results = list(publish.perform(REPRODUCTION, tmp_path, "quick"))
    assert all(result.done for result in results)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "oracle (looks at the test environment)" in page
    assert "12 of 14 methods, 2 of 20 draws, 1 of 3 trials" in page
    assert "runs diverged and cannot be selected" in page
    by_section = {result.section.name: result.claims for result in results}
    assert [claim.verdict for claim in by_section["spreads"]] == ["holds"]
    assert {c.verdict for claims in by_section.values() for c in claims} <= {"holds", "undecided"}


def test_the_full_profile_has_the_published_protocol(untrained):
    runner = Runner(Path(), "full")
    findings = list(domainbed_2020.colored_mnist.find(runner))
    text = next(each for each in findings if isinstance(each, str))
    assert "14 of 14 methods, 20 of 20 draws, 3 of 3 trials; 5,001 of 5,001 updates" in text
    assert "not reproduced" in {each.verdict for each in findings if isinstance(each, Claim)}
    tables = [each.table for each in findings if isinstance(each, CaptionedTable)]
    assert [len(table.rows) for table in tables] == [28, 28, 28]
    assert list(domainbed_2020.rotated_mnist.find(runner))


@pytest.mark.filterwarnings("ignore::envariant.core.errors.EnvariantWarning")
def test_runs_are_measured_on_both_parts_of_every_environment():
    data = "rotated-mnist(size=7, rows=10, angles=(0, 30, 60))"
    ((first, second),) = train_all(data, "IRM", ["0", "60"], 2, 1, 2, 1, None, 4, single=True)
    assert [*first] == [part for name in ("0", "30", "60") for part in (name, name + " out")]
    assert [*first["60"]] == [1, 2]
    assert first != second


def test_the_number_of_runs_is_that_of_the_page():
    for profile, expected in (("quick", (108, 504)), ("full", (5040, 540))):
        runner = Runner(None, profile)
        assert (domainbed_2020.colored(runner).runs, domainbed_2020.rotated(runner).runs) == expected
