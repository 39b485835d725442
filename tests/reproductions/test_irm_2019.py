"""IRM 2019: linear models against plain loops and recorded lines, and every section to its end."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from envariant import published
from envariant.data.linear_sem import SETUPS, LinearSEM
from envariant.reproductions import irm_2019, irm_linear, reproduction, sem
from envariant.reproductions.causal_prediction import predict_causally
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.sem import ERRORS, Problems


def drawn(setup, seed):
    return LinearSEM(setup).draw(torch.Generator().manual_seed(seed))


def test_erm_and_icp_give_every_recorded_line():
    keys = [(setup, seed) for setup in SETUPS for seed in range(4)]
    problems = Problems.of([drawn(*key) for key in keys])
    causal = predict_causally(problems.with_intercept, 1000)
    for name, weights in (("ERM", problems.moments.mean(1).least_squares()), ("ICP", causal.weights)):
        errors = problems.errors(weights)
        for kind, table in zip(ERRORS, ("sem_causal_by_seed", "sem_noncausal_by_seed"), strict=True):
            row = published.table(table).rows[name]
            assert errors[kind] == pytest.approx(row.mean, abs=1.1e-5)
    accepted = dict(zip(keys, causal.accepted.tolist(), strict=True))
    assert [accepted["FOU", 0], accepted["FOU", 1], accepted["FEU", 0], accepted["FEU", 1]] == [32, 19, 2, 24]
    assert accepted["POU", 1] == 1


def test_causal_prediction_equals_a_plain_loop_over_rows():
    equations = drawn("FOU", 0)
    x, y = equations.x.double().numpy()[:, :, :4], equations.y.double().numpy()
    accepted = []
    for subset in (s for k in range(1, 5) for s in combinations(range(4), k)):
        columns = x.reshape(-1, 4)[:, subset]
        residuals = (y.ravel() - columns @ np.linalg.lstsq(columns, y.ravel())[0]).reshape(3, -1)
        p = []
        for e in range(3):
            inside, outside = residuals[e], np.delete(residuals, e, axis=0).ravel()
            tail = stats.f.sf(np.var(inside, ddof=1) / np.var(outside, ddof=1), 999, 1999)
            p_t = stats.ttest_ind(inside, outside, equal_var=False).pvalue
            p.append(2 * min(p_t, 2 * min(tail, 1 - tail)))
        accepted += [subset] if 3 * min(p) > 0.05 else []
    moments = Problems.of([equations]).with_intercept
    kept = torch.tensor([0, 1, 2, 3, 10])
    small = type(moments)(moments.gram[..., kept[:, None], kept], moments.cross[..., kept], moments.square)
    result = predict_causally(small, 1000)
    assert result.accepted.item() == len(accepted)
    shared = set.intersection(*map(set, accepted)) if accepted else set()
    assert set(result.weights[0].nonzero()[:, 0].tolist()) == shared


def test_irm_without_rows_takes_the_steps_of_the_program():
    equations = drawn("PES", 3)
    problems = Problems.of([equations])
    regs, steps = (0.0, 1e-2, 0.5), 4
    found = irm_linear.featurizers(
        problems.moments[:, :2][torch.zeros(3, dtype=torch.long)], torch.tensor(regs).double(), steps
    )
    for reg, ours in zip(regs, found, strict=True):
        phi = torch.eye(10, dtype=torch.float64, requires_grad=True)
        w = torch.ones(10, 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([phi], lr=1e-3)
        for _ in range(steps):
            error, penalty = torch.zeros(()).double(), torch.zeros(()).double()
            for x, y in zip(equations.x.double()[:2], equations.y.double()[:2], strict=True):
                risk = (x @ phi @ w - y[:, None]).square().mean()
                penalty = penalty + torch.autograd.grad(risk, w, create_graph=True)[0].square().mean()
                error = error + risk
            optimizer.zero_grad()
            (reg * error + (1 - reg) * penalty).backward()
            optimizer.step()
        torch.testing.assert_close(ours, phi.detach(), rtol=1e-7, atol=1e-9)


def test_the_first_of_equal_weights_of_the_risk_is_selected():
    problems = Problems.of([drawn("FOU", 0), drawn("FES", 1)])
    selected = irm_linear.select(problems.moments[:, :2], problems.moments[:, 2], 0)
    assert selected.regs.tolist() == [0.0, 0.0]
    assert torch.equal(selected.weights, torch.ones(2, 10).double())


@pytest.fixture
def small(monkeypatch):
    for name, value in {"DATA": "colored-digits", "GRAY": "colored-digits-grayscale", "STEPS": 20,
                        "SEEDS_QUICK": 3}.items():  # fmt: skip
        monkeypatch.setattr(irm_2019, name, value)
    train_as_declared = Runner.train

    def train(self, run):
        return train_as_declared(self, Run(run.data, run.algorithm, {
            **run.settings, "model": "mlp(hidden=4)", "steps": 10,
        }))  # fmt: skip

    monkeypatch.setattr(Runner, "train", train)


def test_every_section_runs_to_its_end(small, tmp_path):
    results = list(perform(reproduction("irm-2019"), tmp_path, "quick"))
    assert [result.section.name for result in results] == ["sem", "colored-mnist"]
    lines = {claim.text.partition(":")[0]: claim for claim in results[0].claims[:3]}
    assert lines["ERM"].verdict == lines["ICP"].verdict == "reproduced"
    assert lines["ERM"].numbers.startswith("48 of 48 errors within 1.1e-05")
    # Twenty steps are not the program's hundred thousand.
    assert lines["IRM"].verdict == "not reproduced"
    # Verdicts that depend on the number of seeds are not given by the quick profile.
    others = [claim.verdict for result in results for claim in result.claims if not claim.exact]
    assert set(others) <= {"holds", "undecided"}
    assert "Not run yet" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_stored_problems_contain_all_methods():
    solved = sem.solve("FEU", 2, 5)
    assert [len(solved[method]["causal"]) for method in sem.METHODS] == [2, 2, 2]
    assert solved["accepted"] == [2, 24]
