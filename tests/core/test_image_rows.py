"""Images of other libraries: channels first and in [0, 1], and random transforms are not frozen in silence."""

import io
import random
import warnings

import numpy as np
import pytest
import torch

from envariant import EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning

ROWS, SITES, LABELS = 6, ["a", "b"] * 3, [0, 1, 1, 0, 0, 1]
RGB = np.random.default_rng(0).integers(0, 255, (ROWS, 8, 10, 3), dtype=np.uint8)
FIRST = torch.from_numpy(np.moveaxis(RGB, 3, 1).copy()) / 255


class Dataset:
    """As much of a Hugging Face dataset as is asked for."""

    def __init__(self, **columns):
        self._columns = columns | {"y": LABELS, "site": SITES}
        self.column_names = list(self._columns)

    def __getitem__(self, name):
        return self._columns[name]


def read(images):
    found = EnvironmentSet.from_huggingface(Dataset(x=images), inputs="x", target="y", environment="site")
    together = torch.empty(ROWS, *found.input_shape)
    together[::2], together[1::2] = found["a"].inputs, found["b"].inputs
    return together


@pytest.mark.parametrize(
    "images",
    [RGB, torch.from_numpy(RGB), list(RGB), RGB.tolist(), RGB.astype(np.int64), np.moveaxis(RGB, 3, 1), torch.from_numpy(RGB).permute(0, 3, 1, 2)],
    ids=["array", "tensor", "list", "nested lists", "integers", "channels first", "tensor, channels first"],
)  # fmt: skip
def test_images_of_bytes_have_channels_first_and_lie_in_0_to_1(images):
    torch.testing.assert_close(read(images), FIRST)
    found = EnvironmentSet.from_arrays(images, LABELS, SITES)
    torch.testing.assert_close(found["a"].inputs, FIRST[::2])
    assert found["a"].input_store.dtype == torch.uint8


def test_gray_images_have_one_channel():
    gray = RGB[..., 0]
    for images in (gray, gray[..., None], list(gray)):
        torch.testing.assert_close(read(images), FIRST[:, :1])


def test_images_of_pillow_are_read():
    pillow = pytest.importorskip("PIL.Image")
    images = [pillow.fromarray(each) for each in RGB]
    torch.testing.assert_close(read(images), FIRST)
    torch.testing.assert_close(read([each.getchannel("R") for each in images]), FIRST[:, :1])
    torch.testing.assert_close(read([images[0].convert("P"), *images[1:]])[1:], FIRST[1:])
    encoded = []
    for each in images:
        each.save(file := io.BytesIO(), "png")
        encoded.append({"bytes": file.getvalue(), "path": None})
    torch.testing.assert_close(read(encoded), FIRST)
    with pytest.raises(EnvariantError, match=r"column 'x': images differ in size \(8×9, 8×10\); resize them"):
        read([*images[1:], images[0].resize((9, 8))])
    with pytest.raises(EnvariantError, match="column 'x': holds an image that cannot be read"):
        read([{"bytes": b"no image", "path": None}] * ROWS)
    with pytest.raises(EnvariantError, match="column 'x': images have more than 8 bits per value"):
        read([each.convert("I") for each in images])


def test_other_inputs_that_look_like_images_are_said():
    with pytest.warns(
        EnvariantWarning, match=r"inputs of shape \(8, 10, 3\) look like height × width × channels"
    ):
        assert read(RGB / 255).shape == (ROWS, 8, 10, 3)
    with pytest.warns(EnvariantWarning, match="look like images with values up to 254; divide them by 255"):
        read(np.moveaxis(RGB, 3, 1).astype(np.float32))


def test_integers_and_numbers_that_are_no_images_are_unchanged(recwarn):
    for rows in (
        RGB.reshape(ROWS, -1),
        RGB[:, :4, :4, 0],
        RGB[:, None],
        np.ones((ROWS, 1, 9, 9)),
        300 * RGB[:, :, :, 0].astype(int),
    ):
        np.testing.assert_array_equal(read(rows), rows.astype(np.float32))
    assert not recwarn


class RandomFlip:
    """Like a transform of torchvision, which draws from one of the global generators."""

    def __init__(self, draw):
        self.draw = draw

    def __call__(self, row):
        return row.flip(-1) if self.draw() < 0.5 else row


class Pairs:
    def __init__(self, transform=None):
        self.transform, self.rows = transform, torch.arange(20.0).reshape(10, 2)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return (self.transform or (lambda row: row))(self.rows[k]), k % 2


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, lambda: np.random.rand()])
def test_random_transforms_stay_random_and_leave_the_global_generators(draw):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    flip = RandomFlip(draw)
    once = [flip(Pairs().rows[k]) for k in range(10)] and draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    found = EnvironmentSet.from_datasets({"a": Pairs(flip), "b": Pairs()})
    assert draw() == once
    store, index = found["a"].input_store, torch.arange(10)
    drawn = [store.draw(index, key) for key in range(20)]
    assert torch.equal(store.draw(index, 3), drawn[3])
    # Every row is flipped at some steps only, and not together with the others.
    flipped = torch.stack([(rows != Pairs().rows).any(dim=1) for rows in drawn])
    assert bool((flipped.any(0) & ~flipped.all(0)).all())
    assert bool((flipped.any(1) & ~flipped.all(1)).any())
    assert torch.equal(store.gather(index[3:5]), found["a"].inputs[3:5])
    assert draw() != once


def test_random_targets_are_said_and_repeated_nan_is_not():
    class Labels(Pairs):
        def __getitem__(self, k):
            return self.rows[k], random.randint(0, 10**9)

    with pytest.warns(
        EnvariantWarning, match=r"'a': its transforms are random, but .* option 'augmentation'"
    ):
        EnvironmentSet.from_datasets({"a": Labels(), "b": Pairs()})
    with warnings.catch_warnings(record=True) as found, pytest.raises(EnvariantError, match="hold NaN"):
        EnvironmentSet.from_datasets({"a": Pairs(lambda row: row * float("nan")), "b": Pairs()})
    assert not found


def test_random_transforms_of_streams_are_known_by_name():
    class Stream(torch.utils.data.IterableDataset):
        transform = type("Compose", (), {"transforms": [RandomFlip(random.random)]})()

        def __iter__(self):
            return iter([(torch.ones(2), 0), (torch.zeros(2), 1)])

    with pytest.warns(EnvariantWarning, match=r"its transforms are random \(RandomFlip\)"):
        EnvironmentSet.from_datasets({"a": Stream(), "b": Pairs()})


def test_random_transforms_of_hugging_face_are_said():
    class Changing(Dataset):
        def __getitem__(self, name):
            return torch.rand(ROWS, 3) if name == "x" else super().__getitem__(name)

        def select(self, rows):
            return self

        def with_transform(self, transform): ...

    with pytest.warns(EnvariantWarning, match="dataset: its transforms are random"):
        EnvironmentSet.from_huggingface(Changing(x=None), inputs="x", target="y", environment="site")


def test_plain_datasets_are_quiet(recwarn):
    EnvironmentSet.from_datasets({"a": Pairs(lambda row: row + 1), "b": Pairs()})
    assert not recwarn


@pytest.mark.parametrize("role", ["targets", "environments"])
def test_labels_that_look_alike_are_said(role):
    words = ["cat", "Cat", "dog"] * 2
    targets, environments = (words, SITES) if role == "targets" else (LABELS, words)
    with pytest.warns(EnvariantWarning, match=f"arrays: {role}: 'Cat' and 'cat' differ in capitals only"):
        EnvironmentSet.from_arrays(np.eye(6), targets, environments)


@pytest.mark.parametrize(("shape", "dtype"), [((1, 9, 11), np.uint16), ((9, 11), np.uint16)])
def test_images_of_twelve_bits_in_arrays_are_said(shape, dtype):
    rows = np.full((6, *shape), 4095, dtype=dtype)
    with pytest.warns(EnvariantWarning, match="look like images with values up to 4095; divide them by the"):
        EnvironmentSet.from_arrays(rows, LABELS, SITES)
