"""Features of frozen backbones: extraction, cache, resumption, and training on them."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import nn

from envariant import data
from envariant.core import specs
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.tasks import Binary
from envariant.features import Features, feature_file
from envariant.features.feature_file import features_in
from envariant.features.tables import ImageEncoder, image_table
from envariant.models.base import FeaturizerAndHead
from envariant.studies.study import Study
from envariant.training.batch_sampler import BatchSampler, Rows
from envariant.training.store import Store
from envariant.training.train import train


class Backbone(nn.Module):
    """Six features of an image of 3×4×4 pixels; it counts the rows that pass."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(48, 6, generator=generator))
        self.rows = 0

    def forward(self, images):
        self.rows += len(images)
        return torch.tanh(images.flatten(1) @ self.weight)


def images(seed=0, rows=50):
    generator = torch.Generator().manual_seed(seed)
    environments = []
    for name in ("a", "b", "c"):
        pixels = torch.rand(rows, 3, 4, 4, generator=generator)
        targets = (pixels.mean(dim=(1, 2, 3)) > 0.5).float()
        environments.append(Environment(name, pixels, targets))
    return EnvironmentSet("squares", tuple(environments), Binary())


def test_features_equal_those_of_the_backbone_and_are_computed_once(tmp_path):
    backbone, source = Backbone(), images()
    features = Features(source, backbone, cache=tmp_path, batch_size=16, standardize=False)
    sample = features.sample(0)
    for environment in source.environments:
        expected = torch.tanh(environment.inputs.flatten(1) @ backbone.weight)
        torch.testing.assert_close(sample[environment.name].inputs, expected.detach())
        torch.testing.assert_close(sample[environment.name].targets, environment.targets)
    # Two rows measure the width.
    assert backbone.rows == 152
    assert features.extraction.rows == 150
    assert features.sample(1) is sample
    again = Features(source, Backbone(), cache=tmp_path)
    assert again.extraction.rows == 0
    assert again.extraction.stored == 150


def test_other_rows_or_weights_are_extracted_again(tmp_path):
    Features(images(), Backbone(), cache=tmp_path).sample(0)
    changed = Backbone()
    with torch.no_grad():
        changed.weight[0, 0] += 1e-3
    for source, backbone in ((images(), changed), (images(seed=1), Backbone())):
        assert Features(source, backbone, cache=tmp_path).extraction.rows == 150


def test_standardization_is_fitted_on_training_environments_only(tmp_path):
    features = Features(images(), Backbone(), cache=tmp_path)
    sample = features.with_test_environments(("c",)).sample(0)
    training = torch.cat([sample["a"].inputs, sample["b"].inputs])
    torch.testing.assert_close(training.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(training.std(dim=0, unbiased=False), torch.ones(6), atol=1e-5, rtol=0)
    whole = features.with_test_environments(()).sample(0)
    assert not torch.allclose(whole["c"].inputs, sample["c"].inputs)
    assert (
        features.with_test_environments(("c",)).identity() != features.with_test_environments(()).identity()
    )


def test_components_are_those_of_the_training_environments(tmp_path):
    features = Features(images(), Backbone(), cache=tmp_path, components=4)
    sample = features.with_test_environments(("c",)).sample(0)
    raw = Features(images(), Backbone(), cache=tmp_path, standardize=False).sample(0)
    training = StandardScaler().fit(np.concatenate([raw["a"].inputs, raw["b"].inputs]))
    rows = [training.transform(raw[name].inputs.numpy()) for name in ("a", "b", "c")]
    model = PCA(4, whiten=True, svd_solver="full").fit(np.concatenate(rows[:2]))
    expected, found = model.transform(rows[2]), sample["c"].inputs.numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=2e-2, atol=2e-3)
    module = features.image_model(nn.Identity(), ("c",))
    torch.testing.assert_close(module(images()["c"].inputs), sample["c"].inputs, atol=1e-4, rtol=1e-3)


def test_bfloat16_takes_half_the_space_and_rounds(tmp_path):
    exact = Features(images(), Backbone(), cache=tmp_path / "exact", standardize=False)
    rounded = Features(images(), Backbone(), cache=tmp_path / "half", standardize=False, dtype="bfloat16")
    first, second = (each.sample(0)["a"] for each in (exact, rounded))
    assert second.input_store.dtype == torch.bfloat16
    torch.testing.assert_close(second.inputs, first.inputs.bfloat16().float())
    sizes = [sum(p.stat().st_size for p in (tmp_path / n).rglob("*.npy")) for n in ("exact", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert rounded.sample(0).fingerprint() != exact.sample(0).fingerprint()


def test_extraction_resumes_where_it_was_killed_and_recomputes_damaged_blocks(tmp_path):
    values = torch.arange(40.0).view(20, 2)
    path, started = tmp_path / "features.npy", []

    def blocks(first, fails=99):
        started.append(first)
        for begin in range(first, 20, 5):
            if begin >= fails:
                raise KeyboardInterrupt
            yield values[begin : begin + 5]

    with pytest.raises(KeyboardInterrupt):
        features_in(path, (20, 2), "float32", lambda first: blocks(first, 15), "")
    assert not path.exists()
    assert feature_file.rows_done(path, (20, 2), "float32") == 15
    # The last block was damaged, as after a crash of the machine; half of another one was written.
    part = tmp_path / "features.part"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(bytes(data) + b"half a row")
    torch.testing.assert_close(features_in(path, (20, 2), "float32", blocks, ""), values)
    assert started == [0, 10]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".npy"]


def test_a_damaged_feature_file_is_computed_again(tmp_path):
    values = torch.rand(7, 3)
    path = tmp_path / "features.npy"
    features_in(path, (7, 3), "float32", lambda _: iter([values]), "")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    calls = []

    def blocks(first):
        calls.append(first)
        yield values

    torch.testing.assert_close(features_in(path, (7, 3), "float32", blocks, ""), values)
    assert calls == [0]


def test_methods_train_on_features_and_the_head_serves_images(tmp_path):
    source = images()
    features = Features(source, Backbone(), cache=tmp_path)
    result = train(
        features,
        "coral",
        replicas=2,
        steps=20,
        test_environments=("c",),
        holdout_fraction=0.2,
        progress=False,
    )
    assert result.record.spec.model == "linear"
    module = features.image_model(result.model(1), ("c",))
    sample = features.with_test_environments(("c",)).sample(0)
    expected = result.model(1)(sample["b"].inputs)
    torch.testing.assert_close(module(source["b"].inputs), expected, atol=1e-5, rtol=1e-5)


def test_a_model_with_a_head_is_used_without_it(tmp_path):
    featurizer = Backbone()
    network = FeaturizerAndHead(featurizer, nn.Linear(6, 1))
    whole = Features(images(), network, cache=tmp_path, standardize=False).sample(0)
    torch.testing.assert_close(
        whole["a"].inputs,
        Features(images(), featurizer, cache=tmp_path, standardize=False).sample(0)["a"].inputs,
    )


def test_text_names_source_and_backbone():
    built = data.source("features(colored-digits, mnist-cnn, size=28, dtype=bfloat16)")
    assert built.size == 28
    assert data.source(built.name) == built
    folders = data.source("features(image-folders('photos', size=96), 'timm(resnet18, pretrained=true)')")
    assert folders.source.size == 96
    assert folders.name.endswith("/photos', size=96), timm(pretrained=true))")
    assert data.source(folders.name) == folders


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("features(colored-digits)", "the first two arguments must be a source and a backbone"),
        ("features(colored-digits, mnist-cmm)", "did you mean 'mnist-cnn'"),
        ("features(colored-digits, minilm)", "minilm needs a table"),
        ("features(colored-digits, mnist-cnn, size=0)", "size must be a whole number of at least 1"),
        ("features(colored-digits, mnist-cnn, dtype=float16)", "float32 or bfloat16"),
        ("features(colored-digits, mnist-cnn, text=words)", "'text' refers to columns of a table"),
        ("features(colored-digits, lenet(a=1))", "unknown setting"),
    ],
)
def test_wrong_text_gives_one_clear_sentence(text, message):
    with pytest.raises(EnvariantError) as caught:
        data.source(text)
    assert message in str(caught.value)


def test_pixels_are_normalized_as_the_backbone_expects(tmp_path):
    backbone = Backbone()
    backbone.pixel_mean, backbone.pixel_deviation = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    sample = Features(images(), backbone, cache=tmp_path, standardize=False).sample(0)
    expected = torch.tanh(((images()["a"].inputs - mean) / deviation).flatten(1) @ backbone.weight)
    torch.testing.assert_close(sample["a"].inputs, expected.detach())
    far = images()
    shifted = [Environment(e.name, e.inputs * 255, e.targets) for e in far.environments]
    with pytest.warns(EnvariantWarning, match="outside"):
        Features(dataclasses.replace(far, environments=tuple(shifted)), backbone, cache=tmp_path).sample(0)


def test_trials_with_equal_batches_share_them_and_learn_the_same(tmp_path):
    features = Features(images(), Backbone(), cache=tmp_path)
    study = Study(
        (features,), ("erm",), n_trials=3, replicas=1, test_environments=(("c",),),
        settings={"steps": 5, "batch_size": 8}, holdout_fraction=0.2,
    )  # fmt: skip
    tables = []
    for how in ("stacked", "sequential"):
        study.run(tmp_path / how, execution=how, progress=False)
        with Store(tmp_path / how) as store:
            rows = store.history()
        tables.append(rows.sort_values([c for c in rows.columns if c != "value"])["value"].to_numpy())
    np.testing.assert_allclose(*tables, rtol=1e-4, atol=1e-5)


def test_batches_are_shared_only_by_replicas_with_equal_seeds(tmp_path):
    sample = Features(images(), Backbone(), cache=tmp_path).sample(0)
    rows = Rows([sample, sample], sample.roles(("c",)), torch.device("cpu"))
    for seeds, axes in (((5, 5), (None, None)), ((5, 6), (0, 0))):
        sampler = BatchSampler(rows, seeds, 4, None, torch.float32)
        assert sampler.axes == axes
        alone = BatchSampler(rows, seeds[:1], 4, None, torch.float32).at(3)
        shared = sampler.at(3)
        for one, own in zip(shared, alone, strict=True):
            torch.testing.assert_close(one if axes == (None, None) else one[0], own)


def test_new_files_of_12_bits_are_read_as_in_training(tmp_path):
    numbers = np.random.default_rng(0)
    for name in ("a/cat/0", "a/dog/0", "b/cat/0", "b/dog/0"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(numbers.integers(0, 4000, (8, 8)).astype(np.uint16)).save(path)
    source = data.source(f"image-folders('{tmp_path / 'photos'}', size=8, cache='{tmp_path}')")
    with pytest.warns(EnvariantWarning, match="12-bit"):
        table = image_table(Features(source, "mlp(hidden=3)", cache=tmp_path))
    encoder = ImageEncoder(**specs.fill(ImageEncoder, specs.parse(dict(table.embedded)["image"])))
    files = [str(tmp_path / "photos" / file) for group in source.listing().groups for file in group.files]
    trained = np.stack([column.values for column in table.columns], axis=1)
    np.testing.assert_allclose(encoder.embed(files).numpy(), trained, rtol=1e-5)
    # A brighter image is clipped, and this is said.
    Image.fromarray(np.full((8, 8), 2**16 - 1, np.uint16)).save(tmp_path / "bright.png")
    Image.fromarray(np.full((8, 8), 2**12 - 1, np.uint16)).save(tmp_path / "white.png")
    with pytest.warns(EnvariantWarning, match="1 of 2 images have 16 bits and values above"):
        bright, white = encoder.embed([str(tmp_path / f"{name}.png") for name in ("bright", "white")])
    assert torch.equal(bright, white)


def test_test_environments_may_be_a_list_or_one_name(tmp_path):
    expected = Features(images(), nn.Flatten(), cache=tmp_path, test=("c",)).sample(0)["a"].inputs
    for test in (["c"], "c"):
        features = Features(images(), nn.Flatten(), cache=tmp_path, test=test)
        assert features.test == ("c",)
        assert torch.equal(features.sample(0)["a"].inputs, expected)
        # They are the test environments of a run, unless the run names others.
        assert train(features, "erm", steps=1).record.roles["c"] == "test"
        assert features.with_test_environments(("a",)).sample(0).test == ("a",)
        assert dataclasses.replace(features, standardize=False).sample(0).test == ("c",)


def test_components_without_variance_are_rejected(tmp_path):
    # Ten rows vary in nine directions; along others, new rows would be divided by about 0.
    source = images(rows=5)
    features = Features(source, nn.Flatten(), cache=tmp_path, test=("c",), components=10)
    with pytest.raises(EnvariantError, match=r"components must be at most 9, because 10 training rows of 48"):
        features.sample(0)
    kept = dataclasses.replace(features, components=9).sample(0)
    assert float(kept["c"].inputs.abs().max()) < 50


class Wrong(nn.Module):
    """Returns what a test asks for."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, inputs):
        return self.answer(inputs)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: {"features": x},
            "must return a tensor with one row per input; for 2 inputs, it returns dict",
        ),
        (lambda x: x.sum(), r"for 2 inputs, it returns shape \(\)"),
        (lambda x: x.flatten(1) / 0, "backbone returns NaN or infinity for 50 of 50 rows"),
    ],
)
def test_backbones_with_useless_results_are_rejected(tmp_path, answer, message):
    with pytest.raises(EnvariantError, match=message):
        Features(images(), Wrong(answer), cache=tmp_path).sample(0)
