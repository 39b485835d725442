"""Colored MNIST with the color channels of its images as environments, as the course report has it.

The three channels of one image are no three places the image could have come from, and what holds in all
of them is not what holds where the colors are swapped. It is here because it was tried.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

import torch

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.data.colored.mnist_protocols import ColoredMNIST

CHANNELS = ("red", "green", "blue")


@final
@dataclass(frozen=True)
class ColorChannels(EnvironmentSource):
    """All training rows of Colored MNIST, protocol thirds, three times: with one channel left in each.

    In "red" the other channels hold their background, and so on; blue is empty. The held-out environment
    is that of the protocol, with all its channels.

    Attributes:
        size: pixels a side: 28, 14 or 7.
        folder: where the MNIST files are, if not to be fetched.
    """

    base: ClassVar[str] = "colored-mnist-channels"
    size: int = 14
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.size not in (28, 14, 7):
            raise EnvariantError(f"{self.base}: size must be 28, 14 or 7; got {self.size}")

    @property
    def name(self) -> str:
        return specs.describe(self.base, self, ColorChannels())

    def sample(self, seed: int) -> EnvironmentSet:
        whole = ColoredMNIST("thirds", size=self.size, folder=self.folder).sample(seed)
        training = [whole[name] for name, role in whole.roles().items() if role == "train"]
        inputs = torch.cat([environment.inputs for environment in training])
        targets = torch.cat([environment.targets for environment in training])
        background = inputs.amin(dim=(0, 2, 3), keepdim=True)
        channels: list[Environment] = []
        for channel, name in enumerate(CHANNELS):
            only = background.expand_as(inputs).clone()
            only[:, channel] = inputs[:, channel]
            channels.append(Environment(name, only, targets))
        test_environments = tuple(whole[name] for name in whole.test)
        return EnvironmentSet(self.name, (*channels, *test_environments), whole.task, whole.test, whole.known)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        del algorithm
        return DefaultSettings(
            model="mlp(hidden=256)",
            steps=1000,
            batch_size=256,
            source="the course report's network; it states no steps, batch or rate",
        )
