"""Aggregators that weight environments by their training rows are right with minibatches too."""

from dataclasses import dataclass

import pytest
import torch

import envariant
from envariant.algorithms import EIIL, Composition, PooledMean, RiskAggregator, TrainContext
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary

RIGHT, WRONG = 900, 100


@dataclass(frozen=True)
class JustTrainTwice(RiskAggregator):
    """(Σ_right ℓ + λ·Σ_wrong ℓ) / (n_right + λ·n_wrong), as an outside author writes it. Liu et al. 2021."""

    name = "jtt"
    paper = "Liu et al. 2021, arXiv 2107.09044"
    upweight: float = 3.0

    def init(self, params, context):
        like = next(iter(params.values()))
        sizes = dict(zip(context.environment_names, context.environment_sizes, strict=True))
        return {"rows": like.new_tensor([sizes["right"], sizes["wrong"]])}

    def risk(self, predicted, state):
        weights = state["rows"] * torch.stack([torch.ones(()), torch.as_tensor(self.upweight)])
        return (weights * predicted.risks).sum() / weights.sum(), state


def right_and_wrong():
    """A feature that agrees with the label in 900 rows, and contradicts it, twice as large, in 100 rows."""
    generator = torch.Generator().manual_seed(0)
    environments = []
    for name, rows, scale in (("right", RIGHT, 1.0), ("wrong", WRONG, -2.0)):
        labels = torch.randint(2, (rows,), generator=generator)
        environments.append(Environment(name, scale * (2.0 * labels[:, None] - 1), labels))
    return EnvironmentSet("jtt", tuple(environments), Binary())


@pytest.mark.parametrize("aggregator", [PooledMean(), JustTrainTwice()], ids=["pooled", "jtt"])
@pytest.mark.parametrize("batch_size", [8, "full"])
def test_minibatches_reach_the_training_accuracy_of_full_batches(aggregator, batch_size):
    """By size the feature agrees with the label; with equal weights its contradiction would win."""
    result = envariant.train(
        right_and_wrong(),
        Composition(aggregator),
        model="linear",
        steps=150,
        learning_rate=0.01,
        batch_size=batch_size,
        replicas=2,
    )
    accuracy = {name: result.final(name, "accuracy").values for name in ("right", "wrong")}
    assert accuracy == {"right": (1.0, 1.0), "wrong": (0.0, 0.0)}, "0.9 of all training rows are predicted"


def test_training_steps_without_their_own_terms_equal_erm_on_full_batches_of_uneven_environments():
    losses = [
        [
            envariant.train(
                right_and_wrong(),
                name,
                model="mlp(hidden=4)",
                steps=10,
                learning_rate=0.05,
                batch_size="full",
            )
            .final(environment, "loss")
            .mean
            for environment in ("right", "wrong")
        ]
        for name in ("erm", "erm++(head_steps=-1)", "trm(warm_up=1000)")
    ]
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], rel=1e-4)


@dataclass(frozen=True)
class Sizes(RiskAggregator):
    """Rows of the first environment, as a risk, so that it is recorded."""

    name = "sizes"
    paper = "none"

    def init(self, params, context):
        assert context.environment_names == ("inferred 1", "inferred 2")
        return {"sizes": torch.tensor(context.environment_sizes).float()}

    def risk(self, predicted, state):
        return state["sizes"][0] + 0 * predicted.risks.mean(), state


def test_inferred_environments_have_their_own_sizes():
    algorithm = Composition(Sizes(), environment_inference=EIIL(reference_steps=20))
    result = envariant.train(
        right_and_wrong(), algorithm, model="linear", steps=2, learning_rate=0.1, batch_size=4
    )
    recorded = {row.value for row in result.rows if row.metric == "risk"}
    # The first inferred environment holds the rows on which the reference model is right.
    assert recorded == {RIGHT}


def test_a_context_with_a_size_missing_is_rejected():
    with pytest.raises(
        EnvariantError, match="environment_sizes must have one entry per environment, got 1 for 2"
    ):
        TrainContext(("a", "b"), (3,), Binary())
