"""Colored digits: the 1,797 digits of scikit-learn, colored like Colored MNIST.

The data set is small and needs no download: 8×8 images in three environments of 599 rows each. It is meant
for tests and first experiments.
"""

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment
from envariant.data.colored import construction


@final
@dataclass(frozen=True)
class ColoredDigits(construction.ColoredSource):
    """Data source of scikit-learn's digits with added colors. The settings are those of `ColoredSource`."""

    base: ClassVar[str] = "colored-digits"

    @property
    def name(self) -> str:
        base = f"{self.base}{'-grayscale' if self.gray else ''}"
        return specs.describe(base, self, ColoredDigits(gray=self.gray))

    def environments(self, seed: int) -> tuple[Environment, ...]:
        images, target = _digits()
        order = np.random.RandomState(seed).permutation(len(target))
        generator = torch.Generator().manual_seed(seed)
        environments: list[Environment] = []
        for i, name in enumerate(construction.names(self.train_flips, self.test_flips)):
            index = order[i :: len(self.flips)]
            gray = construction.downsampled(images[index], 8, most=16)
            uniforms = construction.uniforms(len(index), generator)
            environments.append(self.colored(name, gray, target[index], self.flips[i], uniforms))
        return tuple(environments)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        penalized = algorithm in ("irm", "vrex", "mm-rex")
        return DefaultSettings(
            {"l2": 3e-3} | ({"coefficient": "step(1, 1e5, at=60)"} if penalized else {}),
            model="mlp(hidden=64)",
            steps=150,
            learning_rate=3e-3,
            source="a small search with oracle selection, on only 1,200 training rows",
        )


@functools.cache
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Load scikit-learn's images, `[1797, 8, 8]` with values from 0 to 16, and their digits, `[1797]`.

    If possible, the data file is read without importing scikit-learn, which takes a second.
    """
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    # The type stubs declare a pair, which is right only with return_X_y.
    bunch: Any = load_digits()
    return bunch.images, bunch.target.astype(np.int64)
