"""Colored MNIST with one training environment per color channel, for the reproduction `sjtu-2023`.

Color channels are not environments in the usual sense: a relation that holds in all channels need not hold
after colors are swapped.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

import torch

from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet
from envariant.data.colored.construction import DigitSource
from envariant.data.colored.mnist_protocols import ColoredMNIST, check_size

CHANNELS = ("red", "green", "blue")


@final
@dataclass(frozen=True)
class ColorChannels(DigitSource):
    """Colored MNIST in protocol "thirds", with one training environment per color channel.

    Every training environment contains all training images, but only one of their channels; the other
    channels show the background. No digit is blue, so environment "blue" shows no digits. The test
    environment has all channels.

    Attributes:
        size: Height and width of an image in pixels: 28, 14 or 7.
        folder: Folder of the MNIST files. Default: the folder in the environment variable `ENVARIANT_MNIST`;
            if it is not set, the files are read from the cache or downloaded.
    """

    base: ClassVar[str] = "colored-mnist-channels"
    size: int = 14
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_size(self.base, self.size)

    def sample(self, seed: int) -> EnvironmentSet:
        colored = ColoredMNIST("thirds", size=self.size, folder=self.folder).sample(seed)
        training = [colored[name] for name, role in colored.roles().items() if role == "train"]
        inputs = torch.cat([environment.inputs for environment in training])
        targets = torch.cat([environment.targets for environment in training])
        background = inputs.amin(dim=(0, 2, 3), keepdim=True)
        channels: list[Environment] = []
        for channel, name in enumerate(CHANNELS):
            images = background.expand_as(inputs).clone()
            images[:, channel] = inputs[:, channel]
            channels.append(Environment(name, images, targets))
        test = tuple(colored[name] for name in colored.test)
        return EnvironmentSet(self.name, (*channels, *test), colored.task, colored.test, colored.known)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return DefaultSettings(
            model="mlp(hidden=256)",
            steps=1000,
            batch_size=256,
            source=(
                "network of the course report, which does not state the number of steps, the batch size or "
                "the learning rate"
            ),
        )
