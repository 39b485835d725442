"""Datasets with a domain label per item; random transforms and rows beyond memory."""

import numpy as np
import pytest
import torch

import envariant
from envariant.core import dataset_rows
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.tasks import Multiclass
from envariant.data import datasets, from_dataset


class Items:
    """Thirty rows of three classes in three domains; a random transform adds noise."""

    def __init__(self, noise=0.0, named=False, rows=30):
        self.noise, self.named, self.rows = noise, named, rows

    def __len__(self):
        return self.rows

    def __getitem__(self, k):
        row = torch.full((4,), float(k)) + self.noise * torch.randn(4)
        item = row, k % 3, f"site {k // 10}"
        return dict(zip(("x", "y", "site"), item, strict=True)) if self.named else item


@pytest.mark.parametrize(
    "call",
    [
        lambda: from_dataset(Items(), test=("site 2",)),
        lambda: from_dataset(Items(named=True), inputs="x", target="y", environment="site", test=("site 2",)),
        lambda: from_dataset(
            Items(), environment=np.repeat(["site 0", "site 1", "site 2"], 10), test=("site 2",)
        ),
    ],
    ids=["tuples", "dictionaries", "labels apart"],
)
def test_items_are_grouped_by_domain(call):
    found = call()
    assert (found.names, found.task) == (("site 0", "site 1", "site 2"), Multiclass(3))
    assert found.roles()["site 2"] == "test"
    for k, environment in enumerate(found.environments):
        assert environment.inputs[:, 0].tolist() == [*range(10 * k, 10 * k + 10)]
        assert environment.targets.tolist() == [n % 3 for n in range(10 * k, 10 * k + 10)]


def test_random_transforms_stay_random_and_training_is_repeatable():
    noisy = from_dataset(Items(noise=0.1), test=("site 2",))
    assert noisy["site 0"].input_store.streamed
    options = {"steps": 3, "batch_size": 4, "evaluate_every": 1, "model": "mlp(hidden=3)", "replicas": 2}
    first, again = (envariant.train(noisy, "erm", **options) for _ in range(2))
    plain = envariant.train(from_dataset(Items(), test=("site 2",)), "erm", **options)
    assert first.rows == again.rows
    assert first.rows != plain.rows
    store, index = noisy["site 1"].input_store, torch.arange(10)
    one, two = store.draw(index, 5), store.draw(index, 6)
    assert not torch.equal(one, two)
    assert torch.equal(one, store.draw(index, 5))
    assert torch.equal(store.draw(index[4:], 5), one[4:]), "independent of the other rows"
    assert (one - plain_rows(1)).abs().max() < 1


def plain_rows(site):
    return torch.arange(10.0 * site, 10 * site + 10)[:, None].expand(10, 4)


def test_rows_beyond_memory_are_read_when_they_are_used(monkeypatch):
    monkeypatch.setattr(dataset_rows.machine, "memory", lambda: 1000)
    large = from_dataset(Items())
    store = large["site 1"].input_store
    assert (store.streamed, store.dtype) == (True, torch.float32)
    assert torch.equal(large["site 1"].inputs, plain_rows(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_dataset(3), "dataset: must be a dataset of (input, target, environment) pairs; got 3"),
        (lambda: from_dataset([(torch.ones(2), 1)]), "dataset: item 0 must be (input, target, environment)"),
        (
            lambda: from_dataset(Items(named=True), inputs="x", target="z", environment="site"),
            "dataset: item 0 has no entry 'z'; it must have a dictionary with 'x' (input), 'z' (target), 'site'",
        ),
        (
            lambda: from_dataset(Items(), environment=["a", "b"]),
            "dataset: lengths must be equal; got 30 inputs, 2",
        ),
        (lambda: from_dataset(Items(rows=0)), "dataset: has no rows"),
    ],
)
def test_invalid_datasets_are_rejected(call, message):
    with pytest.raises(EnvariantError) as error:
        call()
    assert message in str(error.value)


def test_pictures_of_hugging_face_arrive_channels_first_and_standardized(monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    shades = np.random.default_rng(0).integers(0, 256, (8, 12, 9, 3), dtype=np.uint8)
    items = [
        {"image": Image.fromarray(shade), "label": k % 2, "domain": "ab"[k // 4]}
        for k, shade in enumerate(shades)
    ]
    keys = {"inputs": "image", "target": "label", "environment": "domain"}
    found = from_dataset(items, **keys)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (datasets.MEAN, datasets.DEVIATION))
    expected = (torch.from_numpy(shades).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    assert torch.equal(found["b"].inputs, expected[4:])
    plain = from_dataset(items, normalize=False, **keys)
    assert torch.equal(plain["a"].inputs, torch.from_numpy(shades).permute(0, 3, 1, 2)[:4].float() / 255)
    items[3]["image"] = items[3]["image"].convert("P").resize((20, 30))
    with pytest.raises(
        EnvariantError, match=r"item 3 has shape \(3, 30, 20\), but earlier items have \(3, 12, 9\)"
    ):
        from_dataset(items, **keys)
    assert from_dataset(items, size=8, **keys).input_shape == (3, 8, 8)
    monkeypatch.setattr(dataset_rows.machine, "memory", lambda: 1000)
    large = from_dataset(items, size=8, **keys)
    assert large["a"].input_store.streamed
    monkeypatch.undo()
    assert torch.equal(large["a"].inputs, from_dataset(items, size=8, **keys)["a"].inputs)


def test_size_needs_pictures():
    items = [(np.ones((3, 8, 8)), k % 2, k // 4) for k in range(8)]
    with pytest.raises(EnvariantError, match="'size' resizes Pillow images, but the items hold arrays"):
        from_dataset(items, size=4)
    with pytest.raises(EnvariantError, match="size must be a whole number of at least 1; got 0"):
        from_dataset(items, size=0)


def test_losses_of_pictures_are_said():
    Image = pytest.importorskip("PIL.Image")
    items = [(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), k % 2, k // 4) for k in range(8)]
    with pytest.warns(
        EnvariantWarning, match="dataset: some images have transparent pixels; transparency is"
    ):
        from_dataset(items)


class Broken(torch.utils.data.Dataset):
    """Random rows, of which one cannot be read from a given reading on."""

    def __init__(self, readings):
        self.left = readings

    def __len__(self):
        return 30

    def __getitem__(self, k):
        self.left -= k == 17
        if self.left < 0:
            raise ValueError("cannot identify\nimage file")
        return torch.rand(3, 8, 8), k % 2, k // 10


def test_errors_of_the_dataset_name_the_item():
    with pytest.raises(
        EnvariantError, match="^dataset: item 17: ValueError: cannot identify image file$"
    ) as e:
        from_dataset(Broken(0))
    assert isinstance(e.value.__cause__, ValueError)
    # Also where items are read during training.
    found = from_dataset(Broken(1))
    with pytest.raises(EnvariantError, match="^dataset: item 17: ValueError: cannot identify image file$"):
        found["1"].input_store.gather(torch.arange(10))
    with pytest.raises(EnvariantError, match="^dataset: item 17: ValueError: cannot identify image file$"):
        envariant.train(from_dataset(Broken(1)), "erm", model="linear", steps=1, batch_size=30)
    items = (each if k < 3 else 1 / 0 for k, each in enumerate([(torch.ones(2), 1, "a")] * 4))
    with pytest.raises(EnvariantError, match="^dataset: item 3: ZeroDivisionError: division by zero$"):
        from_dataset(items)


def test_missing_numbers_of_random_items_are_named():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, k):
            return torch.rand(3) * (float("nan") if k == 6 else 1), k % 2, k // 4

    with pytest.raises(EnvariantError, match="item 6 holds NaN or infinity"):
        from_dataset(Noisy())["1"].inputs.sum()
