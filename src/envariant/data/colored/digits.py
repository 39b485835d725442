"""Colored digits: the construction of Colored MNIST on the 1,797 digits that scikit-learn ships.

Offline and tiny, for tests and first experiments: 8×8 images, three environments of 599 rows.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, ReferenceScores
from envariant.core.tasks import Binary
from envariant.data.colored import construction
from envariant.data.colored.mnist_protocols import Flips, check_chances


@final
@dataclass(frozen=True)
class ColoredDigits(construction.ColoredSource):
    """Colored digits; every data draw shuffles, relabels and recolors the digits.

    Attributes:
        label_noise: Probability that the label differs from the shape's class.
        train_flips: Probability that the color differs from the label, for each training environment.
        test_flips: The same for each default test environment.
        gray: Whether to add the color channels up, as the grayscale oracle sees the data.
    """

    base: ClassVar[str] = "colored-digits"
    label_noise: float = 0.25
    train_flips: Flips = (0.2, 0.1)
    test_flips: Flips = (0.9,)
    gray: bool = False

    def __post_init__(self) -> None:
        check_chances(self.base, "label_noise", (self.label_noise,))
        check_chances(self.base, "train_flips", self.train_flips)
        check_chances(self.base, "test_flips", self.test_flips)

    @property
    def name(self) -> str:
        base = f"{self.base}{'-grayscale' if self.gray else ''}"
        return specs.describe(base, self, ColoredDigits(gray=self.gray))

    @property
    def flips(self) -> Flips:
        """Color flip probabilities of all environments, in order."""
        return (*self.train_flips, *self.test_flips)

    def sample(self, seed: int) -> EnvironmentSet:
        images, target = _digits()
        order = np.random.RandomState(seed).permutation(len(target))
        generator = torch.Generator().manual_seed(seed)
        names = construction.names(self.train_flips, self.test_flips)
        environments: list[Environment] = []
        for i, (name, flip) in enumerate(zip(names, self.flips, strict=True)):
            index = order[i :: len(names)]
            number = torch.from_numpy(target[index])
            environment = construction.colored_environment(
                name,
                construction.downsampled(images[index], 8, most=16),
                number,
                number < 5,
                flipped_label=construction.uniforms(len(index), generator) < self.label_noise,
                flipped_color=construction.uniforms(len(index), generator) < flip,
            )
            environments.append(construction.grayscale(environment) if self.gray else environment)
        known = ReferenceScores(chance=0.5, optimum=max(self.label_noise, 1 - self.label_noise))
        test_environments = tuple(names[len(self.train_flips) :])
        return EnvironmentSet(self.name, tuple(environments), Binary(), test_environments, known)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        penalized = algorithm in ("irm", "vrex", "mm-rex")
        return DefaultSettings(
            {"l2": 3e-3} | ({"coefficient": "step(1, 1e5, at=60)"} if penalized else {}),
            model="mlp(hidden=64)",
            steps=150,
            learning_rate=3e-3,
            source="a small search with oracle selection, on only 1,200 training rows",
        )


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return scikit-learn's digits: images `[1797, 8, 8]` with values from 0 to 16, and the digits `[1797]`.

    They are read from its data file, because importing scikit-learn takes a second.
    """
    package = find_spec("sklearn")
    folders = [] if package is None else package.submodule_search_locations or []
    for folder in folders:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    # The type stubs declare a pair, which is right only with return_X_y.
    bunch: Any = load_digits()
    return bunch.images, bunch.target.astype(np.int64)
