"""Rotated MNIST of DomainBed: the digits of each environment are rotated by a different angle.

Gulrajani & Lopez-Paz 2020 (arXiv 2007.01434). Only the inputs shift: the digit can be read at every angle.
Environments at the ends of the range are harder to generalize to than those in between.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Self, final

import numpy as np
import torch
from pydantic import Field

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, ReferenceScores
from envariant.core.errors import EnvariantError
from envariant.core.input_store import ByteStore
from envariant.core.tasks import Multiclass
from envariant.data.base import SpecSource
from envariant.data.colored import mnist
from envariant.data.colored.construction import SEED
from envariant.data.domainbed_defaults import mnist_settings
from envariant.data.rotated.rotation import Interpolation, rotated


@final
@dataclass(frozen=True)
class RotatedMNIST(SpecSource):
    """All 70,000 MNIST digits, distributed at random to environments with different angles.

    Random numbers are generated in the same order as in DomainBed, so samples are bit-identical. An
    environment is named after its angle.

    Attributes:
        interpolation: "bilinear" as in DomainBed today, or "bicubic" as in the 2020 version, which produced
            the tables of the paper.
        angles: Counter-clockwise rotation of each environment in degrees.
        size: Height and width of an image in pixels: 28, 14 (every second pixel of the rotated image) or 7.
        rows: Use only the first rows of each environment. Default: use all rows, about 11,667 each.
        folder: Folder of the MNIST files. Default: the folder in the environment variable `ENVARIANT_MNIST`;
            if it is not set, the files are read from the cache or downloaded.
    """

    base: ClassVar[str] = "rotated-mnist"
    interpolation: Interpolation = "bilinear"
    angles: tuple[float, ...] = (0, 15, 30, 45, 60, 75)
    size: int = 28
    rows: Annotated[int, Field(ge=1)] | None = None
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        specs.validate(self, self.base, only=("interpolation", "angles", "rows"))
        if self.size not in (28, 14, 7):
            raise EnvariantError(f"{self.base}: size must be 28, 14 or 7; got {self.size}")
        if not 1 < len(set(self.angles)) == len(self.angles):
            raise EnvariantError(
                f"{self.base}: angles must be at least two different numbers; got {self.angles}"
            )

    @classmethod
    def from_spec(cls, spec: specs.Spec, folder: Path | None = None) -> Self:
        return cls(**specs.fill(cls, spec, positional=(), hidden=("folder",)), folder=folder)

    def sample(self, seed: int) -> EnvironmentSet:
        specs.check_value(seed, SEED, "seed")
        return _sampled(self, seed)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return mnist_settings(algorithm, "IRM's penalty on the whole batch and no optimizer reset")


# Cached, because the replicas of a run often share their data, and rotating all digits takes seconds.
@lru_cache(maxsize=1)
def _sampled(source: RotatedMNIST, seed: int) -> EnvironmentSet:
    digits = mnist.load(source.folder)
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).numpy()
    stride = 28 // source.size
    environments: list[Environment] = []
    for i, angle in enumerate(source.angles):
        rows = order[i :: len(source.angles)][: source.rows]
        pixels = rotated(images[rows], angle, source.interpolation)[:, None, ::stride, ::stride]
        store = ByteStore(torch.from_numpy(np.ascontiguousarray(pixels)))
        targets = torch.from_numpy(labels[rows].astype(np.int64))
        environments.append(Environment(f"{angle:g}", store, targets))
    last = environments[-1].name
    return EnvironmentSet(
        source.name,
        tuple(environments),
        Multiclass(10),
        test=(last,),
        known=ReferenceScores(chance=0.1),
        classes=tuple(map(str, range(10))),
    )
