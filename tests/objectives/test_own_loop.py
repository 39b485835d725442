"""A plain training loop with `envariant.objective` and `EnvironmentSampler` against the engine's runs."""

import pytest
import torch
from torch import nn

import envariant
from envariant.algorithms import as_algorithm
from envariant.core.counter_rng import private_random_numbers
from envariant.models import MLP
from envariant.training.replicas import Seeds

STEPS = 20
SEEDS = Seeds.of(0, 0)
ALGORITHMS = {
    "irm": "irm(coefficient=step(1, 1e4, at=10), l2=0.001)",
    "vrex": "vrex(coefficient=step(1, 1e4, at=10), l2=0.001, pairwise=true, risk_aggregator=sum)",
}


def rows_of(source):
    """Return inputs, targets and environment numbers of the training rows of the engine's data draw."""
    data = source.sample(SEEDS.data)
    training = [data[name] for name, role in data.roles().items() if role == "train"]
    inputs = torch.cat([e.input_store.decode(e.input_store.gather()) for e in training])
    numbers = torch.cat([torch.full((len(e),), k) for k, e in enumerate(training)])
    return inputs, torch.cat([e.targets for e in training]), numbers


def initialized(source, hidden):
    with private_random_numbers(SEEDS.initialization, torch.device("cpu")):
        return MLP(hidden=hidden).build(source.sample(SEEDS.data).input_shape, 1)


def engine_run(source, algorithm, hidden, **options):
    return envariant.train(
        source, algorithm, model=f"mlp(hidden={hidden})", steps=STEPS, learning_rate=1e-3, precision="float32",
        evaluate_every=1, progress=False, replicas=1, seed=0, **options,
    )  # fmt: skip


def agree(source, algorithm, hidden):
    """Compare risk and penalty of every step, and the accuracies after the last one."""
    result = engine_run(source, algorithm, hidden)
    history = result.history[result.history.role == "batch"]
    inputs, targets, environments = rows_of(source)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3))
    inputs, targets, environments = inputs[order], targets[order], environments[order]
    model = initialized(source, hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    objective = envariant.objective(algorithm)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = objective(model(inputs), targets, environments, model=model, step=step)
        loss.backward()
        optimizer.step()
        recorded = history[history.step == step + 1].set_index("metric").value
        for name, value in objective.metrics().items():
            if name in recorded:
                assert value == pytest.approx(recorded[name], rel=1e-3, abs=1e-6), (step, name)
    with torch.no_grad():
        logits = model(inputs), result.model()(inputs)
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_plain_loop_follows_the_engine_step_by_step(name):
    agree(envariant.data.colored_digits(), ALGORITHMS[name], hidden=32)


@pytest.mark.verify
@pytest.mark.parametrize("name", ALGORITHMS)
def test_plain_loop_follows_the_engine_on_colored_mnist(name):
    agree(envariant.data.colored_mnist("irm"), ALGORITHMS[name], hidden=390)


def test_sampler_and_accumulation_give_the_minibatches_of_the_engine():
    """GroupDRO's weights change with every batch, MMD draws random numbers; two batches form one update."""
    # An object, because the data suggest hyperparameters for algorithms given by name.
    source, algorithm = envariant.data.colored_digits(), as_algorithm("groupdro(rate=0.1) + mmd(max_rows=4)")
    result = engine_run(source, algorithm, 16, batch_size=8, accumulate=2)
    inputs, targets, environments = rows_of(source)
    model = initialized(source, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    objective = envariant.objective(algorithm, seed=SEEDS.order)
    sampler = envariant.EnvironmentSampler(environments, batch_size=8, batches=2 * STEPS, seed=SEEDS.order)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, targets, environments), batch_sampler=sampler
    )
    for number, (x, y, e) in enumerate(loader):
        features = model.featurizer(x)
        loss = objective(model.head(features), y, e, features=features, step=number // 2)
        (loss / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    for expected, parameter in zip(result.model().parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter, nn.Parameter(expected), rtol=1e-4, atol=1e-5)
