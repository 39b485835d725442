"""Choice without test labels: the page on small data, and the rules on made-up candidates."""

import numpy as np
import pytest

from envariant.analysis.invariance_test import assess_invariance
from envariant.data import source
from envariant.data.validation_split import ValidationSplit
from envariant.reproductions import label_free_choice as page
from envariant.reproductions import reproduction
from envariant.reproductions.label_free_choice import Candidate
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner

CHOICE = reproduction("label-free-choice")


@pytest.fixture
def small(monkeypatch):
    """Train all candidates on colored digits, with networks 4 wide, for a few steps."""
    monkeypatch.setattr(page, "DATA", "colored-digits(test_flips=(0.9,))")
    monkeypatch.setattr(page, "RFC", "rfc(first_steps=2, steps=2, synthesis_steps=2)")
    monkeypatch.setattr(page, "_width", lambda runner: 4)
    for name, value in {"START": 4, "STEPS": 2, "BATCH": 16, "EVERY": 2}.items():
        monkeypatch.setattr(page, name, value)
    short = {
        name: page.Method(each.algorithm, each.head, each.settings, 4) for name, each in page.METHODS.items()
    }
    monkeypatch.setattr(page, "METHODS", short)


def test_the_page_runs_to_its_end(small, tmp_path):
    (result,) = perform(CHOICE, tmp_path, "quick")
    assert len(result.claims) == 4
    rules, table = (f.table for f in result.findings if hasattr(f, "table"))
    assert [row[0] for row in rules.rows] == [
        "all", "ERM start", "rich features", "IRM", "V-REx", "Fishr", "EQRM"
    ]  # fmt: skip
    assert [row[1] for row in rules.rows] == ["9", "5", "4", "2", "2", "2", "2"]
    # Every rule chose one candidate in each of two replicas.
    assert [sum(int(row[column]) for row in table.rows) for column in (4, 5, 6)] == [2, 2, 2]
    # P-values of a run: computed again from the stored weights, row by row.
    runner = Runner(tmp_path / "runs", "quick", stored_only=True)
    run: Run = page.runs_from_erm(runner)["V-REx", 1e4]
    result = runner.train(run)
    sample = ValidationSplit(source(page.DATA), 0.2).sample(result.record.seeds[1].data)
    held_out = [e for e in sample.environments if sample.roles()[e.name] == "validation"]
    scores = np.concatenate([result.model(1)(e.input_store.gather()).detach().numpy() for e in held_out])
    targets = np.concatenate([e.targets.numpy() for e in held_out])
    names = np.repeat([0, 1], [len(e) for e in held_out])
    expected = assess_invariance(scores[:, 0].astype(float), targets, names).p_value
    (own,) = [
        c for c in page.candidates(runner) if (c.start, c.method, c.replica) == (page.FROM_ERM, "V-REx", 1)
    ]
    assert own.p_value == pytest.approx(expected, rel=1e-5)
    assert own.steps[-1] == 2


def test_rules_choose_as_defined():
    """Invariance: best last validation score among p ≥ 0.05; validation: best at any step; oracle: best test."""
    steps = (1, 2)
    pool = [
        Candidate("ERM start", "ERM", 0.0, 0, steps, (0.7, 0.85), (0.2, 0.1), 1e-9),
        Candidate("ERM start", "IRM", 1e3, 0, steps, (0.9, 0.72), (0.3, 0.6), 0.2),
        Candidate("ERM start", "IRM", 1e4, 0, steps, (0.7, 0.70), (0.8, 0.7), 0.4),
        Candidate("rich features", "IRM", 1e4, 0, steps, (0.7, 0.71), (0.9, 0.65), 0.9),
    ]
    tests = {rule.name: page.chosen(pool, rule)[0].test for rule in page.RULES}
    assert tests == {page.INVARIANCE: 0.6, page.VALIDATION: 0.3, page.ORACLE: 0.7}
    assert page.chosen(pool[:1], page.RULES[0])[0].remark.startswith("all 1 candidates are rejected")


def test_the_weight_of_heads_for_eqrm_is_that_of_the_quantile():
    """With two environments, mean + √(−2a)·b, where b = 1.06·2^(−1/5)·|R₁ − R₂|/√2."""
    assert page.METHODS["EQRM"].head_weights() == pytest.approx((200**0.5, 2000**0.5, 20_000**0.5))
