"""Images in memory, on disk and in files: the same bits; what is damaged or does not fit is said."""

import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

import envariant
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.input_store import InputStore
from envariant.data import ImageFolders
from envariant.data.images import reading
from envariant.data.images.decoding import Preprocessing, decode
from envariant.data.validation_split import ValidationSplit
from envariant.training.streaming import Reader, StreamedInputs

Image = pytest.importorskip("PIL.Image")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ENVARIANT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three domains of 12 noisy JPEG and PNG images each, of several sizes."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for domain in ("art", "photo", "sketch"):
        for k in range(12):
            path = folder / domain / ("cat", "dog")[k % 2] / f"{k}.{('jpg', 'png')[k % 3 == 0]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (20 + k, 30 - k, 3)
            Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder


def trained(root, storage, **settings):
    source = ImageFolders(root, size=8, test=("sketch",), storage=storage)
    options = {"steps": 4, "evaluate_every": 2, "replicas": 2, "batch_size": 4, "model": "mlp(hidden=4)"}
    return envariant.train(source, "vrex", **{**options, **settings})


class ChannelsLast(torch.nn.Module):
    """Small network in bfloat16 and channels-last, as large ones are run on a GPU."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.head = torch.nn.Linear(4, 1)

    def forward(self, inputs):
        maps = self.layers(inputs.contiguous(memory_format=torch.channels_last))
        return self.head(maps.mean(dim=(2, 3)))


def changed(forward, params, buffers, inputs):
    """Test-time adaptation that needs all rows of an environment."""
    return params, {**buffers, "mean": inputs.mean()}


@pytest.mark.parametrize(
    "settings",
    [
        {"holdout_fraction": 0.25, "augmentation": "domainbed + affine", "execution": "stacked"},
        {"model": ChannelsLast, "precision": "bfloat16", "replicas": 1},
        {"adapt": changed, "replicas": 1},
    ],
    ids=["stacked", "channels last", "adapted"],
)
def test_every_storage_gives_the_same_bits(root, settings):
    results = {storage: trained(root, storage, **settings) for storage in ("memory", "disk", "files")}
    first = results["memory"]
    for storage in ("disk", "files"):
        assert results[storage].rows == first.rows, storage
        for k, state in first.checkpoints.items():
            assert all(
                torch.equal(results[storage].checkpoints[k].params[n], v) for n, v in state.params.items()
            )
    assert results["disk"].record.fingerprints == first.record.fingerprints
    assert first.waited == 0
    assert results["files"].waited > 0
    assert results["files"].to_dict()["waited"] == round(results["files"].waited, 2)


@pytest.mark.verify
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_compiled_steps_read_from_disk(root):
    compiled, plain = (
        trained(root, "disk", model=ChannelsLast, replicas=1, compile=c) for c in (True, False)
    )
    for ours, theirs in zip(compiled.rows, plain.rows, strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=1e-3)


def test_a_resumed_run_is_bit_identical(root, tmp_path, monkeypatch):
    whole = trained(root, "files", holdout_fraction=0.25)
    original, seen = InputStore.draw, []

    def interrupted(self, index, key):
        seen.append(key)
        if len(seen) > 12:
            raise KeyboardInterrupt
        return original(self, index, key)

    from envariant.training.store import recorder

    monkeypatch.setattr(recorder, "CHECKPOINT_INTERVAL_S", 0)
    monkeypatch.setattr(InputStore, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(root, "files", holdout_fraction=0.25, out=tmp_path / "run")
    monkeypatch.setattr(InputStore, "draw", original)
    partial = envariant.TrainingResult.load(tmp_path / "run")
    assert 0 < len(partial.rows) < len(whole.rows)
    resumed = trained(root, "files", holdout_fraction=0.25, out=tmp_path / "run")
    assert resumed.rows == whole.rows
    assert all(
        torch.equal(resumed.checkpoints[k].params[n], v)
        for k in (0, 1)
        for n, v in whole.checkpoints[k].params.items()
    )


def test_rows_are_those_of_the_files_and_are_read_when_used(root, monkeypatch):
    source = ImageFolders(root, size=8, storage="files", normalize=False)
    sample = source.sample(0)
    store = sample["photo"].input_store
    assert (store.streamed, store.concurrent, len(store), store.shape) == (True, True, 12, (3, 8, 8))
    group = source.listing().groups[1]
    by_hand = np.stack([decode(root / file, Preprocessing(8))[0] for file in group.files])
    index = torch.tensor([7, 0, 7])
    assert np.array_equal(store.gather(index).numpy(), by_hand[index])
    assert np.array_equal(store.select(index).gather(torch.tensor([1])).numpy(), by_hand[:1])
    assert torch.equal(sample["photo"].inputs, torch.from_numpy(by_hand).float() / 255)
    split = ValidationSplit(source, 0.25, ("sketch",)).sample(0)
    assert all(e.input_store.streamed for e in split.environments)
    monkeypatch.setattr(reading.machine, "memory", lambda: 2**20)
    with pytest.raises(EnvariantError, match=r"memory: 2,400 images at once would need at least 0\.472 GB"):
        ImageFolders(root, size=256, storage="files").sample(0)["art"].input_store.select(
            torch.zeros(2400, dtype=torch.long)
        ).gather()


def test_blocks_and_batches_are_read_ahead_in_order(root):
    sample = ImageFolders(root, size=8, storage="disk").sample(0)
    stores = [[each.input_store for each in sample.environments]]
    everything = torch.cat([store.gather() for store in stores[0]])
    reader = Reader(CPU)
    streamed = StreamedInputs(reader, stores, None)
    assert streamed.shape == everything.shape
    assert torch.equal(streamed.whole(), everything)
    assert torch.equal(torch.cat(list(streamed.split([20, 5, 11]))), everything)
    assert torch.equal(streamed.environments(slice(1, 2)).whole(), everything[12:24])
    both = StreamedInputs(reader, [stores[0], stores[0][::-1]], 0)
    assert both.shape == (2, *everything.shape)
    assert torch.equal(next(iter(both.split([30, 6], dim=1)))[0], everything[:30])
    steps = []

    def chosen(step):
        steps.append(step)
        return torch.tensor([[step, 35 - step]])

    ahead = streamed.ahead(chosen, lambda step: torch.tensor([step]), 2)
    for step in (0, 1, 0, 1, 2, 9):
        assert torch.equal(ahead.get(step), everything[[step, 35 - step]])
    assert steps[:5] == [0, 1, 2, 3, 4]
    assert reader.waited > 0


def test_waiting_for_data_is_said(root, monkeypatch):
    from envariant.training import streaming

    monkeypatch.setattr(streaming, "_WORTH_SAYING", 0.0)
    import time

    original = InputStore.draw

    def slow(self, index, key):
        time.sleep(0.05)
        return original(self, index, key)

    monkeypatch.setattr(InputStore, "draw", slow)
    with pytest.warns(EnvariantWarning, match=r"data: \d+% of the time was spent waiting for rows from disk"):
        trained(root, "disk", replicas=1)


def test_a_damaged_image_is_named_and_the_cache_removed(root, cache):
    def opened():
        # A new source, because a source shares its last sample.
        return ImageFolders(root, size=8, storage="disk").sample(0)

    opened()
    (file,) = (cache / "images").glob("*.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    store = opened()["art"].input_store
    store.gather(torch.tensor([5]))
    with pytest.raises(
        EnvariantError, match="image 0 of the cache was damaged, and the file has been removed"
    ):
        store.gather(torch.tensor([0]))
    assert not file.exists()
    opened()
    assert file.read_bytes() == whole


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_refused_before_anything_is_written(root, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 1000))
    with pytest.raises(EnvariantError) as error:
        ImageFolders(root, size=64, storage="disk").sample(0)
    assert re.search(
        r"images: the decoded images need 0\.4 MiB, but only 0\.0 MiB are free; set the option cache",
        str(error.value),
    )
    assert "or use storage=files" in str(error.value)
    assert not list(cache.rglob("*.npy"))


def test_the_need_of_a_large_cache_is_printed(root, monkeypatch, capsys):
    monkeypatch.setattr(reading, "_LARGE_CACHE", 1)
    ImageFolders(root, size=8, storage="disk").sample(0)
    assert "decoding images once: 0.0 MiB are written to" in capsys.readouterr().err


def test_storage_is_chosen_by_memory_and_disk(root, cache, monkeypatch):
    assert not ImageFolders(root, size=8).sample(0)["art"].input_store.streamed
    monkeypatch.setattr(reading.machine, "memory", lambda: 10_000)
    with pytest.warns(EnvariantWarning, match=r"more than a quarter of the free memory; .* \(storage=disk\)"):
        sample = ImageFolders(root, size=16).sample(0)
    monkeypatch.undo()
    assert sample["art"].input_store.streamed
    assert (
        reading.storage_for(10**6, 224, cache / "images" / "x.npy")[0] == "files"
        or shutil.disk_usage(cache).free > 10**6 * 3 * 224**2
    )
    monkeypatch.setattr(reading.machine, "memory", lambda: 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 1000))
    storage, why = reading.storage_for(36, 16, cache / "images" / "x.npy")
    assert storage == "files"
    assert "images are decoded whenever they are used (storage=files)" in why


def test_full_batches_of_streamed_images_are_rejected(root):
    with pytest.raises(
        EnvariantError, match="batch_size: the rows are read from disk in batches; set a batch"
    ):
        trained(root, "disk", batch_size="full")


def test_color_changes_need_pixels_in_the_unit_range(root):
    sample = ImageFolders(root, size=8).sample(0)
    parts = tuple(envariant.Environment(e.name, e.inputs, e.targets) for e in sample.environments)
    floats = envariant.EnvironmentSet("floats", parts, sample.task, test=("sketch",))
    with pytest.raises(
        EnvariantError, match=r"color-jitter: changes of color need pixels in \[0, 1\], got -0\.7"
    ):
        envariant.train(
            floats, "erm", steps=1, batch_size=4, augmentation="color-jitter", model="mlp(hidden=4)"
        )


def test_center_crop_and_exif_orientation(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(tmp_path / "a.png", exif=exif)
    picture = Image.fromarray(noise)
    plain, keys = decode(tmp_path / "a.png", Preprocessing(28, "center-crop"))
    assert keys == ("orientation",)
    expected = picture.resize((51, 32), Image.Resampling.BILINEAR).crop((12, 2, 40, 30))
    assert np.array_equal(plain.transpose(1, 2, 0), np.asarray(expected))
    upright, keys = decode(tmp_path / "a.png", Preprocessing(16, exif=True))
    assert keys == ()
    turned = picture.transpose(Image.Transpose.ROTATE_270).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(upright.transpose(1, 2, 0), np.asarray(turned))


def test_losses_are_reported_when_files_are_read(tmp_path):
    for domain in ("a", "b"):
        for kind in ("x", "y"):
            path = tmp_path / "data" / domain / kind / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(path)
    store = ImageFolders(tmp_path / "data", size=8, storage="files").sample(0)["a"].input_store
    with pytest.warns(EnvariantWarning, match="is the first of the images that have transparent pixels"):
        store.gather(torch.tensor([0]))
    store.gather()


def test_depth_of_gray_and_changed_files_are_said_when_files_are_read(tmp_path):
    for k in range(4):
        path = tmp_path / "ab"[k % 2] / "xy"[k // 2] / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(path)
    with pytest.warns(EnvariantWarning, match="values up to 4,000: read as 12-bit images"):
        sample = ImageFolders(tmp_path, size=8, storage="files").sample(0)
    assert len(sample["a"].inputs) == 2
    Image.fromarray(np.full((9, 8), 1, np.uint16)).save(tmp_path / "a" / "x" / "0.png")
    with pytest.raises(EnvariantError, match=r"0.png: has changed since the data source listed it"):
        sample["a"].inputs.sum()
    (tmp_path / "a" / "x" / "0.png").unlink()
    with pytest.raises(EnvariantError, match=r"0.png: the image does not exist"):
        sample["a"].inputs.sum()
