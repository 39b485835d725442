"""Train 20 algorithms on frozen features of rotated MNIST, as a sweep of DomainBed's shape.

    python benchmarks/frozen_features.py FOLDER [--share 0.05] [--write]

Six environments of rotated digits (70,000 rows) pass once through EfficientNet-Lite0 with ImageNet weights.
Then 20 algorithms × 20 trials × 3 replicas × 6 test environments train a head on the features: 7,200 runs.
`--share` trains a random part of the jobs, with every algorithm in it, and extrapolates; 1 trains all. Runs
are stored in FOLDER and resume. `--write` writes frozen_features.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.input_store import ByteStore
from envariant.core.tasks import Multiclass
from envariant.data.colored import mnist
from envariant.features import Features

HERE = Path(__file__).parent
ANGLES = (0, 15, 30, 45, 60, 75)
SIZE = 64


def rotated_mnist() -> EnvironmentSet:
    """Return DomainBed's RotatedMNIST: 70,000 digits in random order, one sixth rotated by each angle."""
    digits = mnist.load()
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    order = np.random.default_rng(0).permutation(len(images))

    def rotated(image: np.ndarray, angle: int) -> np.ndarray:
        return np.asarray(Image.fromarray(image).rotate(angle, resample=Image.Resampling.BILINEAR))

    environments = []
    for k, angle in enumerate(ANGLES):
        rows = order[k :: len(ANGLES)]
        pixels = np.stack([rotated(image, angle) for image in images[rows]])[:, None]
        targets = torch.from_numpy(labels[rows].astype(np.int64))
        environments.append(Environment(str(angle), ByteStore(torch.from_numpy(pixels)), targets))
    return EnvironmentSet("rotated-mnist", tuple(environments), Multiclass(10))


def features(cache: Path) -> Features:
    """Return the features of rotated MNIST, from the cache if they are stored."""
    return Features(rotated_mnist(), "efficientnet-lite0", size=SIZE, batch_size=256, cache=cache)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    source = features(folder / "cache")
    source.sample(0)
    print(source.extraction)


if __name__ == "__main__":
    main()
