"""Colored digits: Colored MNIST's construction over the 1,797 digits that scikit-learn carries.

Offline and tiny, for tests and first tries: 8×8 images, three environments of 599.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from sklearn.datasets import load_digits

from envariant import specs
from envariant.data import coloring
from envariant.data.colored_mnist import Flips, check_chances
from envariant.environments import Environment, EnvironmentSet, Known, Suggestion
from envariant.tasks import Binary


@final
@dataclass(frozen=True)
class ColoredDigits(coloring.ColoredSource):
    """Colored digits; every data draw shuffles, relabels and recolours anew.

    Attributes:
        label_noise: chance that a label is not what the shape says.
        train_flips: chance that the colour is not the label, an environment each.
        test_flips: the same for the environments held out by default.
        gray: add the colours up, which is all that the oracle sees.
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
        """Of all environments, in order."""
        return (*self.train_flips, *self.test_flips)

    def draw(self, seed: int) -> EnvironmentSet:
        # Typed as a pair, which it is only with return_X_y.
        bunch: Any = load_digits()
        order = np.random.RandomState(seed).permutation(len(bunch.target))
        generator = torch.Generator().manual_seed(seed)
        names = coloring.names(self.train_flips, self.test_flips)
        environments: list[Environment] = []
        for i, (name, flip) in enumerate(zip(names, self.flips, strict=True)):
            index = order[i :: len(names)]
            number = torch.from_numpy(bunch.target[index].astype(np.int64))
            environment = coloring.paint(
                name,
                coloring.ink(bunch.images[index], 8, most=16),
                number,
                number < 5,
                flipped_label=coloring.uniforms(len(index), generator) < self.label_noise,
                flipped_colour=coloring.uniforms(len(index), generator) < flip,
            )
            environments.append(coloring.grayscale(environment) if self.gray else environment)
        known = Known(chance=0.5, optimum=max(self.label_noise, 1 - self.label_noise))
        held_out = tuple(names[len(self.train_flips) :])
        return EnvironmentSet(self.name, tuple(environments), Binary(), held_out, known)

    def suggestion(self, algorithm: str) -> Suggestion:
        penalised = algorithm in ("irm", "vrex", "mm-rex")
        return Suggestion(
            {"l2": 3e-3} | ({"coefficient": "step(1, 1e5, at=60)"} if penalised else {}),
            model="mlp(hidden=64)",
            steps=150,
            learning_rate=3e-3,
            source="a small search with a look at the test environment; 1,200 rows are too few for much",
        )
