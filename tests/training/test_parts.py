"""Seeds, precision, augmentation, row blocks and the result's arithmetic."""

import math
import statistics

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import envariant
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression
from envariant.training import network, provenance
from envariant.training.augmentation import RandomAffine, augmentation, warp
from envariant.training.network import Network
from envariant.training.precision import native_bfloat16, resolve
from envariant.training.replicas import Seeds
from envariant.training.result import Spread

CPU = torch.device("cpu")


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 10**6))
def test_seeds_are_separate_repeatable_and_fit_their_generators(seed, replica, step):
    seeds = Seeds.of(seed, replica)
    assert seeds == Seeds.of(seed, replica)
    assert len({seeds.data, seeds.initialization, seeds.order}) == 3
    assert all(0 <= s < 2**32 for s in (seeds.data, seeds.initialization, seeds.order))
    assert 0 <= seeds.at(step) < 2**63
    assert seeds.at(step) != seeds.at(step + 1)


def test_neighboring_seeds_and_replicas_share_nothing():
    found = {
        (s.data, s.initialization, s.order)
        for seed in range(20)
        for k in range(20)
        for s in [Seeds.of(seed, k)]
    }
    assert len(found) == 400


def test_auto_precision_takes_bfloat16_only_where_it_pays():
    large, small = nn.Linear(256, 256), nn.Linear(8, 8)
    expected = "bfloat16" if native_bfloat16(CPU) else "float32"
    assert resolve("auto", CPU, large, Binary()) == expected
    assert resolve("auto", CPU, small, Binary()) == "float32"
    assert resolve("auto", CPU, large, Regression()) == "float32"
    assert resolve("bfloat16", CPU, small, Regression()) == "bfloat16"


def digits():
    return envariant.data.colored_digits().sample(0)["flip-0.9"].inputs[:20]


def test_augmentation_by_nothing_changes_nothing():
    images = digits()
    same = RandomAffine(0, 0, 0)(images, torch.rand(3, len(images)))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)


def test_augmentation_follows_its_random_numbers_for_each_image():
    images = digits()[:1].expand(6, -1, -1, -1)
    a, b, c = (
        RandomAffine()(images, torch.rand(3, 6, generator=torch.Generator().manual_seed(s)))
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert len({tuple(image.flatten().tolist()) for image in a}) == 6


@pytest.mark.parametrize(("height", "width"), [(11, 11), (9, 14)])
@pytest.mark.parametrize(
    ("angle", "shear", "scale"), [(0.4, 0, 1), (0, 0.3, 1), (0, 0, 1.3), (-0.7, 0.2, 0.8)]
)
def test_warp_is_the_documented_affine_map(height, width, angle, shear, scale):
    """Against scipy: first scale, then lean, then turn, about the center, counter-clockwise."""
    image = np.zeros((height, width), dtype=np.float32)
    image[3:6, 3:8] = np.linspace(0.2, 1, 15).reshape(3, 5)
    # In (x right, y up) coordinates.
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = turn @ np.array([[1, math.tan(shear)], [0, 1]]) * scale
    swap = np.array([[0, -1], [1, 0]])  # (x, y up) to (row down, column)
    inverse = swap @ np.linalg.inv(forward) @ np.linalg.inv(swap)
    center = np.array([(height - 1) / 2, (width - 1) / 2])
    expected = scipy.ndimage.affine_transform(
        image, inverse, offset=center - inverse @ center, order=1, mode="grid-constant"
    )
    one = [torch.tensor([float(v)]) for v in (angle, shear, scale)]
    ours = warp(torch.from_numpy(image)[None, None], *one)[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_background_of_standardized_images_is_preserved():
    images = digits() - 0.42
    warped = RandomAffine(45, 10, 0.3)(
        images, torch.rand(3, len(images), generator=torch.Generator().manual_seed(0))
    )
    assert float(warped.min()) >= float(images.min()) - 1e-5
    assert float(warped[:, :, 0, 0].mean()) == pytest.approx(-0.42, abs=0.05)


def test_augmentations_are_named_and_checked():
    assert augmentation(None) is None
    assert augmentation("affine(rotation=5)") == RandomAffine(rotation=5)
    with pytest.raises(EnvariantError, match="rotation must be in"):
        augmentation("affine(rotation=400)")
    with pytest.raises(EnvariantError, match="requires channels-first images"):
        RandomAffine()(torch.zeros(3, 4), torch.Generator())


def net(**changes):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    settings = {"needs_features": False, "input_shape": (6,)} | changes
    return Network(module, Binary(), "float32", CPU, **settings)


def test_row_blocks_change_nothing(monkeypatch):
    whole = net()
    monkeypatch.setattr(network, "_BLOCK_ROWS", (7, 7))
    cut = net()
    inputs = torch.randn(40, 6)
    a, b = (n.forward(n.params, n.buffers, inputs, training=True)[1] for n in (whole, cut))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_features_are_the_inputs_of_the_head_and_omitted_if_not_needed():
    module = envariant.models.model_config("mlp(hidden=4)").build((6,), 1)
    inputs = torch.randn(9, 6)
    for wanted, width in ((True, 4), (False, 0)):
        n = Network(module, Binary(), "float32", CPU, needs_features=wanted, input_shape=(6,))
        features, logits = n.forward(n.params, n.buffers, inputs, training=False)
        assert features.shape == (9, width)
        torch.testing.assert_close(logits, module(inputs)[:, 0])
    with pytest.raises(EnvariantError, match="needs the submodules featurizer and head"):
        net(needs_features=True)


@given(st.lists(st.floats(-1e3, 1e3), min_size=0, max_size=6))
def test_spread_is_a_mean_and_a_sample_standard_deviation(values):
    spread = Spread(tuple(values))
    assert (spread.sd is None) == (len(values) < 2)
    if values:
        assert spread.mean == pytest.approx(statistics.fmean(values))
    if len(values) > 1:
        assert spread.sd == pytest.approx(np.std(values, ddof=1))


def test_summary_shows_every_environment_and_the_worst_of_each_replica():
    result = envariant.train("colored-digits", "erm", steps=30, replicas=3)
    frame = result.summary()
    assert list(frame.index) == ["flip-0.2", "flip-0.1", "flip-0.9", "worst"]
    assert frame.loc["flip-0.9", "role"] == "test"
    last = result.history.query("step == 30 and metric == 'accuracy'")
    by_replica = last.pivot(index="replica", columns="environment", values="value")
    assert frame.loc["worst", "accuracy"] == pytest.approx(by_replica.min(axis=1).mean())
    assert frame.loc["flip-0.1", "accuracy sd"] == pytest.approx(by_replica["flip-0.1"].std())
    assert frame._repr_html_().startswith("<div")
    plain = result.to_dict()
    assert plain["environments"]["flip-0.9"]["role"] == "test"
    assert plain["environments"]["flip-0.9"]["accuracy"]["values"] == by_replica["flip-0.9"].tolist()
    assert {"algorithm", "data", "replicas", "worst", "options", "versions", "seconds"} <= plain.keys()


def test_frozen_weights_stay_frozen_even_under_weight_decay():
    module = nn.Sequential(nn.Flatten(), nn.Linear(128, 8), nn.ReLU(), nn.Linear(8, 1))
    module[1].requires_grad_(False)
    drawn = envariant.data.colored_digits().sample(0)
    result = envariant.train(drawn, "erm", model=module, steps=5, weight_decay=0.1)
    assert set(result.checkpoints[0].params) == {"3.weight", "3.bias"}
    assert torch.equal(result.checkpoints[0].buffers["1.weight"], module[1].weight)
    with pytest.raises(EnvariantError, match="has no parameters to train"):
        envariant.train(drawn, "erm", model=module.requires_grad_(False), steps=1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: None, "must be a torch.nn.Module, or return one; got NoneType"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), "must return 1 number"),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(256, 1)), "must return 1 number"),
    ],
)
def test_unsuitable_model_is_rejected(model, message):
    with pytest.raises(EnvariantError, match=message):
        envariant.train("colored-digits", "erm", model=model, steps=1)


@pytest.mark.parametrize(
    ("program", "on_progress"),
    [
        ("/opt/venv/bin/envariant", "envariant train --set 'l2=1 2'"),
        (r"envariant.exe", "envariant train --set 'l2=1 2'"),
        ("/site-packages/envariant/__main__.py", "envariant train --set 'l2=1 2'"),
        ("/home/someone/envariant/secret.py", ""),
        ("/home/someone/__main__.py", ""),
        ("-c", ""),
    ],
)
def test_result_stores_its_command_but_not_other_programs(monkeypatch, program, on_progress):
    monkeypatch.setattr("sys.argv", [program, "train", "--set", "l2=1 2"])
    assert provenance.command() == on_progress
