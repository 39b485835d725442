"""Colored MNIST whose label noise depends on the digit, as in the REx code.

Digits 0 and 5 are hard: 40 % of their labels are wrong. For other digits, 10 % of the labels are wrong. With
digit shift, the share of hard digits differs between environments.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch

from envariant.core import specs
from envariant.core.environments import Environment, EnvironmentSet, ReferenceScores
from envariant.core.tasks import Binary
from envariant.data.colored import construction, mnist
from envariant.data.colored.construction import DigitSource

HARD_DIGITS = (0, 5)
HARD_NOISE, EASY_NOISE = 0.4, 0.1
# Share of hard digits in MNIST, as the code assumes; the true share is 0.19.
_USUAL = 0.2
_FLIPS, _SHARES = (0.2, 0.1, 0.9), (0.3, 0.7, 0.5)


@final
@dataclass(frozen=True)
class HeteroskedasticMNIST(DigitSource):
    """Colored MNIST with label noise 0.4 for digits 0 and 5, else 0.1, as in the code of Krueger et al. 2021.

    Rows and flip probabilities are those of protocol "irm" of `colored-mnist`. With digit shift, the share of
    hard digits (0 and 5) is 0.3 and 0.7 in the training environments and 0.5 in the test environment. To
    obtain this share, random rows with hard digits are replaced by repeated rows with other digits, or vice
    versa.

    Attributes:
        digit_shift: Whether the share of hard digits differs between environments.
        folder: Folder of the MNIST files. Default: the folder in the environment variable `ENVARIANT_MNIST`;
            if it is not set, the files are read from the cache or downloaded.
    """

    base: ClassVar[str] = "colored-mnist-hetero"
    digit_shift: bool = True
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    def sample(self, seed: int) -> EnvironmentSet:
        specs.check_value(seed, construction.SEED, "seed")
        environments = tuple(self._environments(mnist.cached(self.folder), seed))
        digit = environments[-1].attributes["digit"]
        hard = float(torch.isin(digit, torch.tensor(HARD_DIGITS)).double().mean())
        known = ReferenceScores(chance=0.5, optimum=1 - (HARD_NOISE * hard + EASY_NOISE * (1 - hard)))
        return EnvironmentSet(self.name, environments, Binary(), (environments[-1].name,), known)

    def _environments(self, digits: mnist.MNIST, seed: int) -> Iterator[Environment]:
        order = np.random.RandomState(seed).permutation(50_000)
        generator = torch.Generator().manual_seed(seed)
        blocks = (order[::2], order[1::2], np.arange(50_000, 60_000))
        for rows, flip, share in zip(blocks, _FLIPS, _SHARES, strict=True):
            if self.digit_shift:
                rows = rows[shifted_rows(digits.train_labels[rows], share, generator)]
            yield colored(f"flip-{flip:g}", digits, rows, flip, generator)


def colored(
    name: str, digits: mnist.MNIST, rows: np.ndarray, flip: float, generator: torch.Generator
) -> Environment:
    """Build an environment from rows of the training file.

    For every row, label noise is sampled at both levels, 0.4 and 0.1; the digit determines which is used.
    """
    number = torch.from_numpy(digits.train_labels[rows].astype(np.int64))
    noises = (HARD_NOISE, EASY_NOISE)
    hard, easy = (torch.rand(len(rows), generator=generator) < noise for noise in noises)
    return construction.colored_environment(
        name,
        construction.downsampled(digits.train_images[rows], 14),
        number,
        number < 5,
        flipped_label=torch.where(torch.isin(number, torch.tensor(HARD_DIGITS)), hard, easy),
        flipped_color=torch.rand(len(rows), generator=generator) < flip,
    )


def shifted_rows(labels: np.ndarray, share: float, generator: torch.Generator) -> np.ndarray:
    """Resample the rows so that a given share of them, in expectation, have hard digits.

    Some rows are dropped, and as many others are repeated. The row indices are returned, those of repeated
    rows at the end.

    Args:
        labels: Digit of each row.
        share: Expected share of rows with hard digits.
        generator: Random number generator.
    """
    hard = np.isin(labels, HARD_DIGITS)
    grown = hard if share > _USUAL else ~hard
    chance = (1 - share) / (1 - _USUAL) if share > _USUAL else share / _USUAL
    coins = torch.rand(len(labels), generator=generator).numpy()
    kept = np.flatnonzero(grown | (coins < chance))
    source = np.flatnonzero(grown)
    index = torch.randint(len(source), (len(labels) - len(kept),), generator=generator).numpy()
    return np.concatenate([kept, source[index]])
