"""Colored MNIST, built from the MNIST digits according to protocols of the literature.

`irm` is the protocol of the IRM, REx and Fishr code: two training environments of 25,000 rows and a test
environment of 10,000 rows, all from the MNIST training file; images have shape 2×14×14. `domainbed` splits
all 70,000 digits into three environments; images have shape 2×28×28. `thirds`, used in many course projects,
splits the training file into three blocks of 20,000 rows; images are standardized and have shape 3×28×28.
`eqrm` shuffles the whole training file; its test environments are MNIST's test digits, of shape 2×14×14.
Random numbers are generated in the same order as in the published code, so samples are bit-identical.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch

from envariant import published
from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.schedules import Step
from envariant.core.tasks import Multiclass
from envariant.data.colored import construction, eqrm, mnist
from envariant.data.colored.construction import Flips
from envariant.data.domainbed_defaults import mnist_settings


@final
@dataclass(frozen=True)
class ColoredMNIST(construction.ColoredSource):
    """Colored MNIST, built from the MNIST digits by protocol "irm", "domainbed", "thirds" or "eqrm".

    In protocols "irm" and "eqrm", all test environments (except those of `logged_tests`) use the same 10,000
    images. For "irm", these are rows 50,000–59,999 of the MNIST *training* file; for "eqrm", all rows of the
    MNIST *test* file. In the other protocols, every environment has different images. All settings of
    `ColoredSource` can be used too; the default of `train_flips` depends on the protocol.

    Attributes:
        protocol: "irm", "domainbed", "thirds" or "eqrm".
        size: Height and width of an image in pixels: 28, 14 (every second pixel) or 7 (every fourth pixel).
            Default: the size of the protocol.
        gray_test: Whether to add a test environment `gray`, in which both color channels contain the image,
            as in the REx and Fishr code; only in protocol "irm".
        strided_tests: Whether test environment k = 0, 1, … consists only of the rows k, k + 10, k + 20, … of
            the 10,000 test images, as in the REx code for a range of shifts; only in protocol "irm".
        two_logits: Whether the model has one logit for each of the two classes and cross-entropy loss, as in
            DomainBed, instead of a single logit and logistic loss.
        logged_tests: Whether to add the four test environments that the EQRM code logs during training. All
            four consist of the same 10,000 rows of the training file; only in protocol "eqrm".
        folder: Folder of the MNIST files. Default: the folder in the environment variable `ENVARIANT_MNIST`;
            if it is not set, the files are read from the cache or downloaded.
    """

    base: ClassVar[str] = "colored-mnist"
    protocol: str = "irm"
    train_flips: Flips = field(default=(), kw_only=True)
    size: int | None = None
    gray_test: bool = False
    strided_tests: bool = False
    two_logits: bool = False
    logged_tests: bool = False
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.protocol not in _PROTOCOLS:
            raise unknown_name("protocol", self.protocol, _PROTOCOLS, where=self.base)
        defaults = _PROTOCOLS[self.protocol]
        object.__setattr__(self, "train_flips", self.train_flips or defaults.train_flips)
        object.__setattr__(self, "size", defaults.size if self.size is None else self.size)
        super().__post_init__()
        check_size(self.base, self.size)
        for option, protocol in _OPTIONS.items():
            if getattr(self, option) and self.protocol != protocol:
                raise EnvariantError(
                    f"{self.base}: the option {option} is available only in protocol '{protocol}'"
                )
        if self.gray_test and self.gray:
            raise EnvariantError(f"{self.base}: gray_test needs color; all images of {self.name} are gray")

    @property
    def name(self) -> str:
        base = f"{self.base}{'-grayscale' if self.gray else ''}:{self.protocol}"
        return specs.describe(base, self, ColoredMNIST(self.protocol, gray=self.gray))

    @property
    def flips(self) -> Flips:
        return (*super().flips, *(eqrm.LOGGED if self.logged_tests else ()))

    def environments(self, seed: int) -> tuple[Environment, ...]:
        return tuple(_PROTOCOLS[self.protocol].sample(self, mnist.cached(self.folder), seed))

    def sample(self, seed: int) -> EnvironmentSet:
        sample = super().sample(seed)
        return replace(sample, task=Multiclass(2)) if self.two_logits else sample

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return _PROTOCOLS[self.protocol].default_settings(algorithm, self.gray)

    def drawn(
        self, name: str, images: np.ndarray, labels: np.ndarray, flip: float, generator: torch.Generator
    ) -> Environment:
        """Build one environment from MNIST images.

        Args:
            name: Name of the environment.
            images: Grayscale images with values from 0 to 255, `[rows, 28, 28]`.
            labels: Digit of each image, `[rows]`.
            flip: Probability that the color differs from the label.
            generator: Random number generator for label noise and colors.
        """
        gray = construction.downsampled(images, self.size or 28)
        return self.colored(name, gray, labels, flip, construction.uniforms(len(images), generator))


def check_size(where: str, size: int | None) -> None:
    """Check that an image size is 28, 14 or 7 pixels.

    Raises:
        EnvariantError: If the size is not 28, 14 or 7.
    """
    if size not in (28, 14, 7):
        raise EnvariantError(f"{where}: size must be 28, 14 or 7; got {size}")


_STRIDE = 10
# Settings that only one protocol has.
_OPTIONS = {"gray_test": "irm", "strided_tests": "irm", "logged_tests": "eqrm"}


def _sample_irm(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Iterator[Environment]:
    """Shuffle the first 50,000 digits with NumPy, and sample the colors with torch, as the IRM code does."""
    order = np.random.RandomState(seed).permutation(50_000)
    generator = torch.Generator().manual_seed(seed)
    parts = len(source.train_flips)
    rows = [order[i::parts] for i in range(parts)]
    held_out = np.arange(50_000, 60_000)
    strides = [held_out[k::_STRIDE] for k in range(len(source.test_flips))]
    rows += strides if source.strided_tests else [held_out] * len(source.test_flips)
    names = construction.names(source.train_flips, source.test_flips)
    for name, index, flip in zip(names, rows, source.flips, strict=True):
        yield source.drawn(name, digits.train_images[index], digits.train_labels[index], flip, generator)
    if source.gray_test:
        # The code draws colors at the flip probability of its test environment, and does not show them.
        images, labels = digits.train_images[held_out], digits.train_labels[held_out]
        yield construction.both_channels(source.drawn("gray", images, labels, 0.9, generator))


def _sample_domainbed(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Iterator[Environment]:
    """Shuffle all 70,000 digits with torch; assign rows i, i + k, i + 2k, … to environment i of k."""
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).numpy()
    names = construction.names(source.train_flips, source.test_flips, _agreement)
    for i, (name, flip) in enumerate(zip(names, source.flips, strict=True)):
        index = order[i :: len(names)]
        yield source.drawn(name, images[index], labels[index], flip, generator)


def _agreement(flip: float) -> str:
    """Return DomainBed's name: "+90%" if color equals label in 90 % of rows, "-90%" if it differs in 90 %."""
    return f"+{100 - 100 * flip:.6g}%" if flip <= 0.5 else f"-{100 * flip:.6g}%"


def _sample_thirds(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Iterator[Environment]:
    """Split the digits into equal blocks in file order; sample label noise and colors with NumPy."""
    uniforms = torch.from_numpy(np.random.RandomState(seed).random_sample((60_000, 2)))
    names = [f"train{i + 1}" for i in range(len(source.train_flips))]
    test = len(source.test_flips)
    names += ["test"] if test == 1 else [f"test{i + 1}" for i in range(test)]
    blocks = np.array_split(np.arange(60_000), len(names))
    for name, block, flip in zip(names, blocks, source.flips, strict=True):
        gray = construction.downsampled(digits.train_images[block], source.size or 28)
        noise, color = uniforms[block].unbind(1)
        labels = digits.train_labels[block]
        environment = source.colored(name, gray, labels, flip, (noise, color), lambda number: number >= 5)
        yield construction.standardized(environment, 0.1307, 0.3081)


def _sample_eqrm(source: ColoredMNIST, digits: mnist.MNIST, seed: int) -> Iterator[Environment]:
    drawn = eqrm.sample(source.train_flips, source.test_flips, digits, seed, source.drawn)
    return islice(drawn, len(source.flips))


def _irm_settings(algorithm: str, gray: bool) -> DefaultSettings:
    """Return the published settings of an algorithm, or those of ERM if none are published for it."""
    if algorithm in ("vrex", "mm-rex"):
        return _rex_settings(algorithm)
    paper = published.protocol("colored_mnist_irm")
    eiil = paper["eiil_settings"]
    coefficient = Step(1.0, paper["penalty_weight"], at=paper["anneal_steps"])
    penalized: Mapping[str, Mapping[str, Any]] = {
        "irm": {"l2": paper["l2"]},
        # The Fishr code for these data: variances of the current batch only, and summed distances.
        "fishr": {"l2": paper["l2"], "memory": 0.0, "summed": True},
        "eiil": {"l2": paper["l2"], "coefficient": replace(coefficient, after=eiil["penalty_weight"])},
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


def _rex_settings(algorithm: str) -> DefaultSettings:
    """Return the settings of the commands in the REx code's readme, which are the program's defaults.

    They give the published accuracies (`envariant reproduce rex-2020`). The text of the REx paper names the
    hyperparameters of the IRM paper instead, which give lower accuracies.
    """
    rex = published.protocol("colored_mnist_rex")
    # The code's objective is the sum of the risks plus c·(R_1 − R_2)² or c|R_1 − R_2|. The latter is twice
    # R̄ + c(max − R̄), so the l2 term is halved.
    objective: Mapping[str, Any] = (
        {"l2": rex["l2"], "pairwise": True, "risk_aggregator": "sum"}
        if algorithm == "vrex"
        else {"l2": rex["l2"] / 2}
    )
    return DefaultSettings(
        {"coefficient": Step(1.0, rex["penalty_weight"], at=rex["anneal_steps"]), **objective},
        model=f"mlp(hidden={rex['hidden']})",
        steps=rex["steps"],
        learning_rate=rex["lr"],
        source="REx code, defaults of its program",
    )


def _rfc_settings(algorithm: str) -> DefaultSettings | None:
    # The code lists five weights and up to six lengths of the first stage; these are the middle weight, and
    # the length in its figure. Its penalties are sums over environments; those of Envariant are means.
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
        source="RFC code, the middle value of its list of penalty weights",
    )


def _domainbed_settings(algorithm: str, gray: bool) -> DefaultSettings:
    return mnist_settings(algorithm, "one logit, IRM's penalty on the whole batch and no optimizer reset")


def _thirds_settings(algorithm: str, gray: bool) -> DefaultSettings:
    return DefaultSettings(
        model="lenet",
        steps=1000,
        batch_size=256,
        source=(
            "LeNet as in the course report, which does not state the number of steps, the batch size or the "
            "learning rate"
        ),
    )


def _eqrm_settings(algorithm: str, gray: bool) -> DefaultSettings:
    """Return the network and batch settings of the EQRM code, without its ERM start and penalty weights."""
    return DefaultSettings(
        model="mlp(hidden=390, depth=3)",
        steps=600,
        batch_size=25_000,
        learning_rate=1e-4,
        source="EQRM code, without its dropout, ERM start and decay of the learning rate",
    )


@final
@dataclass(frozen=True)
class _Protocol:
    size: int
    train_flips: Flips
    sample: Callable[[ColoredMNIST, mnist.MNIST, int], Iterator[Environment]]
    default_settings: Callable[[str, bool], DefaultSettings]


_PROTOCOLS: dict[str, _Protocol] = {
    "irm": _Protocol(14, (0.2, 0.1), _sample_irm, _irm_settings),
    "domainbed": _Protocol(28, (0.1, 0.2), _sample_domainbed, _domainbed_settings),
    "thirds": _Protocol(28, (0.2, 0.1), _sample_thirds, _thirds_settings),
    "eqrm": _Protocol(14, (0.1, 0.2), _sample_eqrm, _eqrm_settings),
}
