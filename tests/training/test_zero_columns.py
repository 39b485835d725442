"""Zero columns are found from the data, and skipping them changes results only by rounding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import grad

import envariant
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.tasks import Binary
from envariant.models import model_config
from envariant.training import step_program, zero_columns
from envariant.training.network import Network
from envariant.training.pure_model import PureModel
from envariant.training.zero_columns import RowGroups, first_weights, row_groups


def colored(rows, seed=0, channels=2, size=6, dark=1):
    """Return images with one nonzero channel each, whose first `dark` rows of pixels are zero."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(rows, channels, size, size, generator=generator) + 0.1
    images[:, :, :dark] = 0
    colors = torch.randint(channels, (rows,), generator=generator)
    return images * (torch.arange(channels) == colors[:, None])[:, :, None, None]


def environments(rows=1500):
    """Return two training environments and a test environment of colored images."""
    parts = [colored(rows, e) for e in range(3)]
    generator = torch.Generator().manual_seed(9)
    labels = [
        (x[:, 0].mean(dim=(1, 2)) + 0.05 * torch.randn(len(x), generator=generator) > 0.2).float()
        for x in parts
    ]
    own = [Environment(n, x, y) for n, x, y in zip("abc", parts, labels, strict=True)]
    return EnvironmentSet("colored", tuple(own), Binary(), test=("c",))


def complete(groups, columns):
    """Return the inputs from which groups were made."""
    parts = []
    for inputs, own in zip(groups.inputs, groups.columns, strict=True):
        part = torch.zeros(len(inputs), columns)
        part[:, own] = inputs
        parts.append(part)
    return torch.cat(parts)[groups.positions]


def test_colors_and_dark_pixels_are_found_and_nothing_is_lost():
    images = colored(3000)
    groups = row_groups(images)
    assert sorted(len(own) for own in groups.columns) == [30, 30]
    assert torch.equal(complete(groups, 72), images.flatten(1))
    again = RowGroups.from_tensors(groups.tensors())
    assert torch.equal(complete(again, 72), images.flatten(1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([4, 6, 12]), st.booleans())
def test_any_pattern_of_zeros_is_restored(seed, parts, width, flat):
    generator = torch.Generator().manual_seed(seed)
    filled = torch.rand(3000, parts, 1, generator=generator) > 0.5
    values = torch.randn(3000, parts, width, generator=generator) * filled
    values = values * (torch.rand(parts, width, generator=generator) > 0.3)
    groups = row_groups(values.flatten(1) if flat else values)
    if groups is not None:
        assert torch.equal(complete(groups, parts * width), values.flatten(1))
        kept = sum(x.numel() for x in groups.inputs)
        assert kept <= 0.9 * values.numel()


def test_dense_inputs_and_few_rows_are_left_alone():
    assert row_groups(torch.ones(3000, 2, 6, 6)) is None
    assert row_groups(colored(2000)) is None


class Centered(nn.Flatten):
    def forward(self, inputs):
        return super().forward(inputs) - 0.5


def mlp():
    return model_config("mlp(hidden=32)").build((2, 6, 6), 1)


def own_mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 40), nn.Tanh(), nn.Linear(40, 1))


def tied():
    module = nn.Sequential(nn.Flatten(), nn.Linear(72, 72), nn.Tanh(), nn.Linear(72, 72))
    module[3].weight = module[1].weight
    return module


def twice():
    layer = nn.Linear(72, 72)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer)


def hooked():
    module = own_mlp()
    module[1].register_forward_pre_hook(lambda _, inputs: (inputs[0] - 0.5,))
    return module


def test_the_first_layer_is_found():
    name = first_weights(mlp(), (2, 6, 6))
    assert dict(mlp().named_parameters())[name].shape == (32, 72)
    assert first_weights(own_mlp(), (2, 6, 6)) == "1.weight"


@pytest.mark.parametrize(
    "module",
    [
        model_config("linear").build((2, 6, 6), 1),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(72, track_running_stats=False), nn.Linear(72, 40)),
        nn.Sequential(nn.Flatten(), nn.Linear(72, 40), nn.BatchNorm1d(40, track_running_stats=False)),
        nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Flatten(), nn.Linear(480, 1)),
        nn.Sequential(nn.Flatten(1, 2), nn.Linear(6, 40), nn.Flatten(), nn.Linear(480, 1)),
        nn.Sequential(nn.Flatten(), nn.Linear(72, 8)),
        nn.Sequential(Centered(), nn.Linear(72, 40)),
        nn.Sequential(nn.Conv2d(2, 40, 3), nn.Flatten(), nn.Linear(640, 1)),
        tied(),
        twice(),
        hooked(),
    ],
    ids=str,
)
def test_layers_whose_weights_do_not_only_multiply_all_inputs_are_refused(module):
    assert first_weights(module, (2, 6, 6)) is None


@pytest.fixture
def uses(monkeypatch):
    """List, for every forward pass of a training step, whether it skips zeros."""
    seen = []
    outputs = Network.outputs

    def noted(self, *values, training, groups=None, **named):
        if training:
            seen.append(groups is not None)
        return outputs(self, *values, training=training, groups=groups, **named)

    monkeypatch.setattr(Network, "outputs", noted)
    return seen


def trained(algorithm, **options):
    options = {"model": "mlp(hidden=32)", "steps": 6, "learning_rate": 1e-2, "evaluate_every": 6} | options
    return envariant.train(environments(), algorithm, **options)


@pytest.mark.parametrize("algorithm", ["erm(l2=0.01)", "irm(coefficient=10)", "vrex(coefficient=10)"])
@pytest.mark.parametrize("execution", ["sequential", "stacked"])
@pytest.mark.parametrize("recorded", [False, True])
def test_training_without_zeros_equals_training_with_them(uses, monkeypatch, algorithm, execution, recorded):
    monkeypatch.setattr(step_program, "_WORTH_RECORDING", 1 if recorded else 10**9)
    quick = trained(algorithm, execution=execution, replicas=2)
    assert uses
    assert all(uses)
    uses.clear()
    monkeypatch.setattr(zero_columns, "_LEAST_SAVED", 1.1)
    slow = trained(algorithm, execution=execution, replicas=2)
    assert uses
    assert not any(uses)
    for k in quick.finished:
        ours, theirs = (dict(result.model(k).named_parameters()) for result in (quick, slow))
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def test_bfloat16_agrees_to_its_precision(uses, monkeypatch):
    options = {"precision": "bfloat16"}
    quick = trained("vrex(coefficient=10)", **options)
    assert all(uses)
    monkeypatch.setattr(zero_columns, "_LEAST_SAVED", 1.1)
    slow = trained("vrex(coefficient=10)", **options)
    for ours, theirs in zip(quick.model(0).parameters(), slow.model(0).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=5e-3)


def test_derivatives_with_respect_to_the_inputs_use_all_columns():
    images = colored(3000)
    net = Network(
        mlp(), Binary(), "float32", torch.device("cpu"), needs_features=False, input_shape=(2, 6, 6)
    )
    groups = row_groups(images)
    pure = PureModel(net, net.params, net.buffers, images, 1, torch.tensor(0), groups)
    complete_one = PureModel(net, net.params, net.buffers, images, 1, torch.tensor(0))

    def slope(model, params):
        return grad(lambda x: model(params, x)[1].sum())(images)

    torch.testing.assert_close(slope(pure, net.params), slope(complete_one, net.params))
    assert slope(pure, net.params).abs().sum() > 0
    # Nested: the gradient of a penalty on the derivatives.
    ours, theirs = (
        grad(lambda params, m=m: slope(m, params).square().mean())(net.params) for m in (pure, complete_one)
    )
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_weights_of_columns_that_are_always_zero_stay_exact():
    result = trained("vrex(coefficient=10)")
    start = trained("vrex(coefficient=10)", steps=1, evaluate_every=1, learning_rate=1e-30)
    name = first_weights(result.model(0), (2, 6, 6))
    dark = (colored(10) == 0).all(dim=0).flatten()
    ours, initial = (dict(each.model(0).named_parameters())[name][:, dark] for each in (result, start))
    assert dark.sum() == 12
    assert torch.equal(ours, initial)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("fishr", {}),  # needs features
        ("vrex + and-mask", {}),
        ("mixup", {}),
        ("erm", {"batch_size": 64}),
        ("erm", {"model": "mlp(hidden=32, dropout=0.2)"}),
        ("erm", {"model": "mlp(hidden=32, batch_norm=true)"}),
        ("sd", {"model": "linear"}),
    ],
)
def test_zeros_are_not_skipped_where_it_is_not_supported(uses, algorithm, options):
    trained(algorithm, **options)
    assert uses
    assert not any(uses)
