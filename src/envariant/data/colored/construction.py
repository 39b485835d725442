"""Construct colored digits: labels are a noisy function of the digit, and colors a noisy copy of the label.

The noise-free binary label s (`shape` in the code) depends only on the digit: digits 0–4 have one value and
digits 5–9 the other. The label is y = s ⊕ Bern(label noise), and the color is c = y ⊕ Bern(flip), where ⊕ is
exclusive or and Bern(p) is 1 with probability p. c is the index of the color channel that shows the digit.
Within an environment, the color may predict the label better than the shape does. Only the relation between
label and shape is the same in all environments. Arjovsky et al. 2019, section 5.2.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, cast, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.core.environments import Environment, EnvironmentSet, ReferenceScores
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.data.base import SpecSource

Flips = tuple[float, ...]
# Range of NumPy's legacy generator.
SEED = Annotated[int, Field(ge=0, lt=2**32)]


@final
@dataclass(frozen=True)
class Theory:
    """Exact accuracies and risks of one environment, for balanced classes.

    Attributes:
        shape_only: Accuracy of the best classifier that uses only the shape: 1 − label noise.
        color_only: Accuracy of the classifier that predicts the color as the label: 1 − flip probability.
        bayes: Accuracy of the environment's Bayes classifier, which uses shape and color.
        bayes_risk: Risk of the Bayes classifier in nats: the entropy of the label given shape and color.
    """

    shape_only: float
    color_only: float
    bayes: float
    bayes_risk: float


def theory(label_noise: float, flip: float) -> Theory:
    """Compute the exact accuracies and risks of one environment by Bayes' rule.

    The shape and the color are independent given the label.

    Args:
        label_noise: Probability that the label differs from the noise-free label.
        flip: Probability that the color differs from the label.
    """
    q, e = label_noise, flip
    agree = (1 - q) * (1 - e) + q * e
    # P(c = 1 | s = 1) with P(y = 1 | s = 1, c = 1), then P(c = 0 | s = 1) with P(y = 1 | s = 1, c = 0).
    cases = (
        (agree, (1 - q) * (1 - e) / agree if agree else 0.5),
        (1 - agree, (1 - q) * e / (1 - agree) if agree < 1 else 0.5),
    )
    return Theory(
        shape_only=1 - q,
        color_only=1 - e,
        bayes=sum(weight * max(p, 1 - p) for weight, p in cases),
        bayes_risk=sum(weight * entropy(p) for weight, p in cases),
    )


def entropy(p: float) -> float:
    """Return the binary entropy of a probability, in nats."""
    return float(-sum(x * np.log(x) for x in (p, 1 - p) if x > 0))


def names(
    train: Sequence[float], test: Sequence[float], name: Callable[[float], str] = "flip-{:g}".format
) -> list[str]:
    """Name every environment by its flip probability, such as `flip-0.2`.

    If a test environment has the flip probability of a training environment, its name is `test-flip-0.2`. If
    training environments have the same flip probability, the second is named `flip-0.2-2`, and so on.

    Args:
        train: Color flip probability of each training environment.
        test: Color flip probability of each test environment.
        name: Function that maps a flip probability to a name, without the prefix or suffix.
    """
    repeats = [list(train[:i]).count(flip) for i, flip in enumerate(train)]
    trained = [name(flip) + (f"-{n + 1}" if n else "") for flip, n in zip(train, repeats, strict=True)]
    return [*trained, *(f"{'test-' if flip in train else ''}{name(flip)}" for flip in test)]


def colored_environment(
    name: str,
    images: Float[Tensor, "rows height width"],
    digits: Int[Tensor, " rows"],
    shape: Bool[Tensor, " rows"],
    *,
    flipped_label: Bool[Tensor, " rows"],
    flipped_color: Bool[Tensor, " rows"],
) -> Environment:
    """Build an environment of colored digits, with the row attributes digit, shape and color.

    The inputs, `[rows, 2, height, width]`, contain the image in the channel of its color, and zeros in the
    other channel.

    Args:
        name: Name of the environment.
        images: Grayscale images with values in [0, 1], `[rows, height, width]`.
        digits: Digit of each image, 0 to 9, `[rows]`.
        shape: Noise-free binary label of each row, which depends on its digit, `[rows]`.
        flipped_label: Mask of the rows whose label differs from the noise-free label, `[rows]`.
        flipped_color: Mask of the rows whose color differs from the label, `[rows]`.
    """
    label = shape ^ flipped_label
    color = label ^ flipped_color
    inputs = torch.zeros(len(images), 2, *images.shape[1:])
    inputs[torch.arange(len(images)), color.long()] = images
    attributes = {"digit": digits, "shape": shape.long(), "color": color.long()}
    return Environment(name, inputs, label.float(), attributes)


def both_channels(environment: Environment) -> Environment:
    """Return a copy of an environment in which both channels contain the image; it is named `gray`."""
    image = environment.inputs.sum(dim=1, keepdim=True).expand_as(environment.inputs).clone()
    attributes = {name: values for name, values in environment.attributes.items() if name != "color"}
    return Environment("gray", image, environment.targets, attributes)


def grayscale(environment: Environment) -> Environment:
    """Return a copy of an environment without color: the color channels are summed."""
    return _with_inputs(environment, environment.inputs.sum(dim=1, keepdim=True))


def standardized(environment: Environment, mean: float, deviation: float) -> Environment:
    """Standardize the inputs of an environment; append a third channel of zeros if there are two channels."""
    inputs = (environment.inputs - mean) / deviation
    if inputs.shape[1] == 2:
        inputs = torch.cat([inputs, torch.zeros_like(inputs[:, :1])], dim=1)
    return _with_inputs(environment, inputs)


def _with_inputs(environment: Environment, inputs: Tensor) -> Environment:
    return Environment(environment.name, inputs, environment.targets, environment.attributes)


def uniforms(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample one uniform number in [0, 1) per row for label noise, then one per row for colors.

    The order is that of the IRM authors' code.
    """
    return torch.rand(rows, generator=generator), torch.rand(rows, generator=generator)


def downsampled(images: Num[np.ndarray, "rows height width"], size: int, most: int = 255) -> Tensor:
    """Downsample images to `size` × `size` pixels and scale their values to [0, 1].

    Args:
        images: Grayscale images with values from 0 to `most`, `[rows, height, width]`.
        size: Height and width of the result in pixels; pixels are selected at equal intervals.
        most: Largest possible pixel value.
    """
    stride = images.shape[1] // size
    return torch.from_numpy(images[:, ::stride, ::stride].astype(np.float32) / most)


@final
@dataclass(frozen=True)
class Facts:
    """Measured properties of one environment, and its exact accuracies and risks.

    Attributes:
        environment: Name of the environment.
        role: Default role of the environment, "train" or "test".
        rows: Number of rows.
        label_one: Share of rows with label 1.
        color_agreement: Share of rows whose color equals the label; NaN for images without color.
        shape_agreement: Share of rows whose label equals the noise-free label.
        theory: Exact accuracies and risks of the environment.
    """

    environment: str
    role: str
    rows: int
    label_one: float
    color_agreement: float
    shape_agreement: float
    theory: Theory


class DigitSource(SpecSource):
    """Base class of all sources of colored digits, written as a string `NAME:PROTOCOL(setting=value, …)`.

    The protocol is omitted if the source has none. For grayscale images, the name ends in `-grayscale`.
    """

    @classmethod
    def from_spec(cls, spec: specs.Spec, folder: Path | None = None) -> Self:
        name, _, protocol = spec.name.partition(":")
        # A single flip is written as a number, several as a tuple.
        keywords = {
            key: (value,) if key.endswith("flips") and isinstance(value, int | float) else value
            for key, value in spec.keywords.items()
        }
        fields = {field.name for field in dataclasses.fields(cast("Any", cls))}
        if protocol and "protocol" not in fields:
            raise EnvariantError(f"{name}: has no protocols; got ':{protocol}'")
        # Stated by the name, or not a property of the data.
        implied: dict[str, Any] = {"gray": name.endswith("-grayscale"), "folder": folder}
        implied |= {"protocol": protocol} if protocol else {}
        complete = specs.Spec(spec.name, spec.positional, keywords)
        settings = specs.fill(cls, complete, positional=(), hidden=("protocol", "gray", "folder"))
        return cls(**settings, **{key: value for key, value in implied.items() if key in fields})


@dataclass(frozen=True, kw_only=True)
class ColoredSource(DigitSource):
    """Base class of colored-digit sources; the seed sets the order of rows, the label noise and the colors.

    Attributes:
        label_noise: Probability that the label differs from the noise-free label of the digit.
        train_flips: Probabilities that the color differs from the label, one per training environment.
        test_flips: Probabilities that the color differs from the label, one per default test environment.
        gray: Whether to sum the color channels, so that models cannot use the color (grayscale oracle).
    """

    label_noise: float = 0.25
    train_flips: Flips = (0.2, 0.1)
    test_flips: Flips = (0.9,)
    gray: bool = False

    def __post_init__(self) -> None:
        specs.validate(self, self.base, only=("gray",))
        if not self.train_flips:
            raise EnvariantError(f"{self.base}: train_flips must name at least one training environment")
        self._check_chances("label_noise", (self.label_noise,))
        self._check_chances("train_flips", self.train_flips)
        self._check_chances("test_flips", self.test_flips)

    def _check_chances(self, key: str, values: Flips) -> None:
        where = f"{self.base}: {key} must"
        if not isinstance(values, tuple):
            raise EnvariantError(f"{where} be a tuple of numbers in [0, 1], as in (0.2, 0.1); got {values}")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise EnvariantError(f"{where} be numbers in [0, 1]; got {value}")
            if not 0 <= value <= 1:
                raise EnvariantError(f"{where} lie in [0, 1]; got {value:g}")
        # Equal training environments are a control: then no color is stable, and none is spurious.
        if key == "test_flips" and len(set(values)) < len(values):
            raise EnvariantError(f"{where} differ from one another; got {values}")

    @property
    def flips(self) -> Flips:
        """Color flip probabilities of all environments, the training environments first."""
        return (*self.train_flips, *self.test_flips)

    @abstractmethod
    def environments(self, seed: int) -> tuple[Environment, ...]:
        """Build the environments of one data draw, in the order of `flips`.

        Args:
            seed: Seed of the data draw.

        Raises:
            EnvariantError: If the digits are not found and cannot be downloaded.
        """

    def sample(self, seed: int) -> EnvironmentSet:
        specs.check_value(seed, SEED, "seed")
        environments = self.environments(seed)
        test = tuple(environment.name for environment in environments[len(self.train_flips) :])
        known = ReferenceScores(chance=0.5, optimum=max(self.label_noise, 1 - self.label_noise))
        return EnvironmentSet(self.name, environments, Binary(), test, known)

    def colored(
        self,
        name: str,
        images: Tensor,
        digits: np.ndarray,
        flip: float,
        uniforms: tuple[Tensor, Tensor],
        group: Callable[[Tensor], Tensor] = lambda number: number < 5,
    ) -> Environment:
        """Build one environment from grayscale images and random numbers.

        Args:
            name: Name of the environment.
            images: Grayscale images with values in [0, 1], `[rows, height, width]`.
            digits: Digit of each image, 0 to 9, `[rows]`.
            flip: Probability that the color differs from the label.
            uniforms: Uniform numbers in [0, 1) for label noise and for colors, `[rows]` each.
            group: Function that maps digits to the noise-free binary label (true or false).
        """
        number = torch.from_numpy(digits.astype(np.int64))
        noise, color = uniforms
        environment = colored_environment(
            name,
            images,
            number,
            group(number),
            flipped_label=noise < self.label_noise,
            flipped_color=color < flip,
        )
        return grayscale(environment) if self.gray else environment

    def facts(self, sample: EnvironmentSet) -> Sequence[Facts]:
        """Measure the properties of every environment, and compute its exact accuracies and risks.

        Args:
            sample: Environments returned by `sample`.
        """
        roles = sample.roles()
        return [
            self._facts_of(environment, roles[environment.name], flip)
            # Images without color come last. A color that is not shown predicts as little as a random one.
            for environment, flip in zip(sample.environments, (*self.flips, 0.5), strict=False)
        ]

    def _facts_of(self, environment: Environment, role: str, flip: float) -> Facts:
        def share(agrees: Tensor) -> float:
            return float(agrees.double().mean())

        color = environment.attributes.get("color")
        return Facts(
            environment.name,
            role,
            len(environment),
            share(environment.targets == 1),
            float("nan") if color is None else share(color == environment.targets),
            share(environment.attributes["shape"] == environment.targets),
            theory(self.label_noise, flip),
        )
