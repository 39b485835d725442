"""With a frozen featurizer, features are computed once, and results stay the same except for rounding."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import envariant
from envariant.algorithms import Composition, Penalty
from envariant.core.schedules import Schedule, Step
from envariant.training import fixed_features
from envariant.training.network import Network

OPTIONS = {
    "model": "mlp(hidden=16)", "init": "erm(steps=5)", "freeze": "features", "steps": 8,
    "learning_rate": 1e-2, "evaluate_every": 4, "precision": "float32",
}  # fmt: skip


@pytest.fixture
def passes(monkeypatch):
    """List, for every forward pass of a training step, whether it begins with the features."""
    seen = []
    outputs = Network.outputs

    def noted(self, *values, training, from_features=False, **named):
        if training:
            seen.append(from_features)
        return outputs(self, *values, training=training, from_features=from_features, **named)

    monkeypatch.setattr(Network, "outputs", noted)
    return seen


@pytest.mark.parametrize(
    "algorithm", ["erm(l2=0.01)", "vrex(coefficient=10)", "fishr(coefficient=10)", "vrex + and-mask", "coral"]
)
@pytest.mark.parametrize(("execution", "precision"), [("sequential", "float32"), ("stacked", "bfloat16")])
def test_results_equal_those_of_complete_passes(monkeypatch, passes, algorithm, execution, precision):
    options = {**OPTIONS, "execution": execution, "precision": precision, "replicas": 2}
    quick = envariant.train("colored-digits", algorithm, **options)
    # The ERM start trains all weights.
    assert passes.count(True) >= 8
    seen = len(passes)
    monkeypatch.setattr(fixed_features, "are_fixed", lambda *_: False)
    complete = envariant.train("colored-digits", algorithm, **options)
    assert not any(passes[seen:])
    tolerance = 1e-5 if precision == "float32" else 2e-2
    for k in complete.finished:
        ours, theirs = (dict(result.model(k).named_parameters()) for result in (quick, complete))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(quick.rows, complete.rows, strict=True):
        assert (ours.environment, ours.step, ours.metric) == (theirs.environment, theirs.step, theirs.metric)
        assert ours.value == pytest.approx(theirs.value, rel=20 * tolerance, abs=20 * tolerance)


def test_a_resumed_run_is_bit_identical(tmp_path):
    class Stop:
        def on_evaluation(self, state):
            if state.step == 4:
                raise ValueError("interrupted")

    whole = envariant.train("colored-digits", "vrex", **OPTIONS)
    with pytest.raises(envariant.EnvariantError, match="interrupted"):
        envariant.train("colored-digits", "vrex", **OPTIONS, out=tmp_path / "run", callbacks=[Stop()])
    resumed = envariant.train("colored-digits", "vrex", **OPTIONS, out=tmp_path / "run")
    for ours, theirs in zip(whole.model(0).parameters(), resumed.model(0).parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("mixup", {}),
        ("erm", {"batch_size": 32}),
        ("erm", {"freeze": None}),
        ("erm", {"model": "mlp(hidden=16, dropout=0.2)"}),
        ("erm", {"model": "mlp(hidden=16, batch_norm=true)"}),
    ],
)
def test_complete_passes_remain_where_features_or_inputs_change(passes, algorithm, changes):
    envariant.train("colored-digits", algorithm, **OPTIONS | changes)
    assert passes
    assert not any(passes)


def test_an_own_module_with_another_forward_keeps_its_passes(passes):
    class Own(torch.nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.featurizer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, 4))
            self.head = torch.nn.Linear(4, 1)

        def forward(self, inputs):
            return self.head(self.featurizer(inputs).tanh())

    inputs = envariant.data.source("colored-digits").sample(0).input_shape.numel()
    envariant.train("colored-digits", Composition(), **OPTIONS | {"model": lambda: Own(inputs)})
    assert passes
    assert not any(passes)


def test_parts_of_other_authors_receive_the_inputs(passes):
    @dataclass(frozen=True)
    class Inputs(Penalty):
        name: ClassVar[str] = "inputs"
        coefficient: Schedule = Step(0.5, 1.0, at=1)

        def penalty(self, predicted, state):
            assert predicted.batch.inputs.shape[1:] == (2, 8, 8)
            return predicted.logits.square().mean(), state

    envariant.train("colored-digits", Composition(penalties=(Inputs(),)), **OPTIONS)
    assert not any(passes)
