"""Colored MNIST on the real digits, in the three protocols that the literature means by that name.

`irm` is the IRM paper's program (and REx's and Fishr's): 25,000 + 25,000 training rows and 10,000 test
rows of 2×14×14. `domainbed` cuts all 70,000 digits into three environments of 2×28×28. `thirds` takes
three blocks of 20,000 in file order as standardized 28×28 RGB, as many course projects do. Draws follow
each program's own order of random numbers, so that fixtures made with it come out bit for bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch

from envariant import published
from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, ReferenceScores
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.schedules import Step
from envariant.core.tasks import Binary
from envariant.data.colored import construction, mnist

Flips = tuple[float, ...]


@final
@dataclass(frozen=True)
class ColoredMNIST(construction.ColoredSource):
    """Colored MNIST; every data draw shuffles, relabels and recolors anew.

    Attributes:
        protocol: irm, domainbed or thirds.
        label_noise: chance that a label is not what the shape says.
        train_flips: chance that the color is not the label, an environment each.
        test_flips: the same for the environments held out by default. In protocol irm each of them holds
            all 10,000 test digits; in the others they share the digits with the training environments.
        size: pixels a side: 28, 14 or 7; every k-th row and column is kept. None is the protocol's own.
        gray: add the colors up, which is all that the oracle sees.
        folder: where the MNIST files are, if not to be fetched.
    """

    base: ClassVar[str] = "colored-mnist"
    protocol: str = "irm"
    label_noise: float = 0.25
    train_flips: Flips = ()
    test_flips: Flips = (0.9,)
    size: int | None = None
    gray: bool = False
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.protocol not in _PROTOCOLS:
            raise unknown_name("protocol", self.protocol, _PROTOCOLS, where=self.base)
        own = _PROTOCOLS[self.protocol]
        object.__setattr__(self, "train_flips", self.train_flips or own.train_flips)
        object.__setattr__(self, "size", own.size if self.size is None else self.size)
        check_chances(self.base, "label_noise", (self.label_noise,))
        check_chances(self.base, "train_flips", self.train_flips)
        check_chances(self.base, "test_flips", self.test_flips)
        if self.size not in (28, 14, 7):
            raise EnvariantError(f"{self.base}: size must be 28, 14 or 7; got {self.size}")

    @property
    def name(self) -> str:
        base = f"{self.base}{'-grayscale' if self.gray else ''}:{self.protocol}"
        return specs.describe(base, self, ColoredMNIST(self.protocol, gray=self.gray))

    @property
    def flips(self) -> Flips:
        """Of all environments, in order."""
        return (*self.train_flips, *self.test_flips)

    def sample(self, seed: int) -> EnvironmentSet:
        """The environments of one data draw.

        Raises:
            EnvariantError: MNIST cannot be had.
        """
        environments, test_environments = _PROTOCOLS[self.protocol].draw(self, _digits(self.folder), seed)
        if self.gray:
            environments = tuple(map(construction.grayscale, environments))
        if self.protocol == "thirds":
            environments = tuple(map(_standardized, environments))
        known = ReferenceScores(chance=0.5, optimum=max(self.label_noise, 1 - self.label_noise))
        return EnvironmentSet(self.name, environments, Binary(), test_environments, known)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return _PROTOCOLS[self.protocol].suggestion(algorithm, self.gray)


def check_chances(where: str, key: str, values: Flips) -> None:
    """Refuses probabilities outside [0, 1] and flips given twice.

    Raises:
        EnvariantError: naming the first that is wrong.
    """
    if not isinstance(values, tuple):
        raise EnvariantError(f"{where}: {key} must be numbers in [0, 1]; got {values}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EnvariantError(f"{where}: {key} must be numbers in [0, 1]; got {value}")
        if not 0 <= value <= 1:
            raise EnvariantError(f"{where}: {key} must lie in [0, 1]; got {value:g}")
    if len(set(values)) < len(values):
        raise EnvariantError(f"{where}: {key} must differ from one another; got {values}")


@lru_cache(maxsize=2)
def _digits(folder: Path | None) -> mnist.MNIST:
    # Kept between draws: reading and checking the files again for every replica would cost more than a draw.
    return mnist.load(folder)


Drawn = tuple[tuple[Environment, ...], tuple[str, ...]]


def _draw_irm(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Drawn:
    """Shuffle the first 50,000 with NumPy's legacy generator, then colors from torch, as the IRM code."""
    order = np.random.RandomState(seed).permutation(50_000)
    generator = torch.Generator().manual_seed(seed)
    ways = len(source.train_flips)
    rows = [order[i::ways] for i in range(ways)]
    rows += [np.arange(50_000, 60_000)] * len(source.test_flips)
    names = construction.names(source.train_flips, source.test_flips)
    environments = tuple(
        _painted(source, name, digits.train_images, digits.train_labels, index, flip, generator)
        for name, index, flip in zip(names, rows, source.flips, strict=True)
    )
    return environments, tuple(names[ways:])


def _draw_domainbed(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Drawn:
    """All 70,000, one torch permutation, environment i takes every k-th row from the i-th."""
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).numpy()
    ways = len(source.flips)
    names = construction.names(source.train_flips, source.test_flips, _agreement)
    environments = tuple(
        _painted(source, name, images, labels, order[i::ways], flip, generator)
        for i, (name, flip) in enumerate(zip(names, source.flips, strict=True))
    )
    return environments, tuple(names[len(source.train_flips) :])


def _agreement(flip: float) -> str:
    """DomainBed's name: how often color and label agree, with a minus where they rather disagree."""
    return f"+{100 - 100 * flip:.6g}%" if flip <= 0.5 else f"-{100 * flip:.6g}%"


def _draw_thirds(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Drawn:
    """Blocks in file order; two NumPy uniforms a row, the label's before the color's."""
    draws = np.random.RandomState(seed).random_sample((60_000, 2))
    train, test = len(source.train_flips), len(source.test_flips)
    names = [f"train{i}" for i in range(1, train + 1)]
    names += ["test"] if test == 1 else [f"test{i}" for i in range(1, test + 1)]
    blocks = np.array_split(np.arange(60_000), len(names))
    environments = tuple(
        construction.paint(
            name,
            construction.ink(digits.train_images[block], source.size or 28),
            (number := torch.from_numpy(digits.train_labels[block].astype(np.int64))),
            number >= 5,
            flipped_label=torch.from_numpy(draws[block, 0] < source.label_noise),
            flipped_color=torch.from_numpy(draws[block, 1] < flip),
        )
        for name, block, flip in zip(names, blocks, source.flips, strict=True)
    )
    return environments, tuple(names[train:])


def _painted(
    source: ColoredMNIST,
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    flip: float,
    generator: torch.Generator,
) -> Environment:
    number = torch.from_numpy(labels[index].astype(np.int64))
    flipped_label = construction.uniforms(len(index), generator) < source.label_noise
    flipped_color = construction.uniforms(len(index), generator) < flip
    return construction.paint(
        name,
        construction.ink(images[index], source.size or 28),
        number,
        number < 5,
        flipped_label=flipped_label,
        flipped_color=flipped_color,
    )


def _standardized(environment: Environment) -> Environment:
    if environment.inputs.shape[1] == 2:
        return construction.as_rgb(environment, 0.1307, 0.3081)
    inputs = (environment.inputs - 0.1307) / 0.3081
    return Environment(environment.name, inputs, environment.targets, environment.attributes)


def _suggest_irm(algorithm: str, gray: bool) -> DefaultSettings:
    """The settings of the IRM and REx papers; where a paper has none, ERM's."""
    paper = published.protocol("colored_mnist_irm")
    coefficient = Step(1.0, paper["penalty_weight"], at=paper["anneal_steps"])
    penalized: Mapping[str, Mapping[str, Any]] = {
        "irm": {"l2": paper["l2"]},
        # The REx code's objective: the sum of the risks plus c·(R_1 − R_2)².
        "vrex": {"l2": paper["l2"], "pairwise": True, "risk_aggregator": "sum"},
        # R_1 + R_2 + c|R_1 − R_2| is twice R̄ + c(max − R̄), and so is the l2 term beside it.
        "mm-rex": {"l2": paper["l2"] / 2},
        # The Fishr code on these data: variances of the newest rows alone, their distances summed.
        "fishr": {"l2": paper["l2"], "memory": 0.0, "summed": True},
        "eiil": {
            "l2": paper["l2"],
            "coefficient": replace(coefficient, after=paper["eiil_settings"]["penalty_weight"]),
        },
    }
    if algorithm in penalized:
        return DefaultSettings(
            {"coefficient": coefficient, **penalized[algorithm]},
            model=f"mlp(hidden={paper['hidden']})",
            steps=paper["steps"],
            learning_rate=paper["lr"],
            source="IRM paper, chosen there with a look at the test environment",
        )
    if not gray and (found := _suggest_rfc(algorithm)) is not None:
        return found
    baseline = paper["oracle_settings" if gray else "erm_settings"]
    return DefaultSettings(
        {"l2": baseline["l2"]},
        model=f"mlp(hidden={baseline['hidden']})",
        steps=baseline["steps"],
        learning_rate=baseline["lr"],
        source=f"IRM code, {'grayscale oracle' if gray else 'ERM baseline'}",
    )


def _suggest_rfc(algorithm: str) -> DefaultSettings | None:
    """Of penalties that the IRM and REx papers do not have, the settings of the RFC code.

    It lists five weights and up to six lengths of the first stage; these are the middle weight, and the
    length that its figure shows. Risks are summed there; P is a sum over environments where ours is a mean.
    """
    rfc = published.protocol("colored_mnist_rfc")
    weights = {"sd": (2 * 100.0, 250), "iga": (1e4, 250), "clove": (2 * 1e4, 200)}
    if algorithm not in weights:
        return None
    weight, at = weights[algorithm]
    return DefaultSettings(
        {
            "coefficient": Step(1.0, weight, at=at),
            "l2": 0.0 if algorithm == "clove" else rfc["l2"],
            "risk_aggregator": "sum",
            "normalize_loss": True,
        },
        model="mlp(hidden=390)",
        steps=1001,
        batch_size=512 if algorithm == "clove" else None,
        learning_rate=5e-4,
        source="RFC code, the middle of its weights",
    )


def _suggest_domainbed(algorithm: str, gray: bool) -> DefaultSettings:
    del gray
    coefficients = {"irm": "step(1, 100, at=500)", "vrex": "step(1, 10, at=500)"}
    chosen = coefficients.get(algorithm)
    return DefaultSettings(
        {"coefficient": chosen, "normalize_loss": False} if chosen else {},
        model="mnist-cnn",
        steps=5001,
        batch_size=64,
        source="DomainBed defaults, with one logit, the whole batch in IRM's square and no optimizer reset",
    )


def _suggest_thirds(algorithm: str, gray: bool) -> DefaultSettings:
    del algorithm, gray
    return DefaultSettings(
        model="lenet",
        steps=1000,
        batch_size=256,
        source="LeNet as in the course report; it states no steps, batch or rate",
    )


@final
@dataclass(frozen=True)
class _Protocol:
    size: int
    train_flips: Flips
    draw: Callable[[ColoredMNIST, mnist.MNIST, int], Drawn]
    suggestion: Callable[[str, bool], DefaultSettings]


_PROTOCOLS: dict[str, _Protocol] = {
    "irm": _Protocol(14, (0.2, 0.1), _draw_irm, _suggest_irm),
    "domainbed": _Protocol(28, (0.1, 0.2), _draw_domainbed, _suggest_domainbed),
    "thirds": _Protocol(28, (0.2, 0.1), _draw_thirds, _suggest_thirds),
}
