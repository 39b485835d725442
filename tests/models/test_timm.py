"""Networks of timm. It is a stand-in that is asked here: its names, its widths, and how it fails."""

import types

import pytest
import torch
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.models import FeaturizerAndHead, Timm, model_config
from envariant.models import timm as family
from envariant.training.train import train


class Backbone(nn.Module):
    """Statistics that run, a width that is not the one it is called by, and one size if it is asked for."""

    def __init__(self, channels, size):
        super().__init__()
        self.size, self.num_features = size, 99
        self.convolution = nn.Conv2d(channels, 5, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, images):
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            raise AssertionError(f"Input height ({images.shape[2]}) doesn't match model ({self.size[0]}).")
        return torch.relu(self.norm(self.convolution(images))).mean(dim=(2, 3))


@pytest.fixture
def asked(monkeypatch):
    """What the stand-in was asked for, call by call."""
    calls = []

    def create_model(name, **settings):
        calls.append((name, settings))
        if settings["pretrained"]:
            raise OSError("cannot find the requested files\nin the cache")
        return Backbone(
            settings["in_chans"], settings.get("img_size", (16, 16) if name == "stubborn" else None)
        )

    stand_in = types.SimpleNamespace(
        is_model=lambda name: name in ("resnet18", "vit_tiny", "stubborn"),
        list_models=lambda: ["resnet18", "resnet34", "stubborn", "vit_tiny"],
        get_pretrained_cfg=lambda name: types.SimpleNamespace(fixed_input_size=name == "vit_tiny"),
        create_model=create_model,
    )
    monkeypatch.setattr(family, "import_module", {"timm": stand_in}.__getitem__)
    return calls


def refusal(call, *arguments):
    with pytest.raises(EnvariantError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 64, 64), (1, 20, 33)])
def test_the_head_has_the_width_of_the_features(asked, shape):
    model = Timm().build(shape, 7)
    assert isinstance(model, FeaturizerAndHead)
    assert asked == [("resnet18", {"pretrained": False, "num_classes": 0, "in_chans": shape[0]})]
    assert (model.head.in_features, model.head.out_features) == (5, 7)
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


def test_measuring_leaves_running_statistics_and_ends_in_training(asked):
    model = Timm().build((3, 8, 8), 1)
    assert model.featurizer.norm.num_batches_tracked == 0
    assert all(module.training for module in model.modules())


def test_fixed_size_networks_are_built_for_the_image_size(asked):
    Timm("vit_tiny").build((3, 48, 32), 1)
    assert asked[0][1]["img_size"] == (48, 32)


def test_a_network_with_running_statistics_trains(asked):
    result = train("colored-digits", "erm", model="timm(resnet18)", steps=2, batch_size=8, evaluate_every=2)
    assert result.record.spec.model == "timm(resnet18)"


@pytest.mark.parametrize(
    ("text", "built", "name"),
    [
        ("timm", Timm(), "timm"),
        ("timm(resnet18, pretrained=false)", Timm(), "timm"),
        (
            "timm(resnet50, pretrained=true)",
            Timm("resnet50", True),
            "timm(architecture=resnet50, pretrained=true)",
        ),
        ("timm('vit.in1k')", Timm("vit.in1k"), "timm(architecture='vit.in1k')"),
    ],
)
def test_text_round_trip_preserves_a_model(text, built, name):
    assert model_config(text) == built
    assert str(built) == name
    assert model_config(name) == built


def test_invalid_inputs_and_architectures_are_rejected(asked):
    assert (
        refusal(Timm().build, (12,), 1)
        == "timm: requires channels-first images [channels, height, width]; got inputs of shape (12,)"
    )
    assert refusal(Timm("resnet19").build, (3, 8, 8), 1) == (
        "timm: unknown timm architecture 'resnet19'; did you mean 'resnet18'? known: resnet18, resnet34"
    )
    assert refusal(Timm("stubborn").build, (3, 8, 8), 1) == (
        "timm: stubborn cannot take inputs of shape (3, 8, 8) (Input height (8) doesn't match model (16).)"
    )
    assert refusal(Timm(pretrained=True).build, (3, 8, 8), 1) == (
        "timm: resnet18 cannot be built for inputs of shape (3, 8, 8) (cannot find the requested files); is there "
        "a connection? pretrained=false needs none"
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'timm'"), "timm: cannot be imported (No module named 'timm'); "
         "pip install 'envariant[vision]'"),
        (RuntimeError("operator torchvision::nms does not exist"), "timm: cannot be imported (operator "
         "torchvision::nms does not exist); torchvision must match torch: pip install --upgrade torch torchvision "
         "'envariant[vision]'"),
    ],
)  # fmt: skip
def test_a_missing_timm_is_explained(monkeypatch, error, message):
    def fail(name):
        raise error

    monkeypatch.setattr(family, "import_module", fail)
    assert refusal(Timm().build, (3, 8, 8), 1) == message
