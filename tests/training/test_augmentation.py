"""Augmentations of images: against plain NumPy here, and against torchvision where it is installed."""

import math

import numpy as np
import pytest
import torch

from envariant.core import counter_rng
from envariant.core.errors import EnvariantError
from envariant.training.augmentation import (
    ColorJitter,
    Composed,
    Grayscale,
    HorizontalFlip,
    RandAugment,
    RandomAffine,
    RandomResizedCrop,
    augmentation,
    color,
)
from envariant.training.augmentation.crop import cropped
from envariant.training.augmentation.rand_augment import BINS, OPERATIONS

CPU = torch.device("cpu")


def images(rows=6, channels=3, height=12, width=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (rows, channels, height, width), generator=generator) / 255


def uniforms(number, rows, seed=1):
    return torch.rand(number, rows, generator=torch.Generator().manual_seed(seed))


def by_numpy(image, top, left, height, width):
    """Crop and bilinear resizing of one image, pixel by pixel."""
    part = image.numpy()[:, top : top + height, left : left + width].astype(np.float64)
    size_y, size_x = image.shape[1:]
    out = np.empty(image.shape)
    for y in range(size_y):
        for x in range(size_x):
            v = min(max((y + 0.5) * height / size_y - 0.5, 0), height - 1)
            u = min(max((x + 0.5) * width / size_x - 0.5, 0), width - 1)
            a, b = math.floor(v), math.floor(u)
            c, d = min(a + 1, height - 1), min(b + 1, width - 1)
            upper = part[:, a, b] * (1 - u + b) + part[:, a, d] * (u - b)
            lower = part[:, c, b] * (1 - u + b) + part[:, c, d] * (u - b)
            out[:, y, x] = upper * (1 - v + a) + lower * (v - a)
    return out


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14)])
def test_crops_are_resized_as_by_hand(height, width):
    ours = images(3, height=height, width=width)
    boxes = torch.tensor([[0, 0, height, width], [2, 1, 5, 7], [1, 3, 4, 6]])
    cut = cropped(ours, *boxes.T.float())
    for image, box, result in zip(ours, boxes.tolist(), cut, strict=True):
        np.testing.assert_allclose(result.numpy(), by_numpy(image, *box), atol=1e-5)
    assert torch.equal(cut[0], ours[0])


def test_crops_have_the_areas_and_ratios_asked_for_and_lie_inside():
    crop = RandomResizedCrop(scale=(0.3, 0.6))
    top, left, height, width = crop.boxes(100, 80, uniforms(crop.numbers, 4000))
    assert bool((top >= 0).all() & (left >= 0).all())
    assert bool((top + height <= 100).all() & (left + width <= 80).all())
    share, ratio = height * width / 8000, width / height
    assert 0.29 < float(share.min()) < 0.31
    assert 0.59 < float(share.max()) < 0.61
    assert abs(float(share.mean()) - 0.45) < 0.01
    assert 0.73 < float(ratio.min()) < 0.77
    assert float(ratio.max()) < 1.36
    # No attempt fits: the largest allowed crop in the center.
    wide = RandomResizedCrop(scale=1.0, ratio=(2, 2))
    assert [float(v[0]) for v in wide.boxes(100, 100, uniforms(wide.numbers, 1))] == [25, 0, 50, 100]


def gray_by_numpy(image):
    return np.tensordot([0.2989, 0.587, 0.114], image, axes=(0, 0))


def hue_by_numpy(image, shift):
    import colorsys

    out = np.empty_like(image)
    for place in np.ndindex(*image.shape[1:]):
        h, s, v = colorsys.rgb_to_hsv(*image[(slice(None), *place)])
        out[(slice(None), *place)] = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
    return out


def test_changes_of_color_as_by_hand():
    ours, factor = images(4), torch.tensor([0.0, 0.6, 1.0, 1.4])
    ours[0, :, 0, 0] = 0.5  # gray: without a hue
    plain = ours.double().numpy()
    brighter, contrast, saturated = (
        change(ours, factor).numpy() for change in (color.brightened, color.contrasted, color.saturated)
    )
    turned = color.hue_shifted(ours, torch.tensor([-0.5, -0.1, 0.0, 0.3])).numpy()
    for k, f in enumerate(factor.tolist()):
        gray = gray_by_numpy(plain[k])
        np.testing.assert_allclose(brighter[k], np.clip(f * plain[k], 0, 1), atol=1e-6)
        np.testing.assert_allclose(
            contrast[k], np.clip(f * plain[k] + (1 - f) * gray.mean(), 0, 1), atol=1e-6
        )
        np.testing.assert_allclose(saturated[k], np.clip(f * plain[k] + (1 - f) * gray, 0, 1), atol=1e-6)
        np.testing.assert_allclose(turned[k], hue_by_numpy(plain[k], (-0.5, -0.1, 0.0, 0.3)[k]), atol=1e-5)
    single = images(4, channels=1)
    for change in (color.saturated, color.hue_shifted):
        assert torch.equal(change(single, factor), single)


def test_color_jitter_applies_its_changes_in_the_order_drawn():
    ours, numbers = images(5), uniforms(8, 5)
    result = ColorJitter(0.4, 0.3, 0.2, 0.1)(ours, numbers)
    for k in range(5):
        image, (b, c, s, h) = ours[k : k + 1], numbers[4:, k].tolist()
        steps = [
            lambda x, b=b: color.brightened(x, torch.tensor([0.6 + 0.8 * b])),
            lambda x, c=c: color.contrasted(x, torch.tensor([0.7 + 0.6 * c])),
            lambda x, s=s: color.saturated(x, torch.tensor([0.8 + 0.4 * s])),
            lambda x, h=h: color.hue_shifted(x, torch.tensor([0.1 * (2 * h - 1)])),
        ]
        for step in np.argsort(numbers[:4, k].numpy()):
            image = steps[step](image)
        torch.testing.assert_close(result[k : k + 1], image)
    assert len({tuple(order) for order in numbers[:4].argsort(dim=0).T.tolist()}) > 1


def test_flips_and_gray_images_follow_their_probability():
    ours = images(4)
    flipped = HorizontalFlip(p=0.5)(ours, torch.tensor([[0.1, 0.49, 0.51, 0.9]]))
    assert torch.equal(flipped, torch.cat([ours[:2].flip(3), ours[2:]]))
    gray = Grayscale()(ours, torch.tensor([[0.05, 0.2, 0.5, 0.9]]))
    assert torch.equal(gray[1:], ours[1:])
    np.testing.assert_allclose(gray[0, 2].numpy(), gray_by_numpy(ours[0].numpy()), atol=1e-6)


def test_every_operation_of_rand_augment_changes_images_and_keeps_their_range():
    ours, signs = images(2), torch.tensor([-1.0, 1.0])
    for name, operation in OPERATIONS.items():
        result = operation(ours, 9 / (BINS - 1), signs)
        assert result.shape == ours.shape
        assert 0 <= float(result.min()) <= float(result.max()) <= 1
        unchanged = name in ("identity", "autocontrast") or (name == "equalize")
        assert unchanged or not torch.equal(result, ours), name
    # By hand: every second level of a flat histogram.
    levels = torch.arange(256).view(1, 1, 16, 16) / 255
    torch.testing.assert_close(
        OPERATIONS["solarize"](levels, 0.5, signs[:1]).flatten()[128:], 1 - levels.flatten()[128:]
    )
    assert set(
        (OPERATIONS["posterize"](levels, 1.0, signs[:1]) * 255).round().long().flatten().tolist()
    ) == set(range(0, 256, 16))
    torch.testing.assert_close(OPERATIONS["equalize"](levels, 0.5, signs[:1]), levels)
    half = levels / 2 + 0.2
    assert [float(v) for v in OPERATIONS["autocontrast"](half, 0.5, signs[:1]).aminmax()] == [0, 1]


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    both = augmentation("domainbed + rand-augment + affine")
    ours = images(7, height=16, width=16)
    keys = counter_rng.step_keys([5], 3, 1, CPU)[0]
    numbers = counter_rng.uniforms(keys, 1, 7 * both.numbers).view(both.numbers, 7)
    together = both(ours, numbers)
    assert torch.equal(together, both(ours, numbers)), "a pure function"
    for k in range(7):
        assert torch.equal(both(ours[k : k + 1], numbers[:, k : k + 1])[0], together[k])
    assert not torch.equal(ours, together)


def test_names_sets_and_compositions_are_read():
    assert augmentation("random-resized-crop(scale=0.5)").scales == (0.5, 1.0)
    assert augmentation("random-resized-crop(scale=(0.2, 0.4))").scales == (0.2, 0.4)
    assert augmentation("domainbed") == Composed(
        (RandomResizedCrop(), HorizontalFlip(), ColorJitter(), Grayscale())
    )
    assert augmentation("affine(rotation=5) + horizontal-flip") == Composed(
        (RandomAffine(rotation=5), HorizontalFlip())
    )
    assert augmentation("rand-augment(n=3)") == RandAugment(n=3)
    for text, message in {
        "random-crop": "unknown augmentation 'random-crop'; did you mean 'random-resized-crop'?",
        "domainbed(scale=0.5)": "augmentation: domainbed has no settings; write its operations with their "
        "settings instead: random-resized-crop + horizontal-flip + color-jitter + random-grayscale",
        "random-resized-crop(scale=2)": "random-resized-crop: scale must be in (0, 1], ascending; got 2",
        "random-resized-crop(ratio=(2, 1))": "ratio must be positive, ascending",
        "horizontal-flip(p=2)": "horizontal-flip: p must be in [0, 1], got 2",
        "color-jitter(hue=0.7)": "color-jitter: hue must be in [0, 0.5], got 0.7",
        "rand-augment(m=31)": "rand-augment: m must be below 31, got 31",
    }.items():
        with pytest.raises(EnvariantError) as error:
            augmentation(text)
        assert message in str(error.value)
    with pytest.raises(
        EnvariantError, match="color-jitter: requires channels-first images of 1 or 3 channels"
    ):
        ColorJitter()(images(channels=2), uniforms(8, 6))


@pytest.fixture(scope="module")
def vision():
    """torchvision's functions, also of a build for another PyTorch, whose compiled operators do not load."""
    try:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision.transforms import autoaugment, functional
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision: {error}")
    return functional, autoaugment


def test_formulas_are_those_of_torchvision(vision):
    functional, autoaugment = vision
    ours = images(4, height=17, width=21)
    factor = torch.tensor([0.2, 0.7, 1.0, 1.5])
    pairs = [
        (color.brightened, functional.adjust_brightness),
        (color.contrasted, functional.adjust_contrast),
        (color.saturated, functional.adjust_saturation),
        (lambda x, f: color.hue_shifted(x, (f - 1) / 2), lambda x, f: functional.adjust_hue(x, (f - 1) / 2)),
    ]
    for change, theirs in pairs:
        for k, f in enumerate(factor.tolist()):
            torch.testing.assert_close(change(ours, factor)[k], theirs(ours[k], f), atol=1e-5, rtol=0)
    box = 3, 2, 11, 13
    expected = functional.resized_crop(ours, *box, [17, 21], antialias=True)
    boxes = (torch.full((4,), float(v)) for v in box)
    torch.testing.assert_close(cropped(ours, *boxes), expected, atol=1e-5, rtol=0)
    names = {"identity": "Identity", "shear x": "ShearX", "shear y": "ShearY", "translate x": "TranslateX",
             "translate y": "TranslateY", "autocontrast": "AutoContrast"}  # fmt: skip
    theirs = autoaugment.RandAugment()._augmentation_space(BINS, (17, 21))
    levels = (ours * 255).round().to(torch.uint8)
    for name, operation in OPERATIONS.items():
        key = names.get(name, name.capitalize())
        magnitudes, signed = theirs[key]
        for m in (4, 9, 30):
            for sign in (-1.0, 1.0) if signed else (1.0,):
                size = float(magnitudes[m]) if magnitudes.ndim > 0 else 0.0
                expected = autoaugment._apply_op(
                    levels, key, sign * size, functional.InterpolationMode.NEAREST, fill=None
                )
                result = operation(ours, m / (BINS - 1), torch.full((4,), sign))
                different = ((result * 255 - expected).abs() > 2.01).float().mean()
                # torchvision rounds down in between. Nearest pixels at exactly half a pixel may be chosen differently.
                assert float(different) < 0.02, (name, m, sign, float(different))
