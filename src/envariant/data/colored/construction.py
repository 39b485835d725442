"""The construction behind every colored-digit set: noisy labels from shapes, misleading colors from labels.

A digit's shape says s (its group of five). The label is y = s ⊕ Bern(label noise), the color
c = y ⊕ Bern(flip), and color c is the channel that holds the digit. Within an environment color may
predict the label better than shape does; only shape keeps its word in the next one.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource


@final
@dataclass(frozen=True)
class Theory:
    """What can be known of one environment beforehand, for balanced classes.

    Attributes:
        shape_only: accuracy of the best rule that sees only the shape, 1 − label noise.
        color_only: accuracy of the rule "the label is the color", 1 − flip.
        bayes: accuracy of the best rule of this environment that sees both.
        bayes_risk: its risk in nats, the entropy of the label given shape and color.
    """

    shape_only: float
    color_only: float
    bayes: float
    bayes_risk: float


def theory(label_noise: float, flip: float) -> Theory:
    """Closed forms by Bayes' rule; given the label, shape and color are independent."""
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
    """Binary entropy in nats."""
    return float(-sum(x * np.log(x) for x in (p, 1 - p) if x > 0))


def names(
    train: Sequence[float],
    test: Sequence[float],
    name: Callable[[float], str] = "flip-{:g}".format,
) -> list[str]:
    """A name a flip, such as `flip-0.2`; a held-out flip that is trained on as well is `test-flip-0.2`."""
    return [*map(name, train), *(f"{'test-' if flip in train else ''}{name(flip)}" for flip in test)]


def paint(
    name: str,
    images: Float[Tensor, "rows height width"],
    digits: Int[Tensor, " rows"],
    shape: Bool[Tensor, " rows"],
    *,
    flipped_label: Bool[Tensor, " rows"],
    flipped_color: Bool[Tensor, " rows"],
) -> Environment:
    """One environment from gray digits and the outcomes of its two coins per row.

    Args:
        name: of the environment.
        images: ink in [0, 1].
        digits: 0 … 9.
        shape: s, what the shape says of the label.
        flipped_label: where label noise struck.
        flipped_color: where the color was flipped.

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
    """The same rows with both colors added up, so that no model can see which it was: the oracle's data."""
    gray = environment.inputs.sum(dim=1, keepdim=True)
    return Environment(environment.name, gray, environment.targets, environment.attributes)


def as_rgb(environment: Environment, mean: float, deviation: float) -> Environment:
    """Red, green and an empty blue channel, standardized as the "thirds" data are at loading."""
    rgb = torch.zeros(len(environment), 3, *environment.inputs.shape[2:])
    rgb[:, :2] = (environment.inputs - mean) / deviation
    return Environment(environment.name, rgb, environment.targets, environment.attributes)


def uniforms(rows: int, generator: torch.Generator) -> Float[Tensor, " rows"]:
    """Float32 uniforms in [0, 1), in the order in which the IRM code draws them."""
    return torch.rand(rows, generator=generator)


def ink(images: Num[np.ndarray, "rows height width"], size: int, most: int = 255) -> Tensor:
    """Images of `size` pixels a side, by keeping every k-th row and column, scaled to [0, 1]."""
    stride = images.shape[1] // size
    return torch.from_numpy(images[:, ::stride, ::stride].astype(np.float32) / most)


@final
@dataclass(frozen=True)
class Facts:
    """What one drawn environment holds, beside what theory says of it.

    Attributes:
        environment, role: its name, and "train" or "test" by default.
        rows: how many.
        label_one: share of rows with label 1.
        color_agreement, shape_agreement: share of rows whose label is the color, and what shape says.
        theory: the closed forms.
    """

    environment: str
    role: str
    rows: int
    label_one: float
    color_agreement: float
    shape_agreement: float
    theory: Theory


class ColoredSource(EnvironmentSource):
    """A source whose environments are painted digits.

    Attributes:
        label_noise: chance that a label is not what the shape says.
    """

    label_noise: float

    @property
    @abstractmethod
    def flips(self) -> tuple[float, ...]:
        """The chance, in each environment, that the color is not the label."""

    def facts(self, drawn: EnvironmentSet) -> Sequence[Facts]:
        """What a draw of this source holds, environment by environment."""
        roles = drawn.roles()
        found: list[Facts] = []
        for environment, flip in zip(drawn.environments, self.flips, strict=True):
            label = environment.targets.long()

            def share(agrees: Tensor) -> float:
                return float(agrees.double().mean())

            found.append(
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
        return found
