"""Colored MNIST with covariate shift between environments, as in the REx code (Krueger et al. 2021).

Rows, label noise and colors are those of protocol "irm". In addition, classes, digits or shades of color are
imbalanced, in opposite directions in the two training environments, and balanced in the test environment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.core.environments import Environment, EnvironmentSet, ReferenceScores
from envariant.core.tasks import Binary
from envariant.data.colored import construction, mnist
from envariant.data.colored.construction import DigitSource

# Label noise, and the flip of each environment: two for training, one for tests.
_NOISE, _FLIPS = 0.25, (0.2, 0.1, 0.9)
# Groups of digits, of which the shares p and 1 − p are kept in turn; all other digits are dropped.
_GROUPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "class": ((5, 6, 7, 8, 9), (0, 1, 2, 3, 4)),
    "digit": ((1, 2), (3, 4), (6, 7), (8, 9)),
}


@final
@dataclass(frozen=True)
class CovariateShift(DigitSource):
    """Colored MNIST with covariate shift. Krueger et al. 2021, section 4.1.2; data as in the released code.

    For kinds "class" and "digit", the digits form two groups: a share p of the rows of the first group is
    kept, and a share 1 − p of the second. For kind "color", p determines the shades. With overlap f, p is
    f/(1 + f) in environment `flip-0.2`, 1/(1 + f) in `flip-0.1`, and 1/2 in the test environment `flip-0.9`.

    Attributes:
        kind: What is imbalanced. "class": the first group has digits 5–9, the second digits 0–4. "digit": the
            first group has digits 1, 2, 6 and 7, the second digits 3, 4, 8 and 9; rows with the digits 0 and
            5 are dropped. "color": each color has two shades, so that images have four channels; no row is
            dropped. The first shade has probability p for color 0, and 1 − p for color 1.
        overlap: Overlap f of the training environments, in [0, 1]: 1 for no shift; 0 if each training
            environment contains only one group, or only one shade of each color.
        folder: Folder of the MNIST files. Default: the folder in the environment variable `ENVARIANT_MNIST`;
            if it is not set, the files are read from the cache or downloaded.
    """

    base: ClassVar[str] = "colored-mnist-covariate-shift"
    kind: Literal["class", "digit", "color"] = "class"
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.1
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    def sample(self, seed: int) -> EnvironmentSet:
        specs.check_value(seed, construction.SEED, "seed")
        environments = tuple(self._environments(mnist.cached(self.folder), seed))
        known = ReferenceScores(chance=0.5, optimum=1 - _NOISE)
        return EnvironmentSet(self.name, environments, Binary(), (environments[-1].name,), known)

    def _environments(self, digits: mnist.MNIST, seed: int) -> Iterator[Environment]:
        order = np.random.RandomState(seed).permutation(50_000)
        generator = torch.Generator().manual_seed(seed)
        blocks = (order[::2], order[1::2], np.arange(50_000, 60_000))
        share = self.overlap / (1 + self.overlap)
        for rows, flip, p in zip(blocks, _FLIPS, (share, 1 - share, 0.5), strict=True):
            labels = digits.train_labels[rows]
            if self.kind != "color":
                rows = rows[kept_rows(labels, _GROUPS[self.kind], p)]
            number = torch.from_numpy(digits.train_labels[rows].astype(np.int64))
            images = construction.downsampled(digits.train_images[rows], 14)
            noise, color = construction.uniforms(len(rows), generator)
            environment = construction.colored_environment(
                f"flip-{flip:g}", images, number, number < 5,
                flipped_label=noise < _NOISE, flipped_color=color < flip,
            )  # fmt: skip
            yield _in_shades(environment, p, generator) if self.kind == "color" else environment


def kept_rows(labels: np.ndarray, groups: Sequence[tuple[int, ...]], p: float) -> np.ndarray:
    """Return the indices of the rows to keep, one group after another.

    Args:
        labels: Digit of each row.
        groups: Digits of each group.
        p: Share of the first, third, … group to keep; of the second, fourth, … group, the share 1 − p is
            kept. The first rows of each group are kept.
    """
    members = [np.flatnonzero(np.isin(labels, group)) for group in groups]
    shares = [p if i % 2 == 0 else 1 - p for i in range(len(groups))]
    return np.concatenate([rows[: int(s * len(rows))] for rows, s in zip(members, shares, strict=True)])


def _in_shades(environment: Environment, p: float, generator: torch.Generator) -> Environment:
    """Return a copy with four channels: color 0 is shown in channel 0 or 1, and color 1 in channel 2 or 3."""
    color = environment.attributes["color"]
    channel = torch.empty_like(color)
    for value, chance in ((0, p), (1, 1 - p)):
        rows = color == value
        other: Tensor = torch.rand(int(rows.sum()), generator=generator) >= chance
        channel[rows] = 2 * value + other.long()
    image = environment.inputs.sum(dim=1)
    inputs = image.new_zeros(len(image), 4, *image.shape[1:])
    inputs[torch.arange(len(image)), channel] = image
    attributes = {**environment.attributes, "channel": channel}
    return Environment(environment.name, inputs, environment.targets, attributes)
