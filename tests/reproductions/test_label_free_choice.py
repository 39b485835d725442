"""Choice without test labels: the page on small data, and the rules on made-up candidates."""

from dataclasses import replace

import numpy as np
import pytest

from envariant.analysis.invariance_test import assess_invariance
from envariant.data import source
from envariant.reproductions import eqrm_2022, reproduction
from envariant.reproductions import label_free_choice as page
from envariant.reproductions.label_free_choice import Candidate
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner

CHOICE = reproduction("label-free-choice")
VALIDATION = ("flip-0.3", "flip-0.5")


@pytest.fixture
def small(monkeypatch):
    """Train all candidates on colored digits, with networks 4 wide, for a few steps."""
    monkeypatch.setattr(eqrm_2022, "DATA", "colored-digits(test_flips=(0.3, 0.5, 0.9))")
    monkeypatch.setattr(eqrm_2022, "VALIDATION", ("flip-0.3", "flip-0.5"))
    monkeypatch.setattr(eqrm_2022, "width", lambda runner: 4)
    monkeypatch.setattr(page, "RFC", "rfc(first_steps=2, steps=2, synthesis_steps=2)")
    for name, value in {"START": 4, "BATCH": 16}.items():
        monkeypatch.setattr(eqrm_2022, name, value)
    short = {
        name: replace(each, from_erm=replace(each.from_erm, steps=2), steps=4)
        for name, each in page.METHODS.items()
    }
    monkeypatch.setattr(page, "METHODS", short)


def test_the_page_runs_to_its_end(small, tmp_path):
    first, result = perform(CHOICE, tmp_path, "quick")
    assert [len(each.claims) for each in (first, result)] == [4, 4]
    rules, table = (f.table for f in first.findings if hasattr(f, "table"))
    assert [row[:2] for row in rules.rows] == [("all", "5")]
    assert {row[0].split(",")[0] for row in table.rows} == {"ERM", "IRM", "V-REx", "Fishr", "EQRM"}
    rules, table = (f.table for f in result.findings if hasattr(f, "table"))
    assert [row[0] for row in rules.rows] == [
        "all", "ERM start", "rich features", "IRM", "V-REx", "Fishr", "EQRM"
    ]  # fmt: skip
    assert [row[1] for row in rules.rows] == ["9", "5", "4", "2", "2", "2", "2"]
    # Every rule chose one candidate in each of two replicas.
    assert [sum(int(row[column]) for row in table.rows) for column in (4, 5, 6)] == [2, 2, 2]
    # Scores and p-value of a run: computed again from the stored weights, row by row.
    runner = Runner(tmp_path / "runs", "quick", stored_only=True)
    run: Run = page.runs_from_erm(runner)["V-REx", 1e4]
    result = runner.train(run)
    sample = source(eqrm_2022.DATA).sample(result.record.seeds[1].data)
    logits = [result.model(1)(sample[n].input_store.gather())[:, 0].detach().numpy() for n in VALIDATION]
    targets = [sample[n].targets.numpy() for n in VALIDATION]
    rows = [(e, i) for e in range(2) for i in range(e, len(targets[e]), 2)]
    expected = assess_invariance(
        np.array([logits[e][i] for e, i in rows], dtype=float),
        np.array([targets[e][i] for e, i in rows]),
        np.array([e for e, _ in rows]),
    ).p_value
    (own,) = [
        c
        for c in page.candidates(runner, rich=True)
        if (c.start, c.method, c.replica) == (page.FROM_ERM, "V-REx", 1)
    ]
    assert own.p_value == pytest.approx(expected, rel=1e-5)
    right = [((score > 0) == (label > 0)).mean() for score, label in zip(logits, targets, strict=True)]
    assert own.validation == pytest.approx(np.mean(right))
    assert own.test == result.final("flip-0.9", "accuracy").values[1]


def test_rules_choose_as_defined():
    """Invariance: best validation score among p ≥ 0.05; validation: best of all; oracle: best test."""
    pool = [
        Candidate("ERM start", "ERM", 0.0, 0, 0.85, 0.1, 1e-9),
        Candidate("ERM start", "IRM", 1e3, 0, 0.72, 0.6, 0.2),
        Candidate("ERM start", "IRM", 1e4, 0, 0.70, 0.7, 0.4),
        Candidate("rich features", "IRM", 1e4, 0, 0.71, 0.65, 0.9),
    ]
    tests = {rule.name: page.chosen(pool, rule)[0].test for rule in page.RULES}
    assert tests == {page.INVARIANCE: 0.6, page.VALIDATION: 0.1, page.ORACLE: 0.7}
    assert page.chosen(pool[:1], page.RULES[0])[0].remark.startswith("all 1 candidates are rejected")


def test_the_weight_of_heads_for_eqrm_is_that_of_the_quantile():
    """With two environments, mean + √(−2a)·b, where b = 1.06·2^(−1/5)·|R₁ − R₂|/√2."""
    assert page.METHODS["EQRM"].head_weights() == pytest.approx((200**0.5, 2000**0.5, 20_000**0.5))
