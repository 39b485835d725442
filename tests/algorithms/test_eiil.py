"""EIIL: the environments of the spec, by its closed form and by the paper's ascent."""

import pytest
import torch

import envariant
from algorithms.spec_values import YB, ZB, close, vector
from envariant.algorithms import EIIL, Composition, recipe
from envariant.algorithms.environment_inference.eiil import ascended, objective
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary

SLOPES = Binary().multiplier_derivatives(ZB, YB)


def test_values_of_the_specification():
    found = EIIL().environments(ZB, YB, Binary())
    assert found.tolist() == [0, 0, 1, 0], "rows 1, 2, 4 are right and row 3 is wrong"
    close(objective(found.double(), SLOPES), 0.107684)
    # The best of all partitions, by trying each.
    values = [objective(vector(*(float(k >> i & 1) for i in range(4))), SLOPES) for k in range(16)]
    assert float(max(values)) == float(objective(found.double(), SLOPES))


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.verify), pytest.param(2, marks=pytest.mark.verify)]
)
def test_ascent_finds_the_exact_partition_from_random_starts(seed):
    q = ascended(SLOPES, torch.Generator().manual_seed(seed))
    # Which of the two is called the first is chance.
    assert (q > 0.5).tolist() in ([False, False, True, False], [True, True, False, True])
    close(objective((q > 0.5).double(), SLOPES), 0.107684)


def test_a_perfect_reference_model_is_rejected():
    with pytest.raises(
        EnvariantError, match="predicts all rows correctly, or all rows wrongly, so no second environment"
    ):
        envariant.train(_Easy(), "eiil", model="linear", steps=300, learning_rate=0.1)


class _Easy(envariant.EnvironmentSource):
    """Rows that one column tells apart."""

    name = "easy"

    def sample(self, seed):
        del seed
        inputs = torch.tensor([[-1.0], [1.0]]).repeat(20, 1)
        rows = [envariant.Environment(name, inputs, (inputs[:, 0] > 0).float()) for name in ("a", "b")]
        return envariant.EnvironmentSet("easy", tuple(rows), Binary(), test=("b",))


def test_environments_are_the_rows_that_the_reference_model_predicts_correctly_and_incorrectly(tmp_path):
    """One training environment suffices; the run goes on from where it was killed, bit for bit."""
    how = {"steps": 24, "evaluate_every": 6, "replicas": 2, "seed": 3}
    whole = envariant.train("colored-digits", "eiil(reference_steps=30)", out=tmp_path, **how)
    assert whole.record.spec.algorithm == "eiil"
    again = envariant.train("colored-digits", "eiil(reference_steps=30)", **how)
    for k in whole.finished:
        ours, theirs = (r.checkpoints[k].params for r in (whole, again))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    # IRM on the environments that the data bring ends elsewhere.
    other = envariant.train("colored-digits", "irm", **how)
    assert any(
        not torch.equal(whole.checkpoints[0].params[name], value)
        for name, value in other.checkpoints[0].params.items()
    )


def test_inference_composes_with_penalties_but_not_twice():
    both = recipe("eiil + vrex(10)").default
    assert isinstance(both, Composition)
    assert both.environment_inference == EIIL()
    assert both.minimum_environments == 1
    with pytest.raises(EnvariantError):
        recipe("eiil").build({"method": "ascend"})
