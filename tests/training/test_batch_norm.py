"""BatchNorm in training: frozen statistics, and statistics of the batch of each step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import envariant
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.training import step_program
from envariant.training.network import Network
from tests.training.test_stacking import made

NORMS = ("featurizer.2", "head.0")


class Normalized(nn.Module):
    """Network with BatchNorm in the featurizer and in the head; its statistics are not those of new layers."""

    def __init__(self):
        super().__init__()
        convolution = (
            nn.Unflatten(1, (1, 2, 3)),
            nn.Conv2d(1, 3, 2),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.featurizer = nn.Sequential(*convolution)
        self.head = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1))

    def forward(self, inputs):
        return self.head(self.featurizer(inputs))


def started():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Normalized()
        module.train()(torch.randn(50, 6))
    return module


def trained(algorithm="erm", **options):
    usual = {"steps": 5, "learning_rate": 0.1, "batch_size": "full", "optimizer": "sgd(momentum=0.9)"}
    return envariant.train(
        made(Binary(), 1),
        algorithm,
        model=started,
        precision="float32",
        progress=False,
        **{**usual, **options},
    )


@pytest.mark.parametrize("execution", ["sequential", "stacked"])
@pytest.mark.parametrize("algorithm", ["erm", "irm(coefficient=0)"])
def test_frozen_batch_norm_equals_a_plain_loop_in_evaluation_mode(algorithm, execution):
    result = trained(algorithm, freeze="batch-norm", replicas=2, execution=execution)
    source, plain = made(Binary(), 1), started()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        plain.eval()
        optimizer.zero_grad()
        losses = [
            F.binary_cross_entropy_with_logits(plain(source[e].inputs)[:, 0], source[e].targets) for e in "ab"
        ]
        torch.stack(losses).mean().backward()
        optimizer.step()
    for k in range(2):
        state = result.checkpoints[k]
        for name, value in plain.named_parameters():
            torch.testing.assert_close(state.params[name], value.detach(), rtol=1e-5, atol=1e-6)
        assert all(torch.equal(state.buffers[name], value) for name, value in started().named_buffers())
        assert not torch.equal(state.params["head.0.weight"], started().head[0].weight)


def test_frozen_statistics_also_belong_to_averaged_weights_and_soups():
    result = trained(
        freeze="batch-norm", average="ema(0.5)", replicas=2, shared_init=True, batch_size=16,
        holdout_fraction=0.2,
    )  # fmt: skip
    soup = envariant.soup(result, "uniform").result
    for state in (*result.checkpoints.values(), *soup.checkpoints.values()):
        assert all(torch.equal(state.buffers[name], value) for name, value in started().named_buffers())


def test_frozen_batch_norm_needs_batch_norm():
    with pytest.raises(EnvariantError, match="freeze: model FeaturizerAndHead has no BatchNorm layers"):
        envariant.train(
            made(Binary(), 1), model="mlp(hidden=4)", freeze="batch-norm", steps=1, progress=False
        )


def test_pretraining_trains_statistics_that_then_keep_their_bits():
    once, more = (trained(init="erm(steps=3)", freeze="features + batch-norm", steps=n) for n in (1, 4))
    for name in NORMS:
        key = f"{name}.running_mean"
        early, late = (each.checkpoints[0].buffers[key] for each in (once, more))
        assert torch.equal(early, late)
        assert not torch.equal(early, started().get_buffer(key))


@pytest.mark.parametrize(("algorithm", "passes"), [("erm", 1), ("miro(weight=0)", 2), ("mldg(beta=0)", 3)])
@pytest.mark.parametrize("recorded", [False, pytest.param(True, marks=pytest.mark.verify)])
def test_statistics_are_those_of_one_pass_per_step_on_the_batch(algorithm, passes, recorded, monkeypatch):
    """The algorithm's own pass is used; MLDG has none on the whole batch, and gets a further one."""
    count, outputs = [0], Network.outputs

    def counted(self, *arguments, training, **options):
        count[0] += training
        return outputs(self, *arguments, training=training, **options)

    monkeypatch.setattr(Network, "outputs", counted)
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1 if recorded else 10**9)
    for how, replicas in (("sequential", 1), ("stacked", 2)):
        count[0], plain = 0, started()
        result = trained(algorithm, steps=1, replicas=replicas, execution=how)
        if not recorded and how == "sequential":
            assert count[0] == passes
        source = made(Binary(), 1)
        plain.train()(torch.cat([source[e].inputs for e in "ab"]))
        for name, value in plain.named_buffers():
            torch.testing.assert_close(result.checkpoints[0].buffers[name], value, rtol=1e-6, atol=1e-6)


def test_a_batch_of_one_row_per_environment_is_one_clear_error():
    settings = {"model": "mlp(hidden=4, batch_norm=true)", "batch_size": 1, "steps": 1}
    with pytest.raises(
        EnvariantError, match="BatchNorm layers need at least two rows .* increase batch_size"
    ):
        envariant.train("colored-digits", "and-mask", **settings)
