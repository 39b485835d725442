"""The construction of colored digits: noisy labels from shapes, misleading colors from labels.

A digit's shape gives the class s (its group of five digits). The label is y = s ⊕ Bern(label noise), the
color c = y ⊕ Bern(flip), and c is the channel that holds the digit. Within an environment the color may
predict the label better than the shape does; only the relation to the shape holds in all environments.
Arjovsky et al. 2019, section 5.2.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envariant.core import specs
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.data.base import SpecSource


@final
@dataclass(frozen=True)
class Theory:
    """Exact accuracies and risks of one environment, for balanced classes.

    Attributes:
        shape_only: Accuracy of the best classifier that uses only the shape, 1 − label noise.
        color_only: Accuracy of predicting the color, 1 − flip.
        bayes: Accuracy of the best classifier of this environment that uses both.
        bayes_risk: Its risk in nats, the entropy of the label given shape and color.
    """

    shape_only: float
    color_only: float
    bayes: float
    bayes_risk: float


def theory(label_noise: float, flip: float) -> Theory:
    """Return the closed forms by Bayes' rule; given the label, shape and color are independent."""
    q, e = label_noise, flip
    agree = (1 - q) * (1 - e) + q * e
    # P(y = 1 | s = 1, c = 1) and P(y = 1 | s = 1, c = 0), each with the probability of its case.
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
    train: Sequence[float],
    test: Sequence[float],
    name: Callable[[float], str] = "flip-{:g}".format,
) -> list[str]:
    """Return a name for every environment, such as `flip-0.2`.

    A test environment with the flip of a training environment is named `test-flip-0.2`.
    """
    return [*map(name, train), *(f"{'test-' if flip in train else ''}{name(flip)}" for flip in test)]


def colored_environment(
    name: str,
    images: Float[Tensor, "rows height width"],
    digits: Int[Tensor, " rows"],
    shape: Bool[Tensor, " rows"],
    *,
    flipped_label: Bool[Tensor, " rows"],
    flipped_color: Bool[Tensor, " rows"],
) -> Environment:
    """Return an environment of colored digits.

    Args:
        name: Name of the environment.
        images: Gray values in [0, 1].
        digits: The digits, 0 … 9.
        shape: The class s that the shape gives.
        flipped_label: Whether the label is flipped by label noise.
        flipped_color: Whether the color is flipped.

    Returns:
        Inputs `[rows, 2, height, width]` with the digit in channel c and zeros in the other, targets y,
        and the attributes digit, shape and color.
    """
    label = shape ^ flipped_label
    color = label ^ flipped_color
    inputs = torch.zeros(len(images), 2, *images.shape[1:])
    inputs[torch.arange(len(images)), color.long()] = images
    attributes = {"digit": digits, "shape": shape.long(), "color": color.long()}
    return Environment(name, inputs, label.float(), attributes)


def grayscale(environment: Environment) -> Environment:
    """Return the same rows with the color channels added up: the data of the grayscale oracle."""
    gray = environment.inputs.sum(dim=1, keepdim=True)
    return Environment(environment.name, gray, environment.targets, environment.attributes)


def as_rgb(environment: Environment, mean: float, deviation: float) -> Environment:
    """Return the same rows as RGB images with an empty blue channel, standardized as in protocol "thirds"."""
    rgb = torch.zeros(len(environment), 3, *environment.inputs.shape[2:])
    rgb[:, :2] = (environment.inputs - mean) / deviation
    return Environment(environment.name, rgb, environment.targets, environment.attributes)


def uniforms(rows: int, generator: torch.Generator) -> Float[Tensor, " rows"]:
    """Return float32 uniforms in [0, 1), in the order in which the IRM code draws them."""
    return torch.rand(rows, generator=generator)


def downsampled(images: Num[np.ndarray, "rows height width"], size: int, most: int = 255) -> Tensor:
    """Return images downsampled to `size` pixels by keeping every k-th row and column, scaled to [0, 1].

    Args:
        images: Gray values from 0 to `most`.
        size: Side of the result in pixels; a divisor of the side of `images`.
        most: Largest gray value.
    """
    stride = images.shape[1] // size
    return torch.from_numpy(images[:, ::stride, ::stride].astype(np.float32) / most)


@final
@dataclass(frozen=True)
class Facts:
    """Measured shares of one sampled environment, with their theoretical counterparts.

    Attributes:
        environment: Name of the environment.
        role: Its default role, "train" or "test".
        rows: Number of rows.
        label_one: Share of rows with label 1.
        color_agreement: Share of rows whose label equals the color.
        shape_agreement: Share of rows whose label equals the shape's class.
        theory: Exact accuracies and risks.
    """

    environment: str
    role: str
    rows: int
    label_one: float
    color_agreement: float
    shape_agreement: float
    theory: Theory


class DigitSource(SpecSource):
    """Source made of digits, written `base:protocol(setting=value, …)` or `base-grayscale(…)`."""

    @classmethod
    def from_spec(cls, spec: specs.Spec, folder: Path | None = None) -> Self:
        name, _, protocol = spec.name.partition(":")
        # A single flip is typed as a number, several as a tuple.
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
        settings = specs.fill(
            cls,
            specs.Spec(spec.name, spec.positional, keywords),
            positional=(),
            hidden=("protocol", "gray", "folder"),
        )
        return cls(**settings, **{key: value for key, value in implied.items() if key in fields})


class ColoredSource(DigitSource):
    """Source of colored digits.

    Attributes:
        label_noise: Probability that the label differs from the shape's class.
    """

    label_noise: float

    @property
    @abstractmethod
    def flips(self) -> tuple[float, ...]:
        """Probability in each environment that the color differs from the label."""

    def facts(self, sample: EnvironmentSet) -> Sequence[Facts]:
        """Return measured and theoretical shares of every environment."""
        roles = sample.roles()
        facts: list[Facts] = []
        for environment, flip in zip(sample.environments, self.flips, strict=True):
            label = environment.targets.long()

            def share(agrees: Tensor) -> float:
                return float(agrees.double().mean())

            facts.append(
                Facts(
                    environment.name,
                    roles[environment.name],
                    len(environment),
                    share(label == 1),
                    share(environment.attributes["color"] == label),
                    share(environment.attributes["shape"] == label),
                    theory(self.label_noise, flip),
                )
            )
        return facts
