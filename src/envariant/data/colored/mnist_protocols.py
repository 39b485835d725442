"""Colored MNIST on the original digits, in the three protocols of the literature.

`irm` is the IRM paper's program (and REx's and Fishr's): 25,000 + 25,000 training rows and 10,000 test
rows of 2×14×14. `domainbed` cuts all 70,000 digits into three environments of 2×28×28. `thirds` takes
three blocks of 20,000 in file order as standardized 28×28 RGB, as many course projects do. Sampling uses
each program's order of random numbers, so that samples are bit-identical to those of the program.
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
    """Colored MNIST; every data draw shuffles, relabels and recolors the digits.

    Attributes:
        protocol: "irm", "domainbed" or "thirds".
        label_noise: Probability that the label differs from the shape's class.
        train_flips: Probability that the color differs from the label, for each training environment.
        test_flips: The same for each default test environment. In protocol irm each of them holds all
            10,000 test digits; in the others they share the digits with the training environments.
        size: Side of an image in pixels: 28, 14 or 7; every k-th row and column is kept. None means the
            size of the protocol.
        gray: Whether to add the color channels up, as the grayscale oracle sees the data.
        folder: Folder of the MNIST files; None finds or fetches them.
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
        defaults = _PROTOCOLS[self.protocol]
        object.__setattr__(self, "train_flips", self.train_flips or defaults.train_flips)
        object.__setattr__(self, "size", defaults.size if self.size is None else self.size)
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
        """Color flip probabilities of all environments, in order."""
        return (*self.train_flips, *self.test_flips)

    def sample(self, seed: int) -> EnvironmentSet:
        """Sample the environments of one data draw.

        Raises:
            EnvariantError: If MNIST cannot be found or fetched.
        """
        environments, test_environments = _PROTOCOLS[self.protocol].sample(self, _digits(self.folder), seed)
        if self.gray:
            environments = tuple(map(construction.grayscale, environments))
        if self.protocol == "thirds":
            environments = tuple(map(_standardized, environments))
        known = ReferenceScores(chance=0.5, optimum=max(self.label_noise, 1 - self.label_noise))
        return EnvironmentSet(self.name, environments, Binary(), test_environments, known)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return _PROTOCOLS[self.protocol].default_settings(algorithm, self.gray)


def check_chances(where: str, key: str, values: Flips) -> None:
    """Check that values are distinct probabilities.

    Raises:
        EnvariantError: If one is not a number in [0, 1], or occurs twice.
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
    # Cached, because reading and verifying the files takes longer than sampling.
    return mnist.load(folder)


Sample = tuple[tuple[Environment, ...], tuple[str, ...]]
"""Environments, and the names of the test environments among them."""


def _sample_irm(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Sample:
    """Shuffle the first 50,000 digits with NumPy's legacy generator and draw colors with torch (IRM code)."""
    order = np.random.RandomState(seed).permutation(50_000)
    generator = torch.Generator().manual_seed(seed)
    parts = len(source.train_flips)
    rows = [order[i::parts] for i in range(parts)]
    rows += [np.arange(50_000, 60_000)] * len(source.test_flips)
    names = construction.names(source.train_flips, source.test_flips)
    environments = tuple(
        _colored(source, name, digits.train_images, digits.train_labels, index, flip, generator)
        for name, index, flip in zip(names, rows, source.flips, strict=True)
    )
    return environments, tuple(names[parts:])


def _sample_domainbed(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Sample:
    """Permute all 70,000 digits with torch; environment i takes every k-th row from the i-th."""
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).numpy()
    parts = len(source.flips)
    names = construction.names(source.train_flips, source.test_flips, _agreement)
    environments = tuple(
        _colored(source, name, images, labels, order[i::parts], flip, generator)
        for i, (name, flip) in enumerate(zip(names, source.flips, strict=True))
    )
    return environments, tuple(names[len(source.train_flips) :])


def _agreement(flip: float) -> str:
    """Return DomainBed's name: how often color and label agree, with a minus if they mostly disagree."""
    return f"+{100 - 100 * flip:.6g}%" if flip <= 0.5 else f"-{100 * flip:.6g}%"


def _sample_thirds(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Sample:
    """Take blocks in file order; two NumPy uniforms per row decide on the label and then on the color."""
    uniforms = np.random.RandomState(seed).random_sample((60_000, 2))
    train, test = len(source.train_flips), len(source.test_flips)
    names = [f"train{i}" for i in range(1, train + 1)]
    names += ["test"] if test == 1 else [f"test{i}" for i in range(1, test + 1)]
    blocks = np.array_split(np.arange(60_000), len(names))
    environments = tuple(
        construction.colored_environment(
            name,
            construction.downsampled(digits.train_images[block], source.size or 28),
            (number := torch.from_numpy(digits.train_labels[block].astype(np.int64))),
            number >= 5,
            flipped_label=torch.from_numpy(uniforms[block, 0] < source.label_noise),
            flipped_color=torch.from_numpy(uniforms[block, 1] < flip),
        )
        for name, block, flip in zip(names, blocks, source.flips, strict=True)
    )
    return environments, tuple(names[train:])


def _colored(
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
    return construction.colored_environment(
        name,
        construction.downsampled(images[index], source.size or 28),
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


def _irm_settings(algorithm: str, gray: bool) -> DefaultSettings:
    """Return the settings of the IRM and REx papers; for other algorithms, those of ERM."""
    paper = published.protocol("colored_mnist_irm")
    coefficient = Step(1.0, paper["penalty_weight"], at=paper["anneal_steps"])
    penalized: Mapping[str, Mapping[str, Any]] = {
        "irm": {"l2": paper["l2"]},
        # The REx code's objective: the sum of the risks plus c·(R_1 − R_2)².
        "vrex": {"l2": paper["l2"], "pairwise": True, "risk_aggregator": "sum"},
        # R_1 + R_2 + c|R_1 − R_2| is twice R̄ + c(max − R̄), so the l2 term is halved as well.
        "mm-rex": {"l2": paper["l2"] / 2},
        # The Fishr code on these data: variances of the current batch alone, their distances summed.
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
            source="IRM paper, which used oracle selection",
        )
    if not gray and (settings := _rfc_settings(algorithm)) is not None:
        return settings
    baseline = paper["oracle_settings" if gray else "erm_settings"]
    return DefaultSettings(
        {"l2": baseline["l2"]},
        model=f"mlp(hidden={baseline['hidden']})",
        steps=baseline["steps"],
        learning_rate=baseline["lr"],
        source=f"IRM code, {'grayscale oracle' if gray else 'ERM baseline'}",
    )


def _rfc_settings(algorithm: str) -> DefaultSettings | None:
    """Return the settings of the RFC code for penalties that the IRM and REx papers do not have, else None.

    The code lists five weights and up to six lengths of the first stage; these are the middle weight, and
    the length of its figure. Its penalties are sums over environments, ours are means.
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
        source="RFC code, the middle one of its weights",
    )


def _domainbed_settings(algorithm: str, gray: bool) -> DefaultSettings:
    del gray
    coefficients = {"irm": "step(1, 100, at=500)", "vrex": "step(1, 10, at=500)"}
    coefficient = coefficients.get(algorithm)
    return DefaultSettings(
        {"coefficient": coefficient, "normalize_loss": False} if coefficient else {},
        model="mnist-cnn",
        steps=5001,
        batch_size=64,
        source="DomainBed defaults, with one logit, IRM's penalty on the whole batch and no optimizer reset",
    )


def _thirds_settings(algorithm: str, gray: bool) -> DefaultSettings:
    del algorithm, gray
    return DefaultSettings(
        model="lenet",
        steps=1000,
        batch_size=256,
        source="LeNet as in the course report; it states no steps, batch size or learning rate",
    )


@final
@dataclass(frozen=True)
class _Protocol:
    size: int
    train_flips: Flips
    sample: Callable[[ColoredMNIST, mnist.MNIST, int], Sample]
    default_settings: Callable[[str, bool], DefaultSettings]


_PROTOCOLS: dict[str, _Protocol] = {
    "irm": _Protocol(14, (0.2, 0.1), _sample_irm, _irm_settings),
    "domainbed": _Protocol(28, (0.1, 0.2), _sample_domainbed, _domainbed_settings),
    "thirds": _Protocol(28, (0.2, 0.1), _sample_thirds, _thirds_settings),
}
