"""EIIL 2021: linear models with the program's random numbers, and every section to its end."""

import pytest
import torch

from envariant import published
from envariant.reproductions import eiil_2021, eiil_linear, reproduction
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner


def test_rows_and_starts_are_those_of_the_program():
    first, second = eiil_linear.draw(2)[:2]
    row = [-1.081103, 5.714610, -5.970271, -2.270240, 5.546270, -0.264306]
    assert first.equations.x[0, 0, :6].tolist() == pytest.approx(row, abs=1e-6)
    assert first.equations.y[0, 0].item() == pytest.approx(1.921997, abs=1e-6)
    for each, sums in ((first, [-1170.229, 883.597, 935.215]), (second, [-705.857, 371.059, -946.459])):
        assert each.equations.x.double().sum(dim=(1, 2)).tolist() == pytest.approx(sums, abs=1e-3)
    start = eiil_linear.draw(5)[0].start
    assert start[:3].tolist() == pytest.approx([-0.058847, 0.886868, 0.972867], abs=1e-6)


def test_methods_without_steps_and_irm_give_the_recorded_errors():
    found = {**eiil_linear.baselines(5), "IRM, given environments": eiil_linear.given(5, 10_000)}
    for name, errors in found.items():
        for kind, table in eiil_2021.TABLES.items():
            assert errors[kind] == pytest.approx(published.table(table).rows[name].mean, abs=2e-5)


def test_inference_takes_the_steps_of_automatic_differentiation():
    repetition = eiil_linear.draw(5)[0]
    x, y = (part[::50] for part in eiil_linear.pooled(repetition))
    weights = torch.linspace(0.2, 1.4, 10).double()
    # Small starts, so that few steps change groups.
    start = repetition.start[::50].double() / 100
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=1e-3)
    for _ in range(30):
        w = torch.ones(10, dtype=torch.float64, requires_grad=True)
        losses = (x @ (weights * w) - y).square()
        q = torch.sigmoid(logits)
        penalties = [
            torch.autograd.grad((share * losses).mean(), w, create_graph=True)[0].square().mean()
            for share in (q, 1 - q)
        ]
        optimizer.zero_grad()
        (-sum(penalties) / 2).backward()
        optimizer.step()
    found = eiil_linear.infer(x[None], y[None], weights[None], start[None], 30)
    assert torch.equal(found[0], torch.sigmoid(logits) > 0.5)
    assert not torch.equal(found[0], start > 0)


@pytest.fixture
def small(monkeypatch):
    for name, value in {"DATA": "colored-digits", "GRAY": "colored-digits-grayscale", "STEPS": 3,
                        "LONG": 4}.items():  # fmt: skip
        monkeypatch.setattr(eiil_2021, name, value)
    train_as_declared = Runner.train

    def train(self, run):
        algorithm = run.algorithm.replace("method=ascent", "method=exact")
        algorithm = algorithm.replace("reference_steps=501", "reference_steps=5")
        settings = {**run.settings, "model": "mlp(hidden=4)", "steps": 5, "evaluate_every": 5}
        return train_as_declared(self, Run(run.data, algorithm, settings))

    monkeypatch.setattr(Runner, "train", train)


def test_every_section_runs_to_its_end(small, tmp_path):
    results = list(perform(reproduction("eiil-2021"), tmp_path, "quick"))
    assert [result.section.name for result in results] == ["sem", "label-noise"]
    # Three steps are not the program's ten thousand.
    assert results[0].claims[0].verdict == "not reproduced"
    assert {claim.verdict for claim in results[1].claims} <= {"holds", "undecided"}
    assert "Not run yet" not in (tmp_path / "report.html").read_text(encoding="utf-8")
