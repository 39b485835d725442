"""Model families: the networks that the papers name, for the shapes at hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.models import MLP, MNISTCNN, MODELS, EfficientNetLite0, LeNet, Linear, Timm, model_config
from envariant.models.dropout import Dropout
from envariant.training.model_builder import model_builder
from envariant.training.run_config import built


def count(model):
    return sum(p.numel() for p in model.parameters())


def lenet_count(channels, size, outputs):
    left = (size // 2 - 4) // 2
    convolutions = 6 * (25 * channels + 1) + 16 * (25 * 6 + 1) + 120 * (left**2 * 16 + 1)
    return convolutions + 84 * (120 + 1) + outputs * (84 + 1)


def mnist_cnn_count(channels, outputs):
    widths = (channels, 64, 128, 128, 128)
    # A 3×3 kernel and a bias, then the scale and shift of the group norm.
    return sum(b * (9 * a + 1) + 2 * b for a, b in pairwise(widths)) + outputs * (128 + 1)


@pytest.mark.parametrize(
    ("text", "shape", "outputs", "parameters"),
    [
        ("linear", (2, 14, 14), 1, 393),
        ("linear", (7,), 3, 24),
        ("mlp", (2, 14, 14), 1, 393 * 390 + 391 * 390 + 391),
        ("mlp(hidden=256, depth=3)", (5,), 2, 6 * 256 + 2 * 257 * 256 + 257 * 2),
        ("mlp(hidden=(8, 4))", (1, 3, 3), 1, 10 * 8 + 9 * 4 + 5),
        ("lenet", (1, 28, 28), 10, 61_706),  # LeNet-5 as every textbook counts it.
        ("lenet", (2, 14, 14), 1, lenet_count(2, 14, 1)),
        ("lenet", (3, 28, 28), 2, lenet_count(3, 28, 2)),
        ("lenet", (1, 12, 12), 1, lenet_count(1, 12, 1)),
        ("mnist-cnn", (2, 28, 28), 2, mnist_cnn_count(2, 2)),
        ("mnist-cnn", (3, 8, 8), 1, mnist_cnn_count(3, 1)),
    ],
)
def test_parameters_are_counted_by_closed_form_and_outputs_have_their_shape(text, shape, outputs, parameters):
    model = model_config(text).build(shape, outputs)
    assert count(model) == parameters
    assert model(torch.zeros(3, *shape)).shape == (3, outputs)


@pytest.mark.parametrize("family", [Linear(), MLP()], ids=str)
def test_linear_layers_are_xavier_uniform_with_zero_biases(family):
    torch.manual_seed(0)
    layers = [m for m in family.build((2, 14, 14), 10).modules() if isinstance(m, nn.Linear)]
    assert layers
    for layer in layers:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        largest = float(layer.weight.detach().abs().max())
        assert 0.99 * bound < largest <= bound
        assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not bool(layer.bias.any())


def layers(model, *kinds):
    return [m for m in model.modules() if isinstance(m, kinds)]


def test_lenet_has_three_convolutions_two_poolings_and_two_fully_connected_layers():
    model = LeNet().build((3, 28, 28), 1)
    kinds = [type(m) for m in layers(model, nn.Conv2d, nn.MaxPool2d, nn.Linear)]
    assert kinds == [nn.Conv2d, nn.MaxPool2d, nn.Conv2d, nn.MaxPool2d, nn.Conv2d, nn.Linear, nn.Linear]
    assert [(c.out_channels, c.kernel_size) for c in layers(model, nn.Conv2d)] == [
        (6, (5, 5)), (16, (5, 5)), (120, (5, 5)),
    ]  # fmt: skip
    assert [(m.in_features, m.out_features) for m in layers(model, nn.Linear)] == [(120, 84), (84, 1)]


def test_mnist_cnn_is_domainbeds_list_of_layers():
    model = MNISTCNN().build((2, 28, 28), 2)
    convolutions = layers(model, nn.Conv2d)
    assert [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions] == [
        (2, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1),
    ]  # fmt: skip
    assert {(c.kernel_size, c.padding) for c in convolutions} == {((3, 3), (1, 1))}
    assert [(n.num_groups, n.num_channels) for n in layers(model, nn.GroupNorm)] == [
        (8, 64), (8, 128), (8, 128), (8, 128),
    ]  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_mnist_cnn_computes_what_plain_layers_compute_and_has_their_gradients(channels):
    """Its first convolution is written as a product of matrices, its means in another order."""
    model = MNISTCNN().build((channels, 12, 10), 2)
    plain, width = [], channels
    for wide, stride in ((64, 1), (128, 2), (128, 1), (128, 1)):
        plain += [nn.Conv2d(width, wide, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(8, wide)]
        width = wide
    theirs = nn.Sequential(*plain, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)).double()
    ours = model.double()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data.copy_(mine)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, channels, 12, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = [network(images) for network in (ours, theirs)]
    torch.testing.assert_close(*outputs)
    gradients = [
        torch.autograd.grad(output.sin().sum(), [images, *network.parameters()])
        for output, network in zip(outputs, (ours, theirs), strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_mnist_cnn_activations_are_contiguous_for_the_norm():
    """A convolution of so few channels would have them copied, which took longer than itself."""
    first = MNISTCNN().build((2, 12, 10), 2).featurizer[0]
    images = torch.rand(3, 2, 12, 10, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = first(images)
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous()
    exact = nn.functional.conv2d(images, first.weight, first.bias, padding=1)
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


def test_mnist_cnn_accepts_an_empty_batch():
    assert MNISTCNN().build((2, 12, 10), 3)(torch.rand(0, 2, 12, 10)).shape == (0, 3)


ALL = ["linear", "mlp(hidden=12)", "lenet", "mnist-cnn"]


def test_every_model_is_tested():
    # Networks of timm have a file of their own.
    assert {*(type(model_config(text)) for text in ALL), Timm, EfficientNetLite0} == set(MODELS.values())


@pytest.mark.parametrize("text", ALL)
def test_featurizer_and_head_compose_to_the_output_and_features_are_flat(text):
    model = model_config(text).build((2, 14, 14), 3)
    images = torch.rand(5, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    features = model.featurizer(images)
    assert features.shape == (5, model.head.in_features)
    assert torch.equal(model.head(features), model(images))


@pytest.mark.parametrize("text", ALL)
def test_initial_weights_depend_on_the_torch_seed_only(text):
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(model_config(text).build((2, 14, 14), 1).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("text", ALL)
def test_rows_of_a_batch_are_independent(text):
    model = model_config(text).build((2, 14, 14), 1)
    images = torch.rand(5, 2, 14, 14, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (Linear(), "linear"),
        (MLP(), "mlp"),
        (MLP(hidden=256), "mlp(hidden=256)"),
        (MLP(256, 3), "mlp(hidden=256, depth=3)"),
        (MLP(hidden=(8, 4)), "mlp(hidden=(8, 4))"),
        (MLP(activation="tanh", dropout=0.2), "mlp(activation=tanh, dropout=0.2)"),
        (LeNet(), "lenet"),
        (MNISTCNN(), "mnist-cnn"),
    ],
)
def test_text_round_trip_preserves_a_model(family, text):
    assert str(family) == text
    assert model_config(text) == family


def test_settings_may_go_without_a_key():
    assert model_config("mlp(64, 1)") == MLP(64, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lenett",
            "unknown model 'lenett'; did you mean 'lenet'? known: efficientnet-lite0, lenet, linear, mlp, mnist-cnn, timm",
        ),
        (
            "mlp(hiden=3)",
            "mlp: unknown setting 'hiden'; did you mean 'hidden'? known: activation, batch_norm, depth, dropout, dropout_position, hidden, init",
        ),
        ("mlp(hidden=0)", "mlp: hidden widths must be whole numbers of at least 1; got 0"),
        ("mlp(hidden=())", "mlp: hidden widths must be whole numbers of at least 1; got ()"),
        (
            "mlp(hidden=(3, wide))",
            "mlp: hidden must be a whole number, or several in parentheses; got (3, wide)",
        ),
        ("mlp(hidden=2.5)", "mlp: hidden must be a whole number, or several in parentheses; got 2.5"),
        ("mlp(activation=gelu)", "mlp: activation must be relu or leaky-relu or tanh; got gelu"),
        ("mlp(dropout=1)", "mlp: dropout must be in [0, 1), got 1"),
        ("mlp(1, 2, 3)", "mlp: takes at most 2 unnamed values; got 3"),
    ],
)
def test_an_invalid_model_is_rejected(text, message):
    with pytest.raises(EnvariantError) as refusal:
        model_config(text)
    assert str(refusal.value) == message


def test_mlp_options_give_the_described_layers():
    torch.manual_seed(0)
    options = "activation=leaky-relu, dropout=0.5, dropout_position=before, init=kaiming-normal"
    model = model_config(f"mlp(hidden=400, {options})").build((300,), 1)
    _, first, dropout, activation, second, *_ = model.featurizer
    assert (type(dropout), dropout.p, type(activation), activation.negative_slope) == (
        Dropout,
        0.5,
        nn.LeakyReLU,
        0.01,
    )
    for layer, inputs in ((first, 300), (second, 400)):
        assert layer.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.02)
        assert layer.weight.mean().abs().item() < 0.002
    assert all(torch.equal(m.bias, torch.full_like(m.bias, 0.01)) for m in (first, second, model.head))
    after = model_config("mlp(hidden=4, dropout=0.5, activation=tanh)").build((3,), 1).featurizer
    assert [type(part) for part in after[2:4]] == [nn.Tanh, Dropout]


def test_dropout_outside_of_a_run_is_that_of_torch():
    inputs = torch.rand(50, 6)
    layer, theirs = Dropout(0.3), nn.Dropout(0.3)
    torch.manual_seed(1)
    ours = layer(inputs)
    torch.manual_seed(1)
    assert torch.equal(ours, theirs(inputs))
    assert torch.equal(layer.eval()(inputs), inputs)


@pytest.mark.parametrize("depth", ["0", "-1", "1.5", "deep"])
def test_a_noninteger_depth_is_rejected(depth):
    with pytest.raises(EnvariantError, match=r"^mlp: depth must be"):
        model_config(f"mlp(depth={depth})")


def test_a_model_without_settings_rejects_settings():
    with pytest.raises(EnvariantError, match=r"^lenet: "):
        model_config("lenet(1)")


@pytest.mark.parametrize("shape", [(5,), (2, 28), (1, 11, 11), (2, 14, 28)])
def test_lenet_rejects_inputs_that_are_not_square_images(shape):
    with pytest.raises(EnvariantError) as refusal:
        LeNet().build(shape, 1)
    assert str(refusal.value) == (
        f"lenet: requires square, channels-first images [channels, height, width] of at least 12×12 pixels; got inputs of shape {shape} "
        "(mlp accepts any shape)"
    )


@pytest.mark.parametrize("shape", [(5,), (28, 28)])
def test_mnist_cnn_rejects_inputs_that_are_not_images(shape):
    with pytest.raises(EnvariantError) as refusal:
        MNISTCNN().build(shape, 1)
    assert str(refusal.value) == (
        f"mnist-cnn: requires channels-first images [channels, height, width]; got inputs of shape {shape}"
    )


@pytest.mark.parametrize("family", [Linear(), MLP(7, depth=3), LeNet(), MNISTCNN()], ids=str)
def test_size_is_counted_without_memory_and_without_random_numbers(family):
    before = torch.get_rng_state()
    size = family.size((1, 12, 12), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert size == sum(value.numel() for value in family.build((1, 12, 12), 3).parameters())


def test_size_of_a_network_far_beyond_any_memory():
    assert MLP(10**9).size((4,), 1) == pytest.approx(1e18, rel=1e-6)
    assert MLP((4, 2**99)).size((4,), 1) == math.inf
    with pytest.raises(EnvariantError, match=r"^memory: mlp\(hidden=1000000000\) for inputs of shape \(4,\)"):
        model_builder("mlp(hidden=1000000000)")((4,), 1)


def test_a_user_network_that_does_not_fit_is_one_sentence():
    with pytest.raises(EnvariantError, match="^memory: the network does not fit; use a smaller one$"):
        built(lambda _shape, _outputs: nn.Linear(2**40, 2**40), (4,), 1)
